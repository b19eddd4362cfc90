"""Which subfolders and files of a dataset's folder are trained, and that all others are told by name with the reason."""
import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from trainer.data.sources import DatasetError, scan_folder
from trainer.dataset import Dataset


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), "red").save(path)
    return path


def repeats(dataset: Dataset, folder: Path) -> dict[str, int]:
    return {str(Path(image.path).relative_to(folder)): image.repeats for image in dataset.images}


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    for folder, letter in (("10_dog", "a"), ("0_off", "b"), ("dogs", "c"), ("1-dog", "d"), ("20240613_x", "e"), ("dogs/deep", "f")):
        picture(tmp_path / folder / f"{letter}.png")
    for path in ("0_off/deep/b.png", "10_dog/g/h.png"):
        picture(tmp_path / path)
    return tmp_path


def test_every_folder_is_used_or_named_with_why_not(kinds: Path) -> None:
    dataset = scan_folder(kinds, "things")
    assert repeats(dataset, kinds) == {"10_dog/a.png": 10}
    off, loose = dataset.notes
    assert off == "left out, because the number of the folder says 0 times: 0_off/ (1 image), 0_off/deep/ (1 image)"
    assert "1-dog/ (1 image), 10_dog/g/ (1 image), 20240613_x/ (1 image), dogs/ (1 image), dogs/deep/ (1 image)" in loose
    assert "turn recursive on" in loose


def test_recursion_trains_what_has_no_number_as_often_as_what_it_lies_in(kinds: Path) -> None:
    dataset = scan_folder(kinds, "things", recursive=True)
    found = {"1-dog/d.png": 1, "10_dog/a.png": 10, "10_dog/g/h.png": 10, "20240613_x/e.png": 1, "dogs/c.png": 1, "dogs/deep/f.png": 1}
    assert repeats(dataset, kinds) == found
    assert [note.startswith("left out, because the number of the folder says 0 times: 0_off/") for note in dataset.notes] == [True]


def test_a_year_is_no_number_of_repeats_unless_it_is_said_to_be(tmp_path: Path) -> None:
    picture(tmp_path / "2024_photos" / "a.png")
    picture(tmp_path / "101_PANA" / "b.png")
    picture(tmp_path / "100_dogs" / "c.png")
    dataset = scan_folder(tmp_path, "things", repeats=2)
    assert repeats(dataset, tmp_path) == {"100_dogs/c.png": 200, "101_PANA/b.png": 2, "2024_photos/a.png": 2}
    (note,) = dataset.notes
    assert "101_PANA/ (101), 2024_photos/ (2024)" in note and "large_repeats" in note
    meant = scan_folder(tmp_path, "things", large_repeats=True)
    assert repeats(meant, tmp_path) == {"100_dogs/c.png": 100, "101_PANA/b.png": 101, "2024_photos/a.png": 2024}
    assert meant.notes == ()


def test_a_year_in_the_name_of_the_folder_itself_is_none_either(tmp_path: Path) -> None:
    picture(tmp_path / "2024_photos" / "a.png")
    dataset = scan_folder(tmp_path / "2024_photos", "things")
    assert [image.repeats for image in dataset.images] == [1]
    assert ["2024_photos (2024)" in note for note in dataset.notes] == [True]


def test_the_images_of_a_kohya_project_are_found(tmp_path: Path) -> None:
    for path in ("img/10_sks dog/a.png", "reg/1_dog/b.png"):
        picture(tmp_path / path)
    for folder in ("log", "model"):
        (tmp_path / folder).mkdir()
    dataset = scan_folder(tmp_path, "project")
    assert repeats(dataset, tmp_path) == {"img/10_sks dog/a.png": 10}
    assert ["reg/1_dog/ (1 image)" in note for note in dataset.notes] == [True]
    picture(tmp_path / "own.png")
    assert list(repeats(scan_folder(tmp_path, "project"), tmp_path)) == ["own.png"]


