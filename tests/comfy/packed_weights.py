"""Weights that only their own layers can read, in a patcher of their own: what packs that load GGUF files give ComfyUI."""
from typing import Any

import comfy.lora
import comfy.ops
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

_SCALE_BYTES = 4


class Packed(torch.Tensor):
    """Rows of bytes and a scale behind each row; `shape` is the weight's, `size()` that of the bytes."""

    patches: list[Any]

    @property
    def shape(self) -> torch.Size:
        rows, columns = self.size()
        return torch.Size((rows, columns - _SCALE_BYTES))

    def detach(self) -> "Packed":
        return self

    def to(self, *arguments: Any, **options: Any) -> "Packed":
        moved = super().to(*arguments, **options)
        moved.patches = list(getattr(self, "patches", ()))
        return moved


def pack(weight: torch.Tensor) -> Packed:
    scale = weight.float().abs().amax(dim=1, keepdim=True) / 127
    rows = [(weight.float() / scale).round().to(torch.int8).view(torch.uint8), scale.contiguous().view(torch.uint8)]
    return torch.cat(rows, dim=1).as_subclass(Packed)


def unpack(weight: torch.Tensor) -> torch.Tensor:
    data = weight.as_subclass(torch.Tensor)
    scale = data[:, -_SCALE_BYTES:].contiguous().view(torch.float32)
    return data[:, :-_SCALE_BYTES].contiguous().view(torch.int8).float() * scale


class Operations(comfy.ops.manual_cast):
    """Layers whose matrices are packed when they are loaded."""

    class Linear(comfy.ops.manual_cast.Linear):
        comfy_cast_weights = True

        def _load_from_state_dict(self, state: dict[str, torch.Tensor], prefix: str, *others: Any) -> None:
            self.weight = torch.nn.Parameter(pack(state[f"{prefix}weight"]), requires_grad=False)
            if f"{prefix}bias" in state:
                self.bias = torch.nn.Parameter(state[f"{prefix}bias"], requires_grad=False)

        def _save_to_state_dict(self, destination: dict[str, torch.Tensor], prefix: str, keep_vars: bool) -> None:
            # ComfyUI asks for it to learn what a model weighs.
            destination[f"{prefix}weight"] = torch.empty(self.weight.size(), dtype=torch.uint8, device="meta")
            if self.bias is not None:
                destination[f"{prefix}bias"] = self.bias

        def forward_comfy_cast_weights(self, x: torch.Tensor) -> torch.Tensor:
            weight = unpack(self.weight).to(x.dtype)
            for patches, key in getattr(self.weight, "patches", ()):
                weight = comfy.lora.calculate_weight(patches, weight, key)
            return torch.nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


class Patcher(ModelPatcher):
    """Leaves packed weights as they are: what patches them goes with them, to the layer that unpacks."""

    def patch_weight_to_device(self, key: str, device_to: Any = None, inplace_update: bool = False) -> None:
        weight = comfy.utils.get_attr(self.model, key)
        if not isinstance(weight, Packed):
            super().patch_weight_to_device(key, device_to, inplace_update)
        elif key in self.patches:
            weight.patches = [(self.patches[key], key)]

    def load(self, *arguments: Any, force_patch_weights: bool = False, **options: Any) -> None:
        super().load(*arguments, force_patch_weights=True, **options)

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
        if unpatch_weights:
            for weight in self.model.parameters():
                if isinstance(weight, Packed):
                    weight.patches = []
        return super().unpatch_model(device_to, unpatch_weights)
