"""Which weights of a ComfyUI model the layers of an adapter belong to."""
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import comfy.lora
from comfy.model_patcher import get_key_weight
from torch import nn

from ..trainer.adapters.delta import changes_weight
from ..trainer.adapters.layer_tensors import AdapterMathError, kind_of
from ..trainer.adapters.layers import BIASES, Layer, layer_size
from ..trainer.adapters.merge import is_text_encoder
from ..trainer.adapters.reading import Adapter

# ComfyUI's configurations by the family that adapters are made for; those that derive from one of these belong to it too.
_FAMILIES = {
    "SDXLRefiner": "SDXL refiner",
    "SD15": "SD 1.x",
    "SD20": "SD 2.x",
    "SDXL": "SDXL",
    "SD3": "SD3",
    "Flux": "Flux",
    "HunyuanVideo": "Hunyuan Video",
    "QwenImage": "Qwen Image",
    "WAN21_T2V": "Wan",
}

# Walking a model for its modules and names takes longer than everything else that a changed weight asks for.
# Nothing in them refers to the model: that would keep it in memory.
_BRANCHABLE: WeakKeyDictionary[Any, frozenset[str]] = WeakKeyDictionary()
_NAMES: WeakKeyDictionary[Any, tuple[Mapping[str, Any], Mapping[str, tuple[int, ...]]]] = WeakKeyDictionary()

Target = Any
"""A patch's key as ComfyUI has it: a weight's name, or (name, (dimension, start, length)) for a part of a fused one."""


class MatchError(ValueError):
    """The adapter does not belong to this model. The message says which of them is what."""


