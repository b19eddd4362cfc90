"""Merging adapters, against sums of whole matrices in float64: every method, its weights, its errors and its report."""
import math
from itertools import permutations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from trainer.adapters.delta import bias_delta, delta
from trainer.adapters.layer_tensors import AdapterMathError
from trainer.adapters.merge import MERGE_OPTIONS, Concatenate, Dare, MagnitudePrune, MergeOptions, Slerp, Svd, Ties, Weight, merge
from trainer.adapters.merge_methods import slerp_weights, ties, trimmed
from trainer.adapters.merge_report import MergeResult

Layer = dict[str, Tensor]
Layers = dict[str, Layer]
UNET, TEXT, CONV = "lora_unet_mid_block_attn1_to_q", "lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_unet_down_blocks_0_conv"
SHAPES = {UNET: (24, 16), TEXT: (20, 12), CONV: (12, 8, 3, 3)}

EVERY_METHOD: dict[str, MergeOptions] = {
    "concatenate": Concatenate(),
    "svd": Svd(rank=5),
    "svd by energy": Svd(energy=0.9),
    "ties": Ties(density=0.4),
    "ties by weights, cut": Ties(density=0.4, normalization="weights", rank=4),
    "dare": Dare(drop_rate=0.3, seed=3),
    "dare with ties": Dare(variant="ties", drop_rate=0.3, seed=3, rank=6),
    "magnitude_prune": MagnitudePrune(density=0.3),
    "slerp": Slerp(),
}
every_method = pytest.mark.parametrize("options", EVERY_METHOD.values(), ids=EVERY_METHOD.keys())
LINEAR = {name: options for name, options in EVERY_METHOD.items() if "weights" not in name}
linear_in_the_weights = pytest.mark.parametrize("options", LINEAR.values(), ids=LINEAR.keys())


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def lora(shape: tuple[int, ...], rank: int, seed: int, alpha: float | None = None, dtype: torch.dtype = torch.float32) -> Layer:
    ones = [1] * (len(shape) - 2)
    up, down = numbers(shape[0], rank, *ones, seed=seed), numbers(rank, *shape[1:], seed=seed + 1)
    layer = {"lora_up.weight": up.to(dtype), "lora_down.weight": down.to(dtype)}
    return layer if alpha is None else layer | {"alpha": torch.tensor(alpha)}


def adapter(seed: int, rank: int, alpha: float | None = None) -> Layers:
    return {key: lora(shape, rank, seed + number, alpha) for number, (key, shape) in enumerate(SHAPES.items())}


A, B, C = adapter(10, 2), adapter(20, 3, alpha=1.5), adapter(30, 1, alpha=4.0)


def whole(layers: Layers, key: str) -> Tensor:
    return delta(layers[key], dtype=torch.float64) if key in layers else torch.zeros(SHAPES[key], dtype=torch.float64)


def exact_sum(adapters: list[Layers], weights: list[float], key: str) -> Tensor:
    return torch.stack([weight * whole(layers, key) for layers, weight in zip(adapters, weights, strict=True)]).sum(0)


def in_float32(adapters: list[Layers], weights: list[float], options: MergeOptions, **more: object) -> MergeResult:
    return merge(adapters, weights, options, dtype=torch.float32, **more)


def assert_same(result: MergeResult, other: MergeResult, factor: float = 1.0, tolerance: float = 1e-5) -> None:
    assert result.layers.keys() == other.layers.keys()
    for key in result.layers:
        ours, theirs = whole(result.layers, key), factor * whole(other.layers, key)
        assert float((ours - theirs).norm()) <= tolerance * float(theirs.norm())


def test_concatenation_is_the_exact_sum_and_ranks_add_up() -> None:
    adapters, weights = [A, B, C], [1.0, -0.5, 0.25]
    result = merge(adapters, weights, Concatenate(), dtype=torch.float64)
    for key, shape in SHAPES.items():
        assert result.layers[key]["lora_down.weight"].shape == (6, *shape[1:])
        assert float(result.layers[key]["alpha"]) == 6
        torch.testing.assert_close(whole(result.layers, key), exact_sum(adapters, weights, key), rtol=1e-12, atol=1e-14)
    assert result.report.total.relative_error < 1e-14
    assert {layer.ranks_in for layer in result.report.layers} == {(2, 3, 1)}


