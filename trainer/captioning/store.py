"""Where captions are written and how they come back: the places that hold an image's caption, changed together, each change kept for undo."""
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.captions import TextError, decoded, one_line_each
from ..dataset import DatasetImage
from ..messages import shown, system_reason
from ..typed import SpecError
from .journal import Change, Text, add_change, changes, original
from .metadata_rows import MetadataRows, metadata_above
from .sidecars import check_writable, new_sidecars, read_sidecar, sidecars_of, write_sidecar

_LEVELS = 3
"""A metadata file names images at most this many folders below it."""
_SHARE = 20
"""A metadata file is written whole: after so many times what that takes, so that captioning is slowed by a twentieth at most."""


@dataclass(frozen=True)
class Place:
    """Where one caption is: a text file of its own, or the `row` of a metadata file."""

    file: Path
    row: str = ""


class CaptionStore:
    """The captions of some images on the disk.

    An image's caption may be in several places that agree: all of them are changed. One without a caption gets a text file beside it.

    Raises SpecError: a folder cannot be written, or a metadata file cannot be read.
    """

    def __init__(self, images: Sequence[DatasetImage]) -> None:
        self._tables: dict[Path, MetadataRows] = {}
        self._unsaved: set[Path] = set()
        self._saved_at, self._save_seconds = time.monotonic(), 0.0
        by_path = {Path(image.path): image for image in images}
        check_writable(path.parent for path in by_path)
        sidecars = sidecars_of(by_path)
        self._places = {path: self._places_of(image, list(by_path), sidecars[path]) for path, image in by_path.items()}
        alone = [path for path, places in self._places.items() if not places]
        self._places |= {path: [Place(sidecar)] for path, sidecar in new_sidecars(alone, sidecars).items()}
        check_writable({place.file.parent for places in self._places.values() for place in places} - {path.parent for path in by_path})

    def has_caption(self, image: Path) -> bool:
        """Whether there is one by now; it may have been written since the dataset was read."""
        return any(_words(self._read(place)) for place in self._places[image])

    def write(self, image: Path, caption: str) -> None:
        """Make `caption` (one line) the image's only one. What it replaces is kept first, and what is the same already is not written.

        Raises OSError.
        """
        for place in self._places[image]:
            before = self._read(place)
            if _words(before) == [caption]:
                continue
            after = caption if place.row else f"{caption}\n"
            add_change(place.file.parent, Change(file=place.file.name, row=place.row, before=before, after=after))
            self._write(place, after)
        if time.monotonic() - self._saved_at > _SHARE * self._save_seconds:
            self.save()

    def save(self) -> None:
        """Write what is in memory yet. Raises OSError."""
        start = time.monotonic()
        for path in list(self._unsaved):
            self._tables[path].save()
            self._unsaved.discard(path)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - start

    def undo(self, caption_lines: bool = False) -> dict[str, list[str]]:
        """Put back the captions that captioning replaced: those that the images concerned have now, by path.

        What was edited since stays, and asking twice changes nothing. `caption_lines`: every line of a text file is a caption of its own.
        Raises OSError.
        """
        journals = {folder: changes(folder) for folder in {place.file.parent for places in self._places.values() for place in places}}
        undone: dict[str, list[str]] = {}
        for image, places in self._places.items():
            for place in places:
                now = self._read(place)
                then = original(now, journals[place.file.parent].get((place.file.name, place.row), []))
                if then != now:
                    self._write(place, then)
                    lines = tuple(then.splitlines()) if caption_lines and isinstance(then, str) and not place.row else then
                    undone[str(image)] = undone.get(str(image)) or _words(lines)
        self.save()
        return undone

    def _places_of(self, image: DatasetImage, images: list[Path], sidecars: list[Path]) -> list[Place]:
        path = Path(image.path)
        captions = set(one_line_each(text for text in (image.caption, *image.more_captions) if text))
        found = [Place(sidecar) for sidecar in sidecars if _words(read_sidecar(sidecar))]
        for file in metadata_above(path.parent, _LEVELS):
            rows = self._table(file, images)
            name = rows.name_of(path)
            # A file above the dataset may name the image too: the one that its caption is from says the same.
            if name is not None and captions & set(_words(rows.value(name))):
                found.append(Place(file, name))
        return found

    def _table(self, file: Path, images: list[Path]) -> MetadataRows:
        if file not in self._tables:
            try:
                self._tables[file] = MetadataRows(file, images)
            except OSError as error:
                raise SpecError(f"{shown(str(file))} cannot be read ({system_reason(error)}): make it readable or remove it.") from error
            except TextError as error:
                raise SpecError(f"{shown(str(file))} {error}.") from error
        return self._tables[file]

    def _read(self, place: Place) -> Text:
        return self._tables[place.file].value(place.row) if place.row else read_sidecar(place.file)

    def _write(self, place: Place, text: Text) -> None:
        if place.row:
            self._tables[place.file].set(place.row, text)
            self._unsaved.add(place.file)
        elif isinstance(text, str):
            write_sidecar(place.file, text)
        else:
            place.file.unlink(missing_ok=True)


def _words(text: Text) -> list[str]:
    """The captions in it, each on one line; none where nothing can be seen."""
    return one_line_each(map(_readable, [text] if isinstance(text, str) else text or ()))


def _readable(text: str) -> str:
    """What a dataset reads of it: a text file may be in UTF-16."""
    try:
        return decoded(text.encode("utf-8", "surrogateescape"))
    except (TextError, UnicodeEncodeError):
        return text
