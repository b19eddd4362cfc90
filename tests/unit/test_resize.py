"""Singular values of products and of matrices, and resizing an adapter by rank, energy or Frobenius share."""
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from trainer.adapters.delta import delta
from trainer.adapters.lowrank import (
    Factors,
    Truncation,
    balanced,
    concatenated,
    frobenius,
    inner,
    norm_and_distance,
    truncate_factors,
    truncate_matrix,
)
from trainer.adapters.merge import Svd, merge
from trainer.adapters.merge_report import MergeResult


def resize(layers: Any, truncation: Truncation, **settings: Any) -> MergeResult:
    """As Resize Adapter does it: the nearest LoRA to one adapter."""
    return merge([layers], [1.0], Svd(**truncation.model_dump()), **settings)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_values(values: list[float], rows: int = 20, columns: int = 15) -> Tensor:
    left, right = (torch.linalg.qr(numbers(size, len(values), seed=size)).Q for size in (rows, columns))
    return left * torch.tensor(values, dtype=torch.float64) @ right.T


SHAPES = [(20, 12, 3), (12, 20, 3), (9, 9, 1), (6, 8, 15)]


@pytest.mark.parametrize(("rows", "columns", "rank"), SHAPES)
def test_a_product_has_the_singular_values_of_its_matrix(rows: int, columns: int, rank: int) -> None:
    factors = Factors(numbers(rows, rank), numbers(rank, columns, seed=1))
    values = torch.linalg.svdvals(factors.up @ factors.down)
    for keep in range(1, min(rows, columns, rank) + 1):
        cut = truncate_factors(factors, Truncation(rank=keep))
        assert cut.factors.rank == keep
        torch.testing.assert_close(torch.cat([cut.kept, cut.dropped])[: len(values)], values[: min(rows, columns, rank)], rtol=1e-9, atol=1e-12)
        distance = float((cut.factors.up @ cut.factors.down - factors.up @ factors.down).norm())
        assert distance == pytest.approx(float(values[keep:].norm()), abs=1e-12)
        assert cut.error == pytest.approx(distance, abs=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(20, 12), (12, 20), (7, 7), (5, 1), (1, 5)])
def test_a_matrix_without_factors_is_cut_as_well_as_an_svd_cuts_it(rows: int, columns: int) -> None:
    matrix = numbers(rows, columns)
    values = torch.linalg.svdvals(matrix)
    for keep in range(1, min(rows, columns) + 1):
        cut = truncate_matrix(matrix, Truncation(rank=keep))
        assert cut.factors.up.shape == (rows, keep)
        torch.testing.assert_close(torch.cat([cut.kept, cut.dropped]), values, rtol=1e-8, atol=1e-8)
        assert float((cut.factors.up @ cut.factors.down - matrix).norm()) == pytest.approx(float(values[keep:].norm()), rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e30])
def test_singular_values_of_every_size_are_kept_apart(scale: float) -> None:
    values = [scale * value for value in (1.0, 1e-2, 1e-4, 1e-6)]
    matrix = with_values(values)
    left, right = torch.linalg.qr(numbers(20, 4, seed=20)).Q, torch.linalg.qr(numbers(15, 4, seed=15)).Q
    factors = Factors(left, torch.tensor(values, dtype=torch.float64)[:, None] * right.T)
    for cut, accuracy in ((truncate_matrix(matrix, Truncation(energy=1.0)), 1e-9), (truncate_factors(factors, Truncation()), 1e-14)):
        assert cut.kept[:4].tolist() == pytest.approx(values, rel=1e-4)
        assert float((cut.factors.up @ cut.factors.down - matrix).norm()) < accuracy * scale
    assert truncate_factors(factors, Truncation()).factors.rank == 4
    assert truncate_factors(factors, Truncation(energy=0.999)).factors.rank == 1
    assert truncate_factors(factors, Truncation(energy=1 - 1e-7)).factors.rank == 2


def test_the_same_input_gives_the_same_bits() -> None:
    factors = Factors(numbers(20, 6), numbers(6, 12, seed=1))
    first, again = (truncate_factors(factors, Truncation(rank=3)).factors for _ in range(2))
    assert torch.equal(first.up, again.up)
    assert torch.equal(first.down, again.down)


def test_a_zero_matrix_keeps_a_zero_of_rank_1() -> None:
    zero = Factors(torch.zeros(5, 3), numbers(3, 4).float())
    for cut in (truncate_factors(zero, Truncation()), truncate_matrix(torch.zeros(5, 4), Truncation(rank=2))):
        assert cut.factors.rank == 1
        assert not (cut.factors.up @ cut.factors.down).any()
        assert (cut.error, cut.retained_energy) == (0, 1)