def test_one_adapter_at_weight_1_comes_back_bit_for_bit_in_fp16() -> None:
    layers = {key: lora(shape, 4, seed=number, dtype=torch.float16) for number, (key, shape) in enumerate(SHAPES.items())}
    result = merge([layers], [1.0], Concatenate())
    assert all(torch.equal(whole(result.layers, key), whole(layers, key)) for key in SHAPES)
    assert result.report.total.relative_error < 1e-14


def test_half_the_weight_is_half_the_change() -> None:
    for key in SHAPES:
        torch.testing.assert_close(whole(in_float32([B], [0.5], Concatenate()).layers, key), 0.5 * whole(B, key), rtol=1e-6, atol=1e-8)


@linear_in_the_weights
def test_twice_the_weights_are_twice_the_change(options: MergeOptions) -> None:
    assert_same(in_float32([A, B], [1.4, 0.6], options), in_float32([A, B], [0.7, 0.3], options), factor=2)


def test_an_average_by_weights_depends_on_their_ratio_only() -> None:
    options = Ties(normalization="weights", density=0.6)
    assert_same(in_float32([A, B], [1.4, 0.6], options), in_float32([A, B], [0.7, 0.3], options))


@pytest.mark.parametrize("options", [Concatenate(), Svd(energy=1), MagnitudePrune(density=0.3), Dare(drop_rate=0.5)], ids=lambda one: one.method)
def test_the_result_is_linear_in_each_weight_alone(options: MergeOptions) -> None:
    def at(weight: float) -> Tensor:
        return whole(in_float32([A, B], [1.0, weight], options).layers, UNET)

    torch.testing.assert_close(at(-0.8) - at(0.2), 2 * (at(0.2) - at(0.7)), rtol=1e-4, atol=1e-5)


@every_method
def test_the_order_of_adapters_and_of_layers_does_not_matter(options: MergeOptions) -> None:
    adapters = [(A, 0.7), (B, 0.4)] if isinstance(options, Slerp) else [(A, 0.7), (B, -0.4), (C, 1.1)]
    results = []
    for order in permutations(adapters):
        layers = [dict(reversed(one.items())) if len(results) % 2 else one for one, _ in order]
        results.append(in_float32(layers, [weight for _, weight in order], options))
    for other in results[1:]:
        assert_same(results[0], other)


@every_method
def test_a_layer_does_not_depend_on_the_other_layers(options: MergeOptions) -> None:
    weights = [0.7, 0.4]
    alone = in_float32([{UNET: A[UNET]}, {UNET: B[UNET]}], weights, options)
    together = in_float32([A, B], weights, options)
    assert all(torch.equal(alone.layers[UNET][name], tensor) for name, tensor in together.layers[UNET].items())


def test_svd_is_as_near_as_the_rank_allows() -> None:
    adapters, weights = [A, B, C], [1.0, -0.5, 2.0]
    result = in_float32(adapters, weights, Svd(rank=3))
    for report in result.report.layers:
        exact = exact_sum(adapters, weights, report.key).flatten(1)
        values = torch.linalg.svdvals(exact)
        made = whole(result.layers, report.key).flatten(1)
        assert torch.linalg.matrix_rank(made) == report.rank_out == 3
        assert float((made - exact).norm()) == pytest.approx(float(values[3:].norm()), rel=1e-5)
        assert report.error == pytest.approx(float(values[3:].norm()), rel=1e-5)
        assert report.norm == pytest.approx(float(exact.norm()))
        assert report.retained_energy == pytest.approx(float(values[:3].square().sum() / values.square().sum()))


def test_energy_takes_the_smallest_rank_that_keeps_it_and_rank_bounds_it() -> None:
    values = torch.linalg.svdvals(exact_sum([A, B], [1.0, 1.0], UNET)).square()
    needed = int((values.cumsum(0) / values.sum() < 0.8).sum()) + 1
    result = in_float32([A, B], [1, 1], Svd(energy=0.8))
    report = result.report.layers[0]
    assert (report.key, report.rank_out) == (UNET, needed)
    assert report.retained_energy >= 0.8
    assert in_float32([A, B], [1, 1], Svd(energy=0.8, rank=1)).report.layers[0].rank_out == 1
    assert in_float32([A, B], [1, 1], Svd(energy=1.0)).report.layers[0].rank_out == 5


