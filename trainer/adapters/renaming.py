"""From canonical keys to the names of a scheme, for saving an adapter where another program reads it."""
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ..messages import shown
from .layers import Layer, layer_rank
from .ldm import DIFFUSERS_ROOTS, TEXT_ROOTS, Path, path_of

Scheme = Literal["kohya", "diffusers", "PEFT"]

_COMPONENTS = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}
_ATTENTION = frozenset({"to_q", "to_k", "to_v"})


class NamingError(ValueError):
    """The adapter cannot be named as asked. The message says which layer and why."""


def renamed(layers: Mapping[str, Layer], scheme: Scheme) -> dict[str, Tensor]:
    """A file's tensors from layers by canonical key.

    `kohya`: the canonical names themselves, every kind, which ComfyUI, A1111 and Forge read. `diffusers` and `PEFT`: LoRA and LoCon of SD
    1.x, SD 2.x and SDXL for diffusers' `load_lora_weights`, and for ComfyUI in the case of `diffusers`; these schemes have no place for alpha,
    so alpha / rank is multiplied into the up factor, rounded once to its type.

    Raises:
        NamingError: a kind or a layer that the scheme has no names for, or alpha / rank takes a number out of the type's range.
    """
    if scheme == "kohya":
        return {f"{key}.{suffix}": tensor for key, layer in layers.items() for suffix, tensor in layer.items()}
    tensors: dict[str, Tensor] = {}
    for key, layer in layers.items():
        component, path = component_and_path(key)
        odd = layer.keys() - {"lora_up.weight", "lora_down.weight", "alpha"}
        if odd:
            raise NamingError(f"{shown(key)} has {sorted(odd)[0]}, for which {scheme} has no name. Save it with kohya names, or as a plain LoRA.")
        up, down = _diffusers_names(component, path) if scheme == "diffusers" else _peft_names(component, path)
        tensors[up], tensors[down] = _scaled_up(layer, key), layer["lora_down.weight"]
    return tensors


def component_and_path(key: str) -> tuple[str, Path]:
    """diffusers' name of the model (unet, text_encoder, text_encoder_2) and the words of the module's name in it, of a canonical key.

    Raises NamingError if the key is not of a UNet or text encoder with diffusers' layout.
    """
    for prefix, component in _COMPONENTS.items():
        path = path_of(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if path and path[0] in (DIFFUSERS_ROOTS if component == "unet" else TEXT_ROOTS):
            return component, path
    raise NamingError(f"{shown(key)} is not a layer of SD 1.x, SD 2.x or SDXL with diffusers' names. Save it with kohya names.")


def _peft_names(component: str, path: Path) -> tuple[str, str]:
    module = ".".join((component, *path))
    return f"{module}.lora_B.weight", f"{module}.lora_A.weight"


def _diffusers_names(component: str, path: Path) -> tuple[str, str]:
    """The older of diffusers' own schemes: it reads both, and ComfyUI this one only (`.attn1.to_q` it does not match)."""
    if component != "unet":
        stem, mark = ".".join((component, *path)), ".lora_linear_layer"
    elif path[-1] in _ATTENTION or path[-2:] == ("to_out", "0"):
        words = path[:-1] if path[-1] == "0" else path
        stem, mark = ".".join((component, *words[:-1], "processor", words[-1])), "_lora"
    else:
        stem, mark = ".".join((component, *path)), ".lora"
    return f"{stem}{mark}.up.weight", f"{stem}{mark}.down.weight"


def _scaled_up(layer: Layer, key: str) -> Tensor:
    up = layer["lora_up.weight"]
    rank = layer_rank({suffix: tuple(tensor.shape) for suffix, tensor in layer.items()})
    alpha = layer["alpha"].item() if "alpha" in layer else None
    if alpha is None or not rank or alpha == rank:
        return up
    scaled = (up.double() * (alpha / rank)).to(up.dtype)
    if not (math.isfinite(alpha) and torch.isfinite(scaled.float()).all()):
        raise NamingError(f"{shown(key)}: alpha / rank = {alpha / rank:g} takes the up factor out of the range of {up.dtype}. Save it in float32.")
    return scaled
