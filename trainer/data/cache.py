"""What was encoded, kept on the disk for the next training: one .safetensors file an entry, each whole or not there.

An entry's name is the hash of everything that it depends on, so nothing ever has to be thrown away because it is out of date, and the folder may
be deleted at any time. Files are checked when they are read: a damaged one is not there.
"""
import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..adapters.files import FileError, read_header, write_safetensors
from ..adapters.metadata import tensors_sha256

_SUM = "sha256"


def key_of(*parts: object) -> str:
    """64 hex digits for what an entry depends on."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()


class Cache:
    """Entries of tensors in `folder`; without one it holds nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.problem = ""
        """Why entries cannot be written, once that has happened."""

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry, or None."""
        if self._folder is None:
            return None
        try:
            metadata = read_header(self._path(key)).metadata
            tensors = load_file(self._path(key))
        except (OSError, FileError, SafetensorError):
            return None
        return tensors if metadata.get(_SUM) == tensors_sha256(tensors) else None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep an entry. A disk that is full or read-only costs the next training time and this one nothing: see `problem`.

        Raises FileError for tensors that are not finite.
        """
        if self._folder is None or self.problem:
            return
        try:
            # A file that a power cut has left in pieces does not pass `get`.
            write_safetensors(self._path(key), tensors, {_SUM: tensors_sha256(tensors)}, durable=False)
        except OSError as error:
            self.problem = f"{self._folder}: {error.strerror or error}"

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / key[:2] / f"{key}.safetensors"
