"""The text file beside a picture that holds its caption: which one it is, whether it can be written, writing it."""
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..adapters.files import write_bytes
from ..data.captions import sidecars_with_images
from ..data.folders import SIDECAR_SUFFIXES, Folder
from ..data.image_formats import is_image_name
from ..messages import shown, system_reason
from ..typed import SpecError

_SUFFIX = SIDECAR_SUFFIXES[0]


def sidecars_of(images: Iterable[Path]) -> dict[Path, list[Path]]:
    """The caption files of each image that are there, as the dataset reads them. Raises SpecError for a folder that cannot be read."""
    found: dict[Path, list[Path]] = {image: [] for image in images}
    for folder in dict.fromkeys(image.parent for image in found):
        try:
            files = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(".")))
        except OSError as error:
            raise SpecError(f"{shown(str(folder))} cannot be read ({system_reason(error)}): make it readable.") from error
        there = Folder(folder, "", files)
        for sidecar, owners in sidecars_with_images(there, there.images):
            # That of two images is the caption of neither.
            if len(owners) == 1 and folder / owners[0] in found:
                found[folder / owners[0]].append(folder / sidecar)
    return found


def new_sidecars(images: Iterable[Path], existing: Mapping[Path, Sequence[Path]]) -> dict[Path, Path]:
    """Where the caption of each image without one goes: its empty caption file, `NAME.txt`, or `NAME.png.txt` where another image has its name."""
    images = list(images)
    stems = {folder: Counter(_stem(name) for name in os.listdir(folder) if is_image_name(name)) for folder in {image.parent for image in images}}

    def new(image: Path) -> Path:
        return image.with_suffix(_SUFFIX) if stems[image.parent][_stem(image.name)] == 1 else image.with_name(image.name + _SUFFIX)

    return {image: next(iter(existing[image]), new(image)) for image in images}


def _stem(name: str) -> str:
    # What a case-insensitive disk takes for one name.
    return name.rpartition(".")[0].casefold()


def check_writable(folders: Iterable[Path]) -> None:
    """Try to make a file in each folder; nothing is left behind.

    Raises:
        SpecError: a folder is missing or read-only. It is named.
    """
    for folder in sorted(set(folders)):
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise SpecError(
                f"Captions cannot be written to {folder} ({error.strerror}). Make the folder writable, or copy its pictures to one that is."
            ) from error


def read_sidecar(sidecar: Path) -> str | None:
    """All that is in the file, None where there is none. What is not UTF-8 is kept as lone surrogates, so that it can be written back."""
    try:
        return sidecar.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None


def write_sidecar(sidecar: Path, text: str) -> None:
    """Replace what is in the file by `text`, in UTF-8, at once: no reader ever sees half of it.

    Raises:
        OSError: the disk is full, or something that is no file has the name.
    """
    write_bytes(sidecar, text.encode("utf-8", "surrogateescape"))