def test_ties_by_hand() -> None:
    deltas = [torch.tensor([4.0, -3.0, 1.0, 0.0, 2.0]), torch.tensor([2.0, 5.0, -1.0, 0.0, -2.0])]
    assert ties(deltas, [1, 1]).tolist() == [3.0, 5.0, 0.0, 0.0, 0.0]  # a tied vote elects nothing
    assert ties(deltas, [1, 0.5]).tolist() == [2.5, -3.0, 1.0, 0.0, 2.0]
    assert ties(deltas, [1, 0.5], normalization="weights").tolist() == pytest.approx([10 / 3, -3.0, 1.0, 0.0, 2.0])
    # A subtracted adapter votes against what it would add.
    assert ties(deltas, [1, -1]).tolist() == [4.0, -4.0, 1.0, 0.0, 2.0]
    assert ties(deltas, [-1, -1]).tolist() == [-3.0, -5.0, 0.0, 0.0, 0.0]
    assert ties(deltas, [1, 1], density=0.4).tolist() == [3.0, 5.0, 0.0, 0.0, -2.0]


def test_trimming_keeps_the_largest_and_all_that_equal_the_last() -> None:
    assert trimmed(torch.tensor([1.0, -5.0, 3.0, 2.0]), 0.5).tolist() == [0.0, -5.0, 3.0, 0.0]
    assert trimmed(torch.tensor([1.0, -5.0, 3.0, -3.0]), 0.5).tolist() == [0.0, -5.0, 3.0, -3.0]
    assert trimmed(torch.tensor([1.0, 2.0]), 0.01).tolist() == [0.0, 2.0]
    assert trimmed(torch.zeros(4), 0.5).tolist() == [0.0] * 4


