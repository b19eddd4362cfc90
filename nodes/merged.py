"""Merged mode: one patch a weight, whatever number of adapters it sums."""
from collections.abc import Callable, Sequence
from typing import Any

import comfy.lora
import torch
from comfy.weight_adapter import WeightAdapterBase

from ..trainer.adapters.layer_tensors import AdapterMathError
from ..trainer.adapters.layers import BIASES, Layer
from ..trainer.adapters.total import total_bias_change, total_change
from .matching import MatchError, Target, bias_of

# What ComfyUI's own patches do and ours do not: a weight that becomes larger, or is replaced.
_COMFYUI_ONLY = ("reshape_weight", "set_weight")


class SummedChange(WeightAdapterBase):
    """All adapters' changes of one weight: summed in fp32 and added once.

    ComfyUI patches one adapter after another, and newer versions of it add each in the weight's own precision: an fp16 weight then loses much of
    a small change.
    """

    name = "lora_loom"

    def __init__(
        self, parts: Sequence[tuple[float, Layer]], total: Callable[[Sequence[tuple[float, Layer]], torch.Tensor], torch.Tensor], files: str
    ) -> None:
        """`files`: where the parts are from, for errors."""
        self.loaded_keys: set[str] = set()
        self.weights = [tensor for _, layer in parts for tensor in layer.values()]
        self._parts = parts
        self._files = files
        self._total = total

    def calculate_weight(
        self,
        weight: torch.Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Callable[[torch.Tensor], torch.Tensor],
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> torch.Tensor:
        """ComfyUI's patch: change `weight`, which is a copy and may be a part of a fused one, in place."""
        try:
            total = function(self._total(self._parts, weight))
        except (AdapterMathError, RuntimeError) as error:
            raise MatchError(f"{self._files}: what they add to {key} cannot be computed: {error}") from error
        return weight.copy_(weight.float().add_(total, alpha=strength))


def patches(parts_of: dict[Target, list[tuple[float, Layer]]], files: str) -> dict[Target, Any]:
    """ComfyUI's patches for the targets. `parts_of`: weights and layers; parts in one order give one result to the bit. `files`: for errors."""
    found: dict[Target, Any] = {}
    for target, parts in parts_of.items():
        ours = [(weight, layer) for weight, layer in parts if not any(name in layer for name in _COMFYUI_ONLY)]
        if ours:
            found[target] = SummedChange(ours, total_change, files)
        biases = [(weight, layer) for weight, layer in ours if not BIASES.isdisjoint(layer)]
        if biases:
            found[bias_of(target)] = SummedChange(biases, total_bias_change, files)
    return found


def comfyui_patches(layers: dict[Target, tuple[str, Layer]]) -> list[tuple[str, dict[Target, Any]]]:
    """ComfyUI's own patches for the layers that only it can apply, each with the adapter's key."""
    found = []
    for target, (key, layer) in layers.items():
        if any(name in layer for name in _COMFYUI_ONLY):
            tensors = {f"{key}.{suffix}": tensor for suffix, tensor in layer.items()}
            found.append((key, comfy.lora.load_lora(tensors, {key: target}, log_missing=False)))
    return found
