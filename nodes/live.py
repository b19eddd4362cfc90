"""Live mode: what adapters add is computed beside the layers, and the weights stay as they are.

A layer's output y gets scale * up(down(x)) added, for all adapters of a layer in one pair of products. A changed weight, or a schedule over the
steps, changes a few numbers and patches nothing. The layers are hooked for one call of the model only: between two calls it is as it was.
"""
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from comfy.model_patcher import get_key_weight
from torch import Tensor, nn

from ..trainer.adapters.delta import bias_delta, changes_weight, delta, low_rank, needs_base
from ..trainer.adapters.layers import Layer
from ..trainer.adapters.lowrank import balanced
from ..trainer.adapters.stack import Row
from .matching import Target, is_branchable, weight_of

KEY = "lora_loom"
_BISECTIONS = 24


@dataclass(frozen=True)
class Branch:
    """What one adapter adds beside one layer. `weight`: all of its weight but what the row's schedule makes of it; `key`: the adapter's."""

    row: Row
    weight: float
    key: str
    layer: Layer
    target: Target


def can_branch(model: Any, target: Target, layer: Layer, scheduled: bool) -> bool:
    """Whether the layer is computed beside its module: no change that takes the whole weight to compute, and none as large as the weight itself
    unless its weight is `scheduled`.
    """
    if any(name in layer for name in ("reshape_weight", "set_weight", "w_norm", "b_norm")) or not is_branchable(model, target):
        return False
    if not isinstance(target, str) and (len(target) != 2 or target[1] is None):
        return False  # ComfyUI turns the change over before it adds it
    if not changes_weight(layer):
        return True
    if "dora_scale" in layer:
        return isinstance(target, str)
    return not needs_base(layer) and (scheduled or "diff" not in layer)


class LiveStack:
    """The branches of one model, as a wrapper around its calls and as an attachment of its patcher."""

    def __init__(self, model: Any, branches: Sequence[Branch], earlier: "LiveStack | None" = None) -> None:
        """`earlier`: another stack; where model and layers are the same and only weights differ, what it has made is used again."""
        self.branches = tuple(branches)
        # Changes whenever the model's weights do.
        self._of = model.patches_uuid
        self._rows = list(dict.fromkeys(branch.row for branch in branches))
        by_module: dict[str, list[Branch]] = {}
        for branch in branches:
            by_module.setdefault(weight_of(branch.target).rpartition(".")[0], []).append(branch)
        known = earlier._beside if earlier and earlier._of == self._of else {}
        self._beside = {path: _Beside(of, known.get(path)) for path, of in by_module.items()}
        self._progress: WeakKeyDictionary[Any, dict[float, float]] = WeakKeyDictionary()

    def __deepcopy__(self, memo: Any) -> "LiveStack":
        return self  # packs copy a model's options deeply; this never changes what it computes

    def on_model_patcher_clone(self) -> "LiveStack":
        """What a clone of the patcher gets."""
        return self

    def __call__(self, executor: Any, *arguments: Any, **options: Any) -> Any:
        """Around ComfyUI's `apply_model(x, t, ...)`."""
        base = executor.class_obj
        scales = {row: row.weight_at(self._done(base.model_sampling, arguments[1])) if row.scheduled else 1.0 for row in self._rows}
        with ExitStack() as hooks:
            for path, beside in self._beside.items():
                if any(branch.weight * scales[branch.row] for branch in beside.branches):
                    module = base.get_submodule(path)
                    handle = module.register_forward_hook(beside.hook(base, scales))
                    hooks.callback(handle.remove)
            return executor(*arguments, **options)

    def _done(self, sampling: Any, sigma: Tensor) -> float:
        """Which part of the sampling is done, 0 to 1, as ComfyUI's own start and end percents count it."""
        value = float(sigma.flatten()[0])
        known = self._progress.setdefault(sampling, {})
        if value not in known:
            low, high = 0.0, 1.0
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                low, high = (middle, high) if float(sampling.percent_to_sigma(middle)) > value else (low, middle)
            known[value] = high if low else 0.0
        return known[value]

    def release(self, *_: Any) -> None:
        """Let go of what was made for a device; it is made again when it is needed."""
        for beside in self._beside.values():
            beside.release()


