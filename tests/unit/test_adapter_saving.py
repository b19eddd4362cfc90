"""An adapter saved in other clothes does what it did, and its metadata is what was asked for."""
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.adapters.delta import delta
from trainer.adapters.files import read_header, write_safetensors
from trainer.adapters.layer_tensors import AdapterMathError
from trainer.adapters.metadata import tensors_sha256
from trainer.adapters.reading import read_adapter
from trainer.adapters.renaming import NamingError
from trainer.adapters.saving import AS_THE_FILE, MetadataError, parse_changes, saved_metadata, saved_tensors

KEYS = (
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    "lora_unet_mid_block_attentions_0_proj_in",
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
)
MADE = '{"node": "LoomSaveAdapter"}'


def layers(dtype: torch.dtype, alpha: float = 3.0) -> dict[str, dict[str, Tensor]]:
    numbers = torch.Generator().manual_seed(0)
    found = {}
    for key, shapes in zip(KEYS, (((320, 4), (4, 320)), ((320, 4, 1, 1), (4, 320, 1, 1)), ((768, 4), (4, 768))), strict=True):
        up, down = (torch.randn(shape, generator=numbers).to(dtype) for shape in shapes)
        found[key] = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(alpha)}
    return found


@pytest.mark.parametrize("scheme", ["kohya", "diffusers", "PEFT"])
@pytest.mark.parametrize("save_format", AS_THE_FILE)
def test_what_is_saved_and_read_again_changes_the_model_as_before(scheme: str, save_format: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    original = layers(torch.float32)
    # peft's configuration of the file that was read: alpha is folded in already, and must not be taken once more.
    config = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 3.0, "text_encoder.r": 4, "text_encoder.lora_alpha": 3.0})}
    tensors = saved_tensors(original, scheme, AS_THE_FILE[save_format])
    write_safetensors(path, tensors, saved_metadata({"ss_base_model_version": "sd_1.5", **config}, "{}", tensors, MADE))
    adapter = read_adapter(path)
    assert adapter.naming == scheme
    assert adapter.layers.keys() == original.keys()
    tolerance = {"fp16": 1e-3, "bf16": 8e-3}.get(save_format, 1e-6)
    for key, layer in adapter.layers.items():
        exact = delta(original[key], dtype=torch.float64)
        assert float((delta(layer, dtype=torch.float64) - exact).norm() / exact.norm()) < tolerance
    assert {tensor.dtype for name, tensor in tensors.items() if "alpha" not in name} == {AS_THE_FILE[save_format] or torch.float32}


def test_a_value_is_rounded_once() -> None:
    # 1 + 2^-11 is a tie that fp16 rounds to 1; times 3/4 it is a little above a tie and goes up, unless it was rounded before.
    value = 1 + 2**-11 + 2**-20
    layer = {"lora_up.weight": torch.full((320, 4), value), "lora_down.weight": torch.ones(4, 320), "alpha": torch.tensor(3.0)}
    tensors = saved_tensors({KEYS[0]: layer}, "diffusers", torch.float16)
    up = next(tensor for name, tensor in tensors.items() if "up" in name)
    assert torch.equal(up, torch.full((320, 4), value * 0.75, dtype=torch.float64).half())


def test_alpha_and_magnitudes_keep_their_precision_and_large_values_are_refused() -> None:
    magnitudes = torch.rand(320, 1) + 1
    doras = {KEYS[0]: {**layers(torch.float32)[KEYS[0]], "dora_scale": magnitudes}}
    tensors = saved_tensors(doras, "kohya", torch.float16)
    assert torch.equal(tensors[f"{KEYS[0]}.dora_scale"], magnitudes)
    assert tensors[f"{KEYS[0]}.alpha"].dtype == torch.float32
    with pytest.raises(NamingError, match=f"{KEYS[0]} has dora_scale"):
        saved_tensors(doras, "PEFT", torch.float16)
    doras[KEYS[0]]["lora_up.weight"][3, 1] = 1e6
    with pytest.raises(AdapterMathError, match="do not fit fp16"):
        saved_tensors(doras, "kohya", torch.float16)


def test_metadata_is_set_and_removed_and_its_hashes_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = saved_tensors(layers(torch.float16), "kohya", None)
    hashes = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "1" * 8, "modelspec.hash_sha256": "0x00"}
    before = {"ss_steps": "7", "ss_training_comment": "private", **hashes}
    changes = json.dumps({"modelspec.author": "Ада", "ss_training_comment": None, "ss_network_args": {"algo": "lora"}, "not there": None})
    write_safetensors(path, tensors, saved_metadata(before, changes, tensors, MADE))
    digest = tensors_sha256(tensors)
    assert read_header(path).metadata == {
        "ss_steps": "7",
        "modelspec.author": "Ада",
        "ss_network_args": '{"algo": "lora"}',
        "modelspec.hash_sha256": f"0x{digest}",
        "sshs_model_hash": digest,
        "lora_loom.made_by": MADE,
    }
    read_adapter(path)  # compares the hash with the tensors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ('{"modelspec.hash_sha256": "0x1"}', "modelspec.hash_sha256 is written by LoRA Loom itself"),
        ('{"lora_loom.made_by": null}', "lora_loom.made_by is written"),
        ('{"a": "\\ud800"}', "text that a file can hold"),
    ],
)
def test_wrong_changes_are_refused_by_what_is_wrong(changes: str, words: str) -> None:
    with pytest.raises(MetadataError, match=words):
        parse_changes(changes)
