"""Text files that hold the caption of one image: whether they can be written, reading and writing them."""
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ..adapters.files import write_bytes
from ..typed import SpecError


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