_Strengths = Sequence[float]
_Term = Callable[[Any, Tensor, Tensor, Tensor, _Strengths], Tensor]
"""(module, its input, its own output, the output so far, the branches' strengths) -> the output with one term more."""


class _Beside:
    """The branches beside one module, and what was made of them for a device and a number format."""

    def __init__(self, branches: list[Branch], earlier: "_Beside | None") -> None:
        # In an order that is not that of the stack, so that its order changes no bit.
        self.branches = sorted(branches, key=lambda branch: (branch.row.name, branch.weight, branch.row.model_dump_json()))
        same = earlier and [(id(one.layer), one.target) for one in earlier.branches] == [(id(one.layer), one.target) for one in self.branches]
        # DoRA is reckoned from the weight, which patches that come later change too.
        self._decomposed = any("dora_scale" in branch.layer for branch in branches)
        self._made: dict[tuple[torch.device, torch.dtype, Any], list[_Term]] = earlier._made if earlier and same else {}

    def release(self) -> None:
        """See LiveStack."""
        for key in [key for key in self._made if key[0].type != "cpu"]:
            del self._made[key]

    def hook(self, base: Any, scales: dict[Row, float]) -> Callable[..., Tensor]:
        """A forward hook that adds what the branches add."""
        strengths = [branch.weight * scales[branch.row] for branch in self.branches]

        def add(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            key = (x.device, x.dtype, getattr(base, "current_weight_patches_uuid", None) if self._decomposed else None)
            if key not in self._made:
                if self._decomposed:
                    self._made.clear()
                self._made[key] = list(_terms(self.branches, module, base, x))
            result = output
            for term in self._made[key]:
                result = term(module, x, output, result, strengths)
            return result

        return add


def _terms(branches: list[Branch], module: Any, base: Any, x: Tensor) -> Iterator[_Term]:
    """The terms of one module on the device and in the number format of `x`, whatever the weights. Low-rank ones of a target are one."""
    low: dict[Target, list[tuple[int, Tensor, Tensor]]] = {}
    for number, branch in enumerate(branches):
        layer = {name: tensor.to(x.device) for name, tensor in branch.layer.items()}
        bias = bias_delta(layer)
        if bias is not None:
            yield _bias(number, branch.target, bias.to(x.dtype))
        if not changes_weight(layer):
            continue
        if "dora_scale" in layer:
            yield _decomposed(number, branch.target, layer, module, base, x)
            continue
        factors = low_rank(layer)
        if factors is None:
            yield _dense(number, branch.target, layer)
        else:
            # alpha / rank is in `up`, which fp16 would lose where it is small.
            factors = balanced(factors)
            low.setdefault(branch.target, []).append((number, factors.up.to(x.dtype), factors.down.to(x.dtype)))
    for target, parts in low.items():
        yield _low_rank(target, parts, module)


def _low_rank(target: Target, parts: list[tuple[int, Tensor, Tensor]], module: Any) -> _Term:
    ups, downs = torch.cat([up for _, up, _ in parts], dim=1), torch.cat([down for _, _, down in parts])
    ranks = [(number, up.shape[1]) for number, up, _ in parts]
    parts.clear()  # the stacked ones are all that is kept
    wide = isinstance(module, nn.Conv2d)
    if wide:
        ups, downs = ups[:, :, None, None], downs.reshape(len(downs), -1, *module.kernel_size)
    last: list[Any] = [None, None]

    def add(module: Any, x: Tensor, own: Tensor, result: Tensor, strengths: _Strengths) -> Tensor:
        if last[0] != strengths:
            numbers = [strengths[number] for number, rank in ranks for _ in range(rank)]
            last[:] = strengths, torch.tensor(numbers).to(x)
        if wide:
            inner = module._conv_forward(x, downs, None) * last[1][:, None, None]
            return result + nn.functional.conv2d(inner, ups)
        inner = nn.functional.linear(_part(x, target, 1), downs) * last[1]
        return _added(result, nn.functional.linear(inner, ups), target)

    return add


def _dense(number: int, target: Target, layer: Layer) -> _Term:
    # Formed anew at each call: kept for all layers, it would be as large as the model.
    def add(module: Any, x: Tensor, own: Tensor, result: Tensor, strengths: _Strengths) -> Tensor:
        if not strengths[number]:
            return result
        change = (delta(layer) * strengths[number]).to(x.dtype)
        if isinstance(module, nn.Conv2d):
            return result + module._conv_forward(x, change.reshape(module.weight.shape), None)
        return _added(result, nn.functional.linear(_part(x, target, 1), change), target)

    return add


def _bias(number: int, target: Target, bias: Tensor) -> _Term:
    def add(module: Any, x: Tensor, own: Tensor, result: Tensor, strengths: _Strengths) -> Tensor:
        shaped = bias.reshape(-1, 1, 1) if isinstance(module, nn.Conv2d) else bias.flatten()
        return _added(result, shaped * strengths[number], target)

    return add


def _decomposed(number: int, target: Target, layer: Layer, module: Any, base: Any, x: Tensor) -> _Term:
    """DoRA (https://arxiv.org/abs/2402.09353) in ComfyUI's convention: W' = (W + change) * g, g along the outputs or along the inputs.

    Along the outputs: y' - y = (g - 1) Wx + g change(x). Along the inputs: y' - y = (W + change)(g x) - Wx, for which the layer runs again.
    """
    plain = {name: tensor for name, tensor in layer.items() if name != "dora_scale"}
    weight = _weight(base, target, x.device)
    change = delta(plain, base=weight)
    magnitude = layer["dora_scale"].float().flatten()
    along_outputs = layer["dora_scale"].shape[0] == weight.shape[0]
    axes = tuple(axis for axis in range(weight.dim()) if axis != (0 if along_outputs else 1))
    norm = torch.linalg.vector_norm(weight if along_outputs else weight + change, dim=axes)
    wide = isinstance(module, nn.Conv2d)
    gain = (magnitude / (norm + torch.finfo(torch.float32).eps)).to(x.dtype).reshape(-1, *[1, 1] * wide)
    factors = low_rank(plain)
    up = down = None
    if factors is not None:
        factors = balanced(factors)
        up, down, plain = factors.up.to(x.dtype), factors.down.to(x.dtype), {}
    del weight, change, factors

    def changed(module: Any, x: Tensor) -> Tensor:
        if up is None or down is None:
            matrix = delta(plain).to(x.dtype)
            return module._conv_forward(x, matrix.reshape(module.weight.shape), None) if wide else nn.functional.linear(x, matrix)
        if wide:
            inner = module._conv_forward(x, down.reshape(len(down), -1, *module.kernel_size), None)
            return nn.functional.conv2d(inner, up[:, :, None, None])
        return nn.functional.linear(nn.functional.linear(x, down), up)

    def add(module: Any, x: Tensor, own: Tensor, result: Tensor, strengths: _Strengths) -> Tensor:
        strength = strengths[number]
        if not strength:
            return result
        if not along_outputs:
            # The layer without its hooks; the bias is in both and goes.
            return result + (module.forward(x * gain) + changed(module, x * gain) - own) * strength
        bias = _bias_as_computed(module, x).reshape(-1, *[1, 1] * wide) if module.bias is not None else 0
        return result + ((own - bias) * (gain - 1) + changed(module, x) * gain) * strength

    return add


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


def _added(result: Tensor, change: Tensor, target: Target) -> Tensor:
    """`result` with the change at the target's place in a fused layer's output."""
    if isinstance(target, str) or target[1][0] != 0:
        return result + change
    _, start, length = target[1]
    padded = result.clone()
    padded.narrow(-1, start, length).add_(change)
    return padded