def test_ties_over_layers_that_not_all_adapters_have() -> None:
    result = in_float32([A, {UNET: B[UNET]}], [1.0, 1.0], Ties(density=1.0))
    torch.testing.assert_close(whole(result.layers, TEXT), whole(A, TEXT), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", ["linear", "ties"])
def test_dare_drops_a_share_and_keeps_the_mean(variant: str) -> None:
    layers = {UNET: {"diff": torch.ones(200, 200)}}
    made = whole(in_float32([layers], [0.5], Dare(variant=variant, drop_rate=0.8, seed=1)).layers, UNET)
    assert made.unique().tolist() == pytest.approx([0.0, 2.5])
    assert float((made == 0).double().mean()) == pytest.approx(0.8, abs=0.02)
    assert float(made.mean()) == pytest.approx(0.5, abs=0.05)


def test_dare_draws_anew_for_each_seed_layer_and_adapter() -> None:
    def mask(seed: int, key: str = UNET, value: float = 1.0) -> Tensor:
        return whole(in_float32([{key: {"diff": torch.full((24, 16), value)}}], [1.0], Dare(seed=seed)).layers, key) != 0

    assert torch.equal(mask(1), mask(1))
    assert not torch.equal(mask(1), mask(2))
    assert not torch.equal(mask(1), mask(1, key="lora_unet_other"))
    assert not torch.equal(mask(1), mask(1, value=2.0))


def test_slerp_ends_at_either_adapter_and_keeps_equal_norms_in_between() -> None:
    first = {UNET: lora(SHAPES[UNET], 3, seed=1)}
    second = {UNET: lora(SHAPES[UNET], 2, seed=2)}
    second[UNET]["lora_up.weight"] *= whole(first, UNET).norm() / whole(second, UNET).norm()
    norm = float(whole(first, UNET).norm())
    for weights, end in (([1.0, 0.0], first), ([0.0, 1.0], second), ([0.3, 0.0], {UNET: lora(SHAPES[UNET], 3, seed=1, alpha=0.9)})):
        torch.testing.assert_close(whole(in_float32([first, second], weights, Slerp()).layers, UNET), whole(end, UNET), rtol=1e-5, atol=1e-6)
    for share in (0.2, 0.5, 0.9):
        made = in_float32([first, second], [1 - share, share], Slerp())
        assert float(whole(made.layers, UNET).norm()) == pytest.approx(norm, rel=1e-5)
        assert made.report.layers[0].rank_out == 5
        cosine = float((whole(made.layers, UNET) * whole(first, UNET)).sum()) / norm**2
        angle = math.acos(float((whole(first, UNET) * whole(second, UNET)).sum()) / norm**2)
        assert math.acos(cosine) == pytest.approx(share * angle, rel=1e-3)


def test_slerp_is_a_straight_line_where_there_is_no_arc() -> None:
    assert slerp_weights(2.0, 2.0, 4.0, 0.25, 0.75) == (0.25, 0.75)
    assert slerp_weights(2.0, 2.0, -4.0, 0.5, 0.5) == (0.5, 0.5)
    assert slerp_weights(2.0, 0.0, 0.0, 0.5, 0.5) == (0.5, 0.5)
    torch.testing.assert_close(whole(in_float32([A, {}], [0.4, 0.6], Slerp()).layers, UNET), 0.4 * whole(A, UNET), rtol=1e-5, atol=1e-6)


def test_weights_for_text_encoders_and_for_blocks() -> None:
    weight = Weight(unet=2.0, text_encoder=0.5, blocks={"MID": 0.25, "BASE": 3.0})
    blocks = {UNET: "MID", TEXT: "BASE", CONV: "IN01"}
    result = in_float32([A, B], [weight, 1.0], Concatenate(), block_of=blocks.get)
    for key, expected in ((UNET, 0.5), (TEXT, 1.5), (CONV, 2.0)):
        torch.testing.assert_close(whole(result.layers, key), exact_sum([A, B], [expected, 1.0], key), rtol=1e-5, atol=1e-6)
    assert set(result.report.blocks) == set(blocks.values())
    for name in blocks.values():
        assert f"  {name}: 1 layer, rank 5, error" in result.report.text()


def test_layers_of_weight_0_are_left_out() -> None:
    result = in_float32([A, B], [Weight(text_encoder=0.0), Weight(text_encoder=0.0)], Svd(rank=4))
    assert set(result.layers) == {UNET, CONV}
    assert result.report.left_out == 1
    assert "1 layer" in result.report.text().splitlines()[-1]
    assert in_float32([A, B], [1.0, 0.0], Concatenate()).report.layers[0].ranks_in == (2,)


@every_method
def test_changes_that_cancel_or_are_zero_merge_to_zero(options: MergeOptions) -> None:
    zero = {UNET: lora(SHAPES[UNET], 2, seed=1) | {"lora_up.weight": torch.zeros(24, 2)}}
    result = in_float32([zero, zero], [1.0, 1.0], options)
    assert not whole(result.layers, UNET).any()
    assert (result.report.total.relative_error, result.report.total.retained_energy) == (0, 1)
    if not isinstance(options, Slerp | Dare):
        cancelled = in_float32([A, A], [1.0, -1.0], options)
        assert float(whole(cancelled.layers, UNET).abs().max()) < 1e-15


def test_singular_values_that_are_rounding_noise_are_not_kept() -> None:
    assert in_float32([A, A, B], [1.0, -1.0, 1.0], Svd(energy=1.0)).report.layers[0].rank_out == 3


def test_kinds_without_factors_are_summed_whole() -> None:
    base = numbers(24, 16, seed=8)
    dora = {UNET: lora(SHAPES[UNET], 2, seed=4) | {"dora_scale": base.norm(dim=1, keepdim=True) * 1.1}}
    expected = 0.5 * delta(dora[UNET], base=base, dtype=torch.float64) + whole(B, UNET)
    made = in_float32([dora, B], [0.5, 1.0], Concatenate(), base_of={UNET: base}.get)
    assert set(made.layers[UNET]) == {"diff"}
    torch.testing.assert_close(made.layers[UNET]["diff"].double(), expected, rtol=1e-5, atol=1e-6)
    assert made.report.layers[0].ranks_in == (None, 3)
    cut = in_float32([dora, B], [0.5, 1.0], Svd(rank=6), base_of={UNET: base}.get)
    values = torch.linalg.svdvals(expected)
    assert cut.layers[UNET]["lora_up.weight"].shape == (24, 6)
    assert cut.report.layers[0].error == pytest.approx(float(values[6:].norm()), rel=1e-4)


def test_the_base_is_asked_only_for_layers_that_depend_on_it() -> None:
    asked = []
    layers = A | {CONV: {"oft_blocks": numbers(3, 4, 4)}}
    in_float32([layers], [1.0], Svd(rank=2), base_of=lambda key: asked.append(key) or numbers(12, 8, 3, 3))
    assert asked == [CONV]


def test_norms_and_biases_stay_whole_differences() -> None:
    first = {"lora_unet_norm": {"w_norm": numbers(12, seed=1), "b_norm": numbers(12, seed=2)}, UNET: A[UNET] | {"diff_b": numbers(24, seed=3)}}
    second = {"lora_unet_norm": {"diff": numbers(12, seed=4)}, UNET: {"diff_b": numbers(24, seed=5)}}
    made = in_float32([first, second], [1.0, -2.0], Svd(rank=2)).layers
    torch.testing.assert_close(made["lora_unet_norm"]["diff"], numbers(12, seed=1) - 2 * numbers(12, seed=4))
    torch.testing.assert_close(made["lora_unet_norm"]["diff_b"], numbers(12, seed=2))
    torch.testing.assert_close(bias_delta(made[UNET]), numbers(24, seed=3) - 2 * numbers(24, seed=5))
    torch.testing.assert_close(whole(made, UNET), whole(A, UNET), rtol=1e-5, atol=1e-6)


def test_matrices_on_a_1x1_convolution_and_flat_kernels_take_the_shape_of_the_others() -> None:
    flat = {CONV: lora((12, 72), 2, seed=1)}
    made = in_float32([flat, A], [1.0, 1.0], Concatenate()).layers[CONV]
    assert made["lora_down.weight"].shape == (4, 8, 3, 3)
    assert made["lora_up.weight"].shape == (12, 4, 1, 1)
    torch.testing.assert_close(delta(made).double(), whole(flat, CONV).reshape(12, 8, 3, 3) + whole(A, CONV), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "told"),
    [(((12, 8, 3, 3), (12, 8, 1, 1)), r"\[12, 8, 3, 3\] and \[12, 8, 1, 1\]"), (((24, 16), (24, 18)), r"\[24, 16\] and \[24, 18\]")],
)
@every_method
def test_shapes_that_differ_are_told_with_the_layer(options: MergeOptions, shapes: tuple[tuple[int, ...], ...], told: str) -> None:
    first, second = ({UNET: lora(shape, 2, seed=1)} for shape in shapes)
    with pytest.raises(AdapterMathError, match=f"^{UNET}: .*{told}"):
        merge([first, second], [1.0, 1.0], options)


