"""Whether numbers from a file can be trusted: known types, sane shapes, finite values, the bytes that were once hashed."""
import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..messages import shown, system_reason
from .files import FileError, Header
from .layers import Shape
from .made_metadata import is_ours
from .metadata import HASH, KOHYA_HASH

FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
WHOLE = frozenset({"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"})
LARGEST = 1e6
"""No training leaves a number above this in an adapter; flipped exponent bits do."""
_LARGEST_SIDE = 2**40
_MOST_DIMENSIONS = 8  # A convolution over time, height and width has 5.
_MOST_TENSORS = 100_000  # A LoRA on every layer of the largest models has some thousands.


def checked_shapes(header: Header, file: str) -> dict[str, Shape]:
    """Shapes by name, once every entry of the header has one that is a shape and a type that is known.

    Raises:
        FileError: it has not, or there are more tensors than any adapter has.
    """
    if len(header.tensors) > _MOST_TENSORS:
        raise FileError(f"{file} holds {len(header.tensors)} tensors; no adapter has more than {_MOST_TENSORS}. Choose another file.")
    shapes: dict[str, Shape] = {}
    for name, entry in header.tensors.items():
        if len(entry.shape) > _MOST_DIMENSIONS or not all(type(size) is int and 0 <= size <= _LARGEST_SIDE for size in entry.shape):
            raise FileError(f"{file}: {shown(name)} has the shape {shown(str(entry.shape))}, which no tensor has. Download the file again.")
        if not isinstance(entry.dtype, str) or entry.dtype not in FLOATS | WHOLE:
            raise FileError(f"{file}: {shown(name)} is stored as {shown(str(entry.dtype))}, a number type that LoRA Loom does not read. Convert it.")
        shapes[name] = entry.shape
    return shapes


def check_values(tensor: Tensor, name: str, file: str) -> None:
    """Raises FileError if a number is NaN, infinite or absurdly large."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    low, high = (bound.item() for bound in torch.aminmax(tensor.float() if tensor.itemsize == 1 else tensor))
    # Written so that NaN, which aminmax hands on, fails it.
    if low >= -LARGEST and high <= LARGEST:
        return
    if torch.isfinite(tensor.float()).all():
        raise FileError(
            f"{file}: {shown(name)} holds {max(high, -low):.3g}, which no training makes: the file is damaged. Download or copy it again."
        )
    raise FileError(
        f"{file}: {shown(name)} holds NaN or infinity: the training that made it went wrong, or the file is damaged. Use another version of it."
    )




def check_recorded_hash(path: Path, metadata: Mapping[str, str]) -> None:
    """Compare the tensors' bytes with the hash in the file's metadata, if LoRA Loom wrote it: the sha256 of everything behind the header.

    No other program's hash is looked at: many write one of something else (LyCORIS that of nothing, others hash before a cast, or in another
    order); see `foreign_hashes`. Raises FileError.
    """
    recorded = _recorded(metadata, HASH)
    # A program that changes one of our files writes kohya's hash anew and leaves ours; we write both alike.
    ours = is_ours(metadata) and _recorded(metadata, KOHYA_HASH) in ("", recorded)
    if ours and recorded and payload_sha256(path) != recorded:
        raise FileError(
            f"{path.name} is not as it was made: its tensors do not have the sha256 that LoRA Loom wrote into its metadata. It is damaged (download "
            f"or copy it again), or another program changed it and kept the old hash (have that program save it without {HASH})."
        )


def foreign_hashes(path: Path, metadata: Mapping[str, str]) -> list[str]:
    """The entries of the metadata that name a sha256 which the tensors' bytes do not have. They say nothing of the file's soundness."""
    named = {key: recorded for key in (KOHYA_HASH, HASH) if (recorded := _recorded(metadata, key))}
    found = payload_sha256(path) if named else ""
    return [key for key, recorded in named.items() if recorded != found]


def _recorded(metadata: Mapping[str, str], key: str) -> str:
    """The sha256 in an entry; "" if there is none, or something shorter."""
    recorded = metadata.get(key, "").lower().removeprefix("0x")
    return recorded if len(recorded) == 64 else ""


def payload_sha256(path: Path) -> str:
    """sha256, in hex, of everything behind the header of a .safetensors file. Raises FileError."""
    try:
        with path.open("rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"{path.name} cannot be read: {system_reason(error)}.") from error
