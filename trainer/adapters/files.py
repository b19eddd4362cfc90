"""Reading and writing .safetensors files: the header alone, whole files, and writes that never leave half a file behind.

Format: https://huggingface.co/docs/safetensors: 8 bytes (little endian) with the length N of a JSON header, N bytes of header, tensors.
"""
import contextlib
import hashlib
import json
import operator
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors.torch import save as safetensors_bytes

HEADER_LIMIT_BYTES = 100_000_000  # the format's own limit


class FileError(ValueError):
    """The file is not what it should be. The message names it and says what to do."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as the header describes it: `dtype` as written there (F16, BF16, F32, ...)."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a .safetensors file says of itself without its tensors being read."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    sha256: str

    def has(self, *names: str) -> bool:
        """Whether every one of `names` is there."""
        return all(name in self.tensors for name in names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor `name`. Raises KeyError."""
        return self.tensors[name].shape


def read_header(path: Path) -> Header:
    """Read the header of a .safetensors file.

    Raises:
        FileError: not there, not safetensors (a pickle, a web page saved in its place), truncated, or a nonsense header.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if len(start) < 8:
                raise FileError(f"{path.name} is not a .safetensors file: it holds {size} bytes. Download it again.")
            (length,) = struct.unpack("<Q", start)
            if length > HEADER_LIMIT_BYTES or length + 8 > size:
                raise FileError(f"{path.name} is {_looks_like(start, path)}.")
            raw = file.read(length)
    except OSError as error:
        raise FileError(f"{path.name} cannot be read: {error.strerror}.") from error
    try:
        content = json.loads(raw)
        metadata = {str(key): str(value) for key, value in dict(content.pop("__metadata__", {})).items()}
        tensors = {name: TensorEntry(entry["dtype"], tuple(entry["shape"])) for name, entry in content.items()}
        end = max((operator.index(entry["data_offsets"][1]) for entry in content.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise FileError(f"{path.name} is not a .safetensors file: its header is not the JSON that the format asks for.") from error
    if size < 8 + length + end:
        raise FileError(
            f"{path.name} is truncated: it holds {size} bytes and its header promises {8 + length + end}. Download or copy it again."
        )
    return Header(tensors, metadata, hashlib.sha256(raw).hexdigest())


def _looks_like(start: bytes, path: Path) -> str:
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return "a pickle (.ckpt/.pt), which can run code when it is opened; LoRA Loom reads .safetensors only. Use that version of it"
    if start[:1] == b"<":
        return "a web page, not a model: the download went wrong. Download it again"
    return "not a .safetensors file, or it is truncated. Download it again"


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Write `path` so that at every moment it is either the old file or the whole new one: temporary file, fsync, rename.

    Without `durable` there is no fsync, for which a slow disk takes longer than for the rest: a power cut may leave a file that is not whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    # mkstemp makes files that only their owner reads; adapters are shared like any other model.
    current = os.umask(0)
    os.umask(current)
    return current


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Atomically replace `path` with `data`; see `replacing`."""
    with replacing(path, durable) as file:
        file.write(data)


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None, durable: bool = True) -> str:
    """Atomically write `tensors` (any device) in the order of their names; gives the sha256 of the file's bytes. `durable`: see `replacing`.

    Raises:
        FileError: a tensor holds NaN or infinity. Nothing is written then.
    """
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise FileError(f"{path.name} was not written: {len(bad)} of {len(tensors)} tensors hold NaN or infinity, the first is {bad[0]}.")
    data = _with_metadata(safetensors_bytes({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}), metadata)
    write_bytes(path, data, durable)
    return hashlib.sha256(data).hexdigest()


def _with_metadata(data: bytes, metadata: Mapping[str, str] | None) -> bytes:
    """The file's bytes with `metadata` in the header, in the order of its keys; the library writes it in an order that changes."""
    if not metadata:
        return data
    (length,) = struct.unpack("<Q", data[:8])
    header = {"__metadata__": {key: metadata[key] for key in sorted(metadata)}, **json.loads(data[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # The format aligns tensors to 8 bytes.
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def sha256_of(path: Path) -> str:
    """sha256 of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
