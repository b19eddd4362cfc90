"""Layers of a checkpoint by the keys of adapters: every weight is found where the trainer's own models have it, and baking changes it alone."""
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loom_server import comfyui
from safetensors import safe_open
from tiny_checkpoints import TINY, UNET, VAE, write_checkpoint
from torch import Tensor

from trainer.adapters.bake import Baked, bake, check_room
from trainer.adapters.checkpoint_layers import BIAS, Place, checkpoint_layers
from trainer.adapters.delta import delta
from trainer.adapters.files import FileError, read_header
from trainer.adapters.layer_tensors import AdapterMathError
from trainer.adapters.layers import Layer
from trainer.adapters.soundness import payload_sha256
from trainer.families import load_family
from trainer.families.detect import describe_checkpoint
from trainer.spec import Base

CPU = torch.device("cpu")
# A convolution, a projection, one layer that is a third of a fused tensor and another of the same, a matrix that the file has transposed.
OF_SDXL = (
    "lora_unet_mid_block_resnets_0_conv1",
    "lora_unet_down_blocks_1_attentions_0_proj_in",
    "lora_te2_text_model_encoder_layers_0_self_attn_k_proj",
    "lora_te2_text_model_encoder_layers_0_self_attn_q_proj",
    "lora_te2_text_projection",
)
OF_SD1 = ("lora_unet_up_blocks_0_upsamplers_0_conv", "lora_te_text_model_encoder_layers_1_mlp_fc1")


class Stopped(Exception):
    """What a progress bar raises when the user stops."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A checkpoint of every family."""
    folder = tmp_path_factory.mktemp("tiny")
    paths = {family: folder / f"{family}.safetensors" for family in TINY}
    for family, path in paths.items():
        write_checkpoint(path, TINY[family], vocabulary=torch.float8_e4m3fn)
    yield paths
    for path in paths.values():
        path.unlink()


def places_of(path: Path) -> dict[str, Place]:
    return checkpoint_layers(describe_checkpoint(path), path.name)


def tensors_of(path: Path, *names: str) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in names or file.keys()}


def lora(shape: tuple[int, ...], seed: int, rank: int = 3, size: float = 0.05) -> Layer:
    numbers = torch.Generator().manual_seed(seed)
    up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=numbers) * size
    return {"lora_up.weight": up, "lora_down.weight": torch.randn(rank, *shape[1:], generator=numbers) * size, "alpha": torch.tensor(2.0)}


@pytest.mark.parametrize("name", TINY)
def test_every_weight_of_the_trainers_models_is_found(tiny: dict[str, Path], name: str) -> None:
    path = tiny[name]
    places = places_of(path)
    tokenizer = str(comfyui() / "comfy" / "sd1_tokenizer")
    family = load_family(Base(name="tiny", checkpoint=str(path), family="", tokenizer=tokenizer, header_sha256="", size=0, mtime_ns=0))
    models = [("lora_unet", family.load_unet(torch.float32, CPU))]
    parts = family.load_text_parts(torch.float32, CPU)
    models += [(key.removesuffix("_text_model"), part.encoder) for key, part in zip(family.text_keys, parts, strict=True)]
    wanted: dict[str, Tensor] = {}
    for prefix, model in models:
        for name, parameter in model.named_parameters():
            module, kind = name.rsplit(".", 1)
            if prefix != "lora_unet" and not module.startswith(("text_model.", "text_projection")):
                module = f"text_model.{module}"
            wanted[f"{prefix}_{module.replace('.', '_')}" + (BIAS if kind == "bias" else "")] = parameter.detach()
    # The trainer leaves out layers of a text encoder that it does not compute.
    beyond = [key for key in places if key not in wanted]
    assert not [key for key in wanted if key not in places]
    assert all(key.startswith("lora_te_") for key in beyond)
    stored = tensors_of(path)
    for key, weight in wanted.items():
        found = places[key].of(stored[places[key].name])
        assert found.shape == places[key].shape
        assert torch.equal(found.float(), weight), key


def test_a_layer_that_comfyui_reads_from_no_adapter_is_told(tiny: dict[str, Path]) -> None:
    places = places_of(tiny["SDXL"])
    alone = {key for key, place in places.items() if not place.adaptable}
    assert {key for key in alone if key.endswith(("_layer_norm1", "token_embedding"))}
    assert not [key for key in alone if key.startswith("lora_unet") or "_self_attn_" in key or "_mlp_" in key]


