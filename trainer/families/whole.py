"""A whole checkpoint file: the base's own with trained weights in it."""
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..adapters.files import DTYPE_NAMES, FileError, write_streamed
from .clip import open_clip_tensor
from .detect import UNET, VAE, Checkpoint, TextShape
from .unet import ldm_names

_FLOATS = {name: dtype for dtype, name in DTYPE_NAMES.items() if dtype.is_floating_point}
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}

Formats = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def formats_of(checkpoint: Checkpoint, dtype: torch.dtype) -> Formats:
    """Number format and shape of each tensor of the new file: floating-point weights of UNet, text encoders and VAE in `dtype`, the rest as it is.

    Raises FileError for a number format that no file of torch's holds.
    """
    weights = (UNET, VAE, *(shape.prefix for shape in checkpoint.texts))
    found: Formats = {}
    for name, entry in checkpoint.header.tensors.items():
        if entry.dtype not in _DTYPES:
            raise FileError(f"the base stores {name} as {entry.dtype}, which cannot be written: use a version of it in fp16, bf16 or fp32.")
        changes = entry.dtype in _FLOATS and name.startswith(weights)
        found[name] = (dtype if changes else _DTYPES[entry.dtype], entry.shape)
    return found


def write_checkpoint(
    base: Path,
    checkpoint: Checkpoint,
    path: Path,
    unet: nn.Module,
    encoders: Sequence[nn.Module],
    dtype: torch.dtype,
    metadata: Mapping[str, str],
    markers: Mapping[str, bool],
) -> str:
    """Write `base` with the weights of `unet` and `encoders` (none: its own) to `path`; gives the sha256 of its bytes.

    `markers`: names of tensors that say something by being there, and whether they are to. One tensor is in memory at a time. Raises FileError as
    `formats_of`, and for a number that is none or that `dtype` cannot hold; nothing is written then.
    """
    trained = _trained(checkpoint, unet, encoders)
    formats = {name: stored for name, stored in formats_of(checkpoint, dtype).items() if markers.get(name, True)}
    added = [marker for marker, wanted in markers.items() if wanted and marker not in formats]
    formats |= {marker: (torch.float32, (0,)) for marker in added}
    with safe_open(base, framework="pt") as file:

        def tensor_of(name: str) -> Tensor:
            if name in added:
                return torch.empty(0)
            if name not in trained:
                return file.get_tensor(name).to(formats[name][0])
            return _stored(trained[name]().detach(), formats[name][0], name, path.name)

        return write_streamed(path, formats, tensor_of, metadata)


def _trained(checkpoint: Checkpoint, unet: nn.Module, encoders: Sequence[nn.Module]) -> dict[str, Callable[[], Tensor]]:
    """What gives the tensors that the models hold, by their names in the file."""
    found: dict[str, Callable[[], Tensor]] = {}
    state = unet.state_dict()
    names = [name.removeprefix(UNET) for name in checkpoint.header.tensors if name.startswith(UNET)]
    for name, own in ldm_names(checkpoint.unet, names).items():
        if own in state:
            found[UNET + name] = partial(state.__getitem__, own)
    for shape, encoder in zip(checkpoint.texts if encoders else (), encoders, strict=True):
        found |= _of_encoder(checkpoint, shape, {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()})
    return found


def _of_encoder(checkpoint: Checkpoint, shape: TextShape, state: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    found: dict[str, Callable[[], Tensor]] = {}
    for name in checkpoint.header.tensors:
        if not name.startswith(shape.prefix):
            continue
        own = name.removeprefix(shape.prefix)

        def give(own: str = own) -> Tensor:
            return open_clip_tensor(own, state) if shape.open_clip else state[own]

        try:
            give()
        except KeyError:
            continue  # a layer that is skipped, or a buffer: it stays as it is
        found[name] = give
    return found


def _stored(tensor: Tensor, dtype: torch.dtype, name: str, file: str) -> Tensor:
    stored = tensor.to("cpu", dtype)
    if not torch.isfinite(stored).all():
        why = "is not a number" if not torch.isfinite(tensor).all() else f"is too large for {DTYPE_NAMES[dtype]}: set save_format to fp32"
        raise FileError(f"{file} was not written: a value of {name} {why}.")
    return stored
