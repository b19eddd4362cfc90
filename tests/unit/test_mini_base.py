"""The mini base: what other tests and the demo rely on when they train on it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import mini_base.build as builder
import pytest
import torch
from safetensors.torch import load_file

UNET, TEXT, VAE = "model.diffusion_model.", "cond_stage_model.transformer.", "first_stage_model."


@pytest.fixture(scope="module")
def mini_base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, torch.Tensor]]:
    path = tmp_path_factory.mktemp("mini_base") / "mini_base.safetensors"
    builder.build(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    yield load_file(path)
    path.unlink()  # half a gigabyte that pytest would keep for three runs


@pytest.mark.parametrize(
    ("prefix", "tensors", "weights"),
    [
        pytest.param(UNET, 206, 36_653_124, id="unet"),
        pytest.param(TEXT, 196, 123_060_480, id="text encoder, as many weights as CLIP-L"),
        pytest.param(VAE, 248, 83_653_863, id="vae, as many weights as SD's"),
    ],
)
def test_every_part_is_complete(mini_base: dict[str, torch.Tensor], prefix: str, tensors: int, weights: int) -> None:
    part = [tensor for name, tensor in mini_base.items() if name.startswith(prefix)]
    assert (len(part), sum(tensor.numel() for tensor in part)) == (tensors, weights)


def test_holds_finite_half_floats_and_no_other_part(mini_base: dict[str, torch.Tensor]) -> None:
    assert [name for name in mini_base if not name.startswith((UNET, TEXT, VAE))] == []
    assert [name for name, tensor in mini_base.items() if tensor.dtype != torch.float16 or not tensor.isfinite().all()] == []


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (UNET + "input_blocks.0.0.weight", (320, 4, 3, 3)),
        (UNET + "input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight", (320, 768)),
        (UNET + "middle_block.1.proj_in.weight", (320, 320, 1, 1)),
        (UNET + "out.2.weight", (4, 320, 3, 3)),
        (TEXT + "text_model.embeddings.token_embedding.weight", (49408, 768)),
        (TEXT + "text_model.embeddings.position_embedding.weight", (77, 768)),
        (TEXT + "text_model.encoder.layers.11.mlp.fc1.weight", (3072, 768)),
        (VAE + "encoder.conv_in.weight", (128, 3, 3, 3)),
        (VAE + "quant_conv.weight", (8, 8, 1, 1)),
        (VAE + "decoder.up.1.block.0.nin_shortcut.weight", (256, 512, 1, 1)),
        (VAE + "decoder.conv_out.weight", (3, 128, 3, 3)),
    ],
)
def test_has_the_shapes_that_comfyui_detects_sd15_by(mini_base: dict[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> None:
    assert tuple(mini_base[name].shape) == shape


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        (UNET + "out.2.weight", "398da5f557098225cb06a46f230263a022cdd9e24dd5696d63be926d037841c0"),
        (TEXT + "text_model.encoder.layers.11.mlp.fc2.weight", "e6e18a47dbbd8a455c5aa5abd2a1860311ee0514f1c5bf5ba9f0b35ab17b3cdb"),
        (VAE + "decoder.conv_in.weight", "856e15d582ea74598af43e7315f8f31201fe7f7eb9bc95ecf40935bb4b9154a4"),
    ],
)
def test_is_the_same_on_every_machine(mini_base: dict[str, torch.Tensor], name: str, sha256: str) -> None:
    assert hashlib.sha256(mini_base[name].numpy().tobytes()).hexdigest() == sha256


def test_a_write_that_fails_leaves_the_older_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(state: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half a file")
        raise OSError("no space left on device")

    out = tmp_path / "mini_base.safetensors"
    out.write_bytes(b"older")
    monkeypatch.setattr(builder, "checkpoint", dict)
    monkeypatch.setattr(builder, "save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        builder.build(out)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {out.name: b"older"}


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*checkpoints"):
        builder.build(tmp_path / "checkpoints" / "mini_base.safetensors")
