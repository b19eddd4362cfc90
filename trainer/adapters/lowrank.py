"""Low-rank arithmetic: products up @ down that are summed, truncated and compared without the matrix that they stand for.

The singular values of a product are those of the small core between two QR decompositions (Golub and Van Loan, Matrix Computations, 8.6;
truncation is optimal by https://en.wikipedia.org/wiki/Low-rank_approximation). Sums of factors are computed in float64.
"""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..typed import Model

WORK = torch.float64
_EPSILON = torch.finfo(WORK).eps


class Factors(NamedTuple):
    """A matrix (m, n) as `up` (m, r) @ `down` (r, n)."""

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        """r: the rank of the matrix is at most this."""
        return self.up.shape[1]


class Truncation(Model):
    """How much of a matrix to keep: the smallest rank that meets each bound given, and never more than `rank`."""

    rank: int | None = Field(default=None, ge=0, description="at most this many singular values; 0 or none: no bound")
    energy: float | None = Field(default=None, gt=0, le=1, description="share of the squared Frobenius norm to keep")
    frobenius: float | None = Field(default=None, gt=0, le=1, description="share of the Frobenius norm to keep (kohya's sv_fro)")

    @property
    def bounded(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.rank or self.energy or self.frobenius)

    @property
    def least_energy(self) -> float | None:
        """Both shares as one share of the squared norm; none: whatever `rank` leaves."""
        shares = [self.energy, self.frobenius and self.frobenius**2]
        return max((share for share in shares if share), default=None)


class RequiredTruncation(Truncation):
    """A truncation that asks for something."""

    @model_validator(mode="after")
    def _asks(self) -> Self:
        if not self.bounded:
            raise ValueError("give rank, energy or frobenius: how much to keep")
        return self


@dataclass(frozen=True)
class Truncated:
    """The nearest matrix of a rank, and the singular values on both sides of the cut, largest first."""

    factors: Factors
    kept: Tensor
    dropped: Tensor

    @property
    def error(self) -> float:
        """Frobenius norm of what was cut off."""
        return float(torch.linalg.vector_norm(self.dropped))

    @property
    def retained_energy(self) -> float:
        """Kept share of the squared Frobenius norm; 1 for a zero matrix."""
        kept, dropped = float(self.kept.square().sum()), float(self.dropped.square().sum())
        return kept / (kept + dropped) if kept + dropped else 1.0


def in_float64(factors: Factors) -> Factors:
    """The same factors in float64."""
    return Factors(factors.up.to(WORK), factors.down.to(WORK))


def balanced(factors: Factors) -> Factors:
    """The same product with the largest entries of each column of `up` and its row of `down` alike, so that both survive fp16.

    The scales are powers of two: not a bit of any entry changes.
    """
    up, down = factors.up.abs().amax(dim=0), factors.down.abs().amax(dim=1)
    ratio = torch.where((up > 0) & (down > 0), down / up, torch.ones_like(up))
    scale = torch.exp2(torch.round(torch.log2(ratio) / 2))
    return Factors(factors.up * scale, factors.down / scale[:, None])


def concatenated(parts: Iterable[tuple[float, Factors]]) -> Factors:
    """The weighted sum of products, exactly: its rank is the sum of theirs."""
    weighted = [(weight, in_float64(factors)) for weight, factors in parts]
    up = torch.cat([weight * factors.up for weight, factors in weighted], dim=1)
    return Factors(up, torch.cat([factors.down for _, factors in weighted], dim=0))


def truncate_factors(factors: Factors, truncation: Truncation) -> Truncated:
    """The nearest product of a lower rank; (m, n) is never formed.

    Without a bound, singular values that are rounding noise are the only ones dropped. A zero product comes back with rank 1.
    """
    up, down = balanced(in_float64(factors))
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    core = r_up @ r_down.T
    left, values, right = torch.linalg.svd(core, full_matrices=False)
    noise = _EPSILON * max(core.shape) * float(r_up.norm() * r_down.norm())
    keep = _kept(values, noise, truncation)
    cut = Factors(q_up @ (left[:, :keep] * values[:keep]), right[:keep] @ q_down.T)
    return Truncated(balanced(cut), values[:keep], values[keep:])


def truncate_matrix(matrix: Tensor, truncation: Truncation) -> Truncated:
    """The same for a matrix (m, n) without factors, projected on the leading eigenvectors of its smaller Gram matrix.

    That is 4 times as fast as an SVD and exact to float64's rounding for what is kept; singular values below 1e-8 of the largest are noise.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.to(WORK).T if wide else matrix.to(WORK)
    squares, vectors = torch.linalg.eigh(tall.T @ tall)
    values = squares.clamp(min=0).sqrt().flip(0)
    noise = float(values[0]) * (_EPSILON * len(values)) ** 0.5
    keep = _kept(values, noise, truncation)
    basis = vectors.flip(1)[:, :keep]
    projected = tall @ basis
    cut = Factors(basis, projected.T) if wide else Factors(projected, basis.T)
    return Truncated(balanced(cut), values[:keep], values[keep:])


def _kept(values: Tensor, noise: float, truncation: Truncation) -> int:
    """How many of `values` (largest first) to keep, at least 1."""
    keep = int((values > noise).sum())
    energy = truncation.least_energy
    if energy is not None:
        squares = values.square()
        # tail[k]: what is lost by keeping k values. Sums from the small end, so that a share of 1 is reached exactly.
        tail = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
        keep = min(keep, int((tail > (1 - energy) * tail[0]).sum()))
    if truncation.rank:
        keep = min(keep, truncation.rank)
    return max(keep, 1)


def inner(a: Factors, b: Factors) -> float:
    """Sum of the products of the entries of two matrices, without forming either."""
    return float(((a.up.T @ b.up) * (a.down @ b.down.T)).sum())


def frobenius(factors: Factors) -> float:
    """Frobenius norm of the product, without forming it."""
    up, down = balanced(in_float64(factors))
    return float((torch.linalg.qr(up, mode="r").R @ torch.linalg.qr(down.T, mode="r").R.T).norm())


def norm_and_distance(exact: Factors, other: Factors) -> tuple[float, float]:
    """Frobenius norms of `exact` and of `exact - other`, to float64's rounding even where they all but cancel."""
    exact, other = (balanced(in_float64(factors)) for factors in (exact, other))
    r_up = torch.linalg.qr(torch.cat([exact.up, other.up], dim=1), mode="r").R
    r_down = torch.linalg.qr(torch.cat([exact.down, -other.down], dim=0).T, mode="r").R
    norm = (r_up[:, : exact.rank] @ r_down[:, : exact.rank].T).norm()
    return float(norm), float((r_up @ r_down.T).norm())
