"""The difference of two models as an adapter, one weight at a time, so that neither checkpoint has to be in memory."""
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from .layer_tensors import AdapterMathError, naming
from .lowrank import RequiredTruncation, Truncation
from .merge import no_block
from .merge_report import LayerReport, MergeReport, MergeResult
from .plain import PRECISIONS, written

_EMBEDDINGS = ("token_embedding", "position_embedding")


class Extraction(RequiredTruncation):
    """How much of each difference to keep, as in `Truncation`."""

    conv_rank: int | None = Field(default=None, ge=1, description="rank for kernels larger than 1x1; none: as for the others")
    others: bool = Field(default=False, description="also embeddings, norms and biases, whole (diff, diff_b)")


@dataclass(frozen=True)
class Pair:
    """One tensor of both models. `key` is the layer's key; that of a bias ends in `.bias`."""

    key: str
    base: Tensor
    tuned: Tensor


def extract_layer(
    pair: Pair, options: Extraction, *, dtype: torch.dtype = torch.float16, block: str = ""
) -> tuple[dict[str, Tensor], LayerReport] | None:
    """tuned - base as a layer, and its report; none where nothing changed, or for what `others` leaves out.

    Matrices and kernels become LoRA. Raises AdapterMathError: different shapes, NaN, a value too large for `dtype`.
    """
    base, tuned = pair.base, pair.tuned
    if base.shape != tuned.shape:
        told = f"the base's weight is {tuple(base.shape)}, the tuned one's {tuple(tuned.shape)}"
        raise AdapterMathError(f"{told}: the two models are of different kinds")
    whole = base.dim() < 2 or any(name in pair.key for name in _EMBEDDINGS)
    if base.dim() == 0 or (whole and not options.others):
        return None
    difference = tuned.detach().to(torch.float32) - base.detach().to(tuned.device, torch.float32)
    if not torch.isfinite(difference).all():
        raise AdapterMathError("one of the models holds NaN or infinity in this weight, so there is no difference to extract")
    if not difference.any():
        return None
    kernel = difference[0, 0].numel() if difference.dim() > 2 else 1
    rank = options.conv_rank if kernel > 1 and options.conv_rank else options.rank
    truncation = Truncation() if whole else Truncation(rank=rank, energy=options.energy, frobenius=options.frobenius)
    matrix = difference.reshape(difference.shape[0], -1)
    layer, report = written(pair.key, matrix, difference.shape, truncation, dtype=dtype, block=block)
    if pair.key.endswith(".bias"):
        layer = {"diff_b": layer["diff"]}
    return layer, report


def extract(
    pairs: Iterable[Pair],
    options: Extraction,
    *,
    block_of: Callable[[str], str | None] = no_block,
    dtype: torch.dtype = torch.float16,
    progress: Callable[[int], None] | None = None,
) -> MergeResult:
    """The adapter that turns `base` into `tuned`, from an iterator that holds one pair at a time.

    `progress(done)` is called after each pair; what it raises ends the extraction. Raises AdapterMathError as `extract_layer` does, and where
    no pair differs.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    reports: list[LayerReport] = []
    left_out = 0
    for done, pair in enumerate(pairs, 1):
        key = pair.key.removesuffix(".bias")
        with naming(pair.key):
            made = extract_layer(pair, options, dtype=dtype, block=block_of(key) or "")
        if made is None:
            left_out += 1
        else:
            layers.setdefault(key, {}).update(made[0])
            reports.append(made[1])
        if progress:
            progress(done)
    if not layers:
        raise AdapterMathError("the two models do not differ in any weight that an adapter holds: choose two different checkpoints")
    return MergeResult(layers, MergeReport("extraction", PRECISIONS[dtype], tuple(reports), left_out=left_out))
