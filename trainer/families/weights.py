"""Tensors out of a single file and into a model that was built without any."""
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..typed import SpecError


def read_tensors(path: str, prefix: str) -> dict[str, Tensor]:
    """The tensors of `path` whose names begin with `prefix`, named without it."""
    with safe_open(path, framework="pt") as file:
        return {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118 - not a dict


def read_tensor(path: str, name: str) -> Tensor:
    """One tensor of `path`. `name` has to be there."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


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
