"""What captions were before captioning changed them, kept in their own folder, so that undo can put them back.

One hidden file a folder, to which lines are only ever added: a captioning that was killed, or a second one after it, loses nothing of what was
there before the first.
"""
import json
import os
from collections import defaultdict
from pathlib import Path

from pydantic import ValidationError

from ..typed import Model

JOURNAL = ".captions_before.jsonl"


Text = str | tuple[str, ...] | None
"""What a place for captions holds: one (of a text file: all that is in it), the several of a metadata column, or none."""


class Change(Model):
    """A caption that was replaced. `file`: name of the file that holds it; `row`: the image's name in a metadata file, "" for a file of one
    caption. `before`: what stood there; `after`: what was written.
    """

    file: str
    row: str = ""
    before: Text
    after: str


def add_change(folder: Path, change: Change) -> None:
    """Put a change on the disk before it is made. Raises OSError."""
    # ASCII: a caption that is not valid Unicode comes back as it was.
    line = json.dumps(change.model_dump(), ensure_ascii=True).encode()
    with (folder / JOURNAL).open("ab") as file:
        # A line that a power cut left unfinished stays a line of its own.
        file.write((b"" if _ends_whole(folder / JOURNAL) else b"\n") + line + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_whole(journal: Path) -> bool:
    if journal.stat().st_size == 0:
        return True
    with journal.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def changes(folder: Path) -> dict[tuple[str, str], list[Change]]:
    """All changes of a folder by (file, row), oldest first. Raises OSError."""
    found: dict[tuple[str, str], list[Change]] = defaultdict(list)
    if (folder / JOURNAL).is_file():
        for line in (folder / JOURNAL).read_bytes().splitlines():
            try:
                change = Change.model_validate(json.loads(line))
            except (ValueError, ValidationError):
                continue  # cut off by a power cut: its caption was not changed yet
            found[change.file, change.row].append(change)
    return dict(found)


def original(current: Text, past: list[Change]) -> Text:
    """The last caption that captioning did not write itself, None if there was none: what undo puts back.

    `current`: what stands there now. A caption that was edited since is an original, and asking twice changes nothing.
    """
    text = current
    for change in reversed(past):
        # One that does not match was edited since, or a kill came before it was written.
        if change.after == text:
            text = change.before
    return text