def test_files_that_are_not_read_are_named_by_their_kind(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for name in ("b.mp4", "c.MOV", "d.psd", "e.CR2", "f.json", "train.parquet", "notes.md", "Thumbs.db", ".hidden.mp4"):
        (tmp_path / name).write_bytes(b"x")
    videos, raws, tables = scan_folder(tmp_path, "things").notes
    assert videos == "2 files are left out (videos are not read): b.mp4, c.MOV"
    assert raws == "2 files are left out (images of this kind are not read: save them as PNG or JPEG): d.psd, e.CR2"
    assert tables.endswith("f.json, train.parquet")


def test_images_without_the_package_that_reads_them_are_left_out_and_the_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from trainer.data import image_formats

    picture(tmp_path / "a.png")
    for name in ("b.heic", "c.HEIF", "d.jxl"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    image_formats.readable_formats.cache_clear()
    try:
        heic, jxl = scan_folder(tmp_path, "things").notes
        (tmp_path / "a.png").unlink()
        with pytest.raises(DatasetError, match=r"no pictures in it .* 2 files are left out \(HEIC images need the package pillow-heif"):
            scan_folder(tmp_path, "things")
    finally:
        image_formats.readable_formats.cache_clear()
    assert heic.startswith("2 files are left out (HEIC images need the package pillow-heif: run ") and heic.endswith("b.heic, c.HEIF")
    assert jxl.endswith("d.jxl")


def test_links_that_lead_nowhere_or_round_in_circles_are_left_out_by_name(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "2_dogs" / "b.png")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zz.png").symlink_to("zz.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "2_dogs" / "up").symlink_to("..")
    (tmp_path / "elsewhere.png").symlink_to("a.png")
    for recursive in (False, True):
        dataset = scan_folder(tmp_path, "things", recursive=recursive)
        assert repeats(dataset, tmp_path) == {"a.png": 1, "elsewhere.png": 1, "2_dogs/b.png": 2}
        (note,) = dataset.notes
        assert all(name in note for name in ("loop (", "zz.png (", "gone.png (a link that leads nowhere)", "2_dogs/up ("))


@contextmanager
def nobody():
    """Root may read everything: be nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="POSIX permissions")
def test_what_may_not_be_read_is_told_by_name(tmp_path: Path) -> None:
    for part in (tmp_path, *tmp_path.parents):
        if part.stat().st_uid == os.geteuid() and part != Path("/"):
            part.chmod(part.stat().st_mode | 0o055)
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")
    assert scan_folder(tmp_path, "things").notes == ()  # and all modules are loaded, which nobody might not read
    (tmp_path / "lost+found").mkdir(mode=0)
    with nobody():
        dataset = scan_folder(tmp_path, "things")
        assert dataset.notes == ("left out, because they cannot be read: lost+found/ (Permission denied)",)
    (tmp_path / "a.txt").chmod(0)
    with nobody(), pytest.raises(DatasetError, match=r"a\.txt cannot be read \(Permission denied\)"):
        scan_folder(tmp_path, "things")
    picture(tmp_path / "b.png").chmod(0)
    with nobody(), pytest.raises(DatasetError, match=r"b\.png cannot be read \(Permission denied\)"):
        scan_folder(tmp_path, "things")
    with nobody(), pytest.raises(DatasetError, match=r"the folder cannot be read \(Permission denied\)"):
        scan_folder(tmp_path / "lost+found", "things")


def test_a_folder_without_images_tells_what_is_there_instead(tmp_path: Path) -> None:
    picture(tmp_path / "dogs" / "a.png")
    with pytest.raises(DatasetError, match=r"no pictures in it .* What is there: .*dogs/ \(1 image\).*turn recursive on"):
        scan_folder(tmp_path, "things")


def test_odd_images_are_noted_by_name(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png", icc_profile=b"nonsense")
    frames_note, profile_note = scan_folder(tmp_path, "things").notes
    assert frames_note == "1 image has more than one frame, of which the first one is used: a.gif"
    assert profile_note.startswith("1 image has a color profile that cannot be used") and profile_note.endswith("b.png")


def test_notes_stay_short_however_much_there_is(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for number in range(300):
        (tmp_path / f"{number:03}.mp4").write_bytes(b"")
        picture(tmp_path / f"folder {number}" / "b.png")
    dataset = scan_folder(tmp_path, "things")
    assert all(len(note) < 700 for note in dataset.notes)
    assert any("and 290 more" in note for note in dataset.notes)
    json.dumps(dataset.model_dump(mode="json"))
