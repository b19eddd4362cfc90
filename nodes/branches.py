"""What adapters add beside one layer, as modules: their factors are weights that ComfyUI counts, and moves to the device and away like a model's."""
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import get_key_weight
from torch import Tensor, nn

from ..trainer.adapters.delta import bias_delta, changes_weight, delta, low_rank
from ..trainer.adapters.layers import Layer
from ..trainer.adapters.lowrank import Factors, balanced
from ..trainer.adapters.relative_delta import magnitude_gain
from ..trainer.adapters.stack import Row
from .matching import Target, weight_of


@dataclass(frozen=True)
class Branch:
    """What one adapter adds beside one layer. `weight`: all of its weight but what the row's schedule makes of it; `key`: the adapter's."""

    row: Row
    weight: float
    key: str
    layer: Layer
    target: Target


@dataclass(frozen=True)
class Call:
    """One call of a layer: the model it is in, its input, its output without any branch, and how strong each of its branches is."""

    base: Any
    module: Any
    x: Tensor
    own: Tensor
    strengths: Sequence[float]


class Term(nn.Module):
    """One or several branches as one term of a sum."""

    def added(self, call: Call, result: Tensor) -> Tensor:
        """`result` with the term."""
        raise NotImplementedError


def terms(branches: Sequence[Branch], module: nn.Module, dtype: torch.dtype) -> Iterator[Term]:
    """The terms of the branches of `module`, for calls in `dtype`, whatever the weights. Low-rank ones of a target are one."""
    low: dict[Target, list[tuple[int, Factors]]] = {}
    for number, branch in enumerate(branches):
        bias = bias_delta(branch.layer)
        if bias is not None:
            yield _Bias(number, branch.target, bias.to(dtype))
        if not changes_weight(branch.layer):
            continue
        if "dora_scale" in branch.layer:
            yield _Decomposed(number, branch.target, branch.layer, module, dtype)
            continue
        factors = low_rank(branch.layer)
        if factors is None:
            yield _Dense(number, branch.target, branch.layer)
        else:
            low.setdefault(branch.target, []).append((number, _in(dtype, factors)))
    for target, parts in low.items():
        yield _LowRank(target, parts, module)


class _LowRank(Term):
    def __init__(self, target: Target, parts: list[tuple[int, Factors]], module: nn.Module) -> None:
        super().__init__()
        self._target = target
        self._ranks = [(number, factors.rank) for number, factors in parts]
        ups, downs = torch.cat([factors.up for _, factors in parts], dim=1), torch.cat([factors.down for _, factors in parts])
        parts.clear()  # the stacked ones are all that is kept
        self.up, self.down = _shaped(Factors(ups, downs), module)
        self._last: tuple[Any, Tensor | None] = (None, None)

    def added(self, call: Call, result: Tensor) -> Tensor:
        up, down = self.up.to(call.x), self.down.to(call.x)
        known, scale = self._last
        key = (call.strengths, call.x.device, call.x.dtype)
        if known != key or scale is None:
            numbers = [call.strengths[number] for number, rank in self._ranks for _ in range(rank)]
            scale = torch.tensor(numbers).to(call.x)
            self._last = key, scale
        if isinstance(call.module, nn.Conv2d):
            inner = call.module._conv_forward(call.x, down, None) * scale[:, None, None]
            return result + nn.functional.conv2d(inner, up)
        inner = nn.functional.linear(_part(call.x, self._target, 1), down) * scale
        return _placed(result, nn.functional.linear(inner, up), self._target)


class _Dense(Term):
    """A change that is formed anew at each call: kept for all layers, it would be as large as the model."""

    def __init__(self, number: int, target: Target, layer: Layer) -> None:
        super().__init__()
        self._number, self._target, self._layer = number, target, _Tensors(layer)

    def added(self, call: Call, result: Tensor) -> Tensor:
        strength = call.strengths[self._number]
        if not strength:
            return result
        change = (delta(self._layer.on(call.x.device)) * strength).to(call.x.dtype)
        if isinstance(call.module, nn.Conv2d):
            return result + call.module._conv_forward(call.x, change.reshape(call.module.weight.shape), None)
        return _placed(result, nn.functional.linear(_part(call.x, self._target, 1), change), self._target)


class _Bias(Term):
    def __init__(self, number: int, target: Target, bias: Tensor) -> None:
        super().__init__()
        self._number, self._target = number, target
        self.bias = _kept(bias.flatten())

    def added(self, call: Call, result: Tensor) -> Tensor:
        bias = self.bias.to(call.x) * call.strengths[self._number]
        return _placed(result, bias.reshape(-1, 1, 1) if isinstance(call.module, nn.Conv2d) else bias, self._target)


