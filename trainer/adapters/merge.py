"""Merging adapters of any kind into one: exactly, to a rank, or by TIES, DARE, magnitude or slerp, with a report of what it cost."""
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, TypeAdapter, model_validator
from torch import Tensor

from ..typed import Model
from .delta import bias_delta, changes_weight, delta, low_rank, needs_base, weight_shape
from .layer_tensors import AdapterMathError, naming
from .layers import Layer
from .lowrank import WORK, Factors, RequiredTruncation, Truncation, concatenated, inner
from .merge_methods import Normalization, dare_generator, dropped, magnitude_prune, slerp_weights, ties
from .merge_report import LayerReport, MergeReport, MergeResult
from .plain import PRECISIONS, Change, dense, norm_of, written

Layers = Mapping[str, Layer]

# Changes without factors are as large as the weights; files hold no more than fp32.
_DENSE = torch.float32


class Weight(Model):
    """How strongly an adapter counts: `unet` or `text_encoder`, times the layer's entry in `blocks` (1 where it has none)."""

    unet: float = Field(default=1.0, allow_inf_nan=False)
    text_encoder: float = Field(default=1.0, allow_inf_nan=False)
    blocks: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=dict)


class Concatenate(Model):
    """The exact weighted sum: ranks add up, and what is not low rank is saved as a full difference."""

    method: Literal["concatenate"] = "concatenate"


class Svd(RequiredTruncation):
    """The nearest LoRA to the exact weighted sum."""

    method: Literal["svd"] = "svd"


class Ties(Truncation):
    """TIES, see `ties`; a full difference unless a rank, energy or frobenius is given."""

    method: Literal["ties"] = "ties"
    density: float = Field(default=0.5, gt=0, le=1, description="share of each change's entries that is kept, by magnitude")
    normalization: Normalization = "count"


class Dare(Truncation):
    """DARE, see `dropped`: what is left is summed (linear) or goes through TIES's election (ties)."""

    method: Literal["dare"] = "dare"
    variant: Literal["linear", "ties"] = "linear"
    drop_rate: float = Field(default=0.5, ge=0, lt=1, description="share of each change's entries that is dropped at random")
    seed: int = Field(default=0, ge=0)
    normalization: Normalization = "count"

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.variant == "linear" and self.normalization != "count":
            raise ValueError("normalization belongs to the variant ties")
        return self


class MagnitudePrune(Truncation):
    """The weighted sum of the largest entries of each change."""

    method: Literal["magnitude_prune"] = "magnitude_prune"
    density: float = Field(default=0.5, gt=0, le=1, description="share of each change's entries that is kept, by magnitude")


class Slerp(Truncation):
    """Two adapters, along the arc between their changes; see `slerp_weights`."""

    method: Literal["slerp"] = "slerp"


MergeOptions = Annotated[Concatenate | Svd | Ties | Dare | MagnitudePrune | Slerp, Field(discriminator="method")]
MERGE_OPTIONS: TypeAdapter[MergeOptions] = TypeAdapter(MergeOptions)
"""Reads options from JSON or a dict, by their `method`."""


@dataclass(frozen=True)
class _Part:
    """One adapter's change of one weight or bias."""

    weight: float
    change: Change
    shape: tuple[int, ...]
    layer: Layer


def no_block(key: str) -> None:
    """For adapters without blocks."""


def no_base(key: str) -> None:
    """For merges without a base model."""


def is_text_encoder(key: str) -> bool:
    """Whether a layer key belongs to a text encoder."""
    return key.startswith(("lora_te", "text_encoders."))


def weight_of(weight: float | Weight, key: str, block: str | None) -> float:
    """What one adapter's weight is for one layer."""
    if not isinstance(weight, Weight):
        return weight
    return (weight.text_encoder if is_text_encoder(key) else weight.unet) * weight.blocks.get(block or "", 1.0)


def merge(
    adapters: Sequence[Layers],
    weights: Sequence[float | Weight],
    options: MergeOptions,
    *,
    block_of: Callable[[str], str | None] = no_block,
    base_of: Callable[[str], Tensor | None] = no_base,
    dtype: torch.dtype = torch.float16,
    progress: Callable[[int, int], None] | None = None,
) -> MergeResult:
    """Merge `adapters` (layers by key) with `weights` into plain LoRA layers in `dtype`, and `diff` where a change is not low rank.

    Weights are linear: 0.5 means half the change. An adapter without a layer adds nothing to it; a layer whose weights are all 0 is left out.
    `base_of(key)` gives the weight of the base model and is asked only for layers that depend on it. `progress(done, layers)` is called after
    each layer; what it raises ends the merge.

    Raises:
        AdapterMathError: names the layer: shapes that differ, NaN, DoRA without a base, a value too large for `dtype`, ...
    """
    if not adapters or len(adapters) != len(weights):
        raise AdapterMathError(f"{len(adapters)} adapters and {len(weights)} weights were given: at least one, and a weight for each")
    if isinstance(options, Slerp) and len(adapters) != 2:
        raise AdapterMathError(f"slerp merges two adapters, got {len(adapters)}: use svd or concatenate for more")
    if not all(isinstance(weight, Weight) or math.isfinite(weight) for weight in weights):
        raise AdapterMathError("a weight is NaN or infinite")
    keys = list(dict.fromkeys(key for adapter in adapters for key in adapter))
    layers: dict[str, dict[str, Tensor]] = {}
    reports: list[LayerReport] = []
    for done, key in enumerate(keys, 1):
        block = block_of(key)
        members = [(weight_of(weight, key, block), adapter[key]) for adapter, weight in zip(adapters, weights, strict=True) if key in adapter]
        with naming(key):
            layer, made = _merged(key, block or "", [member for member in members if member[0]], options, base_of, dtype)
        if layer:
            layers[key] = layer
            reports += made
        if progress:
            progress(done, len(keys))
    if not layers:
        raise AdapterMathError("nothing is left to merge: the adapters hold no layers, or every weight is 0")
    title = f"{options.method} of {len(adapters)} adapter{'s' if len(adapters) > 1 else ''}"
    return MergeResult(layers, MergeReport(title, PRECISIONS[dtype], tuple(reports), left_out=len(keys) - len(layers)))


