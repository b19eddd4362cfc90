"""Dataset folders put together at random: sound ones load as they are meant, every other one is refused by name, and nothing else happens."""
import hashlib
import json
import tempfile
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from color_profiles import DISPLAY_P3, rgb_profile
from hypothesis import given, note, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.data.sources import DatasetError, scan_folder

# Parts of names; a number behind each keeps names apart, whatever their form.
STEMS = ("a", "IMG_", "my photo ", "x.y", "\u00e9t\u00e9", "日本", "🍩", "-", "ß", "it's ", "(1) ")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
COLOR = Image.fromarray(PIXELS)
GREY = Image.fromarray(PIXELS[..., 0])
# By what the file is: its ending and its bytes.
IMAGES: dict[str, tuple[str, bytes]] = {
    "png": (".png", encoded(COLOR, "PNG")),
    "jpeg": (".jpg", encoded(COLOR, "JPEG")),
    "jpeg called jfif": (".jfif", encoded(COLOR, "JPEG")),
    "jpeg called png": (".png", encoded(COLOR, "JPEG")),
    "capitals": (".JPEG", encoded(COLOR, "JPEG")),
    "turned jpeg": (".jpe", encoded(COLOR, "JPEG", exif=turned())),
    "turned tiff": (".tif", encoded(COLOR, "TIFF", exif=turned())),
    "webp": (".webp", encoded(COLOR, "WEBP")),
    "bmp": (".bmp", encoded(COLOR, "BMP")),
    "gif": (".gif", encoded(COLOR, "GIF")),
    "animation": (".gif", encoded(COLOR, "GIF", save_all=True, append_images=[GREY])),
    "palette": (".png", encoded(COLOR.quantize(16), "PNG", transparency=3)),
    "transparent": (".png", encoded(COLOR.convert("RGBA"), "PNG")),
    "print": (".tiff", encoded(COLOR.convert("CMYK"), "TIFF")),
    "16 bits": (".png", encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), "PNG")),
    "32 bits": (".tiff", encoded(Image.fromarray(PIXELS[..., 0].astype(np.int32) * 257, "I"), "TIFF")),
    "floats": (".tiff", encoded(Image.fromarray(PIXELS[..., 0].astype(np.float32) / 255, "F"), "TIFF")),
    "wide colors": (".png", encoded(COLOR, "PNG", icc_profile=rgb_profile(DISPLAY_P3))),
    "broken profile": (".png", encoded(COLOR, "PNG", icc_profile=b"nonsense")),
    "own profile": (".jpg", encoded(GREY, "JPEG", icc_profile=rgb_profile(DISPLAY_P3))),
}
# Where images lie: how often they are visited there, 0: not at all.
PLACES = {"": 1, "10_dog/": 10, "3_a b/": 3, "2024_trip/": 1, "dogs/": 0, "0_off/": 0, "dogs/deep/": 0, "20240613_x/": 0}


