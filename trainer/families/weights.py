"""Tensors out of a single file and into a model that was built without any."""
import hashlib
import json
import struct
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..typed import SpecError

_SEEN_BYTES = 4096


def read_tensors(path: str, prefix: str) -> dict[str, Tensor]:
    """The tensors of `path` whose names begin with `prefix`, named without it."""
    with safe_open(path, framework="pt") as file:
        return {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118 - not a dict


def read_tensor(path: str, name: str) -> Tensor:
    """One tensor of `path`. `name` has to be there."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def weights_digest(path: str, prefixes: tuple[str, ...]) -> str:
    """64 hex digits that differ for different weights under `prefixes`: names, types, shapes and the beginning of every tensor.

    Reading a hundredth of the bytes tells any two trainings' weights apart: there is no tensor of which a training leaves the beginning alone.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        for name in sorted(name for name in header if name.startswith(prefixes) and name != "__metadata__"):
            start, end = header[name]["data_offsets"]
            file.seek(8 + length + start)
            digest.update(f"{name} {header[name]['dtype']} {header[name]['shape']}\0".encode())
            digest.update(file.read(min(end - start, _SEEN_BYTES)))
    return digest.hexdigest()


def filled(model: Any, state: dict[str, Tensor], dtype: torch.dtype, device: torch.device, what: str) -> Any:
    """`model`, built on the meta device, with its weights from `state`; frozen, in evaluation mode. What `state` has beyond it is left out.

    Raises SpecError, beginning with `what`, where weights are missing.
    """
    wanted = model.state_dict().keys()
    missing = [name for name in wanted if name not in state]
    if missing:
        raise SpecError(f"{what}: {len(missing)} tensors are missing, the first is {missing[0]}. Choose a complete file.")
    # assign: the file's tensors become the weights, so there is no second copy in memory.
    model.load_state_dict({name: state[name] for name in wanted}, strict=True, assign=True)
    return model.requires_grad_(False).eval().to(device=device, dtype=dtype)
