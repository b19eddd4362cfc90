"""Which captions a dataset's images have: files beside them in every spelling, metadata files, and texts that are none."""
import json
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from trainer.data.sources import DatasetError, scan_folder
from trainer.dataset import Dataset

CAFE = "caf\u00e9"


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), "red").save(path)
    return path


def captions(dataset: Dataset) -> dict[str, str | None]:
    return {Path(image.path).name: image.caption for image in dataset.images}


def refusal(folder: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        scan_folder(folder, "things")
    return str(caught.value)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("a.png", "a.png.txt"),
        ("a.png", "a.png.caption"),
        ("img_2.png", "IMG_2.txt"),
        ("IMG_2.PNG", "img_2.png.TXT"),
        (f"{CAFE}.png", unicodedata.normalize("NFD", f"{CAFE}.txt")),
        (unicodedata.normalize("NFD", f"{CAFE}.png"), f"{CAFE.upper()}.txt"),
        ("straße.png", "STRASSE.txt"),
    ],
)
def test_a_caption_file_is_found_in_every_spelling(tmp_path: Path, image: str, text: str) -> None:
    picture(tmp_path / image)
    (tmp_path / text).write_text("a caption")
    dataset = scan_folder(tmp_path, "things")
    assert captions(dataset) == {image: "a caption"}
    assert dataset.notes == ()


@pytest.mark.skipif(os.path.normcase("A") == "a", reason="both are one file there")
def test_an_exact_name_wins_over_other_capitals(tmp_path: Path) -> None:
    for name in ("cat.png", "CAT.png"):
        picture(tmp_path / name)
    (tmp_path / "CAT.txt").write_text("large")
    assert captions(scan_folder(tmp_path, "things")) == {"CAT.png": "large", "cat.png": None}
    (tmp_path / "Cat.txt").write_text("either")
    message = refusal(tmp_path)
    assert "CAT.png and cat.png have one name, so Cat.txt may be the caption of either" in message


