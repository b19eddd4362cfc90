"""An adapter from the difference of two models."""
import math
from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from trainer.adapters.delta import delta
from trainer.adapters.extract import Extraction, Pair, extract, extract_layer
from trainer.adapters.layer_tensors import AdapterMathError


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tuned(key: str, shape: tuple[int, ...], rank: int, scale: float = 0.1) -> Pair:
    base = numbers(*shape)
    columns = math.prod(shape[1:])
    return Pair(key, base, base + scale * (numbers(shape[0], rank, seed=1) @ numbers(rank, columns, seed=2)).reshape(shape))


def test_a_model_tuned_by_a_lora_gives_the_lora_back() -> None:
    pair = tuned("layer", (24, 16), rank=3)
    layer, report = extract_layer(pair, Extraction(rank=3), dtype=torch.float32)
    torch.testing.assert_close(delta(layer), pair.tuned - pair.base, rtol=1e-4, atol=1e-6)
    assert report.rank_out == 3
    assert report.retained_energy > 1 - 1e-9
    assert report.relative_error < 1e-6


def test_the_cut_is_the_best_there_is_and_the_error_is_told() -> None:
    pair = tuned("layer", (24, 16), rank=16)
    layer, report = extract_layer(pair, Extraction(rank=4))
    difference = (pair.tuned - pair.base).double()
    values = torch.linalg.svdvals(difference)
    assert float((delta(layer, dtype=torch.float64) - difference).norm()) == pytest.approx(report.error, rel=1e-6)
    assert report.error == pytest.approx(float(values[4:].norm()), rel=1e-4)
    assert report.norm == pytest.approx(float(difference.norm()), rel=1e-6)
    by_energy, _ = extract_layer(pair, Extraction(energy=0.9))
    assert by_energy["lora_up.weight"].shape[1] == int((values.square().cumsum(0) / values.square().sum() < 0.9).sum()) + 1


def test_kernels_have_a_rank_of_their_own_and_1x1_counts_as_linear() -> None:
    options = Extraction(rank=5, conv_rank=2)
    result = extract([tuned("conv", (12, 8, 3, 3), 6), tuned("pointwise", (12, 8, 1, 1), 6), tuned("linear", (12, 8), 6)], options)
    assert {key: layer["lora_down.weight"].shape for key, layer in result.layers.items()} == {
        "conv": (2, 8, 3, 3),
        "pointwise": (5, 8, 1, 1),
        "linear": (5, 8),
    }
    assert extract([tuned("conv", (12, 8, 3, 3), 6)], Extraction(rank=5)).layers["conv"]["lora_up.weight"].shape == (12, 5, 1, 1)


def others() -> list[Pair]:
    return [
        tuned("lora_unet_proj", (12, 8), 2),
        Pair("lora_unet_proj.bias", numbers(12), numbers(12, seed=1)),
        Pair("lora_unet_norm", numbers(12), numbers(12, seed=2)),
        Pair("lora_te_text_model_embeddings_token_embedding", numbers(30, 8), numbers(30, 8, seed=3)),
        tuned("lora_unet_time_embedding_linear_1", (12, 8), 2),
    ]


def test_embeddings_norms_and_biases_come_whole_or_not_at_all() -> None:
    without = extract(others(), Extraction(rank=2))
    assert set(without.layers) == {"lora_unet_proj", "lora_unet_time_embedding_linear_1"}
    assert without.report.left_out == 3
    layers = extract(others(), Extraction(rank=2, others=True), dtype=torch.float32).layers
    assert set(layers["lora_unet_proj"]) == {"lora_up.weight", "lora_down.weight", "alpha", "diff_b"}
    torch.testing.assert_close(layers["lora_unet_proj"]["diff_b"], numbers(12, seed=1) - numbers(12))
    torch.testing.assert_close(layers["lora_unet_norm"]["diff"], numbers(12, seed=2) - numbers(12))
    assert layers["lora_te_text_model_embeddings_token_embedding"]["diff"].shape == (30, 8)
    assert "lora_up.weight" in layers["lora_unet_time_embedding_linear_1"]


def test_weights_that_did_not_change_are_left_out() -> None:
    same = Pair("same", numbers(12, 8), numbers(12, 8))
    result = extract([same, tuned("layer", (12, 8), 2)], Extraction(rank=2))
    assert set(result.layers) == {"layer"}
    assert result.report.left_out == 1
    with pytest.raises(AdapterMathError, match="do not differ"):
        extract([same], Extraction(rank=2))


def test_half_precision_models_are_subtracted_in_full_precision() -> None:
    base, other = numbers(24, 16).half(), numbers(24, 16, seed=1).half()
    layer, _ = extract_layer(Pair("layer", base, other), Extraction(rank=16), dtype=torch.float32)
    torch.testing.assert_close(delta(layer), other.float() - base.float(), rtol=1e-4, atol=1e-5)


def test_one_pair_is_held_at_a_time_and_progress_is_told() -> None:
    alive = []

    def pairs() -> Iterator[Pair]:
        for number in range(3):
            alive.append(number)
            yield tuned(f"layer{number}", (12, 8), 2)
            assert len(told) == len(alive)

    told: list[int] = []
    extract(pairs(), Extraction(rank=2), progress=told.append)
    assert told == [1, 2, 3]


def test_blocks_are_reported() -> None:
    report = extract([tuned("a", (12, 8), 2), tuned("b", (12, 8), 2)], Extraction(rank=2), block_of={"a": "IN01", "b": "MID"}.get).report
    assert list(report.blocks) == ["IN01", "MID"]
    assert report.text().startswith("extraction: 2 layers, rank 2, saved as fp16")


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        (Pair("layer", numbers(12, 8), numbers(12, 9)), r"^layer: .*\(12, 8\).*\(12, 9\).*different kinds"),
        (Pair("layer", numbers(12, 8), numbers(12, 8) * float("nan")), "^layer: one of the models holds NaN"),
        (Pair("layer", numbers(12, 8), numbers(12, 8) * 1e12), "^layer: .*save as fp32"),
    ],
)
def test_what_cannot_be_extracted_is_told(pair: Pair, told: str) -> None:
    with pytest.raises(AdapterMathError, match=told):
        extract([pair], Extraction(rank=4))


def test_an_extraction_has_to_say_how_much() -> None:
    with pytest.raises(ValidationError, match="give rank"):
        Extraction(others=True)