class _Decomposed(Term):
    """DoRA (https://arxiv.org/abs/2402.09353) in ComfyUI's convention: W' = (W + change) * g, g along the outputs or along the inputs.

    Along the outputs: y' - y = (g - 1) Wx + g change(x). Along the inputs: y' - y = (W + change)(g x) - Wx, for which the layer runs again.
    """

    def __init__(self, number: int, target: Target, layer: Layer, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._number, self._target, self._layer = number, target, layer
        plain = {name: tensor for name, tensor in layer.items() if name != "dora_scale"}
        factors = low_rank(plain)
        self._whole = _Tensors(plain) if factors is None else None
        self.up, self.down = (None, None) if factors is None else _shaped(_in(dtype, factors), module)
        # With which weights, on which device and in which format the gain was reckoned: patches that come later change it.
        self._gain: tuple[Any, Tensor, bool] | None = None

    def added(self, call: Call, result: Tensor) -> Tensor:
        strength = call.strengths[self._number]
        if not strength:
            return result
        wide = isinstance(call.module, nn.Conv2d)
        gain, along_outputs = self._gain_of(call)
        gain = gain.reshape(-1, *[1, 1] * wide)
        if not along_outputs:
            # The layer without its hooks; the bias is in both and goes.
            return result + (call.module.forward(call.x * gain) + self._changed(call, call.x * gain) - call.own) * strength
        bias = _bias_as_computed(call.module, call.x).reshape(-1, *[1, 1] * wide) if call.module.bias is not None else 0
        return result + ((call.own - bias) * (gain - 1) + self._changed(call, call.x) * gain) * strength

    def _gain_of(self, call: Call) -> tuple[Tensor, bool]:
        key = (getattr(call.base, "current_weight_patches_uuid", None), call.x.device, call.x.dtype)
        if self._gain is None or self._gain[0] != key:
            layer = {name: tensor.to(call.x.device) for name, tensor in self._layer.items()}
            magnitude = layer.pop("dora_scale").float()
            weight = _weight(call.base, self._target, call.x.device)
            numbers, axis = magnitude_gain(weight + delta(layer, base=weight), weight, magnitude)
            self._gain = key, numbers.to(call.x.dtype), axis == 0
        return self._gain[1:]

    def _changed(self, call: Call, x: Tensor) -> Tensor:
        wide = isinstance(call.module, nn.Conv2d)
        if self._whole is not None:
            matrix = delta(self._whole.on(x.device)).to(x.dtype)
            return call.module._conv_forward(x, matrix.reshape(call.module.weight.shape), None) if wide else nn.functional.linear(x, matrix)
        up, down = self.up.to(x), self.down.to(x)
        if wide:
            return nn.functional.conv2d(call.module._conv_forward(x, down, None), up)
        return nn.functional.linear(nn.functional.linear(x, down), up)


class _Tensors(nn.Module):
    """A layer's tensors as they are stored."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self._names = tuple(layer)
        self.tensors = nn.ParameterList([_kept(tensor) for tensor in layer.values()])

    def on(self, device: torch.device) -> Mapping[str, Tensor]:
        """The layer on a device."""
        return {name: tensor.to(device) for name, tensor in zip(self._names, self.tensors, strict=True)}


def _kept(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _in(dtype: torch.dtype, factors: Factors) -> Factors:
    # alpha / rank is in `up`, which fp16 would lose where it is small.
    even = balanced(factors)
    return Factors(even.up.to(dtype), even.down.to(dtype))


def _shaped(factors: Factors, module: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    """The factors as the weights of two layers of the module's kind."""
    up, down = factors
    if isinstance(module, nn.Conv2d):
        up, down = up[:, :, None, None], down.reshape(len(down), -1, *module.kernel_size)
    return _kept(up), _kept(down)


def _bias_as_computed(module: Any, x: Tensor) -> Tensor:
    bias = module.bias.to(x)
    for function in getattr(module, "bias_function", ()):
        bias = function(bias)
    return bias


def _weight(base: Any, target: Target, device: torch.device) -> Tensor:
    """The layer's weight in fp32 as it is computed with, whatever it is stored as."""
    weight, _, convert = get_key_weight(base, weight_of(target))
    weight = weight.to(device=device, dtype=torch.float32, copy=True)
    # What a model that is partly loaded is patched with, before its number format is undone: in the order in which the layer does it.
    for function in getattr(base.get_submodule(weight_of(target).rpartition(".")[0]), "weight_function", ()):
        weight = function(weight)
    return weight if convert is None else convert(weight, inplace=True)


def _part(tensor: Tensor, target: Target, dimension: int) -> Tensor:
    """The part of a fused layer's input that a target is about."""
    if isinstance(target, str) or target[1][0] != dimension:
        return tensor
    return tensor.narrow(-1, target[1][1], target[1][2])


def _placed(result: Tensor, change: Tensor, target: Target) -> Tensor:
    """`result` with the change at the target's place in a fused layer's output."""
    if isinstance(target, str) or target[1][0] != 0:
        return result + change
    _, start, length = target[1]
    padded = result.clone()
    padded.narrow(-1, start, length).add_(change)
    return padded
