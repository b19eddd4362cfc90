"""The sum of what several adapters add to one weight, however many there are and in whatever order."""
from collections.abc import Sequence

import torch
from torch import Tensor

from .delta import bias_delta, changes_weight, delta, low_rank
from .layers import Layer


def total_change(parts: Sequence[tuple[float, Layer]], base: Tensor) -> Tensor:
    """The weighted sum of the layers' changes of the weight `base`, in its shape and on its device, in fp32.

    Each change is that of the unadapted `base`, so the sum does not depend on the order of `parts` beyond the rounding of fp32 additions; parts
    that come in one order give the same bits. Low-rank ones are one product of their stacked factors. Raises AdapterMathError as `delta` does.
    """
    weight = base.detach().float()
    ups, downs, others = [], [], []
    for strength, layer in parts:
        if not changes_weight(layer):
            continue
        here = _on(layer, base.device)
        factors = low_rank(here)
        if factors is None:
            others.append((strength, here))
        else:
            ups.append(factors.up * strength)
            downs.append(factors.down)
    total = torch.zeros_like(weight)
    if ups:
        total += (torch.cat(ups, dim=1) @ torch.cat(downs, dim=0)).reshape(weight.shape)
    for strength, layer in others:
        total.add_(delta(layer, base=weight), alpha=strength)
    return total


def total_bias_change(parts: Sequence[tuple[float, Layer]], base: Tensor) -> Tensor:
    """The same for the bias `base`, (out,)."""
    total = torch.zeros_like(base, dtype=torch.float32)
    for strength, layer in parts:
        change = bias_delta(_on(layer, base.device))
        if change is not None:
            total.add_(change.reshape(base.shape), alpha=strength)
    return total


def _on(layer: Layer, device: torch.device) -> Layer:
    return {name: tensor.to(device) for name, tensor in layer.items()}