@dataclass
class Matched:
    """Layers by the weights that they change. `missing`: keys of the adapter that this model has no weight for.

    `skipped`: how many belong to a text encoder, where none is connected.
    """

    model: dict[Target, tuple[str, Layer]] = field(default_factory=dict)
    clip: dict[Target, tuple[str, Layer]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    skipped: int = 0

    @property
    def count(self) -> int:
        """Layers that were matched."""
        return len(self.model) + len(self.clip)


def model_family(model: Any) -> str:
    """The family of a ComfyUI MODEL, as adapters' files are told by; the name of ComfyUI's own configuration for one that is not known."""
    kinds = [kind.__name__ for kind in type(model.model.model_config).__mro__]
    return next((_FAMILIES[kind] for kind in kinds if kind in _FAMILIES), kinds[0])


@dataclass(frozen=True)
class Weights:
    """The adaptable weights of a MODEL and a CLIP: by an adapter's key the target, by a weight's name its shape."""

    family: str
    model_targets: Mapping[str, Target]
    clip_targets: Mapping[str, Target]
    shapes: Mapping[str, tuple[int, ...]]
    has_clip: bool

    @classmethod
    def of(cls, model: Any, clip: Any) -> "Weights":
        """Look at a model, and at a text encoder or None."""
        targets, shapes = _names(model.model, comfy.lora.model_lora_keys_unet)
        text_targets, text_shapes = ({}, {}) if clip is None else _names(clip.cond_stage_model, comfy.lora.model_lora_keys_clip)
        return cls(model_family(model), targets, text_targets, {**shapes, **text_shapes}, clip is not None)

    def match(self, name: str, adapter: Adapter) -> Matched:
        """Find the weights of the adapter in the file `name`. Raises MatchError if it is for another family, or nothing of it fits."""
        if adapter.family and adapter.family != self.family:
            raise MatchError(f"{name} was made for {adapter.family} and the model is {self.family}: choose an adapter for {self.family}.")
        found = Matched()
        for key, layer in adapter.layers.items():
            text = is_text_encoder(key)
            target = (self.clip_targets if text else self.model_targets).get(key)
            if target is None:
                if text and not self.has_clip:
                    found.skipped += 1
                else:
                    found.missing.append(key)
                continue
            self._check(name, key, layer, target)
            if any(suffix in layer for suffix in BIASES) and weight_of(bias_of(target)) not in self.shapes:
                found.missing.append(f"{key} (bias)")
                layer = {suffix: tensor for suffix, tensor in layer.items() if suffix not in BIASES}
            if not layer.keys() - {"alpha"}:
                continue
            side = found.clip if text else found.model
            if target in side:
                both = f"{side[target][0]} and {key}"
                raise MatchError(f"{name}: the layers {both} are for one weight: it mixes two ways of naming. Use another copy of it.")
            side[target] = (key, layer)
        unet = sum(not is_text_encoder(key) for key in adapter.layers)
        if (unet and not found.model) or (found.missing and not found.count):
            made_for = adapter.family or "a family that its layers do not tell"
            count = len(adapter.layers)
            raise MatchError(f"none of the {count} layers of {name} is in this model: it was made for {made_for}, the model is {self.family}.")
        return found

    def _check(self, name: str, key: str, layer: Layer, target: Target) -> None:
        weight, part = (target, None) if isinstance(target, str) else (target[0], target[1])
        whole = self.shapes[weight]
        if "reshape_weight" in layer or len(whole) < 2:
            return
        try:
            if changes_weight(layer):
                kind_of(layer)
        except AdapterMathError as error:
            raise MatchError(f"{name}: {key}: {error}") from error
        out, inputs = layer_size({suffix: tuple(tensor.shape) for suffix, tensor in layer.items()})
        expected = list(whole)
        if part:
            expected[part[0]] = part[2]
        flat = math.prod(expected[1:])
        possible = {expected[1], flat}
        if "lora_down.weight" in layer:
            middle = layer["lora_mid.weight"].shape[2:] if "lora_mid.weight" in layer else ()
            inputs, possible = math.prod((*layer["lora_down.weight"].shape[1:], *middle)), {flat}
        if (out is not None and out != expected[0]) or (inputs is not None and inputs not in possible):
            raise MatchError(
                f"{name}: the layer {key} is for a weight of {out} outputs and {inputs} inputs, and the model's is {expected[0]} by {flat} "
                f"({weight}): it was made for a model of another size than this {self.family}."
            )


def _names(model: Any, targets_of: Callable[[Any, dict[str, Any]], dict[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, tuple[int, ...]]]:
    """Targets by adapters' keys, and shapes by weights' names. They stay while the model is in memory."""
    if model not in _NAMES:
        # Layers that quantise show a state of packed numbers; their parameters know the weights' own shapes.
        weights = {**model.state_dict(), **dict(model.named_parameters())}
        _NAMES[model] = targets_of(model, {}), {name: tuple(weight.shape) for name, weight in weights.items()}
    return _NAMES[model]


def is_branchable(model: Any, target: Target) -> bool:
    """Whether something can be computed beside the module that a target's weight is in: a matrix, or a 2D convolution of one group."""
    if model.model not in _BRANCHABLE:
        modules = ((name, module) for name, module in model.model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d))
        _BRANCHABLE[model.model] = frozenset(name for name, module in modules if getattr(module, "groups", 1) == 1)
    return weight_of(target).rpartition(".")[0] in _BRANCHABLE[model.model]


def is_readable(model: Any, target: Target) -> bool:
    """Whether the numbers of a target's weight are known outside of its layer: not where a pack quantises in a way of its own, as GGUF's do."""
    weight, _, convert = get_key_weight(model.model, weight_of(target))
    return convert is not None or weight.is_floating_point()


def weight_of(target: Target) -> str:
    """The name of a target's weight."""
    return target if isinstance(target, str) else target[0]


def bias_of(target: Target) -> Target:
    """The target for the bias beside a target's weight."""
    name = weight_of(target).removesuffix(".weight") + ".bias"
    return name if isinstance(target, str) else (name, *target[1:])


def names(missing: list[str], most: int = 3) -> Iterator[str]:
    """The first of them, and how many there are beyond."""
    yield from missing[:most]
    if len(missing) > most:
        yield f"{len(missing) - most} more"
