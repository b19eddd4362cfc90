"""The optimiser."""
from collections.abc import Iterable

import torch
from torch import nn


def adamw(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.AdamW:
    """AdamW (https://arxiv.org/abs/1711.05101), fused: one kernel for all tensors, and under GradScaler no wait for the device."""
    return torch.optim.AdamW(list(parameters), lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, fused=True)
