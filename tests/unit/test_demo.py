"""The demo with the reader's own pictures and checkpoint."""
from pathlib import Path

import pytest
from material import place
from PIL import Image


def folder_of(path: Path, count: int, captions: bool = True) -> Path:
    path.mkdir()
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path / f"{number:02d}.png")
        if captions:
            (path / f"{number:02d}.txt").write_text(f"picture {number % 3}\n")
    return path


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"weights")
    return path


def test_own_pictures_and_checkpoint_are_placed_where_comfyui_finds_them(tmp_path: Path, checkpoint: Path) -> None:
    home = tmp_path / "home"
    material = place(home, checkpoint, folder_of(tmp_path / "cats", 5))
    assert (home / "models" / "checkpoints" / material.checkpoint).read_bytes() == b"weights"
    assert len(names(home / material.folder)) == 10
    assert material.held_out == ""
    assert material.prompts == ("picture 0", "picture 1", "picture 2")
    assert material.resolution == 512


def test_one_in_eight_is_held_out_where_there_are_enough(tmp_path: Path, checkpoint: Path) -> None:
    home = tmp_path / "home"
    material = place(home, checkpoint, folder_of(tmp_path / "cats", 17))
    trained, held_out = names(home / material.folder), names(home / material.held_out)
    assert {"00.png", "00.txt", "08.png", "08.txt", "16.png", "16.txt"} == held_out
    assert not trained & held_out
    assert len(trained | held_out) == 34


def test_a_picture_that_is_taken_away_is_gone_from_the_next_demo(tmp_path: Path, checkpoint: Path) -> None:
    home, own = tmp_path / "home", folder_of(tmp_path / "cats", 3)
    place(home, checkpoint, own)
    (own / "01.png").unlink()
    (own / "01.txt").unlink()
    material = place(home, checkpoint, own)
    assert names(home / material.folder) == {"00.png", "00.txt", "02.png", "02.txt"}


@pytest.mark.parametrize(
    ("count", "captions", "says"), [(0, True, "no pictures in it"), (2, False, "no captions"), (None, True, "not a folder")]
)
def test_unusable_pictures_are_refused_before_anything_starts(
    tmp_path: Path, checkpoint: Path, count: int | None, captions: bool, says: str
) -> None:
    folder = tmp_path / "cats"
    if count is not None:
        folder_of(folder, count, captions)
    with pytest.raises(ValueError, match=says):
        place(tmp_path / "home", checkpoint, folder)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"old\.ckpt: not a \.safetensors file"):
        place(tmp_path / "home", tmp_path / "old.ckpt", None)
