"""A folder on disk as a dataset: captions, repeats, trigger words, and errors that name every file."""
import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from trainer.data.sources import DatasetError, check_captions, scan_folder, signature
from trainer.spec import Dataset, DatasetImage


def picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), colour).save(path)
    return path


def captions(dataset: Dataset) -> dict[str, str | None]:
    return {Path(image.path).name: image.caption for image in dataset.images}


def refusal(folder: Path, **options: object) -> str:
    with pytest.raises(DatasetError) as caught:
        scan_folder(folder, "things", **options)
    return str(caught.value)


def test_captions_come_from_txt_caption_and_metadata(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.webp", "d.png", "e.png", "f.PNG"):
        picture(tmp_path / name)
    (tmp_path / "a.txt").write_text("  a red\n  box \n", encoding="utf-8")
    (tmp_path / "b.caption").write_text("ein Kästchen", encoding="utf-8-sig")
    rows = [
        {"file_name": "c.webp", "text": "from metadata"},
        {"file_name": "d.png", "caption": "the other column", "width": 16},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    (tmp_path / "e.txt").write_text(" \n", encoding="utf-8")
    assert captions(scan_folder(tmp_path, "things")) == {
        "a.png": "a red box",
        "b.jpg": "ein Kästchen",
        "c.webp": "from metadata",
        "d.png": "the other column",
        "e.png": None,
        "f.PNG": None,
    }


def test_two_sources_that_agree_are_one_caption(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a box")
    (tmp_path / "a.caption").write_text("a  box\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a box"}')
    assert captions(scan_folder(tmp_path, "things")) == {"a.png": "a box"}


def test_a_line_separator_inside_a_metadata_caption_is_not_a_line_end(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    row = json.dumps({"file_name": "a.png", "text": "a\u2028box"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(row + "\n", encoding="utf-8")
    assert captions(scan_folder(tmp_path, "things")) == {"a.png": "a box"}


def test_pictures_are_known_by_their_bytes(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    (image,) = scan_folder(tmp_path, "things").images
    assert (image.path, image.sha256) == (str(path), sha256(path.read_bytes()).hexdigest())


def test_numbered_subfolders_repeat_and_other_subfolders_do_not_count(tmp_path: Path) -> None:
    picture(tmp_path / "top.png")
    for folder in ("3_cat", "12_dog", "notes", ".4_hidden", "5_"):
        picture(tmp_path / folder / f"{folder.strip('.')}.png")
    picture(tmp_path / ".hidden.png")
    (tmp_path / "3_cat" / "3_cat.txt").write_text("a cat")
    dataset = scan_folder(tmp_path, "things", repeats=2)
    assert {Path(image.path).name: image.repeats for image in dataset.images} == {"top.png": 2, "3_cat.png": 6, "12_dog.png": 24}
    assert captions(dataset)["3_cat.png"] == "a cat"


def test_the_folder_itself_may_have_a_numbered_name(tmp_path: Path) -> None:
    picture(tmp_path / "7_cat" / "a.png")
    (image,) = scan_folder(tmp_path / "7_cat", "things").images
    assert image.repeats == 7


@pytest.mark.parametrize(
    ("trigger", "caption", "trained"),
    [
        ("", "a cat", "a cat"),
        ("sks", "a cat", "sks, a cat"),
        ("sks", None, "sks"),
        ("sks", "a photo of SKS cat", "a photo of SKS cat"),
        ("sks", "sks, a cat", "sks, a cat"),
        ("sks", "asks a cat", "sks, asks a cat"),
        ("my cat", "this is my cat here", "this is my cat here"),
        ("c++", "c++ on a screen", "c++ on a screen"),
        ("c++", "c on a screen", "c++, c on a screen"),
    ],
)
def test_the_trigger_word_goes_first_and_is_not_doubled(trigger: str, caption: str | None, trained: str) -> None:
    image = DatasetImage(path="/a.png", sha256="0", caption=caption)
    assert Dataset(name="d", images=(image,), trigger_word=trigger).training_caption(image) == trained


def test_missing_captions_are_refused_by_name_unless_the_trigger_word_stands_in(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    (tmp_path / "b.txt").write_text("b")
    for trigger in ("", "sks"):
        with pytest.raises(DatasetError, match=r"things: 2 of 3 pictures have no caption: a\.png, c\.png\. Write a \.txt"):
            check_captions(scan_folder(tmp_path, "things", trigger_word=trigger))
    allowed = scan_folder(tmp_path, "things", trigger_word=" sks ", missing_captions="use the trigger word")
    check_captions(allowed)
    assert [allowed.training_caption(image) for image in allowed.images] == ["sks", "sks, b", "sks"]


def test_the_class_name_stands_in_where_there_is_no_trigger_word(tmp_path: Path) -> None:
    picture(tmp_path / "2_red cat" / "a.png")
    picture(tmp_path / "2_red cat" / "b.png")
    (tmp_path / "2_red cat" / "b.txt").write_text("its own")
    dataset = scan_folder(tmp_path, "things", missing_captions="use the trigger word")
    check_captions(dataset)
    assert captions(dataset) == {"a.png": "red cat", "b.png": "its own"}
    assert captions(scan_folder(tmp_path, "things"))["a.png"] is None
    with_trigger = scan_folder(tmp_path, "things", trigger_word="sks", missing_captions="use the trigger word")
    assert [with_trigger.training_caption(image) for image in with_trigger.images] == ["sks", "sks, its own"]


def test_nothing_to_stand_in_for_a_caption_names_every_picture(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    assert "it is empty: a.png, b.png would have no caption" in refusal(tmp_path, missing_captions="use the trigger word")


def test_no_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "sub" / "a.png")
    message = refusal(tmp_path)
    assert message.startswith("things: no pictures")
    assert ".png" in message


def test_every_problem_is_in_one_message(tmp_path: Path) -> None:
    whole = picture(tmp_path / "good.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "text.png").write_text("this is not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    picture(tmp_path / "2_cat" / "twin.png")
    picture(tmp_path / "2_cat" / "twin.jpg")
    (tmp_path / "2_cat" / "twin.txt").write_text("one of the two")
    (tmp_path / "orphan.txt").write_text("no picture")
    picture(tmp_path / "both.png")
    (tmp_path / "both.txt").write_text("one thing")
    (tmp_path / "both.caption").write_text("another")
    picture(tmp_path / "latin.png")
    (tmp_path / "latin.txt").write_bytes("Kästchen".encode("latin-1"))
    message = refusal(tmp_path)
    for wanted in (
        "half.png cannot be read",
        "text.png cannot be read",
        "empty.jpg cannot be read",
        "2_cat/twin.jpg and 2_cat/twin.png have one name",
        "both.png has two captions that differ, in both.caption and in both.txt",
        "latin.txt is not UTF-8",
    ):
        assert wanted in message
    assert "good.png" not in message and "orphan.txt" not in message
    assert "\n" not in message


def test_a_repaired_picture_is_read_again(tmp_path: Path) -> None:
    whole = picture(tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:40])
    refusal(tmp_path)
    (tmp_path / "a.png").write_bytes(whole)
    assert len(scan_folder(tmp_path, "things").images) == 1


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("{'file_name': 'a.png'}", "metadata.jsonl line 3 is not JSON"),
        ('["a.png"]', 'metadata.jsonl line 3 has no "file_name"'),
        ('{"text": "a"}', 'metadata.jsonl line 3 has no "file_name"'),
        ('{"file_name": "z.png", "text": "a"}', "metadata.jsonl line 3: there is no image 'z.png'"),
        ('{"file_name": "../a.png", "text": "a"}', "metadata.jsonl line 3: there is no image '../a.png'"),
        ('{"file_name": "a.png"}', "metadata.jsonl line 3 has no caption"),
        ('{"file_name": "a.png", "text": 5}', "metadata.jsonl line 3 has no caption"),
        ('{"file_name": "a.png", "text": "other"}', "a.png has two captions that differ, in metadata.jsonl line 1 and in metadata.jsonl line 3"),
    ],
)
def test_bad_metadata_is_named_by_its_line(tmp_path: Path, line: str, wanted: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "good"}\n\n' + line + "\n")
    assert wanted in refusal(tmp_path)


def test_metadata_that_is_not_utf8(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "a.png", "text": "K\xe4stchen"}')
    assert "metadata.jsonl is not UTF-8" in refusal(tmp_path)


def test_a_folder_that_repeats_zero_times_is_told_as_a_dataset_error(tmp_path: Path) -> None:
    picture(tmp_path / "0_cat" / "a.png")
    assert "0_cat" in refusal(tmp_path)


def test_repeats_beyond_what_a_dataset_can_hold_are_told_as_a_dataset_error(tmp_path: Path) -> None:
    picture(tmp_path / "9999_cat" / "a.png")
    assert "9999_cat" in refusal(tmp_path, repeats=2, large_repeats=True)


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    picture(tmp_path / "a.png")
    picture(tmp_path / "3_cat" / "b.png")
    (tmp_path / "a.txt").write_text("a box")
    (tmp_path / "3_cat" / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "b"}')
    return tmp_path


def later(path: Path) -> None:
    """The same bytes, saved a second later."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))


CHANGES = {
    "picture saved again": lambda d: later(d / "a.png"),
    "picture in a subfolder": lambda d: later(d / "3_cat" / "b.png"),
    "picture added": lambda d: picture(d / "c.png"),
    "picture removed": lambda d: (d / "a.png").unlink(),
    "picture renamed": lambda d: (d / "a.png").rename(d / "z.png"),
    "repeats changed": lambda d: (d / "3_cat").rename(d / "4_cat"),
    "caption longer": lambda d: (d / "a.txt").write_text("a bigger box"),
    "caption added": lambda d: (d / "a.caption").write_text("a box"),
    "metadata changed": lambda d: later(d / "3_cat" / "metadata.jsonl"),
    "picture in a subfolder without a number": lambda d: picture(d / "other" / "x.png"),
    "video that is left out": lambda d: (d / "film.mp4").write_bytes(b""),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_signature_follows_pictures_and_captions(signed: Path, change) -> None:
    before = signature(signed)
    change(signed)
    assert signature(signed) != before


def test_the_signature_follows_captions_with_a_suffix_in_capitals(signed: Path) -> None:
    before = signature(signed)
    (signed / "3_cat" / "b.TXT").write_text("b")
    assert captions(scan_folder(signed, "things"))["b.png"] == "b"
    assert signature(signed) != before


def test_the_signature_follows_nothing_else(signed: Path) -> None:
    before = signature(signed)
    assert signature(signed) == before
    (signed / "readme.md").write_text("notes")
    (signed / ".hidden.png").write_text("x")
    (signed / "a.png").read_bytes()
    assert signature(signed) == before


def test_the_signature_sees_a_caption_of_the_same_length(signed: Path) -> None:
    before = signature(signed)
    stat = (signed / "a.txt").stat()
    (signed / "a.txt").write_text("a bux")
    os.utime(signed / "a.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert signature(signed) != before


def test_a_moved_dataset_scans_the_same(signed: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    there = tmp_path_factory.mktemp("moved") / "d"
    shutil.copytree(signed, there)
    facts = [[(Path(i.path).name, i.sha256, i.caption, i.repeats) for i in scan_folder(d, "x").images] for d in (signed, there)]
    assert facts[0] == facts[1]


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes only there")
def test_a_file_name_that_is_not_unicode_is_told_as_a_dataset_error(tmp_path: Path) -> None:
    whole = picture(tmp_path / "good.png").read_bytes()
    Path(os.fsdecode(bytes(tmp_path) + b"/k\xe4se.png")).write_bytes(whole)
    assert "se.png" in refusal(tmp_path)
