"""Writing adapters into a checkpoint: a new file, tensor by tensor, with every weight that changes rounded once."""
import hashlib
import json
import math
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..messages import shown
from .checkpoint_layers import BIAS, Place, reading
from .delta import bias_delta, changes_weight
from .files import FileError, Header, read_header, replacing
from .layer_tensors import AdapterMathError, naming
from .layers import Layer
from .metadata import HASH
from .saving import HASHES
from .soundness import FLOATS, WHOLE
from .total import total_bias_change, total_change

Parts = Mapping[str, Sequence[tuple[float, Layer]]]
"""Weights and layers by canonical key."""

_SPARE_BYTES = 64 * 2**20
_SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


@dataclass(frozen=True)
class Baked:
    """What was written. `changed`: tensors, of `tensors`; `lost`: how much of the change the rounding took, relative to it; `unused`: layers.

    `unused` are keys of layers, or of their biases, that the checkpoint has no tensor for.
    """

    size: int
    tensors: int
    changed: int
    lost: float
    unused: tuple[str, ...]


def bake(
    source: Path,
    output: Path,
    places: Mapping[str, Place],
    parts: Parts,
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None = None,
    converted: tuple[str, ...] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Baked:
    """Write `source` with the changes of `parts` to `output`: W' = W + sum in fp32, rounded once. All other tensors are the same bytes.

    `places`: see `checkpoint_layers`. `metadata`: to add to the file's own; hashes in it are made anew. `dtype`: float16, bfloat16 or float32 for all
    tensors whose names begin with one of `converted`; none: each keeps its own. `progress(done, tensors)` is called after each; what it
    raises ends the work, and `output` is what it was. One tensor is in memory at a time.

    Raises:
        FileError: `source` cannot be read, or there is no room for `output`.
        AdapterMathError: names the layer: the change cannot be computed, or does not fit the number format.
    """
    header = read_header(source)
    formats = {name: _format(source, name, entry.dtype, dtype, converted) for name, entry in header.tensors.items()}
    # Largest numbers first, so that each begins where its format may; files that are written by the library are in that order already.
    names = sorted(formats, key=lambda name: -_SIZES.get(formats[name], 1))
    sizes = [math.prod(header.shape(name)) * _SIZES.get(formats[name], 1) for name in names]
    changes = _changes(places, parts)
    kept = {key: value for key, value in header.metadata.items() if key not in HASHES} | dict(metadata)
    blank = _header(header, names, sizes, formats, kept | {HASH: "0x" + "0" * 64})
    check_room(output.parent, len(blank) + sum(sizes), output.name)
    digest = hashlib.sha256()
    lost = _Lost()
    changed = 0
    with reading(source) as file, replacing(output) as written:
        written.write(blank)
        for done, name in enumerate(names, 1):
            tensor = file.get_tensor(name)
            here = changes.get(name, ())
            if here:
                tensor, changed = _changed(tensor, here, parts, _TORCH.get(formats[name], tensor.dtype), lost), changed + 1
            elif formats[name] != header.tensors[name].dtype:
                with naming(name):
                    tensor = _rounded(tensor, _TORCH[formats[name]])
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            digest.update(data)
            written.write(data)
            if progress:
                progress(done, len(names))
        written.seek(0)
        written.write(_header(header, names, sizes, formats, kept | {HASH: f"0x{digest.hexdigest()}"}))
    return Baked(len(blank) + sum(sizes), len(names), changed, lost.share, _unused(places, parts))


def check_room(folder: Path, needed: int, name: str) -> None:
    """Refuse a file of so many bytes that does not fit on the disk of `folder`. Raises FileError with both sizes."""
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        sizes = f"{_mib(needed + _SPARE_BYTES)} MiB are needed in {folder.name} and {_mib(free)} MiB are free"
        raise FileError(f"there is no room for {name}: {sizes}. Make room.")


_TORCH = {name: dtype for dtype, name in _NAMES.items()}


def _format(source: Path, name: str, own: str, dtype: torch.dtype | None, converted: tuple[str, ...]) -> str:
    if own not in FLOATS | WHOLE:
        stored = f"{shown(name)} is stored as {shown(own)}"
        raise FileError(f"{source.name}: {stored}, a number format that LoRA Loom does not read. Use another version of it.")
    return _NAMES[dtype] if dtype is not None and own in FLOATS and name.startswith(converted) else own


def _header(header: Header, names: Sequence[str], sizes: Sequence[int], formats: Mapping[str, str], metadata: Mapping[str, str]) -> bytes:
    """The file's beginning: https://huggingface.co/docs/safetensors."""
    content: dict[str, object] = {"__metadata__": {key: metadata[key] for key in sorted(metadata)}}
    end = 0
    for name, size in zip(names, sizes, strict=True):
        content[name] = {"dtype": formats[name], "shape": header.shape(name), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _changes(places: Mapping[str, Place], parts: Parts) -> dict[str, list[tuple[str, Place]]]:
    """What changes in each tensor of the file: keys (BIAS at their end) and places."""
    found: dict[str, list[tuple[str, Place]]] = {}
    for key, layers in parts.items():
        for wanted, has in ((key, changes_weight), (key + BIAS, lambda layer: bias_delta(layer) is not None)):
            if wanted in places and any(weight and has(layer) for weight, layer in layers):
                found.setdefault(places[wanted].name, []).append((wanted, places[wanted]))
    return found


def _unused(places: Mapping[str, Place], parts: Parts) -> tuple[str, ...]:
    biases = [key + BIAS for key, layers in parts.items() if any(bias_delta(layer) is not None for _, layer in layers)]
    return tuple(key for key in (*parts, *biases) if key not in places)


class _Lost:
    """What rounding took of all changes together."""

    def __init__(self) -> None:
        self.error = self.norm = 0.0

    def add(self, exact: Tensor, rounded: Tensor, change: Tensor) -> None:
        self.error += float((rounded.float() - exact).double().square().sum())
        self.norm += float(change.double().square().sum())

    @property
    def share(self) -> float:
        return math.sqrt(self.error / self.norm) if self.norm else 0.0


def _changed(tensor: Tensor, here: Sequence[tuple[str, Place]], parts: Parts, dtype: torch.dtype, lost: _Lost) -> Tensor:
    """The tensor with all changes of it."""
    exact = tensor.to(torch.float32, copy=True)
    changes = torch.zeros_like(exact)
    for key, place in here:
        with naming(key):
            bias = key.endswith(BIAS)
            total = (total_bias_change if bias else total_change)(parts[key.removesuffix(BIAS)], place.of(exact))
            place.of(changes).copy_(total)
    exact += changes
    with naming(here[0][0]):
        rounded = _rounded(exact, dtype)
    lost.add(exact, rounded, changes)
    return rounded


def _rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = tensor.to(dtype)
    if not torch.isfinite(rounded.float()).all() and torch.isfinite(tensor.float()).all():
        largest = float(tensor.float().abs().max())
        raise AdapterMathError(f"a value of {largest:.3g} does not fit {dtype}: choose fp32, or lower the weights")
    if not torch.isfinite(rounded.float()).all():
        raise AdapterMathError("the result is infinite or NaN: the checkpoint or an adapter is damaged, or the weights are far too high")
    return rounded


def _mib(size: int) -> int:
    return -(-size // 2**20)
