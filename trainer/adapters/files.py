"""Reading and writing .safetensors files: the header alone, whole files, and writes that never leave half a file behind.

Format: https://huggingface.co/docs/safetensors: 8 bytes (little endian) with the length N of a JSON header, N bytes of header, tensors.
"""
import contextlib
import errno
import hashlib
import json
import math
import operator
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from ..messages import system_reason

_SYNC_BYTES = 64 * 2**20
_LONGEST_START = 255 - len("..12345678.tmp")
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Numbers of the errors that a write ends in where there is no room for it."""
HEADER_LIMIT_BYTES = 100_000_000  # the format's own limit
DTYPE_NAMES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.bool: "BOOL"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
}
"""Number formats as headers name them."""


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
            start = file.read(9)
            if len(start) < 8:
                raise FileError(f"{path.name} is not a .safetensors file: it holds {size} bytes. Download it again.")
            length = int.from_bytes(start[:8], "little")
            if length > HEADER_LIMIT_BYTES or length + 8 > size:
                raise FileError(f"{path.name} is {_looks_like(start, length + 8 <= size)}.")
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise FileError(f"{path.name} cannot be read: {system_reason(error)}.") from error
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


def begins_with_header(start: bytes) -> bool:
    """Whether a file's first 9 bytes are those of a .safetensors file: the length of a header, and the brace that begins it.

    The length may begin with any byte, those of a pickle and of a zip archive too, so this counts before what they look like.
    """
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= HEADER_LIMIT_BYTES


def _looks_like(start: bytes, whole: bool) -> str:
    """What is there instead, from its first 9 bytes; `whole`: it is as long as they say, if they are the length of a header."""
    if begins_with_header(start):
        return "truncated: it ends before its header does. Download or copy it again"
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return "a pickle (.ckpt/.pt), which can run code when it is opened; LoRA Loom reads .safetensors only. Use that version of it"
    if start[:1] == b"<":
        return "a web page, not a model: the download went wrong. Download it again"
    if whole:
        length, most = int.from_bytes(start[:8], "little"), HEADER_LIMIT_BYTES
        return f"not a .safetensors file: its header would be {length:,} bytes long, and the format allows {most:,}. Use another copy of it"
    return "not a .safetensors file, or it is truncated. Download it again"


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Write `path` so that at every moment it is either the old file or the whole new one: temporary file, fsync, rename.

    Without `durable` there is no fsync, for which a slow disk takes longer than for the rest: a power cut may leave a file that is not whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name may be as long as the disk allows, and what marks the temporary one has to fit too.
    start = os.fsencode(path.name)[:_LONGEST_START].decode("utf-8", "ignore")
    descriptor, temporary = tempfile.mkstemp(prefix=f".{start}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            error.filename = error.filename or str(path)  # a write does not know what it writes to
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
    formats = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    return write_streamed(path, formats, lambda name: tensors[name], metadata, durable)


def write_streamed(
    path: Path,
    formats: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensor_of: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    durable: bool = True,
) -> str:
    """The same with one tensor in memory at a time: `tensor_of(name)` gives it when its turn comes. `formats`: number format and shape of each.

    Raises ValueError where `tensor_of` gives something else than was promised, and what it raises; nothing is written then.
    """
    # Largest numbers first, so that each tensor begins where its format may.
    names = sorted(formats, key=lambda name: (-formats[name][0].itemsize, name))
    header = _header(names, formats, metadata)
    digest = hashlib.sha256(header)
    with replacing(path, durable) as file:
        file.write(header)
        unsynced = 0
        for name in names:
            tensor = tensor_of(name).detach()
            if (tensor.dtype, tuple(tensor.shape)) != formats[name]:
                raise ValueError(f"{path.name}: {name} was to be {formats[name]} and is {(tensor.dtype, tuple(tensor.shape))}")
            data = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            digest.update(data)
            for start in range(0, len(data), _SYNC_BYTES):
                unsynced += file.write(data[start : start + _SYNC_BYTES])
                if durable and unsynced >= _SYNC_BYTES:
                    # On a slow disk one fsync at the end would take minutes in which nothing is seen to move: see trainer/patience.py.
                    file.flush()
                    os.fsync(file.fileno())
                    unsynced = 0
    return digest.hexdigest()


def _header(names: Sequence[str], formats: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None) -> bytes:
    """The file's beginning. Metadata in the order of its keys: the library writes it in an order that changes."""
    content: dict[str, object] = {"__metadata__": {key: metadata[key] for key in sorted(metadata)}} if metadata else {}
    end = 0
    for name in names:
        dtype, shape = formats[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        content[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # The format aligns tensors to 8 bytes.
    return struct.pack("<Q", len(text)) + text


def sha256_of(path: Path) -> str:
    """sha256 of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
