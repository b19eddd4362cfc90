"""Changing captions inside a metadata file, where that is where a dataset keeps them; its other rows stay as they are."""
import codecs
import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..adapters.files import write_bytes
from ..data.captions import decoded
from ..data.folders import METADATA
from ..data.metadata_files import COLUMNS, caption_column, images_named
from ..data.names import Names
from .journal import Text


class MetadataRows:
    """The rows of a metadata file that name one of `images`.

    Raises:
        TextError: the file is not text that is read.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, images: Iterable[Path]) -> None:
        self.path = path
        data = path.read_bytes()
        self._mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
        self._table: _Lines | _Cells = _Cells(decoded(data)) if path.suffix == ".csv" else _Lines(decoded(data))
        names = Names([(image.relative_to(path.parent).as_posix(), image) for image in images if image.is_relative_to(path.parent)])
        self._numbers: dict[str, int] = {}
        self._names: dict[Path, str] = {}
        for number in range(len(self._table)):
            name = self._table.row(number).get("file_name")
            found = images_named("", name, names) if isinstance(name, str) else []
            if isinstance(name, str) and len(found) == 1:
                self._numbers.setdefault(name, number)
                self._names.setdefault(found[0], name)

    def name_of(self, image: Path) -> str | None:
        """How the file names the image; None where it does not."""
        return self._names.get(image)

    def value(self, name: str) -> Text:
        """The caption, or captions, of the image that the file calls `name`."""
        row = self._table.row(self._numbers[name])
        value = row.get(caption_column(row) or "")
        return tuple(map(str, value)) if isinstance(value, list) else str(value) if value is not None else None

    def set(self, name: str, value: Text) -> None:
        """Change a caption in memory; see `save`."""
        number = self._numbers[name]
        self._table.change(number, caption_column(self._table.row(number)) or COLUMNS[0], value)

    def save(self) -> None:
        """Replace the file at once by what is in memory, in UTF-8. Raises OSError."""
        write_bytes(self.path, self._mark + self._table.text().encode("utf-8"))


def metadata_above(folder: Path, levels: int) -> list[Path]:
    """The metadata files of a folder and of up to `levels` folders above it, the nearest first."""
    places = [folder, *folder.parents][: levels + 1]
    return [place / name for place in places for name in METADATA if (place / name).is_file()]


class _Lines:
    """A JSON object a line; lines that are none are kept."""

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")
        self._ascii = text.isascii()

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, number: int) -> Mapping[str, Any]:
        try:
            row = json.loads(self._lines[number])
        except (ValueError, RecursionError):
            return {}
        return row if isinstance(row, dict) else {}

    def change(self, number: int, column: str, value: Text) -> None:
        row = {**self.row(number), column: list(value) if isinstance(value, tuple) else value}
        line = json.dumps(row, ensure_ascii=False)
        # As the file writes other letters than ASCII; half a surrogate pair can only be written as an escape.
        if self._ascii or any("\ud800" <= letter <= "\udfff" for letter in line):
            line = json.dumps(row)
        self._lines[number] = line + "\r" * self._lines[number].endswith("\r")

    def text(self) -> str:
        return "\n".join(self._lines)


class _Cells:
    """A header and a row a line."""

    def __init__(self, text: str) -> None:
        self._end = "\r\n" if "\r\n" in text else "\n"
        reader = csv.DictReader(io.StringIO(text, newline=""))
        self._rows: list[dict[Any, Any]] = list(reader)
        self._columns = list(reader.fieldnames or ())

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> Mapping[str, Any]:
        return self._rows[number]

    def change(self, number: int, column: str, value: Text) -> None:
        self._rows[number][column] = value

    def text(self) -> str:
        written = io.StringIO(newline="")
        writer = csv.writer(written, lineterminator=self._end)
        writer.writerow(self._columns)
        # DictReader keeps cells beyond the header under None.
        writer.writerows([*(row[column] for column in self._columns), *(row.get(None) or ())] for row in self._rows)
        return written.getvalue()