def baked(path: Path, out: Path, parts: dict[str, list[tuple[float, Layer]]], dtype: torch.dtype | None = None) -> Baked:
    described = describe_checkpoint(path)
    converted = (UNET, *(text.prefix for text in described.texts))
    return bake(path, out, checkpoint_layers(described, path.name), parts, {"lora_loom.made_by": "{}"}, dtype=dtype, converted=converted)


@pytest.mark.parametrize(("name", "keys", "dtype"), [("SDXL", OF_SDXL, None), ("SD 1.x", OF_SD1, torch.float32), ("SD 1.x", OF_SD1, torch.bfloat16)])
def test_baking_is_the_sum_of_float64_rounded_once(
    tiny: dict[str, Path], tmp_path: Path, name: str, keys: tuple[str, ...], dtype: torch.dtype | None
) -> None:
    path, out = tiny[name], tmp_path / "baked.safetensors"
    places = places_of(path)
    parts = {key: [(0.7, lora(places[key].shape, 1)), (-0.4, lora(places[key].shape, 2))] for key in keys}
    result = baked(path, out, parts, dtype)
    before, after = tensors_of(path), tensors_of(out)
    assert set(before) == set(after)
    changed = {places[key].name for key in keys}
    assert result.changed == len(changed) and not result.unused
    wanted = {name: before[name].double() for name in changed}
    for key in keys:
        view = places[key].of(wanted[places[key].name])
        view += sum(weight * delta(layer, dtype=torch.float64) for weight, layer in parts[key])
    for name, tensor in after.items():
        kept = dtype is None or name.startswith(VAE)
        assert tensor.dtype == (before[name].dtype if kept else dtype), name
        if name in changed:
            step = torch.finfo(tensor.dtype).eps
            assert (tensor.double() - wanted[name]).abs().max() <= wanted[name].abs().max() * step
        else:
            assert torch.equal(tensor.float(), before[name].to(tensor.dtype).float()), name
    assert (result.lost > 1e-6) == (dtype != torch.float32)
    header = read_header(out)
    assert header.metadata["modelspec.hash_sha256"] == "0x" + payload_sha256(out)
    assert header.metadata["lora_loom.made_by"] == "{}"
    out.unlink()


def test_nothing_baked_is_the_same_tensors_byte_for_byte(tiny: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "baked.safetensors"
    result = baked(tiny["SD 1.x"], out, {})
    assert result.changed == 0
    assert payload_sha256(out) == payload_sha256(tiny["SD 1.x"])
    out.unlink()


def test_a_change_that_does_not_fit_names_the_layer_and_leaves_no_file(tiny: dict[str, Path], tmp_path: Path) -> None:
    path, key = tiny["SD 1.x"], OF_SD1[0]
    with pytest.raises(AdapterMathError, match=f"{key}.*choose fp32"):
        baked(path, tmp_path / "baked.safetensors", {key: [(1e5, lora(places_of(path)[key].shape, 1, size=5.0))]})
    assert list(tmp_path.iterdir()) == []


def test_what_is_stopped_leaves_the_old_file(tiny: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "baked.safetensors"
    out.write_bytes(b"old")

    def stop(done: int, of: int) -> None:
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        bake(tiny["SD 1.x"], out, places_of(tiny["SD 1.x"]), {}, {}, progress=stop)
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_a_bias_without_a_place_is_told(tiny: dict[str, Path], tmp_path: Path) -> None:
    path = tiny["SD 1.x"]
    places = places_of(path)
    key = next(key for key in places if key.endswith("attn1_to_q"))
    # q projections have no bias in a UNet.
    out = tmp_path / "baked.safetensors"
    result = baked(path, out, {key: [(1.0, {"diff_b": torch.ones(places[key].shape[0])})]})
    out.unlink()
    assert result.unused == (key + BIAS,)


def test_a_file_that_does_not_fit_on_the_disk_is_refused_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"big\.safetensors.* MiB are needed .* MiB are free"):
        check_room(tmp_path, 2**60, "big.safetensors")


def test_a_quantised_checkpoint_is_refused(tiny: dict[str, Path]) -> None:
    described = describe_checkpoint(tiny["SD 1.x"])
    scaled = {**described.header.tensors, UNET + "out.2.scale_weight": described.header.tensors[UNET + "out.2.bias"]}
    with pytest.raises(FileError, match="quantised"):
        checkpoint_layers(replace(described, header=replace(described.header, tensors=scaled)), "tiny.safetensors")
