"""Where captions are written and how they come back: the places that hold an image's caption, changed together, each change kept for undo."""
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..data.captions import Place, TextError, decoded, one_line_each, owners_of_sidecars
from ..data.folders import SIDECAR_SUFFIXES, look
from ..data.names import Names
from ..data.sources import captioned_images, folder_captions
from ..dataset import Dataset, DatasetImage, Reading
from ..messages import shown, system_reason
from ..typed import SpecError
from .journal import Change, Text, add_change, changes, original
from .metadata_rows import MetadataRows
from .sidecars import check_writable, read_sidecar, write_sidecar

_LONGEST_NAME = 255  # bytes, of most file systems
_SHARE = 20
"""A metadata file is written whole: after so many times what that takes, so that captioning is slowed by a twentieth at most."""


class CaptionStore:
    """The captions of a dataset's images on the disk, as the dataset reads them.

    An image's caption may be in several places that agree: all of them are changed. One without a caption gets a text file beside it.
    `images`: those of the dataset that are to be changed; without, all.

    Raises SpecError: a folder cannot be read or written, or a metadata file cannot be read.
    """

    def __init__(self, dataset: Dataset, images: Sequence[DatasetImage] | None = None) -> None:
        wanted = dict.fromkeys(Path(image.path) for image in (dataset.images if images is None else images))
        self._lines = dataset.reading.caption_lines if dataset.reading else False
        self._tables: dict[Path, MetadataRows] = {}
        self._waiting: dict[Path, dict[str, tuple[Path, str]]] = defaultdict(dict)
        self._saved_at, self._save_seconds = time.monotonic(), 0.0
        self._places: dict[Path, list[Place]] = {path: [] for path in wanted}
        self._owners: dict[Path, Names[str]] = {}
        check_writable(path.parent for path in wanted)
        folders = dict.fromkeys(path.parent for path in wanted)
        for reading in [dataset.reading] if dataset.reading else [Reading(folder=str(folder)) for folder in folders]:
            self._find(reading)
        check_writable({place.file.parent for places in self._places.values() for place in places} - folders.keys())

    def has_caption(self, image: Path) -> bool:
        """Whether there is one by now; it may have been written since the dataset was read."""
        return any(_words(self._read(place)) for place in self._present(image))

    def write(self, image: Path, caption: str) -> None:
        """Make `caption` (one line) the image's only one. What it replaces is kept first, and what is the same already is not written.

        Raises OSError.
        """
        places = [place for place in self._present(image) if _words(self._read(place))] or self._present(image)[:1] or [self._new_place(image)]
        rows = [place for place in places if place.row]
        for place in rows:
            self._waiting[place.file][place.row] = image, caption
        # Places that disagree are refused, so one that is written at once waits for no other.
        if (rows and len(places) > 1) or time.monotonic() - self._saved_at > _SHARE * self._save_seconds:
            self.save()
        for place in places:
            if not place.row:
                self._replace(place, caption)

    def save(self) -> None:
        """Write the captions that are not in their metadata files yet. Raises OSError."""
        start = time.monotonic()
        for file, captions in self._waiting.items():
            table = self._table(file)
            changed = False
            for name, (image, caption) in captions.items():
                if table.has(name):
                    changed |= self._replace(Place(file, name), caption)
                else:  # Its row was taken out meanwhile.
                    self._replace(self._new_place(image), caption)
            if changed:
                table.save()
        self._waiting.clear()
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - start

    def undo(self) -> dict[str, list[str]]:
        """Put back the captions that captioning replaced: those that the images concerned have now, by path.

        What was edited since stays, and asking twice changes nothing. Raises OSError.
        """
        journals = {folder: changes(folder) for folder in {place.file.parent for places in self._places.values() for place in places}}
        changed: set[Path] = set()
        undone: dict[str, list[str]] = {}
        for image, places in self._places.items():
            for place in places:
                now = self._read(place)
                then = original(now, journals[place.file.parent].get((place.file.name, place.row), []))
                if then != now:
                    self._set(place, then)
                    changed |= {place.file} if place.row else set()
                    undone[str(image)] = undone.get(str(image)) or _words(then, lines=self._lines and not place.row)
        for file in changed:
            self._tables[file].save()
        return undone

    def _find(self, reading: Reading) -> None:
        """Where the dataset reads the captions of its images."""
        root = Path(reading.folder)
        try:
            layout = look(root, recursive=reading.recursive)
        except OSError as error:
            raise SpecError(f"{shown(str(root))} cannot be read ({system_reason(error)}): make it readable.") from error
        captions, named = folder_captions(layout, reading.caption_lines)
        for folder in layout.folders:
            images = captioned_images(folder, named)
            self._owners[folder.path] = owners_of_sidecars(images)
            for name in images:
                if folder.path / name in self._places:
                    self._places[folder.path / name] += captions.places.get(folder.label + name, [])

    def _present(self, image: Path) -> list[Place]:
        """The places of an image, those that have come since among them."""
        known = self._places[image]
        new = [Place(file) for file in self._candidates(image) if file.is_file()]
        return [*known, *(place for place in new if place not in known)]

    def _new_place(self, image: Path) -> Place:
        return Place(next((file for file in self._candidates(image) if not file.exists()), image.with_name(image.name + SIDECAR_SUFFIXES[0])))

    def _candidates(self, image: Path) -> list[Path]:
        """`NAME.txt`, `NAME.caption`, `NAME.png.txt` and `NAME.png.caption`, as far as they are this image's and no other's."""
        names = [stem + suffix for stem in (image.stem, image.name) for suffix in SIDECAR_SUFFIXES]
        names = [name for name in names if len(os.fsencode(name)) <= _LONGEST_NAME]
        owners = self._owners.get(image.parent)
        return [image.with_name(name) for name in names if owners is None or owners.find(name.rpartition(".")[0]) == [image.name]]

    def _table(self, file: Path) -> MetadataRows:
        try:
            if file not in self._tables:
                self._tables[file] = MetadataRows(file)
            self._tables[file].refresh()
        except OSError as error:
            raise SpecError(f"{shown(str(file))} cannot be read ({system_reason(error)}): make it readable or remove it.") from error
        except TextError as error:
            raise SpecError(f"{shown(str(file))} {error}.") from error
        return self._tables[file]

    def _replace(self, place: Place, caption: str) -> bool:
        """Keep what is in the place and put `caption` there; whether it is another one."""
        before = self._read(place)
        if _words(before) == [caption]:
            return False
        after = caption if place.row else f"{caption}\n"
        add_change(place.file.parent, Change(file=place.file.name, row=place.row, before=before, after=after))
        self._set(place, after)
        return True

    def _read(self, place: Place) -> Text:
        if not place.row:
            return read_sidecar(place.file)
        table = self._table(place.file)
        return table.value(place.row) if table.has(place.row) else None

    def _set(self, place: Place, text: Text) -> None:
        if place.row:
            self._tables[place.file].set(place.row, text)
        elif isinstance(text, str):
            write_sidecar(place.file, text)
        else:
            place.file.unlink(missing_ok=True)


def _words(text: Text, lines: bool = False) -> list[str]:
    """The captions in it, each on one line; none where nothing can be seen. `lines`: each line of a text is a caption."""
    texts = [_readable(one) for one in ([text] if isinstance(text, str) else text or ())]
    return one_line_each(line for one in texts for line in (one.splitlines() if lines else [one]))


def _readable(text: str) -> str:
    """What a dataset reads of it: a text file may be in UTF-16."""
    try:
        return decoded(text.encode("utf-8", "surrogateescape"))
    except (TextError, UnicodeEncodeError):
        return text
