"""The demo with one's own images and checkpoint: what is wrong is told first, and what is trained is what the folder says."""
from pathlib import Path

import pytest
from loom_server import PACK
from material import Material, place
from PIL import Image


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """As a model cache keeps them: a link to a file of another name."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a1b").write_bytes(b"weights")
    link = tmp_path / "mine.safetensors"
    link.symlink_to("blobs/0a1b")
    return link


def folder_of(tmp_path: Path, count: int, name: str = "pets") -> Path:
    folder = tmp_path / name
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"\ufeffpet {number}\non a sofa\n", encoding="utf-8")
    return folder


def placed(tmp_path: Path, checkpoint: Path, images: Path | None) -> Material:
    return place(tmp_path / "home", checkpoint, images, None)


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (5, 0), (16, 2)])
def test_own_images_are_trained_and_some_held_out_where_there_are_many(tmp_path: Path, checkpoint: Path, count: int, held_out: int) -> None:
    material = placed(tmp_path, checkpoint, folder_of(tmp_path, count))
    home = tmp_path / "home"
    assert len(list((home / material.folder).glob("*.png"))) == count - held_out
    assert [len(list((home / folder).glob("*.png"))) for folder in material.held_out] == ([held_out] if held_out else [])
    # A row of the grid is a line: a caption of several lines is one prompt.
    assert material.prompts[0] == "pet 0 on a sofa"
    assert len(material.prompts) == min(count, 6)
    assert material.words == ""
    assert (home / "models" / "checkpoints" / material.checkpoint).read_bytes() == b"weights"


def test_what_is_wrong_with_own_images_is_told(tmp_path: Path, checkpoint: Path) -> None:
    folder = folder_of(tmp_path, 2)
    (folder / "01.txt").unlink()
    with pytest.raises(ValueError, match=r"01\.png"):
        placed(tmp_path, checkpoint, folder)
    with pytest.raises(ValueError, match="not a folder"):
        placed(tmp_path, checkpoint, tmp_path / "nowhere")


    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no pictures in it"):
        placed(tmp_path, checkpoint, tmp_path / "empty")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"old\.ckpt: not a \.safetensors file"):
        placed(tmp_path, tmp_path / "old.ckpt", None)


def test_an_image_that_is_taken_away_is_gone_from_the_next_demo(tmp_path: Path, checkpoint: Path) -> None:
    folder = folder_of(tmp_path, 3)
    placed(tmp_path, checkpoint, folder)
    (folder / "01.png").unlink()
    (folder / "01.txt").unlink()
    material = placed(tmp_path, checkpoint, folder)
    assert {file.name for file in (tmp_path / "home" / material.folder).iterdir()} == {"00.png", "00.txt", "02.png", "02.txt"}


def test_a_long_name_still_names_a_file(tmp_path: Path, checkpoint: Path) -> None:
    material = placed(tmp_path, checkpoint, folder_of(tmp_path, 1, "猫" * 80))
    assert len(material.name.encode()) < 100
    assert (tmp_path / "home" / material.folder / "00.png").is_file()


def test_the_emoji_are_enlarged_for_a_full_size_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
    material = placed(tmp_path, checkpoint, None)
    assert material.settings["LoomResolution"] == {"resolution": 512, "buckets": True, "upscale": True}
    captions = {file.read_text().strip() for file in (tmp_path / "home" / "input" / "sunset").glob("*.txt")}
    # None of the grid's subjects is trained in the style.
    assert len(captions) == 24
    assert not captions & set(material.prompts)
    assert captions == {file.read_text().strip() for file in (PACK / "demo" / "sunset").glob("*.txt")}