def test_norms_and_inner_products_without_the_matrix() -> None:
    a, b = Factors(numbers(20, 3), numbers(3, 12, seed=1)), Factors(numbers(20, 2, seed=2), numbers(2, 12, seed=3))
    whole_a, whole_b = a.up @ a.down, b.up @ b.down
    assert frobenius(a) == pytest.approx(float(whole_a.norm()), rel=1e-12)
    assert inner(a, b) == pytest.approx(float((whole_a * whole_b).sum()), rel=1e-12)
    assert norm_and_distance(a, b) == pytest.approx((float(whole_a.norm()), float((whole_a - whole_b).norm())), rel=1e-12)


def test_a_distance_is_right_far_below_the_norms() -> None:
    a, step = Factors(numbers(20, 3), numbers(3, 12, seed=1)), Factors(1e-9 * numbers(20, 1, seed=5), numbers(1, 12, seed=6))
    moved = concatenated([(1.0, a), (1.0, step)])
    assert norm_and_distance(a, moved)[1] == pytest.approx(frobenius(step), rel=1e-5)
    assert norm_and_distance(a, a)[1] < 1e-14


def test_balancing_changes_no_bit_of_the_product() -> None:
    factors = Factors(numbers(8, 3) * torch.tensor([1e-12, 1.0, 1e9], dtype=torch.float64), numbers(3, 5, seed=1))
    even = balanced(factors)
    assert torch.equal(even.up[:, :, None] * even.down[None], factors.up[:, :, None] * factors.down[None])
    ratio = even.up.abs().amax(0) / even.down.abs().amax(1)
    assert bool(((ratio > 0.49) & (ratio < 2.01)).all())


def lora(rank: int, shape: tuple[int, ...] = (20, 15)) -> dict[str, Tensor]:
    ones = [1] * (len(shape) - 2)
    up, down = numbers(shape[0], rank, *ones), numbers(rank, *shape[1:], seed=1)
    return {"lora_up.weight": up.half(), "lora_down.weight": down.half(), "alpha": torch.tensor(2.0)}


def test_a_smaller_rank_costs_exactly_the_dropped_singular_values() -> None:
    layers = {"linear": lora(8), "convolution": lora(6, (12, 8, 3, 3)), "small": lora(2)}
    result = resize(layers, Truncation(rank=4), dtype=torch.float32)
    assert {report.key: (report.ranks_in, report.rank_out) for report in result.report.layers} == {
        "linear": ((8,), 4),
        "convolution": ((6,), 4),
        "small": ((2,), 2),
    }
    for report in result.report.layers:
        exact = delta(layers[report.key], dtype=torch.float64).flatten(1)
        values = torch.linalg.svdvals(exact)
        assert float((delta(result.layers[report.key], dtype=torch.float64).flatten(1) - exact).norm()) == pytest.approx(report.error, rel=1e-9)
        assert report.error == pytest.approx(float(values[report.rank_out :].norm()), rel=1e-4, abs=1e-5)
    assert result.layers["convolution"]["lora_down.weight"].shape == (4, 8, 3, 3)
    assert result.report.text().startswith("svd of 1 adapter: 3 layers, rank 2 to 4, saved as fp32")


def test_a_share_of_the_norm_is_the_root_of_a_share_of_the_energy() -> None:
    layers = {"linear": lora(10)}
    values = torch.linalg.svdvals(delta(layers["linear"], dtype=torch.float64)).square()
    shares = (values.cumsum(0) / values.sum()).sqrt()
    for share in (0.5, 0.9, 0.99):
        report = resize(layers, Truncation(frobenius=share), dtype=torch.float32).report.layers[0]
        assert report.rank_out == int((shares < share).sum()) + 1
        assert report.retained_energy >= share**2
        assert resize(layers, Truncation(energy=share**2), dtype=torch.float32).report.layers[0].rank_out == report.rank_out


def test_other_kinds_become_plain_lora() -> None:
    loha = {"hada_w1_a": numbers(20, 2), "hada_w1_b": numbers(2, 15), "hada_w2_a": numbers(20, 2, seed=3), "hada_w2_b": numbers(2, 15, seed=4)}
    result = resize({"layer": loha}, Truncation(energy=1.0), dtype=torch.float32)
    assert set(result.layers["layer"]) == {"lora_up.weight", "lora_down.weight", "alpha"}
    assert result.report.layers[0].rank_out == 4
    assert result.report.total.relative_error < 1e-6


def test_a_resize_to_nothing_in_particular_is_refused() -> None:
    with pytest.raises(ValidationError, match="give rank"):
        resize({"linear": lora(2)}, Truncation())
