"""Writing a change as the layer that every reader understands: plain LoRA factors, or the full difference, rounded to the file's precision."""
from collections.abc import Sequence

import torch
from torch import Tensor

from .delta import delta, low_rank
from .layer_tensors import AdapterMathError
from .lowrank import WORK, Factors, Truncation, balanced, frobenius, norm_and_distance, truncate_factors, truncate_matrix
from .merge_report import LayerReport

Change = Factors | Tensor
"""A change of a weight as a matrix (out, in * kernel), with factors where there are any."""

FORMATS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
"""What a file's numbers can be, by the names that graphs have for them."""
PRECISIONS = {dtype: name for name, dtype in FORMATS.items()} | {torch.float64: "fp64"}
"""What can be written, and its name."""

# Below this share of a tensor's largest value, what float64 leaves of a zero is not told from a value.
_NOISE = 1e-12


def dense(change: Change, dtype: torch.dtype = WORK) -> Tensor:
    """The matrix itself."""
    return change.up.to(dtype) @ change.down.to(dtype) if isinstance(change, Factors) else change.to(dtype)


def norm_of(change: Change) -> float:
    """Frobenius norm."""
    if isinstance(change, Factors):
        return frobenius(change)
    return float(torch.linalg.vector_norm(change, dtype=WORK))


def written(
    key: str,
    target: Change,
    shape: Sequence[int],
    truncation: Truncation,
    *,
    exact: Change | None = None,
    dtype: torch.dtype,
    block: str = "",
    ranks_in: Sequence[int | None] = (),
) -> tuple[dict[str, Tensor], LayerReport]:
    """`target` as a layer of a file, and how far what was written is from `exact` (by default the target itself).

    `shape` is the weight's. With a bounded truncation: the nearest LoRA within it. Without: the target's factors as they are, or `diff` if it
    has none. Vectors (norms, biases) are always `diff`. alpha is the rank, so readers scale by 1.

    Raises:
        AdapterMathError: a value does not fit `dtype`, or the sum is NaN or infinite.
    """
    if dtype not in PRECISIONS:
        raise AdapterMathError(f"{dtype} cannot be written; choose one of {', '.join(PRECISIONS.values())}")
    exact = target if exact is None else exact
    if not all(torch.isfinite(part).all() for part in (target if isinstance(target, Factors) else (target,))):
        raise AdapterMathError("the result is infinite or NaN: lower the weights")
    share, whole, unchanged = 1.0, 0.0, target is exact
    if len(shape) > 1 and truncation.bounded:
        cut = truncate_factors(target, truncation) if isinstance(target, Factors) else truncate_matrix(target, truncation)
        share, whole, target, unchanged = cut.retained_energy, float(torch.cat([cut.kept, cut.dropped]).norm()), cut.factors, False
    elif not unchanged:
        whole = norm_of(target)
    layer, lost = _layer(target, shape, dtype)
    size, error = _measured(layer, exact)
    report = LayerReport(
        key=key,
        block=block,
        ranks_in=tuple(ranks_in),
        rank_out=target.rank if isinstance(target, Factors) else None,
        norm=size,
        error=error,
        target_norm=size if unchanged else whole,
        retained_energy=share,
        flushed=lost,
        largest=max(float(tensor.abs().max()) for name, tensor in layer.items() if name != "alpha"),
    )
    return layer, report


def _layer(change: Change, shape: Sequence[int], dtype: torch.dtype) -> tuple[dict[str, Tensor], int]:
    if isinstance(change, Tensor):
        difference, lost = rounded("diff", change.reshape(tuple(shape)), dtype)
        return {"diff": difference}, lost
    # What fits as it is comes back bit for bit; balancing can cost a subnormal its last bit.
    fits = all(torch.equal(part.to(dtype).to(part.dtype), part) for part in change)
    factors = change if fits else balanced(change)
    kernel = [1] * (len(shape) - 2)
    up, lost_up = rounded("lora_up.weight", factors.up.reshape(-1, change.rank, *kernel), dtype)
    down, lost_down = rounded("lora_down.weight", factors.down.reshape(change.rank, *shape[1:]), dtype)
    return {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(float(change.rank))}, lost_up + lost_down


def rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
    """`tensor` in `dtype`, and how many of its values became zero. Raises AdapterMathError where one became infinite."""
    result = tensor.to(dtype).contiguous()
    size = tensor.abs()
    largest = float(size.max())
    if torch.isinf(result).any():
        told = f"{int(torch.isinf(result).sum())} values of {name} do not fit {PRECISIONS[dtype]}, which ends at {torch.finfo(dtype).max:.3g}"
        raise AdapterMathError(f"{told} (the largest is {largest:.3g}): save as fp32 or lower the weights")
    return result, int(((result == 0) & (size > largest * _NOISE)).sum())


def _measured(layer: dict[str, Tensor], exact: Change) -> tuple[float, float]:
    """Norm of `exact` and the distance of what a reader makes of `layer`."""
    factors = low_rank(layer, dtype=WORK)
    if factors is not None and isinstance(exact, Factors):
        return norm_and_distance(exact, factors)
    made = dense(factors if factors is not None else delta(layer, dtype=WORK)).flatten()
    return norm_of(exact), float((made - dense(exact).flatten()).norm())
