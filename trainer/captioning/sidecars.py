"""The text file beside a picture that holds its caption: which one it is, whether it can be written, writing it."""
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ..adapters.files import write_bytes
from ..data.captions import SIDECAR_SUFFIXES
from ..typed import SpecError


def sidecar_of(picture: Path) -> Path:
    """`NAME.txt`, or `NAME.caption` where only that exists, so that two files never disagree about one picture."""
    return next(iter(existing_sidecars(picture)), picture.with_suffix(SIDECAR_SUFFIXES[0]))


def existing_sidecars(picture: Path) -> list[Path]:
    """The caption files of a picture that are there."""
    return [sidecar for suffix in SIDECAR_SUFFIXES if (sidecar := picture.with_suffix(suffix)).is_file()]


def sidecars_of(pictures: Iterable[Path]) -> dict[Path, Path]:
    """The sidecar of each picture, in order; a picture that is listed twice counts once.

    Raises:
        SpecError: two pictures differ only in their ending (`cat.jpg`, `cat.png`) and so would share one caption file.
    """
    sidecars = {picture: sidecar_of(picture) for picture in pictures}
    owners: dict[Path, Path] = {}
    for picture, sidecar in sidecars.items():
        owner = owners.setdefault(sidecar, picture)
        if owner != picture:
            raise SpecError(f"{owner} and {picture.name} would share the caption file {sidecar.name}: rename one of them.")
    return sidecars


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
