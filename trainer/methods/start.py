"""Going on from an adapter that exists: its file's factors become the start of the new ones."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..options import Network
from ..typed import SpecError
from .targets import ADAPTER

# The first name of each kind is the one that carries a difference in scale.
_NAMES = {
    "lora": ("lora_up.weight", "lora_down.weight"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "lokr": ("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
}
_NO_FACTORS = ("alpha", "dora_scale")


def take_over(layers: Mapping[str, Any], network: Network, path: Path) -> None:
    """Copy the file's factors into peft's `layers`, by their keys in the file, in place.

    Raises SpecError where the file has layers that the network does not have or lacks some that it has, or where kind or rank differ: an adapter
    that is taken over in part would be another one.
    """
    tensors = load_file(path)
    told = {key.partition(".")[0] for key in tensors}
    if told != layers.keys():
        missing, foreign = sorted(layers.keys() - told), sorted(told - layers.keys())
        raise SpecError(
            f"{path.name} has other layers than this network: {len(missing)} of {len(layers)} are not in it{_first(missing)}, and {len(foreign)} of "
            f"its own are not in the network{_first(foreign)}. Set targets, conv_rank and the text encoder's training as they were for it."
        )
    for key, layer in layers.items():
        found = {name: tensors[f"{key}.{name}"] for name in _NAMES[network.kind] if f"{key}.{name}" in tensors}
        own = _own(layer, network)
        others = [name for name in tensors if name.startswith(f"{key}.") and name.partition(".")[2] not in (*_NAMES[network.kind], *_NO_FACTORS)]
        if found.keys() != own.keys() or others:
            raise SpecError(f"{path.name} is no {network.kind} like this one ({key} differs): set kind and its settings as they were for it.")
        for name, tensor in found.items():
            if tensor.shape != own[name].shape:
                raise SpecError(
                    f"{path.name}: {key}.{name} has the shape {tuple(tensor.shape)}, and this network's has {tuple(own[name].shape)}: set rank "
                    "(and conv_rank and block_ranks) as they were for it."
                )
            own[name].copy_(tensor)
        _rescale(layer, own, tensors.get(f"{key}.alpha"), network)


def _own(layer: Any, network: Network) -> dict[str, Tensor]:
    if network.kind == "lora":
        return {"lora_up.weight": layer.lora_B[ADAPTER].weight.data, "lora_down.weight": layer.lora_A[ADAPTER].weight.data}
    return {name: getattr(layer, name)[ADAPTER].data for name in _NAMES[network.kind] if ADAPTER in getattr(layer, name)}


def _rescale(layer: Any, own: dict[str, Tensor], alpha: Tensor | None, network: Network) -> None:
    """The file's alpha / rank may differ from this network's: what is added to the base stays the same."""
    rank = layer.r[ADAPTER]
    scale = 1.0 if "lokr_w2" in own else float(torch.tensor(rank) if alpha is None else alpha) / rank
    own[_NAMES[network.kind][0]].mul_(scale / layer.scaling[ADAPTER])


def _first(names: list[str]) -> str:
    return f" ({names[0]} is one)" if names else ""
