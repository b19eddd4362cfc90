"""A frozen base stored in 8 bits: e4m3 (https://arxiv.org/abs/2209.05433) with a scale for each output channel, which keeps the small weights of
diffusion models out of the format's coarse end.

Weights are decoded for each use, in the backward pass once more, so that no decoded copy waits in memory for it.
"""
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

_FORMAT = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FORMAT).max


def store_in_fp8(model: nn.Module) -> None:
    """Store the frozen linear and convolution weights of `model` in fp8, in place; the model computes in the precision of its inputs.

    What trains stays as it is, so the adapter's layers have to be there before.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.requires_grad:
            weight = module.weight.detach().float()
            scale = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True).clamp(min=1e-12) / _LARGEST
            module.weight.data = (weight / scale).to(_FORMAT)
            module.register_buffer("weight_scale", scale, persistent=False)
            module.forward = MethodType(_linear if isinstance(module, nn.Linear) else _convolved, module)  # type: ignore[method-assign]  # one layer's own


def _linear(self: Any, x: Tensor) -> Tensor:
    return _Linear.apply(x.to(_compute_dtype(x)), self.weight, self.weight_scale, self.bias)


def _convolved(self: Any, x: Tensor) -> Tensor:
    geometry = (self.stride, self.padding, self.dilation, self.groups)
    return _Convolution.apply(x.to(_compute_dtype(x)), self.weight, self.weight_scale, self.bias, geometry)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype


def _decoded(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (weight.float() * scale).to(dtype)


class _Linear(torch.autograd.Function):
    """Gradient for the input alone: the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return functional.linear(x, _decoded(weight, scale, x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        return gradients[0] @ _decoded(weight, scale, gradients[0].dtype), None, None, None


class _Convolution(torch.autograd.Function):
    """Gradient for the input alone: the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.shape, ctx.geometry = x.shape, geometry
        return functional.conv2d(x, _decoded(weight, scale, x.dtype), None if bias is None else bias.to(x.dtype), *geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        decoded = _decoded(weight, scale, gradients[0].dtype)
        return conv2d_input(ctx.shape, decoded, gradients[0], *ctx.geometry), None, None, None, None
