"""Which weights of a ComfyUI model the layers of an adapter belong to."""
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import comfy.lora
from comfy.model_patcher import get_key_weight
from torch import nn

from ..trainer.adapters.delta import changes_weight
from ..trainer.adapters.family import READS_TEXT
from ..trainer.adapters.layer_tensors import AdapterMathError, kind_of
from ..trainer.adapters.layers import BIASES, Layer, layer_size
from ..trainer.adapters.merge import is_text_encoder
from ..trainer.adapters.reading import Adapter
from ..trainer.messages import listed, shown

# ComfyUI's configurations by the family that adapters are made for; those that derive from one of these belong to it too.
_FAMILIES = {
    "SDXLRefiner": "SDXL refiner",
    "SD15": "SD 1.x",
    "SD20": "SD 2.x",
    "SDXL": "SDXL",
    "SD3": "SD3",
    "Flux2": "FLUX.2",
    "Flux": "Flux",
    "HunyuanImage21": "Hunyuan Image",
    "HunyuanVideo": "Hunyuan Video",
    "QwenImage": "Qwen Image",
    "WAN21_T2V": "Wan",
    "CosmosT2IPredict2": "Cosmos",
}

_PREFIXES = ("diffusion_model.", "transformer.", "base_model.model.")
# The tables of words' vectors, as text encoders call them.
_WORDS = ("token_embedding.weight", "shared.weight", "embed_tokens.weight")

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

    `misfits`: by key, how a layer's size and its weight's differ. `skipped`: how many belong to a text encoder, where none is connected.
    `hint`: whom the adapter's names are those of, where that is not this model's family; "" where it is, or nothing tells.
    """

    model: dict[Target, tuple[str, Layer]] = field(default_factory=dict)
    clip: dict[Target, tuple[str, Layer]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    misfits: dict[str, str] = field(default_factory=dict)
    skipped: int = 0
    hint: str = ""

    @property
    def count(self) -> int:
        """Layers that were matched."""
        return len(self.model) + len(self.clip)

    def left_out(self, where: str, most: int = 20) -> str:
        """What of the adapter is not applied, for the end of a report's line; `where`: "model" or "checkpoint"."""
        told = ""
        if self.missing:
            told += f"; not in this {where}: {some(self.missing, most)}"
        if self.misfits:
            told += f"; of another size than in this {where}: {some([f'{shown(key)} ({how})' for key, how in self.misfits.items()], min(most, 3))}"
        if told and self.hint:
            told += f"; {self.hint}"
        return told


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
    text_widths: frozenset[int] = frozenset()
    """How many numbers an embedding's vector may have; none where no text encoder is known."""

    @classmethod
    def of(cls, model: Any, clip: Any) -> "Weights":
        """Look at a model, and at a text encoder or None."""
        targets, shapes = _names(model.model, comfy.lora.model_lora_keys_unet)
        text_targets, text_shapes = ({}, {}) if clip is None else _names(clip.cond_stage_model, comfy.lora.model_lora_keys_clip)
        widths = frozenset(shape[1] for name, shape in text_shapes.items() if name.endswith(_WORDS) and len(shape) == 2)
        return cls(model_family(model), targets, text_targets, {**shapes, **text_shapes}, clip is not None, widths)

    def attention_widths(self, text: bool = False) -> frozenset[int]:
        """How wide the inputs are of the model's attention, as UNets have it; `text`: of the layers alone that read the text."""
        ends = ("attn2.to_k.weight",) if text else ("attn1.to_k.weight", "attn2.to_k.weight")
        return frozenset(shape[1] for name, shape in self.shapes.items() if name.endswith(ends))

    def match(self, name: str, adapter: Adapter) -> Matched:
        """Find the weights of the adapter in the file `name`, by key and shape. The family that its names tell is a hint in messages alone.

        Raises MatchError if nothing of it fits, or none of the layers that read the text: then it was trained with other text encoders.
        """
        found = Matched(hint=_hint(adapter.family, self.family))
        for key, layer in adapter.layers.items():
            text = is_text_encoder(key)
            target = self._target(key, text)
            if target is None:
                if text and not self.has_clip:
                    found.skipped += 1
                else:
                    found.missing.append(key)
                continue
            misfit = self._misfit(name, key, layer, target)
            if misfit:
                found.misfits[key] = misfit
                continue
            if any(suffix in layer for suffix in BIASES) and weight_of(bias_of(target)) not in self.shapes:
                found.missing.append(f"{key} (bias)")
                layer = {suffix: tensor for suffix, tensor in layer.items() if suffix not in BIASES}
            if not layer.keys() - {"alpha"}:
                continue
            side = found.clip if text else found.model
            if target in side:
                both = f"{shown(side[target][0])} and {shown(key)}"
                raise MatchError(f"{name}: the layers {both} are for one weight: it mixes two ways of naming. Use another copy of it.")
            side[target] = (key, layer)
        self._check_any(name, adapter, found)
        return found

    def _check_any(self, name: str, adapter: Adapter, found: Matched) -> None:
        unet = sum(not is_text_encoder(key) for key in adapter.layers)
        if (unet and not found.model) or (not found.count and (found.missing or found.misfits)):
            why = f": {found.hint}" if found.hint else f": the model is {self.family}"
            if found.misfits:
                key, how = next(iter(found.misfits.items()))
                why += f"; {len(found.misfits)} are of another size, as {shown(key)} ({how})"
            elif found.missing:
                why += f"; the first that is not in it is {shown(found.missing[0])}"
            raise MatchError(f"none of the {len(adapter.layers)} layers of {name} fits this model{why}. Choose an adapter that was made for it.")
        reads_text = [key for key in found.misfits if key.endswith(READS_TEXT)]
        if reads_text and not any(key.endswith(READS_TEXT) for key, _ in found.model.values()):
            raise MatchError(
                f"{name} was made for other text encoders than this model's: {found.hint or f'the model is {self.family}'}; "
                f"{shown(reads_text[0])} ({found.misfits[reads_text[0]]}). Choose an adapter that was made for it."
            )

    def _target(self, key: str, text: bool) -> Target | None:
        """The target of a layer's key, also where ComfyUI knows the layer of this model by another prefix."""
        targets = self.clip_targets if text else self.model_targets
        if key in targets or text:
            return targets.get(key)
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None)
        bare = None if prefix is None else key.removeprefix(prefix)
        return next((targets[other + bare] for other in ("", *_PREFIXES) if other + bare in targets), None) if bare else None

    def _misfit(self, name: str, key: str, layer: Layer, target: Target) -> str | None:
        """How the sizes of a layer and of its weight differ; None: they fit. Raises MatchError for a layer that cannot be computed with."""
        weight, part = (target, None) if isinstance(target, str) else (target[0], target[1])
        whole = self.shapes[weight]
        if "reshape_weight" in layer or len(whole) < 2:
            return None
        try:
            if changes_weight(layer):
                kind_of(layer)
        except AdapterMathError as error:
            raise MatchError(f"{name}: {shown(key)}: {error}") from error
        out, inputs = layer_size({suffix: tuple(tensor.shape) for suffix, tensor in layer.items()})
        expected = list(whole)
        if part:
            expected[part[0]] = part[2]
        flat = math.prod(expected[1:])
        possible = {expected[1], flat}
        if "lora_down.weight" in layer:
            middle = layer["lora_mid.weight"].shape[2:] if "lora_mid.weight" in layer else ()
            inputs, possible = math.prod((*layer["lora_down.weight"].shape[1:], *middle)), {flat}
        if (out is None or out == expected[0]) and (inputs is None or inputs in possible):
            return None
        return f"{expected[0] if out is None else out} by {flat if inputs is None else inputs}, the model's is {expected[0]} by {flat}"


def _hint(made_for: str | None, family: str) -> str:
    """Whom an adapter seems to be for, where that is not `family`."""
    return f"it looks like an adapter for {made_for}, and the model is {family}" if made_for and made_for != family else ""


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


def some(found: Sequence[str], most: int = 3) -> str:
    """The first of these names, cut, and how many there are beyond."""
    return listed([shown(name) for name in found[:most]] + [""] * (len(found) - most), most=most)
