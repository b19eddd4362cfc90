"""Changing captions inside a `metadata.jsonl`, where that is where a dataset keeps them; everything else in the file stays to the byte."""
import json
import os
from pathlib import Path, PurePosixPath

from ..adapters.files import write_bytes
from ..data.captions import CAPTION_COLUMNS, METADATA
from .journal import Text


class MetadataRows:
    """The rows of one metadata file by the image that each names. Lines that are no row are kept as they are.

    Raises OSError and UnicodeDecodeError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = path.read_bytes().decode("utf-8").split("\n")
        self._ascii = all(line.isascii() for line in self._lines)
        self._numbers: dict[Path, int] = {}
        for number, line in enumerate(self._lines):
            row = _row(line)
            if row is not None:
                self._numbers.setdefault(_target(path.parent, str(row["file_name"])), number)

    def name_of(self, image: Path) -> str | None:
        """How the file names the image; None where it does not."""
        number = self._numbers.get(Path(os.path.normpath(image)))
        row = _row(self._lines[number]) if number is not None else None
        return str(row["file_name"]) if row is not None else None

    def value(self, name: str) -> Text:
        """The caption, or captions, of the image that the file calls `name`."""
        row = _row(self._lines[self._number(name)]) or {}
        value = row.get(_column(row))
        return tuple(map(str, value)) if isinstance(value, list) else str(value) if value is not None else None

    def set(self, name: str, value: Text) -> None:
        """Change a caption in memory; see `save`."""
        number = self._number(name)
        line = self._lines[number]
        row = _row(line) or {}
        row[_column(row)] = list(value) if isinstance(value, tuple) else value
        mark = "\ufeff" if line.startswith("\ufeff") else ""
        end = "\r" if line.endswith("\r") else ""
        text = json.dumps(row, ensure_ascii=False)
        # As the file writes other letters than ASCII; half a surrogate pair can only be written as an escape.
        if self._ascii or any("\ud800" <= letter <= "\udfff" for letter in text):
            text = json.dumps(row)
        self._lines[number] = f"{mark}{text}{end}"

    def save(self) -> None:
        """Replace the file at once by what it is in memory. Raises OSError."""
        write_bytes(self.path, "\n".join(self._lines).encode("utf-8"))

    def _number(self, name: str) -> int:
        return self._numbers[_target(self.path.parent, name)]


def metadata_above(folder: Path, levels: int) -> list[Path]:
    """The metadata files of a folder and of up to `levels` folders above it, the nearest first."""
    return [place / METADATA for place in [folder, *folder.parents][: levels + 1] if (place / METADATA).is_file()]


def _target(folder: Path, file_name: str) -> Path:
    return Path(os.path.normpath(folder.joinpath(*PurePosixPath(file_name.replace("\\", "/")).parts)))


def _row(line: str) -> dict[str, object] | None:
    try:
        row = json.loads(line.lstrip("\ufeff"))
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("file_name"), str) else None


def _column(row: dict[str, object]) -> str:
    """Where the row's caption is: the first usual column that holds one, else the first that is there."""
    there = [column for column in CAPTION_COLUMNS if column in row]
    return next((column for column in there if row[column]), there[0] if there else CAPTION_COLUMNS[0])
