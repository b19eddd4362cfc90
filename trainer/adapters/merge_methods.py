"""Ways to combine changes of one weight that are more than a weighted sum: each a function of tensors of one shape and their weights."""
import hashlib
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..data.order import generator
from .layer_tensors import AdapterMathError
from .layers import Layer

Normalization = Literal["count", "weights"]


def trimmed(delta: Tensor, density: float) -> Tensor:
    """The entries of largest magnitude, a share `density` of all (at least one); the others become zero. Equals of the last one stay."""
    size = delta.abs()
    drop = size.numel() - max(1, round(density * size.numel()))
    if drop == 0:
        return delta
    smallest = size.flatten().kthvalue(drop + 1).values
    return torch.where(size >= smallest, delta, torch.zeros_like(delta))


def magnitude_prune(deltas: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """The weighted sum of the trimmed changes (peft's `magnitude_prune`, the first step of TIES)."""
    return _sum([weight * trimmed(delta, density) for delta, weight in zip(deltas, weights, strict=True)])


def ties(deltas: Sequence[Tensor], weights: Sequence[float], density: float = 1.0, normalization: Normalization = "count") -> Tensor:
    """TIES: trim, elect a sign for each entry, average those that agree (https://arxiv.org/abs/2306.01708).

    The vote is of the weighted changes, so an adapter with a negative weight votes for the other sign; a vote that ties elects nothing and
    gives zero. Trimming is by tensor, as mergekit and peft have it (the paper trims the whole model at once). Two averages are in use:
    "count" divides the weighted sum by how many agree (the paper, peft), so half the weights give half the result; "weights" divides by
    the sum of their absolute weights (mergekit's `normalize`), so only the ratio of the weights matters.
    """
    parts = [weight * trimmed(delta, density) for delta, weight in zip(deltas, weights, strict=True)]
    elected = _sum(parts).sign()
    total, divisor = torch.zeros_like(elected), torch.zeros_like(elected)
    for part, weight in zip(parts, weights, strict=True):
        agrees = (part.sign() == elected) & (part != 0)
        total += torch.where(agrees, part, torch.zeros_like(part))
        divisor += agrees * (1.0 if normalization == "count" else abs(weight))
    return torch.where(divisor > 0, total / divisor, torch.zeros_like(total))


def dropped(delta: Tensor, drop_rate: float, chance: torch.Generator) -> Tensor:
    """DARE: drop entries at random and rescale the rest by 1 / (1 - drop_rate), so that the mean stays (https://arxiv.org/abs/2311.03099)."""
    keep = torch.rand(delta.shape, generator=chance) >= drop_rate
    return torch.where(keep.to(delta.device), delta / (1 - drop_rate), torch.zeros_like(delta))


def dare_generator(seed: int, key: str, layer: Layer) -> torch.Generator:
    """The generator for one layer of one adapter: it depends on the layer's name and content, not on the order of adapters or layers."""
    digest = hashlib.sha256()
    for name in sorted(layer):
        digest.update(name.encode() + b"\0" + layer[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return generator(seed, "dare", key, digest.hexdigest())


def slerp_weights(norm_a: float, norm_b: float, inner: float, weight_a: float, weight_b: float) -> tuple[float, float]:
    """What to multiply two changes with to go along the arc between them (https://en.wikipedia.org/wiki/Slerp).

    The place on the arc is weight_b / (weight_a + weight_b) and the result is scaled by weight_a + weight_b: (1, 0) and (0, 1) are the ends,
    and two changes of equal norm keep that norm in between. Where there is no arc, since one is zero or both lie on one line, it is the
    straight line. Raises AdapterMathError for a negative weight.
    """
    if weight_a < 0 or weight_b < 0:
        raise AdapterMathError(f"slerp takes no negative weights, got {weight_a:g} and {weight_b:g}; use svd or ties to subtract an adapter")
    total = weight_a + weight_b
    if not norm_a or not norm_b or not total:
        return weight_a, weight_b
    angle = math.acos(max(-1.0, min(1.0, inner / norm_a / norm_b)))
    sine = math.sin(angle)
    if sine < 1e-4:
        return weight_a, weight_b
    share = weight_b / total
    return total * math.sin((1 - share) * angle) / sine, total * math.sin(share * angle) / sine


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total