def _merged(
    key: str,
    block: str,
    members: Sequence[tuple[float, Layer]],
    options: MergeOptions,
    base_of: Callable[[str], Tensor | None],
    dtype: torch.dtype,
) -> tuple[dict[str, Tensor], list[LayerReport]]:
    of_weight = [(weight, layer) for weight, layer in members if changes_weight(layer)]
    base = base_of(key) if any(needs_base(layer) for _, layer in of_weight) else None
    changes = [_weight_part(weight, layer, base) for weight, layer in of_weight]
    biases = [_Part(weight, bias.reshape(-1, 1), (bias.numel(),), layer) for weight, layer in members if (bias := bias_delta(layer)) is not None]
    merged: dict[str, Tensor] = {}
    reports = []
    for parts, name, told in ((changes, "", key), (biases, "diff_b", f"{key}.bias")):
        if parts:
            layer, report = _combined(told, block, parts, options, dtype)
            merged |= {name: layer["diff"]} if name else layer
            reports.append(report)
    return merged, reports


def _weight_part(weight: float, layer: Layer, base: Tensor | None) -> _Part:
    """The change as factors; as a matrix where none exist."""
    relative = needs_base(layer)
    shape = weight_shape(layer, base if relative else None)
    if not shape:
        raise AdapterMathError("the change is a single number, not a weight's")
    factors = low_rank(layer, dtype=WORK)
    if factors is not None:
        return _Part(weight, factors, shape, layer)
    # W' - W cancels most of the digits of fp32.
    change = delta(layer, base=base if relative else None, dtype=WORK if relative else _DENSE)
    return _Part(weight, change.to(_DENSE).reshape(shape[0], -1), shape, layer)


def _combined(key: str, block: str, parts: Sequence[_Part], options: MergeOptions, dtype: torch.dtype) -> tuple[dict[str, Tensor], LayerReport]:
    shape = _common_shape([part.shape for part in parts])
    exact = _sum([(part.weight, part.change) for part in parts])
    truncation = options if isinstance(options, Truncation) else Truncation()
    if len(parts) == 1 and isinstance(options, Svd) and _fits(parts[0].change, options):
        truncation = Truncation()
    return written(
        key,
        _target(key, parts, exact, options),
        shape,
        truncation,
        exact=exact,
        dtype=dtype,
        block=block,
        ranks_in=[part.change.rank if isinstance(part.change, Factors) else None for part in parts],
    )


def _fits(change: Change, options: Svd) -> bool:
    """Whether the factors have the rank already, so that others would only add rounding."""
    return isinstance(change, Factors) and options.least_energy is None and change.rank <= (options.rank or 0)


def _target(key: str, parts: Sequence[_Part], exact: Change, options: MergeOptions) -> Change:
    """What the method makes of the changes, before its rank is cut."""
    weights = [part.weight for part in parts]
    if isinstance(options, Slerp):
        return _slerp(parts) if len(parts) == 2 else _end_of_arc(parts[0])
    if isinstance(options, Concatenate | Svd):
        return exact
    deltas = [dense(part.change, _DENSE) for part in parts]
    if isinstance(options, Ties):
        return ties(deltas, weights, options.density, options.normalization)
    if isinstance(options, MagnitudePrune):
        return magnitude_prune(deltas, weights, options.density)
    thinned = [
        dropped(change, options.drop_rate, dare_generator(options.seed, key, part.layer)) for change, part in zip(deltas, parts, strict=True)
    ]
    if options.variant == "ties":
        return ties(thinned, weights, normalization=options.normalization)
    return _sum(list(zip(weights, thinned, strict=True)))


def _slerp(parts: Sequence[_Part]) -> Change:
    a, b = (part.change for part in parts)
    factored = inner(a, b) if isinstance(a, Factors) and isinstance(b, Factors) else None
    product = float((dense(a) * dense(b)).sum()) if factored is None else factored
    weights = slerp_weights(norm_of(a), norm_of(b), product, parts[0].weight, parts[1].weight)
    return _sum(list(zip(weights, (a, b), strict=True)))


def _end_of_arc(part: _Part) -> Change:
    """For a layer that only one adapter has, or where the other's weight is 0."""
    weight, _ = slerp_weights(norm_of(part.change), 0.0, 0.0, part.weight, 0.0)
    return _sum([(weight, part.change)])


def _sum(parts: Sequence[tuple[float, Change]]) -> Change:
    """The weighted sum: factors if all have them."""
    if all(isinstance(change, Factors) for _, change in parts):
        return concatenated([(weight, change) for weight, change in parts if isinstance(change, Factors)])
    first, *others = parts
    total = first[0] * dense(first[1], _DENSE)
    for weight, change in others:
        total += weight * dense(change, _DENSE)
    return total


def _common_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The weight's shape. A flat one (out, in * kernel) agrees with the same numbers given with their kernel; all else must be equal."""
    fullest = max(shapes, key=len)
    for shape in shapes:
        flat = (fullest[0], math.prod(fullest[1:]))
        if shape != fullest and (len(shape) != 2 or shape != flat):
            told = " and ".join(str(list(one)) for one in dict.fromkeys(shapes))
            raise AdapterMathError(f"the adapters change weights of different shapes, {told}: they are for different models and cannot be merged")
    return fullest
