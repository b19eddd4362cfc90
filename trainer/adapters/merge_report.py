"""What a merge, a resize or an extraction did to the numbers: ranks, errors, energy, and what the file's precision cost."""
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from .words import counted


@dataclass(frozen=True)
class LayerReport:
    """One layer. Norms are Frobenius norms; `error` is measured on the tensors after rounding, against the exact weighted sum."""

    key: str
    block: str
    ranks_in: tuple[int | None, ...]
    """Of each adapter that has the layer; none: not low rank."""
    rank_out: int | None
    """None: saved as a full difference."""
    norm: float
    """Of the exact weighted sum."""
    error: float
    target_norm: float
    """Of what the method makes, before its rank is cut."""
    retained_energy: float
    """Share of the squared `target_norm` that the rank keeps."""
    flushed: int
    """Values that became zero in the file's precision."""
    largest: float
    """Magnitude of the largest value in the file. None is clipped: one beyond the precision's range is an error."""

    @property
    def relative_error(self) -> float:
        """error / norm; infinite for an error where nothing was meant to be."""
        return _ratio(self.error, self.norm)


@dataclass(frozen=True)
class Totals:
    """Several layers taken as one vector."""

    layers: int
    ranks: tuple[int, int] | None
    """Smallest and largest; none: full differences only."""
    relative_error: float
    retained_energy: float
    flushed: int


@dataclass(frozen=True)
class MergeReport:
    """All layers of one result, in its order."""

    title: str
    precision: str
    layers: tuple[LayerReport, ...]
    left_out: int = 0
    """Layers without a change: weight 0 everywhere, or two equal weights."""

    @property
    def total(self) -> Totals:
        """All layers."""
        return totals(self.layers)

    @property
    def blocks(self) -> dict[str, Totals]:
        """By block, in the order in which they appear."""
        names = dict.fromkeys(layer.block for layer in self.layers)
        return {name: totals(layer for layer in self.layers if layer.block == name) for name in names}

    def text(self) -> str:
        """For people: the whole, the worst layer, and a line for each block."""
        total = self.total
        lines = [f"{self.title}: {counted(total.layers, 'layer')}, {_ranks(total.ranks)}, saved as {self.precision}"]
        if self.layers:
            ranks = [str(rank or "full") for rank, _ in Counter(rank for layer in self.layers for rank in layer.ranks_in).most_common(8)]
            lines += [f"ranks in: {', '.join(ranks)}"] if ranks else []
            worst = max(self.layers, key=lambda layer: layer.relative_error)
            lines.append(f"error against the exact sum: {_percent(total.relative_error)}; largest {_percent(worst.relative_error)} in {worst.key}")
            lines.append(f"energy kept by the rank: {_percent(total.retained_energy)}")
            largest = max(layer.largest for layer in self.layers)
            lines.append(f"clipping: none; the largest value is {largest:.3g}, and one too large for {self.precision} would be an error")
        if total.flushed:
            lines.append(f"{counted(total.flushed, 'value')} became zero in {self.precision}")
        if self.left_out:
            lines.append(f"left out, since nothing changes in them: {counted(self.left_out, 'layer')}")
        for name, part in self.blocks.items():
            if name:
                told = f"error {_percent(part.relative_error)}, energy {_percent(part.retained_energy)}"
                lines.append(f"  {name}: {counted(part.layers, 'layer')}, {_ranks(part.ranks)}, {told}")
        return "\n".join(lines)


@dataclass(frozen=True)
class MergeResult:
    """The new adapter's layers by key, and the report."""

    layers: dict[str, dict[str, Tensor]]
    report: MergeReport


def totals(layers: Iterable[LayerReport]) -> Totals:
    """Several layers as one vector: errors and energies add up as squares."""
    parts = list(layers)
    ranks = [layer.rank_out for layer in parts if layer.rank_out is not None]
    energy = math.fsum(layer.target_norm**2 for layer in parts)
    kept = math.fsum(layer.target_norm**2 * layer.retained_energy for layer in parts)
    return Totals(
        layers=len(parts),
        ranks=(min(ranks), max(ranks)) if ranks else None,
        relative_error=_ratio(math.hypot(*(layer.error for layer in parts)), math.hypot(*(layer.norm for layer in parts))),
        retained_energy=kept / energy if energy else 1.0,
        flushed=sum(layer.flushed for layer in parts),
    )


def _ratio(error: float, norm: float) -> float:
    if norm:
        return error / norm
    return math.inf if error else 0.0


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %" if share < 0.9995 or share >= 1 else f"{share * 100:.5g} %"


def _ranks(ranks: tuple[int, int] | None) -> str:
    if ranks is None:
        return "full differences"
    return f"rank {ranks[0]}" if ranks[0] == ranks[1] else f"rank {ranks[0]} to {ranks[1]}"