def test_values_too_large_for_fp16_are_refused_and_fit_in_fp32() -> None:
    huge = {UNET: {name: torch.full_like(tensor, 60000.0) for name, tensor in A[UNET].items()}}
    with pytest.raises(AdapterMathError, match=rf"^{UNET}: .* do not fit fp16, .*save as fp32"):
        merge([huge], [2.0], Concatenate())
    in_float32([huge], [2.0], Concatenate())
    with pytest.raises(AdapterMathError, match="infinite or NaN"):
        in_float32([huge], [1e306], Concatenate())


def test_unbalanced_factors_are_balanced_before_they_are_rounded() -> None:
    layer = lora(SHAPES[UNET], 2, seed=3)
    lopsided = {UNET: {"lora_up.weight": layer["lora_up.weight"] * 2.0**24, "lora_down.weight": layer["lora_down.weight"] * 2.0**-24}}
    result = merge([lopsided], [1.0], Concatenate())
    assert result.report.total.flushed == 0
    assert result.report.total.relative_error < 1e-3


def test_what_the_precision_flushes_to_zero_is_counted() -> None:
    tiny = {UNET: {"diff": torch.tensor([[1.0, 1e-9], [0.0, -1e-9]])}}
    report = merge([tiny], [1.0], Concatenate()).report
    assert report.total.flushed == 2
    assert "2 values became zero in fp16" in report.text()
    assert f"clipping: none; the largest value is {report.layers[0].largest:.3g}" in report.text()
    assert in_float32([tiny], [1.0], Concatenate()).report.total.flushed == 0


