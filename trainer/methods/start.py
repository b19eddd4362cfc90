"""Going on from an adapter that exists: its file's factors become the start of the new ones."""
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters.delta import low_rank
from ..adapters.files import FileError
from ..adapters.layers import Layer
from ..adapters.reading import Adapter, describe_file, read_adapter
from ..messages import listed, shown
from ..options import Network
from ..typed import SpecError
from .targets import ADAPTER

# The first name of each kind is the one that carries a difference in scale.
_NAMES = {
    "lora": ("lora_up.weight", "lora_down.weight"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "lokr": ("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
}
# What a kind's tensors are without: a change of a bias goes by itself.
_BESIDE = frozenset({"alpha", "diff_b"})
_MOST_NAMED = 3


@dataclass(frozen=True)
class Start:
    """What a file gives to a network: the layers of both, by key, and what the user should know of the others."""

    layers: Mapping[str, Layer]
    warnings: tuple[str, ...]


def start_of(layers: Mapping[str, Any], network: Network, path: Path, family: str) -> Start:
    """What the adapter `path`, in any naming that is read, gives to peft's `layers` (empty ones will do), by their keys in a file.

    Layers of either that the other does not have are told in `warnings`. Raises SpecError where the file cannot be read or is broken, where no layer
    fits, and where kind, rank or size of one differ: a layer that is taken over in part would be another one.
    """
    try:
        adapter = read_adapter(path, family=family)
    except FileError as error:
        raise SpecError(f"start_from: {error}") from error
    common = {key: _without_core(adapter.layers[key]) for key in layers if key in adapter.layers}
    if not common:
        guess = describe_file(path).family
        made_for = f"; by its names it is for {guess}" if guess and guess != family else ""
        raise SpecError(
            f"start_from: none of the {len(adapter.layers):,} layers of {path.name} is in this network{made_for} (it has "
            f"{_some(list(adapter.layers))}; the network has {_some(list(layers))}). Choose another adapter, or set targets and the text encoder's "
            "training as they were for it."
        )
    wrong = [key for key, layer in common.items() if layer.keys() - _BESIDE != _own(layers[key], network).keys()]
    if wrong:
        held = ", ".join(sorted(common[wrong[0]].keys() - _BESIDE))
        raise SpecError(
            f"start_from: {path.name} is no {network.kind} like this one: {_count(wrong, common)} of its layers are of another kind ({_some(wrong)}; "
            f"the first holds {held}). Set kind and its settings as they were for it."
        )
    _check_sizes(common, layers, network, path)
    return Start(common, _warnings(common, layers, adapter, path))


def take_over(layers: Mapping[str, Any], network: Network, start: Start) -> None:
    """Copy the factors of `start_of` into peft's `layers`, in place; a layer that the file does not have stays as it is."""
    for key, found in start.layers.items():
        own = _own(layers[key], network)
        for name, tensor in own.items():
            tensor.copy_(found[name].reshape(tensor.shape))
        _rescale(layers[key], own, found.get("alpha"), network)


def _check_sizes(common: Mapping[str, Layer], layers: Mapping[str, Any], network: Network, path: Path) -> None:
    ranks: dict[str, tuple[int, int]] = {}
    sizes: dict[str, str] = {}
    for key, found in common.items():
        for name, own in _own(layers[key], network).items():
            here, there = _trimmed(own.shape), _trimmed(found[name].shape)
            if here == there:
                continue
            axis = _rank_axis(name)
            if axis is not None and len(here) == len(there) and here[axis] != there[axis]:
                ranks.setdefault(key, (there[axis], here[axis]))
            sizes.setdefault(key, f"{key}.{name} is {there} there and {here} here")
    if ranks:
        counts = Counter(ranks.values())
        told = listed([f"{there} in the file and {here} here in {count:,}" for (there, here), count in counts.most_common()], most=_MOST_NAMED)
        raise SpecError(
            f"start_from: {path.name} has other ranks than this network: {told} of {len(common):,} layers ({_some(list(ranks))}). Set rank (and "
            "conv_rank and block_ranks) as they were for it, or give it this rank with Resize Adapter."
        )
    if sizes:
        raise SpecError(
            f"start_from: {path.name} has layers of another size than this network, {_count(sizes, common)} "
            f"({shown(next(iter(sizes.values())), 300)}): it was made for another model, or with other settings of its kind (lokr_factor). Choose "
            "another adapter, or set them as they were for it."
        )


def _warnings(common: Mapping[str, Layer], layers: Mapping[str, Any], adapter: Adapter, path: Path) -> tuple[str, ...]:
    missing = [key for key in layers if key not in common]
    foreign = [key for key in adapter.layers if key not in common]
    foreign += [f"{key} (bias)" for key, layer in common.items() if "diff_b" in layer]
    told = []
    if missing:
        what = f"{_count(missing, layers)} of this network's layers are not in {path.name} and begin as new ones"
        told.append(f"start_from: {what}: {_some(missing)}")
    if foreign:
        what = f"{len(foreign):,} layers of {path.name} are not in this network, are not trained and will not be in the new adapter"
        told.append(f"start_from: {what}: {_some(foreign)}")
    if adapter.not_understood:
        unread = list(adapter.not_understood)
        told.append(f"start_from: {len(unread):,} tensors of {path.name} are not understood and not taken over: {_some(unread)}")
    return tuple(told)


def _without_core(layer: Layer) -> Layer:
    """A LoRA with a Tucker core as one without, of the same change; every other layer as it is."""
    if "lora_mid.weight" not in layer or "dora_scale" in layer:
        return layer
    factors = low_rank({name: tensor for name, tensor in layer.items() if name != "diff_b"})
    kernel = layer["lora_mid.weight"].shape[2:]
    assert factors is not None
    down = factors.down.reshape(factors.rank, -1, *kernel)
    beside = {name: tensor for name, tensor in layer.items() if name == "diff_b"}
    return {"lora_up.weight": factors.up.reshape(-1, factors.rank, *[1] * len(kernel)), "lora_down.weight": down, **beside}


def _own(layer: Any, network: Network) -> dict[str, Tensor]:
    if network.kind == "lora":
        return {"lora_up.weight": layer.lora_B[ADAPTER].weight.data, "lora_down.weight": layer.lora_A[ADAPTER].weight.data}
    return {name: getattr(layer, name)[ADAPTER].data for name in _NAMES[network.kind] if ADAPTER in getattr(layer, name)}


def _rank_axis(name: str) -> int | None:
    """Which dimension of a factor is the rank."""
    if name in ("lora_down.weight", "lora_up.weight"):
        return 0 if name == "lora_down.weight" else 1
    return {"a": 1, "b": 0}.get(name[-1]) if name[-2:] in ("_a", "_b") else None


def _trimmed(shape: Sequence[int]) -> tuple[int, ...]:
    """A 1x1 kernel's shape as a matrix': programs write either."""
    dimensions = tuple(shape)
    return dimensions[:2] if all(size == 1 for size in dimensions[2:]) else dimensions


def _rescale(layer: Any, own: dict[str, Tensor], alpha: Tensor | None, network: Network) -> None:
    """The file's alpha / rank may differ from this network's: what is added to the base stays the same."""
    rank = layer.r[ADAPTER]
    scale = 1.0 if "lokr_w2" in own or alpha is None else float(alpha) / rank
    own[_NAMES[network.kind][0]].mul_(scale / layer.scaling[ADAPTER])


def _count(some: Sequence[str] | Mapping[str, Any], of: Mapping[str, Any]) -> str:
    return f"{len(some):,} of {len(of):,}"


def _some(names: Sequence[str]) -> str:
    return listed([shown(name) for name in names[:_MOST_NAMED]] + [""] * (len(names) - _MOST_NAMED), most=_MOST_NAMED)
