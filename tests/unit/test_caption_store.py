"""Captions are written where a dataset keeps them, and what they replace can be put back."""
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from trainer.captioning.journal import JOURNAL
from trainer.captioning.store import CaptionStore
from trainer.data.sources import scan_folder
from trainer.dataset import DatasetImage


def images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name)


def scanned(folder: Path) -> dict[str, DatasetImage]:
    return {Path(image.path).name: image for image in scan_folder(folder, "set").images}


def store(folder: Path, **settings: bool) -> CaptionStore:
    return CaptionStore(scan_folder(folder, "set", **settings))


def write(folder: Path, **captions: str) -> None:
    opened = store(folder)
    for stem, caption in captions.items():
        opened.write(folder / f"{stem}.png", caption)
    opened.save()


def test_hand_written_captions_come_back_to_the_byte_after_two_captionings(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfby  hand,\r\n twice\r\n")
    before = (tmp_path / "a.txt").read_bytes()
    write(tmp_path, a="one", b="one")
    write(tmp_path, a="two", b="two")
    assert scanned(tmp_path)["a.png"].caption == scanned(tmp_path)["b.png"].caption == "two"
    undone = store(tmp_path).undo()
    assert undone == {str(tmp_path / "a.png"): ["by hand, twice"], str(tmp_path / "b.png"): []}
    assert (tmp_path / "a.txt").read_bytes() == before
    assert not (tmp_path / "b.txt").exists()
    assert store(tmp_path).undo() == {}


def test_the_lines_of_a_caption_file_come_back_as_captions(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    write(tmp_path, a="new")
    assert store(tmp_path, caption_lines=True).undo() == {str(tmp_path / "a.png"): ["one", "two"]}


def test_what_was_edited_after_captioning_is_not_undone(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    write(tmp_path, a="one")
    (tmp_path / "a.txt").write_text("edited")
    assert store(tmp_path).undo() == {}
    assert (tmp_path / "a.txt").read_text() == "edited"


def test_an_unchanged_caption_is_not_written(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text(" one\n\n")
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    write(tmp_path, a="one")
    assert (tmp_path / "a.txt").stat().st_mtime_ns == 1
    assert not (tmp_path / JOURNAL).exists()


METADATA = [
    {"file_name": "a.png", "text": "by hand", "score": 0.5},
    {"file_name": "b.png", "caption": "zażółć", "tags": ["x"]},
    {"file_name": "c.png", "text": ["one", "two"]},
]


def test_captions_of_a_metadata_file_are_changed_in_it_and_nothing_else_is(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png", "c.png")
    lines = [json.dumps(row, ensure_ascii=False) for row in METADATA]
    whole = "\r\n".join([*lines[:1], "", *lines[1:]]).encode()
    (tmp_path / "metadata.jsonl").write_bytes(whole)
    write(tmp_path, a="new", c="new")
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["a.png", "b.png", "c.png", "metadata.jsonl"]
    read = (tmp_path / "metadata.jsonl").read_bytes().decode().split("\r\n")
    assert json.loads(read[0]) == {**METADATA[0], "text": "new"}
    assert [read[1], read[2]] == ["", lines[1]]
    assert [image.caption for image in scanned(tmp_path).values()] == ["new", "zażółć", "new"]
    store(tmp_path).undo()
    assert (tmp_path / "metadata.jsonl").read_bytes() == whole


def test_where_two_places_hold_the_caption_both_are_changed(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("by hand")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "by hand"}\n')
    write(tmp_path, a="new")
    assert scanned(tmp_path)["a.png"].caption == "new"
    store(tmp_path).undo()
    assert scanned(tmp_path)["a.png"].caption == "by hand"


def test_an_image_without_a_row_gets_a_text_file(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "by hand"}\n')
    write(tmp_path, b="new")
    assert (tmp_path / "b.txt").read_text() == "new\n"
    assert [image.caption for image in scanned(tmp_path).values()] == ["by hand", "new"]


def test_a_kill_before_the_metadata_file_was_saved_loses_no_original(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "by hand"}\n')
    write(tmp_path, a="one")
    after_one = (tmp_path / "metadata.jsonl").read_bytes()
    write(tmp_path, a="two")
    (tmp_path / "metadata.jsonl").write_bytes(after_one)  # as if "two" had not been saved yet
    store(tmp_path).undo()
    assert scanned(tmp_path)["a.png"].caption == "by hand"


def test_images_of_one_name_get_a_caption_file_each(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "a.jpg")
    both = store(tmp_path)
    both.write(tmp_path / "a.png", "one")
    both.write(tmp_path / "a.jpg", "two")
    assert {name: image.caption for name, image in scanned(tmp_path).items()} == {"a.png": "one", "a.jpg": "two"}


def test_a_caption_file_is_found_as_the_dataset_finds_it(tmp_path: Path) -> None:
    images(tmp_path, "IMG_1.PNG", "b.png")
    (tmp_path / "img_1.TXT").write_bytes("by hand".encode("utf-16"))
    (tmp_path / "b.png.txt").write_text("by hand")
    opened = store(tmp_path)
    opened.write(tmp_path / "IMG_1.PNG", "new")
    opened.write(tmp_path / "b.png", "new")
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["IMG_1.PNG", "b.png", "b.png.txt", "img_1.TXT"]
    assert [image.caption for image in scanned(tmp_path).values()] == ["new", "new"]
    assert set(map(tuple, store(tmp_path).undo().values())) == {("by hand",)}
    assert (tmp_path / "img_1.TXT").read_bytes() == "by hand".encode("utf-16")


def test_captions_of_a_table_are_changed_in_it(tmp_path: Path) -> None:
    images(tmp_path, "sub/a.png", "b.png")
    table = 'file_name,prompt,note\nsub/a.png,"by hand, twice",x\nb.png,other,"y, z"\n'
    (tmp_path / "metadata.csv").write_bytes(table.encode())
    opened = store(tmp_path)
    opened.write(tmp_path / "sub" / "a.png", 'a "new" one')
    opened.save()
    assert (tmp_path / "metadata.csv").read_bytes() == table.replace('"by hand, twice"', '"a ""new"" one"').encode()
    assert not list(tmp_path.rglob("*.txt"))
    store(tmp_path).undo()
    assert (tmp_path / "metadata.csv").read_bytes() == table.encode()


def captioned(folder: Path, **settings: bool) -> None:
    """Every image of the folder is captioned."""
    dataset = scan_folder(folder, "set", **settings)
    opened = CaptionStore(dataset)
    for image in dataset.images:
        opened.write(Path(image.path), "new")
    opened.save()


def test_an_edit_of_the_metadata_file_during_captioning_is_kept(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text('{"file_name": "a.png", "text": "hand a"}\n{"file_name": "b.png", "text": "hand b"}\n')
    opened = store(tmp_path)
    opened.write(tmp_path / "a.png", "new")
    metadata.write_text(metadata.read_text().replace("hand b", "edited meanwhile"))
    opened.write(tmp_path / "a.png", "newer")
    opened.save()
    assert scanned(tmp_path)["b.png"].caption == "edited meanwhile"
    opened.write(tmp_path / "b.png", "new")
    opened.save()
    store(tmp_path).undo()
    assert {name: image.caption for name, image in scanned(tmp_path).items()} == {"a.png": "hand a", "b.png": "edited meanwhile"}


@pytest.mark.parametrize(
    ("files", "settings"),
    [
        ({"metadata.jsonl": '{"file_name": "a.png", "text": "hand"}\n' * 2}, {}),
        ({"metadata.jsonl": '{"file_name": "a.png", "text": "hand"}\n{"file_name": "./a.png", "text": "hand"}\n'}, {}),
        ({"metadata.csv": "file_name,text\na.png,hand\n./a.png,hand\n"}, {}),
        ({"1/2/3/4/b.png": "", "metadata.jsonl": '{"file_name": "1/2/3/4/b.png", "text": "hand"}\n'}, {}),
        ({"1/2/3/4/b.png": "", "metadata.jsonl": '{"file_name": "1/2/3/4/b.png", "text": "hand"}\n'}, {"recursive": True}),
        ({"a.png.jpg": ""}, {}),
        ({"sub/b.png": "", "sub/b.jpg": "", "sub/b.txt": "hand", "metadata.jsonl": '{"file_name": "sub/b.png", "text": ""}\n'}, {}),
        ({"metadata.csv": 'file_name,text,note\na.png,one,"x\ry"\n'}, {}),
        ({"metadata.csv": "file_name,text,,\na.png,one,my remark,\n"}, {}),
        ({"metadata.csv": "file_name,text,text\na.png,first hand,second hand\n"}, {}),
        ({"a.txt/inner": ""}, {}),
    ],
)
def test_every_dataset_is_read_after_captioning_and_is_itself_after_undo(tmp_path: Path, files: dict[str, str], settings: dict[str, bool]) -> None:
    images(tmp_path, "a.png")
    for name, content in files.items():
        if name.endswith((".png", ".jpg")):
            images(tmp_path, name)
        else:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content.encode())
    before = {image.path: image.caption for image in scan_folder(tmp_path, "set", **settings).images}
    bytes_before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    captioned(tmp_path, **settings)
    after = scan_folder(tmp_path, "set", **settings).images
    assert {image.path for image in after} == before.keys()
    assert {image.caption for image in after} == {"new"}
    store(tmp_path, **settings).undo()
    assert {image.path: image.caption for image in scan_folder(tmp_path, "set", **settings).images} == before
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != JOURNAL}
    assert left.keys() == bytes_before.keys()
    assert "my remark" not in files.get("metadata.csv", "") or "my remark" in left[tmp_path / "metadata.csv"].decode()
    assert "first hand" not in files.get("metadata.csv", "") or "first hand" in left[tmp_path / "metadata.csv"].decode()


def test_a_dataset_that_was_read_before_another_captioning_is_captioned_where_its_captions_are(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "by hand"}\n')
    dataset = scan_folder(tmp_path, "set")
    for caption in ("one", "trigger, one"):
        opened = CaptionStore(dataset)
        opened.write(tmp_path / "a.png", caption)
        opened.save()
    assert scanned(tmp_path)["a.png"].caption == "trigger, one"
    assert not list(tmp_path.glob("*.txt"))


@pytest.mark.parametrize("place", ["a.caption", "a.png.txt", "metadata.jsonl"])
def test_a_caption_that_comes_meanwhile_is_seen(tmp_path: Path, place: str) -> None:
    images(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": null}\n')
    opened = store(tmp_path)
    assert not opened.has_caption(tmp_path / "a.png")
    (tmp_path / place).write_text("by hand" if place != "metadata.jsonl" else '{"file_name": "a.png", "text": "by hand, just now"}\n')
    assert opened.has_caption(tmp_path / "a.png")
    opened.write(tmp_path / "a.png", "new")
    opened.save()
    assert scanned(tmp_path)["a.png"].caption == "new"


def test_lines_in_utf_16_come_back_as_captions(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("hand é\nzwei\n".encode("utf-16"))
    write(tmp_path, a="new")
    assert store(tmp_path, caption_lines=True).undo() == {str(tmp_path / "a.png"): ["hand é", "zwei"]}


def test_an_image_may_have_a_name_as_long_as_a_disk_allows(tmp_path: Path) -> None:
    name = "x" * 251
    images(tmp_path, f"{name}.png")
    captioned(tmp_path)
    assert (tmp_path / f"{name}.txt").read_text() == "new\n"