@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.float16, 1e-5, 1e-3), (torch.bfloat16, 1e-4, 1e-2), (torch.float32, 0.0, 1e-6)])
@pytest.mark.parametrize("options", [Concatenate(), Svd(energy=1.0), Ties()], ids=lambda one: one.method)
def test_the_reported_error_is_that_of_the_saved_tensors(options: MergeOptions, dtype: torch.dtype, least: float, most: float) -> None:
    adapters, weights = [A, B], [0.7, 0.3]
    result = merge(adapters, weights, options, dtype=dtype)
    assert {tensor.dtype for layer in result.layers.values() for name, tensor in layer.items() if name != "alpha"} == {dtype}
    squares = 0.0
    for report in result.report.layers:
        distance = float((whole(result.layers, report.key) - exact_sum(adapters, weights, report.key)).norm())
        assert report.error == pytest.approx(distance, rel=1e-3, abs=1e-7)
        squares += distance**2
    total = result.report.total.relative_error
    assert total == pytest.approx(squares**0.5 / math.hypot(*(report.norm for report in result.report.layers)), rel=1e-3, abs=1e-7)
    if not isinstance(options, Ties):
        assert least <= total <= most


def test_the_report_reads_as_text() -> None:
    text = merge([A, B], [1.0, 1.0], Svd(rank=4)).report.text()
    assert text.splitlines()[0] == "svd of 2 adapters: 3 layers, rank 4, saved as fp16"
    assert "error against the exact sum: " in text
    assert "energy kept by the rank: " in text


def test_progress_is_told_and_can_end_the_merge() -> None:
    told = []
    in_float32([A, B], [1.0, 1.0], Concatenate(), progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 3), (2, 3), (3, 3)]

    def cancel(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_float32([A], [1.0], Concatenate(), progress=cancel)


@pytest.mark.parametrize(
    ("adapters", "weights", "options", "told"),
    [
        ([], [], Concatenate(), "at least one"),
        ([A], [1.0, 2.0], Concatenate(), "a weight for each"),
        ([A], [float("nan")], Concatenate(), "NaN"),
        ([A, {}], [0.0, 1.0], Concatenate(), "nothing is left"),
        ([A, B, C], [1, 1, 1], Slerp(), "two adapters"),
        ([A, B], [1, -1], Slerp(), f"^{UNET}: slerp takes no negative weights"),
        ([A, {}], [-1, 1], Slerp(), f"^{UNET}: slerp takes no negative weights"),
        ([{UNET: A[UNET] | {"dora_scale": torch.ones(24, 1)}}], [1.0], Svd(rank=2), f"^{UNET}: a DoRA layer .*connect the base"),
        ([{UNET: A[UNET] | {"alpha": torch.tensor(float("inf"))}}], [1.0], Svd(rank=2), f"^{UNET}: alpha holds NaN or infinity"),
    ],
)
def test_what_cannot_be_merged_is_told(adapters: list[Layers], weights: list[float], options: MergeOptions, told: str) -> None:
    with pytest.raises(AdapterMathError, match=told):
        merge(adapters, weights, options)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"method": "svd"}, "give rank, energy or frobenius"),
        ({"method": "svd", "rank": 0}, "give rank, energy or frobenius"),
        ({"method": "svd", "rank": 4, "density": 0.5}, "Extra inputs"),
        ({"method": "average"}, "average"),
        ({"method": "ties", "density": 0}, "greater than 0"),
        ({"method": "dare", "drop_rate": 1}, "less than 1"),
        ({"method": "dare", "normalization": "weights"}, "belongs to the variant ties"),
    ],
)
def test_options_that_mean_nothing_are_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        MERGE_OPTIONS.validate_python(given)


def test_options_are_told_apart_by_their_method() -> None:
    assert MERGE_OPTIONS.validate_json('{"method": "ties", "density": 0.2, "rank": 16}') == Ties(density=0.2, rank=16)