@dataclass
class Made:
    """A folder to be: `files` by name, `rows` of metadata.jsonl, what an image has to be trained as, and names that a refusal has to tell."""

    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    rows: list[str] = field(default_factory=list)
    wanted: dict[str, tuple[str | None, int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


# How a caption is given: adds files or rows to the folder for the image of this name.
Layout = Callable[[Made, str, str], None]


def stem(name: str) -> str:
    return name.rpartition(".")[0]


def in_row(file_name: str, **columns: object) -> Layout:
    def add(made: Made, name: str, caption: str) -> None:
        row = {column: caption if value == "caption" else value for column, value in columns.items()}
        made.rows.append(json.dumps({"file_name": file_name.replace("NAME", name), **row}))

    return add


def beside(name_of: Callable[[str], str], encoding: str = "utf-8") -> Layout:
    def add(made: Made, name: str, caption: str) -> None:
        folder, _, file = name.rpartition("/")
        made.files[f"{folder}/{name_of(file)}".lstrip("/")] = caption.encode(encoding)

    return add


CAPTIONS: dict[str, Layout] = {
    "txt": beside(lambda name: f"{stem(name)}.txt"),
    "caption": beside(lambda name: f"{stem(name)}.caption"),
    "in full": beside(lambda name: f"{name}.txt"),
    "capitals": beside(lambda name: f"{stem(name).upper()}.TXT"),
    "other form": beside(lambda name: unicodedata.normalize("NFD", f"{stem(name)}.txt")),
    "with a mark": beside(lambda name: f"{stem(name)}.txt", "utf-8-sig"),
    "utf-16": beside(lambda name: f"{stem(name)}.txt", "utf-16"),
    "row": in_row(file_name="NAME", text="caption"),
    "row with ./": in_row(file_name="./NAME", caption="caption"),
    "row with null": in_row(file_name="NAME", text=None, prompt="caption", width=3),
}
HARMLESS = {
    "readme.txt": b"about",
    "captions.txt": b"\xff\xfe\xff",
    "dogs/readme.txt": b"",
    "film.mp4": b"",
    "notes.md": b"",
    "raw.cr2": b"x",
    "x.json": b"{",
}


def damage_file(content: bytes) -> Layout:
    def add(made: Made, name: str, caption: str) -> None:
        made.files[name] = content
        made.wrong.append(name)

    return add


def cut_off(made: Made, name: str, caption: str) -> None:
    made.files[name] = made.files[name][:60]
    made.wrong.append(name)


def damage_text(content: bytes) -> Layout:
    def add(made: Made, name: str, caption: str) -> None:
        made.files[f"{name}.txt"] = content
        made.wrong.append(f"{name}.txt")

    return add


def damage_row(line: str) -> Layout:
    def add(made: Made, name: str, caption: str) -> None:
        made.rows.append(line.replace("NAME", name))
        made.wrong.append(f"metadata.jsonl line {len(made.rows)}")

    return add


def contradict(made: Made, name: str, caption: str) -> None:
    made.files[f"{stem(name)}.txt"] = b"one thing"
    made.files[f"{stem(name)}.caption"] = b"another"
    made.wrong.append(name)


def another_shape(made: Made, name: str, caption: str) -> None:
    made.files[f"{stem(name)}-masklabel.png"] = encoded(Image.new("L", (99, 5)), "PNG")
    made.wrong.append(f"{stem(name)}-masklabel.png".rpartition("/")[2])


def broken_mask(made: Made, name: str, caption: str) -> None:
    made.files[f"{stem(name)}-masklabel.png"] = b"no image"
    made.wrong.append(f"{stem(name)}-masklabel.png".rpartition("/")[2])


DAMAGES: dict[str, Layout] = {
    "empty": damage_file(b""),
    "text": damage_file(b"this is not an image"),
    "web page": damage_file(b"<!doctype html>"),
    "postscript": damage_file(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"),
    "head alone": damage_file(b"\x89PNG\r\n\x1a\n"),
    "cut off": cut_off,
    "utf-16 without a mark": damage_text("a dog".encode("utf-16-le")),
    "latin-1": damage_text("Kästchen".encode("latin-1")),
    "two captions": contradict,
    "no json": damage_row('{"file_name": NAME'),
    "no image": damage_row('{"file_name": "nowhere/NAME", "text": "a"}'),
    "way out": damage_row('{"file_name": "../NAME", "text": "a"}'),
    "half a character": damage_row('{"file_name": "NAME", "text": "half \\ud83d"}'),
    "no caption": damage_row('{"file_name": "NAME", "text": 5}'),
    "mask of another shape": another_shape,
    "broken mask": broken_mask,
}


@st.composite
def folders(draw: st.DrawFn) -> Made:
    made = Made()
    for number in range(draw(st.integers(1, 5))):
        ending, content = IMAGES[draw(st.sampled_from(sorted(IMAGES)))]
        place = draw(st.sampled_from(sorted(PLACES)))
        name = f"{place}{draw(st.sampled_from(STEMS))}{number}{ending}"
        made.files[name] = content
        layout = draw(st.sampled_from([None, *sorted(CAPTIONS)]))
        caption = f"caption {number}, ü" if layout else None
        named = layout is not None and layout.startswith("row")
        repeats = PLACES[place] or (1 if named and place != "0_off/" else 0)
        if caption:
            CAPTIONS[layout](made, name, caption)
        if repeats:
            made.wanted[name] = caption, repeats
            damage = draw(st.sampled_from([None, None, None, *sorted(DAMAGES)]))
            if damage and not (damage == "two captions" and named):
                DAMAGES[damage](made, name, "")
    for name in draw(st.sets(st.sampled_from(sorted(HARMLESS)), max_size=3)):
        made.files[name] = HARMLESS[name]
    return made


def state(folder: Path) -> dict[str, tuple[str, int]]:
    """Everything in a folder: what it holds and when it was written."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(folders())
def test_a_folder_loads_as_it_is_meant_or_is_refused_by_name(made: Made) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "things")
        for name, content in made.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        if made.rows:
            (folder / "metadata.jsonl").write_text("\n".join(made.rows), encoding="utf-8")
        before = state(folder)
        note(f"{sorted(made.files)}")
        try:
            dataset = scan_folder(folder, "things")
        except DatasetError as error:
            message = str(error)
            note(message)
            assert made.wrong or not made.wanted
            assert all(name in message for name in made.wrong)
            assert ("no pictures in it" in message) == (not made.wanted)
            assert len(message) < 300 * (1 + len(made.wrong)) + 1200 and "\n" not in message and "object at 0x" not in message
        else:
            assert not made.wrong
            found = {Path(image.path).relative_to(folder).as_posix(): (image.caption, image.repeats) for image in dataset.images}
            assert found == made.wanted
            left_out = {name for name in made.files if name.endswith((".mp4", ".cr2"))}
            assert all(any(name in told for told in dataset.notes) for name in left_out)
        assert state(folder) == before