def test_images_of_one_name_keep_captions_that_are_named_in_full(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.jpg", "b.png", "c.jpg", "c.png"):
        picture(tmp_path / name)
    rows = [{"file_name": "a.jpg", "text": "one"}, {"file_name": "a.png", "text": "two"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.jpg.txt").write_text("three")
    (tmp_path / "b.png.txt").write_text("four")
    wanted = {"a.jpg": "one", "a.png": "two", "b.jpg": "three", "b.png": "four", "c.jpg": None, "c.png": None}
    assert captions(scan_folder(tmp_path, "things")) == wanted
    (tmp_path / "c.txt").write_text("which?")
    assert "c.jpg and c.png have one name, so c.txt may be the caption of either" in refusal(tmp_path)


def test_stray_texts_are_one_note_and_no_refusal(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for name in ("a.txt", "readme.txt", "sample_prompts.txt", "captions.txt"):
        (tmp_path / name).write_text("a dog")
    (tmp_path / "notes.txt").write_bytes("Kästchen".encode("latin-1"))
    dataset = scan_folder(tmp_path, "things")
    assert captions(dataset) == {"a.png": "a dog"}
    assert dataset.notes == ("4 text files without an image of that name: captions.txt, notes.txt, readme.txt, sample_prompts.txt",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_texts_are_read_in_unicode_with_a_mark(tmp_path: Path, encoding: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("ein Kästchen 🍩", encoding=encoding)
    assert captions(scan_folder(tmp_path, "things")) == {"a.png": "ein Kästchen 🍩"}


@pytest.mark.parametrize("name", ["a.txt", "metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize(
    ("content", "wanted"),
    [("a dog".encode("utf-16-le"), "NUL bytes, as UTF-16"), (b"\xff\xfea", "is not UTF-8 text"), ("Kästchen".encode("cp1252"), "is not UTF-8 text")],
)
def test_other_encodings_are_refused_by_name(tmp_path: Path, name: str, content: bytes, wanted: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path)
    assert name in message and wanted in message


@pytest.mark.parametrize("text", ["\u200b", " \u00a0\u3000\n", "\ufeff\u200d", "\u3164", "\u2800\u2800", "\x01"])
def test_a_caption_that_nobody_can_see_is_none(tmp_path: Path, text: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert captions(scan_folder(tmp_path, "things")) == {"a.png": None}


def test_a_caption_file_that_cannot_be_read_or_is_far_too_long_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(3_000_000_000)
    assert "a.txt has 3,000 MB, and no more than 10 MB are read as captions" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_names_images_anywhere_in_the_folder(tmp_path: Path, name: str) -> None:
    for path in ("a.png", "b.png", "sub/c.png", "sub/deeper/d.png", "sub/unnamed.png", "2_dogs/e.png"):
        picture(tmp_path / path)
    rows = [("a.png", "a"), ("./b.png", "b"), ("sub/c.png", "c"), ("sub\\deeper\\d.png", "d"), ("2_dogs/E.PNG", "e")]
    if name == "metadata.csv":
        (tmp_path / name).write_text("file_name,text\n" + "".join(f'{path},"{text}, with ""quotes"""\n' for path, text in rows))
    else:
        (tmp_path / name).write_text("\n".join(json.dumps({"file_name": path, "text": f'{text}, with "quotes"'}) for path, text in rows))
    dataset = scan_folder(tmp_path, "things")
    assert captions(dataset) == {f"{letter}.png": f'{letter}, with "quotes"' for letter in "abcde"}
    assert [image.repeats for image in dataset.images if image.path.endswith("e.png")] == [2]
    assert ["sub/ (1 image)" in note for note in dataset.notes] == [True]


def test_metadata_in_a_numbered_folder_speaks_of_that_folder(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "3_cat" / "a.png")
    (tmp_path / "3_cat" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}')
    found = {Path(image.path).parent.name: image.caption for image in scan_folder(tmp_path, "things").images}
    assert found == {tmp_path.name: None, "3_cat": "a cat"}


@pytest.mark.parametrize(
    ("row", "caption"),
    [
        ({"text": "a"}, "a"),
        ({"caption": "a"}, "a"),
        ({"prompt": "a"}, "a"),
        ({"text": None, "caption": "a"}, "a"),
        ({"text": "", "prompt": "a"}, "a"),
        ({"text": [], "caption": ["a"]}, "a"),
        ({"prompt": "b", "text": "a"}, "a"),
        ({"text": None}, None),
    ],
)
def test_the_usual_columns_hold_captions_and_empty_cells_do_no_harm(tmp_path: Path, row: dict, caption: str | None) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "width": 16, **row}))
    assert captions(scan_folder(tmp_path, "things")) == {"a.png": caption}


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('{"file_name": "a.png", "text": "half \\ud83d"}', "metadata.jsonl line 1: its caption holds half of a character"),
        ('{"file_name": "half \\ud83d.png", "text": "a"}', "metadata.jsonl line 1: there is no image"),
        ("[" * 100_000, "metadata.jsonl line 1 is not JSON"),
        ('{"file_name": "' + "x" * 1_000_000 + '", "text": "a"}', "metadata.jsonl line 1: there is no image"),
        ('{"file_name": "/etc/a.png", "text": "a"}', "metadata.jsonl line 1: there is no image"),
    ],
)
def test_a_bad_line_is_told_in_one_short_line(tmp_path: Path, line: str, wanted: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(line)
    message = refusal(tmp_path)
    assert wanted in message and len(message) < 400 and "\n" not in message
    message.encode()


def test_a_million_bad_lines_make_a_short_message(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text("nonsense\n" * 300_000)
    message = refusal(tmp_path)
    assert "metadata.jsonl line 1 is not JSON" in message and message.endswith("and 299,990 more.") and len(message) < 2000


def test_a_table_that_is_no_csv_is_named_by_its_line(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png," + "x" * 200_000 + "\n")
    assert "metadata.csv line" in refusal(tmp_path)
    (tmp_path / "metadata.csv").write_text("name,text\na.png,a\n")
    assert 'metadata.csv line 2 has no "file_name"' in refusal(tmp_path)


def test_many_doubts_about_long_names_make_a_message_that_can_be_read(tmp_path: Path) -> None:
    for number in range(12):
        stem = f"{number}" + "x" * 150
        for suffix in (".png", ".jpg", ".bmp", ".gif", ".webp", ".tiff"):
            picture(tmp_path / f"{stem}{suffix}")
        (tmp_path / f"{stem}.txt").write_text("which?")
    with pytest.raises(DatasetError) as caught:
        scan_folder(tmp_path, "set")
    assert len(str(caught.value)) < 4000
    assert str(caught.value).endswith("and 2 more.")
