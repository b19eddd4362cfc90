"""Captions are written where a dataset keeps them, and what they replace can be put back."""
import json
import os
from pathlib import Path

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


def store(folder: Path) -> CaptionStore:
    return CaptionStore(list(scanned(folder).values()))


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
    assert store(tmp_path).undo(caption_lines=True) == {str(tmp_path / "a.png"): ["one", "two"]}


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
    both = CaptionStore([DatasetImage(path=str(tmp_path / name), sha256="") for name in ("a.png", "a.jpg")])
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
