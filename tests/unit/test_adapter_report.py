"""What is told of an adapter's file is what it was made with, and how much a block changes is what float64 says."""
import json
import math
from pathlib import Path

import pytest
import torch
from adapter_models import NETWORKS, randomise, tiny_unet
from safetensors.torch import save_file
from torch import Tensor

from trainer.adapters.blocks import block_of
from trainer.adapters.files import FileError, sha256_of, write_safetensors
from trainer.adapters.norm_chart import draw_norms
from trainer.adapters.norms import Norm, block_label, block_norms
from trainer.adapters.reading import read_adapter
from trainer.adapters.report import Inspection, inspect_file
from trainer.methods import lora

QUERY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
KEY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT = "lora_te_text_model_encoder_layers_7_self_attn_q_proj"


def factors(key: str, rank: int, out: int, inputs: int, alpha: float | None, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    numbers = torch.Generator().manual_seed(rank + out)
    tensors = {
        f"{key}.lora_up.weight": torch.randn(out, rank, generator=numbers).to(dtype),
        f"{key}.lora_down.weight": torch.randn(rank, inputs, generator=numbers).to(dtype),
    }
    return tensors | ({} if alpha is None else {f"{key}.alpha": torch.tensor(alpha)})


def small() -> dict[str, Tensor]:
    return {**factors(KEY, 4, 640, 768, 2.0), **factors(QUERY, 8, 640, 640, None), **factors(TEXT, 4, 768, 768, 4.0, torch.bfloat16)}


def written(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Inspection:
    write_safetensors(path, tensors, metadata)
    return inspect_file(path)


def test_the_tensors_are_told_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    found = written(path, small() | {"odd.thing": torch.zeros(3)}, {"ss_network_alpha": "99"})
    assert (found.kind, found.family) == ("LoRA", "SD 1.x")
    parameters = 4 * (640 + 768) + 8 * (640 + 640) + 4 * (768 + 768)
    for line in (
        "small.safetensors",
        "kind: LoRA",
        "base family: SD 1.x",
        "names: kohya",
        "rank: 4 in 2 layers, 8 in 1 layer",
        "parts: text encoder 1 layer, UNet 2 layers",
        "not understood, and not applied: 1 tensor: odd.thing",
        f"parameters: {parameters:,}",
        f"sha256: {sha256_of(path)}",
        f"size on disk: {path.stat().st_size / 2**20:.3g} MiB ({path.stat().st_size:,} bytes)",
    ):
        assert line in found.text.splitlines(), (line, found.text)
    alphas = next(line for line in found.text.splitlines() if line.startswith("alpha: "))
    assert set(alphas.removeprefix("alpha: ").split(", ")) == {
        "2 (scale 0.5) in 1 layer", "none (scale 1) in 1 layer", "4 (scale 1) in 1 layer",
    }
    formats = next(line for line in found.text.splitlines() if line.startswith("number format: "))
    assert all(told in formats for told in ("fp16 in 4 tensors", "bf16 in 2 tensors", "fp32 in 3 tensors"))


def test_the_training_is_told_in_its_own_words(tmp_path: Path) -> None:
    metadata = {
        "ss_sd_model_name": "dreams.safetensors",
        "ss_base_model_version": "sd_1.5",
        "ss_steps": "1234",
        "ss_learning_rate": "0.0003",
        "ss_text_encoder_lr": "None",
        "ss_optimizer": "torch.optim.adamw.AdamW",
        "ss_resolution": "(512, 768)",
        "ss_batch_size_per_device": "3",
        "ss_training_finished_at": "1700000000.5",
        "ss_training_comment": "first\ntry",
        "modelspec.trigger_phrase": "sks dog",
        "ss_tag_frequency": json.dumps({"10_dogs": {"dog": 7, "grass ": 3}, "cats": {"grass": 5, "broken": "many"}}),
        "lora_loom.spec": json.dumps({"network": {"kind": "lora", "targets": "attention"}, "optimizer": {"ema_decay": 0}}),
    }
    lines = written(tmp_path / "a.safetensors", small(), metadata | {"modelspec.hash_sha256": "0x"}).text.splitlines()
    for line in (
        "trained words: sks dog",
        "most frequent tags: grass 8, dog 7",
        "made by: a training of LoRA Loom",
        "  date: 2023-11-14",
        "  comment: first try",
        "  base model: dreams.safetensors",
        "  steps: 1234",
        "  batch size: 3",
        "  learning rate: 0.0003",
        "  optimizer: torch.optim.adamw.AdamW",
        "  resolution: (512, 768)",
        "  adapted layers: attention",
    ):
        assert line in lines, (line, lines)
    assert not any(line.startswith(("  text encoder learning rate", "  EMA")) for line in lines)


@pytest.mark.parametrize(
    "metadata",
    [
        {"ss_tag_frequency": "[" * 100_000},
        {"ss_tag_frequency": '{"a": [1], "b": {"c": null, "d": 1e400, "e": true}}'},
        {"ss_tag_frequency": '["a"]', "lora_loom.spec": "[]", "lora_loom.made_by": '"x"'},
        {"lora_loom.spec": '{"network": 3, "text": {"learning_rate": []}}', "modelspec.hash_sha256": "0x"},
        {"modelspec.date": "1e999", "ss_training_finished_at": "9" * 400, "ss_training_started_at": "yesterday"},
        {"ss_training_comment": "\x00\u202e" + "x" * 100_000},
    ],
)
def test_nonsense_in_the_metadata_harms_nobody(metadata: dict[str, str], tmp_path: Path) -> None:
    text = written(tmp_path / "a.safetensors", small(), metadata).text
    assert len(text) < 3000
    assert "most frequent tags" not in text and "date" not in text
    assert "\x00" not in text and "\u202e" not in text


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_block_changes_by_what_peft_computes_in_float64(kind: str, tmp_path: Path) -> None:
    unet = tiny_unet().double()
    randomise(lora.inject(unet, NETWORKS[kind], seed=0))
    adapted = [lora.Adapted("lora_unet", unet)]
    squares: dict[str, float] = {}
    for key, layer in lora.keyed_layers(adapted):
        change = layer.double().get_delta_weight(lora.ADAPTER).detach()
        block = block_of(key, "SD 1.x")
        assert block
        squares[block] = squares.get(block, 0.0) + float(change.double().square().sum())
    tensors = lora.adapter_tensors(adapted, NETWORKS[kind], torch.float32)
    found = written(tmp_path / "a.safetensors", tensors, {"ss_base_model_version": "sd_1.5"})
    assert found.kind == kind
    assert {norm.block: norm.norm for norm in found.norms} == pytest.approx({block: math.sqrt(of) for block, of in squares.items()}, rel=1e-5)
    assert [norm.block for norm in found.norms] == sorted(squares, key=lambda block: ("IN", "M0", "OU").index(block[:2]) * 100 + int(block[-2:]))
    assert sum(norm.count for norm in found.norms) == len(read_adapter(tmp_path / "a.safetensors").layers)
    assert ("without its magnitudes" in found.measured) == (kind == "DoRA")


def test_biases_count_and_what_depends_on_the_model_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    relative = {f"{QUERY}.oft_blocks": torch.randn(4, 160, 160)}
    plain = {**factors(KEY, 4, 640, 768, 4.0), f"{KEY}.diff_b": torch.full((640,), 2.0)}
    found = written(path, plain | relative | factors(TEXT, 4, 768, 768, None))
    up, down = (plain[f"{KEY}.lora_{side}.weight"].double() for side in ("up", "down"))
    assert [(norm.part, norm.block) for norm in found.norms] == [("UNet", "IN04"), ("text encoder", "layer 07")]
    assert found.norms[0].norm == pytest.approx(math.hypot(float((up @ down).norm()), 2.0 * math.sqrt(640)), rel=1e-12)
    assert "not measured: 1 layer" in found.text


def test_progress_can_end_it() -> None:
    class Cancelled(Exception):
        pass

    def cancel(done: int, total: int) -> None:
        assert (done, total) == (1, 2)
        raise Cancelled

    layer = {"diff": torch.ones(3)}
    with pytest.raises(Cancelled):
        block_norms({"a": layer, "b": layer}, None, cancel)


@pytest.mark.parametrize(
    ("key", "family", "block"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in", "SDXL", "M00"),
        ("lora_unet_time_embedding_linear_1", "SD 1.x", "other"),
        ("lora_te2_text_model_encoder_layers_31_mlp_fc1", "SDXL", "layer 31"),
        ("lora_unet_double_blocks_3_img_attn_qkv", "Flux", "double_blocks 03"),
        ("transformer.single_transformer_blocks.12.attn.to_q", "Flux", "single_transformer_blocks 12"),
        ("diffusion_model.x_embedder", None, "other"),
    ],
)
def test_blocks_have_the_names_of_their_family(key: str, family: str | None, block: str) -> None:
    assert block_label(key, family) == block


def test_embeddings_are_told_by_their_vectors(tmp_path: Path) -> None:
    vectors = torch.arange(1, 4).float()[:, None] * torch.ones(3, 768) / math.sqrt(768)
    save_file({"clip_l": vectors, "clip_g": torch.ones(3, 1280)}, tmp_path / "word.safetensors")
    found = inspect_file(tmp_path / "word.safetensors")
    assert (found.kind, found.family) == ("embedding", "SDXL")
    assert "vectors: 3 (clip_g 1280, clip_l 768)" in found.text.splitlines()
    assert [norm.norm for norm in found.norms if norm.part == "clip_l"] == pytest.approx([1, 2, 3])


def test_hypernetworks_are_told_by_their_widths(tmp_path: Path) -> None:
    network = {"linear.0.weight": torch.eye(768), "linear.0.bias": torch.zeros(768)}
    torch.save({768: (network, {**network, "linear.0.bias": torch.ones(768)}), "activation_func": "relu", "name": "sky"}, tmp_path / "sky.pt")
    found = inspect_file(tmp_path / "sky.pt")
    assert (found.kind, found.family) == ("hypernetwork", "SD 1.x")
    assert "widths: 768; activation: relu" in found.text.splitlines()
    assert "its name in the file: sky" in found.text.splitlines()
    assert [(norm.block, norm.norm) for norm in found.norms] == [("keys", pytest.approx(math.sqrt(768))), ("values", pytest.approx(math.sqrt(1536)))]


def test_a_damaged_file_gives_the_reading_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, small())
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(FileError, match=r"a\.safetensors is truncated"):
        inspect_file(path)
    broken = small()
    broken[f"{KEY}.lora_up.weight"][0, 0] = float("nan")
    save_file(broken, path)
    with pytest.raises(FileError, match="NaN"):
        inspect_file(path)


def test_the_chart_draws_bars_in_proportion() -> None:
    picture = draw_norms([Norm("UNet", "IN01", 3, 2.0), Norm("UNet", "IN02", 3, 1.0), Norm("text encoder", "layer 00", 1, 0.0)], "title " * 100)
    pixels = picture.load()
    blue = [sum(pixels[x, y] == (31, 95, 191) for x in range(picture.width)) for y in range(picture.height)]
    lengths = sorted(set(blue) - {0})
    assert len(lengths) == 2 and lengths[1] == pytest.approx(2 * lengths[0], abs=1)
    assert draw_norms([], "nothing").height < 200
    assert draw_norms([Norm("clip_l", f"vector {n}", 1, 1.0) for n in range(1000)], "many").height < 4000
