"""Live mode: what adapters add is computed beside the layers, and the weights stay as they are.

A layer's output y gets scale * up(down(x)) added, for all adapters of a layer in one pair of products. A changed weight, or a schedule over the
steps, changes a few numbers and patches nothing. The layers are hooked for one call of the model only: between two calls it is as it was.
"""
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..trainer.adapters.delta import changes_weight, needs_base
from ..trainer.adapters.layers import Layer
from .branches import Branch, Call, Term, terms
from .matching import Target, is_branchable, is_readable, weight_of

KEY = "lora_loom"
_BISECTIONS = 24


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
        return isinstance(target, str) and is_readable(model, target)
    return not needs_base(layer) and (scheduled or "diff" not in layer)


class AdapterFactors(nn.ModuleList):
    """All terms of a stack; ComfyUI's log calls what it loads by its class."""


class LiveStack:
    """The branches of one model, as a wrapper around its calls and as an attachment of its patcher.

    `factors`: a patcher of what the branches are computed with, which ComfyUI loads beside the model (`set_additional_models`).
    """

    def __init__(self, model: Any, branches: Sequence[Branch], earlier: "LiveStack | None" = None) -> None:
        """`earlier`: another stack; where only weights differ, what it has made is used again."""
        # In an order that is not that of the stack, so that its order changes no bit.
        self._rows = sorted(dict.fromkeys(branch.row for branch in branches), key=lambda row: (row.name, row.model_dump_json()))
        places = {row: place for place, row in enumerate(self._rows)}
        self.branches = tuple(sorted(branches, key=lambda branch: (places[branch.row], branch.weight)))
        self._by_path: dict[str, list[Branch]] = {}
        for branch in self.branches:
            self._by_path.setdefault(weight_of(branch.target).rpartition(".")[0], []).append(branch)
        dtype = _compute_dtype(model)
        self._made_of = ref(model.model), dtype, {path: [(id(one.layer), one.target) for one in of] for path, of in self._by_path.items()}
        # The layers of the other stack are alive as long as it is, and so are their ids.
        if earlier and earlier._made_of == self._made_of:
            self._terms, self.factors = earlier._terms, earlier.factors
        else:
            self._terms = {path: list(terms(of, model.model.get_submodule(path), dtype)) for path, of in self._by_path.items()}
            self.factors = ModelPatcher(AdapterFactors(chain.from_iterable(self._terms.values())), model.load_device, model.offload_device)
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
            for path, branches in self._by_path.items():
                strengths = [branch.weight * scales[branch.row] for branch in branches]
                if any(strengths):
                    handle = base.get_submodule(path).register_forward_hook(_hook(base, self._terms[path], strengths))
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


def _hook(base: Any, of_layer: Sequence[Term], strengths: Sequence[float]) -> Callable[..., Tensor]:
    """A forward hook that adds the terms."""

    def add(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        call = Call(base, module, inputs[0], output, strengths)
        result = output
        for term in of_layer:
            result = term.added(call, result)
        return result

    return add


def _compute_dtype(model: Any) -> torch.dtype:
    """The number format that the model computes in: that of its weights, unless ComfyUI casts them."""
    dtype = model.get_model_object("manual_cast_dtype") or model.model_dtype()
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32
