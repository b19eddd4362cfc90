"""Hypernetworks as A1111 trains them: for each width of attention input two small networks that change what becomes keys and values.

They exist only as pickles: whole numbers (widths) as keys, each with the states of the two networks, and settings beside them. ComfyUI reads
them in comfy_extras/nodes_hypernetwork.py.
"""
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..messages import shown
from .files import FileError
from .pickles import is_pickle, load_pickle, plain_tensor
from .soundness import check_values

ACTIVATIONS = frozenset({"linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "softsign", "mish"})
_FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}
TEXT_WIDTHS = frozenset(_FAMILIES)
"""Widths of attention that reads a text, and that no attention within a picture has."""
_LIMIT_BYTES = 2 * 2**30
_MOST_WIDTHS = 64

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Hypernetwork:
    """`layers`: by width, the states (`linear.0.weight`, `linear.0.bias`, ...) of the networks for keys and for values, in their order."""

    layers: Mapping[int, tuple[State, State]]
    activation: str
    layer_norm: bool
    dropout: bool
    activate_output: bool
    family: str | None
    name: str | None = None


def read_hypernetwork(path: Path) -> Hypernetwork:
    """Read a hypernetwork, under the conditions of `load_pickle`.

    Raises:
        FileError: not readable, not a hypernetwork, layers that do not fit one after another, or numbers that are NaN, infinite or absurd.
    """
    found = hypernetwork_of(load_pickle(path, _LIMIT_BYTES), path.name) if is_pickle(path) else None
    if found is None:
        raise FileError(f"{path.name} is not a hypernetwork: a .pt file with a network for each width of attention (320, 640, 768, 1280).")
    return found


def hypernetwork_of(content: Any, file: str) -> Hypernetwork | None:
    """The hypernetwork in a pickle's content; None if it holds something else. Raises FileError as `read_hypernetwork`."""
    if not isinstance(content, dict):
        return None
    widths = [width for width in content if type(width) is int]
    if not widths or len(widths) > _MOST_WIDTHS:
        return None
    activation = content.get("activation_func") or "linear"
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise FileError(f"{file}: the activation {shown(str(activation))} is not one of {', '.join(sorted(ACTIVATIONS))}.")
    layers = {width: _pair(content[width], width, file) for width in widths}
    families = {_FAMILIES[width] for width in widths if width in _FAMILIES}
    said = content.get("name")
    return Hypernetwork(
        layers=layers,
        activation=activation,
        layer_norm=bool(content.get("is_layer_norm", False)),
        dropout=bool(content.get("use_dropout", False)),
        activate_output=bool(content.get("activate_output", False)),
        family=families.pop() if len(families) == 1 else None,
        name=said if isinstance(said, str) else None,
    )


def _pair(states: Any, width: int, file: str) -> tuple[State, State]:
    if not isinstance(states, list | tuple) or len(states) < 2 or not all(isinstance(state, dict) for state in states[:2]):
        raise FileError(f"{file}: width {width} has to have two networks, for keys and for values. The file is damaged.")
    return _state(states[0], width, f"{width}, keys", file), _state(states[1], width, f"{width}, values", file)


def _state(state: dict[Any, Any], width: int, where: str, file: str) -> State:
    current = width
    checked: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise FileError(f"{file}: {where}: {shown(str(name))} is not a tensor of numbers. The file is damaged.")
        checked[name] = plain_tensor(tensor, f"{where}: {name}", file)
        check_values(tensor, f"{where}: {name}", file)
        if not name.endswith(".weight"):
            continue
        bias = state.get(name.removesuffix("weight") + "bias")
        if tensor.dim() not in (1, 2) or tensor.shape[-1] != current or not isinstance(bias, Tensor) or bias.shape != tensor.shape[:1]:
            raise FileError(
                f"{file}: {where}: {shown(name)} of shape {tuple(tensor.shape)} does not fit an input of {current} or has no bias to match."
            )
        current = tensor.shape[0]
    if current != width or not checked:
        raise FileError(f"{file}: {where}: the network gives {current if checked else 0} numbers for {width}. The file is damaged.")
    return checked
