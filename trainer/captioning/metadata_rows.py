"""Changing captions inside a metadata file, where that is where a dataset keeps them; its other rows stay as they are, to the byte."""
import codecs
import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..adapters.files import write_bytes
from ..data.captions import TextError, decoded
from ..data.metadata_files import COLUMNS, caption_column
from ..messages import shown
from .journal import Text


class _Table(Protocol):
    """Rows by their number in the file."""

    def __len__(self) -> int: ...

    def row(self, number: int) -> Mapping[str, Any]: ...

    def change(self, number: int, column: str, value: Text) -> None: ...

    def text(self) -> str: ...


class MetadataRows:
    """The rows of a metadata file by their `file_name`.

    Raises:
        TextError: the file is not text that is read.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int] | None = None
        self._mark = b""
        self._table: _Table = _Lines("")
        self._numbers: dict[str, list[int]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the file again if it was changed: someone may edit it meanwhile. Raises as the class."""
        stat = self.path.stat()
        if self._stamp == (stat.st_mtime_ns, stat.st_size):
            return
        data = self.path.read_bytes()
        self._mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
        self._table = _Cells(decoded(data)) if self.path.suffix == ".csv" else _Lines(decoded(data))
        self._numbers = {}
        for number in range(len(self._table)):
            name = self._table.row(number).get("file_name")
            if isinstance(name, str):
                self._numbers.setdefault(name, []).append(number)
        self._stamp = (stat.st_mtime_ns, stat.st_size)

    def has(self, name: str) -> bool:
        """Whether a row has this `file_name`."""
        return name in self._numbers

    def value(self, name: str) -> Text:
        """The caption, or captions, of the first row with this `file_name`; rows that agree may have the same."""
        row = self._table.row(self._numbers[name][0])
        value = row.get(caption_column(row) or "")
        return tuple(map(str, value)) if isinstance(value, list) else str(value) if value is not None else None

    def set(self, name: str, value: Text) -> None:
        """Change a caption in memory, in every row with this `file_name`; see `save`."""
        for number in self._numbers[name]:
            self._table.change(number, caption_column(self._table.row(number)) or COLUMNS[0], value)

    def save(self) -> None:
        """Replace the file at once by what is in memory, in UTF-8. Raises OSError."""
        write_bytes(self.path, self._mark + self._table.text().encode("utf-8"))
        stat = self.path.stat()
        self._stamp = (stat.st_mtime_ns, stat.st_size)


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
    """A header and a row a line, or several lines where cells hold line breaks. Rows that are not changed keep their own text."""

    def __init__(self, text: str) -> None:
        lines = list(io.StringIO(text, newline=""))
        reader = csv.reader(lines)
        self._texts: list[str] = []
        self._rows: list[list[str]] = []
        start = 0
        try:
            for row in reader:
                self._texts.append("".join(lines[start : reader.line_num]))
                self._rows.append(row)
                start = reader.line_num
        except csv.Error as error:
            raise TextError(f"line {reader.line_num} is not CSV ({shown(str(error))}): correct it") from error
        # Of columns of one name the last one counts, as it does where datasets are read.
        self._places = {name: place for place, name in enumerate(self._rows[0] if self._rows else ())}

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> Mapping[str, Any]:
        row = self._rows[number] if number else []
        return {name: row[place] if place < len(row) else None for name, place in self._places.items()} if row else {}

    def change(self, number: int, column: str, value: Text) -> None:
        row, place = self._rows[number], self._places[column]
        row += [""] * (place + 1 - len(row))
        row[place] = value if isinstance(value, str) else ""
        old = self._texts[number]
        end = next((end for end in ("\r\n", "\n", "\r") if old.endswith(end)), "")
        written = io.StringIO(newline="")
        # The writer takes a lone \r for part of a word, and the reader for the end of a row.
        csv.writer(written, lineterminator=end, quoting=csv.QUOTE_ALL if any("\r" in cell for cell in row) else csv.QUOTE_MINIMAL).writerow(row)
        self._texts[number] = written.getvalue()

    def text(self) -> str:
        return "".join(self._texts)
