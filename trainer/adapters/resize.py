"""Changing the rank of an adapter, or turning one of any kind into a plain LoRA: the nearest by singular values."""
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .lowrank import Truncation
from .merge import Layers, Svd, merge, no_base, no_block
from .merge_report import MergeResult


def resize(
    layers: Layers,
    truncation: Truncation,
    *,
    block_of: Callable[[str], str | None] = no_block,
    base_of: Callable[[str], Tensor | None] = no_base,
    dtype: torch.dtype = torch.float16,
    progress: Callable[[int, int], None] | None = None,
) -> MergeResult:
    """`layers` as LoRA of at most `rank`, or of the smallest rank that keeps the `energy` or `frobenius` share, layer by layer.

    A layer of a lower rank keeps its own. Norms and biases stay full differences. DoRA needs its base. Raises AdapterMathError as `merge` does,
    pydantic's ValidationError if the truncation asks for nothing.
    """
    options = Svd(rank=truncation.rank, energy=truncation.energy, frobenius=truncation.frobenius)
    result = merge([layers], [1.0], options, block_of=block_of, base_of=base_of, dtype=dtype, progress=progress)
    return MergeResult(result.layers, replace(result.report, title="resize"))
