"""Captions of a dataset: from a `.txt` or `.caption` file beside an image, or from a metadata file (see `metadata_files`).

`cat.png` has its caption in `cat.txt` or `cat.png.txt`; another Unicode form or other capitals do where they leave no doubt.
"""
import codecs
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..messages import listed, shown, system_reason
from .folders import Folder, file_label
from .names import Names

_LONGEST_FILE = 10_000_000
# UTF-32's mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Letters and symbols by their category, and nothing to the eye: fillers, the empty Braille cell, variation selectors.
_BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufe0e\ufe0f")


class TextError(ValueError):
    """A file's bytes are no text that is read; the message says why, and what to do."""


@dataclass(frozen=True)
class Place:
    """Where an image's caption is kept: in a text file of its own, or in the row of a metadata file whose `file_name` is `row`."""

    file: Path
    row: str = ""


@dataclass
class Captions:
    """Captions by the image's label and name, at least one each, and the places that may hold them, empty ones too; `problems`: what is wrong, each
    a sentence for the user; `strays`: text files that caption nothing.
    """

    by_image: dict[str, tuple[str, ...]] = field(default_factory=dict)
    places: dict[str, list[Place]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    _sources: dict[str, str] = field(default_factory=dict)

    def add(self, image: str, texts: Iterable[str], place: Place, source: str) -> None:
        """The captions of an image from `place`, which messages call `source`. Empty ones are none, and two sources for one image must agree."""
        places = self.places.setdefault(image, [])
        places += [] if place in places else [place]
        captions = tuple(dict.fromkeys(one_line_each(texts)))
        if not captions:
            return
        known = self.by_image.setdefault(image, captions)
        if known != captions:
            self.problems.append(f"{shown(image)} has two captions that differ, in {self._sources[image]} and in {source}: keep one")
        self._sources.setdefault(image, source)

    def text_of(self, path: Path, label: str) -> str | None:
        """The text of a file; None where it cannot be read, which is a problem then. `label`: what messages call the file."""
        try:
            return read_text(path)
        except TextError as error:
            self.problems.append(f"{label} {error}")
        except OSError as error:
            self.problems.append(f"{label} cannot be read ({system_reason(error)}): make it readable or remove it")
        return None


def one_line_each(texts: Iterable[str]) -> list[str]:
    """Captions as they are trained, on one line with single spaces; none for a text that shows nothing."""
    return [line for line in (" ".join(text.split()) for text in texts) if _visible(line)]


def _visible(text: str) -> bool:
    return any(unicodedata.category(mark)[0] not in "ZC" and mark not in _BLANKS for mark in text)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises:
        TextError: it is something else, or longer than captions are.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size > _LONGEST_FILE:
        raise TextError(f"has {size / 1e6:,.0f} MB, and no more than {_LONGEST_FILE / 1e6:.0f} MB are read as captions: split or remove it")
    return decoded(path.read_bytes())


def decoded(data: bytes) -> str:
    """The same for the bytes of a file. Raises TextError."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise TextError("is not UTF-8 text: save it again as UTF-8") from error
    if "\0" in text:
        raise TextError("holds NUL bytes, as UTF-16 without a byte order mark does: save it again as UTF-8")
    return text


def read_sidecars(folder: Folder, images: Sequence[str], captions: Captions, *, caption_lines: bool = False) -> list[str]:
    """Add the captions of `images` (names in `folder`) that lie in files beside them, and give the text files that caption nothing.

    With `caption_lines` every line of a file is a caption of its own; otherwise the whole file is one.
    """
    strays = []
    for name, found in sidecars_with_images(folder, images):
        label = file_label(folder.label, name)
        if not found:
            strays.append(label)
            continue
        text = captions.text_of(folder.path / name, label)
        if text is None:
            continue
        if len(found) > 1 and _visible(text):
            both = listed([file_label(folder.label, image) for image in found], " and ", most=3)
            captions.problems.append(f"{both} have one name, so {label} may be the caption of either: rename one, or name it IMAGE.png.txt in full")
            continue
        captions.add(folder.label + found[0], text.splitlines() if caption_lines else [text], Place(folder.path / name), label)
    return strays


def sidecars_with_images(folder: Folder, images: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each file of `folder` that may hold a caption, with those of `images` whose it may be."""
    owners = owners_of_sidecars(images)
    for name in folder.sidecars:
        yield name, owners.find(name.rpartition(".")[0])


def owners_of_sidecars(images: Sequence[str]) -> Names[str]:
    """Finds the images of a folder whose caption a file may hold, by the file's name without its ending."""
    return Names([(known, image) for image in images for known in dict.fromkeys((image, image.rpartition(".")[0]))])
