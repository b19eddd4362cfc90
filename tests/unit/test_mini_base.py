"""The mini base: what other tests and the demo rely on when they train on it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import mini_base.build as builder
import numpy as np
import pytest
import torch
from loom_server import PACK, comfyui
from PIL import Image
from safetensors.torch import load_file

from trainer.families import load_family
from trainer.spec import Base

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
        (UNET + "out.2.weight", "b68c4c33bd267ece6a61d44180cc4874a0f8b02df7460a39802512411b657390"),
        (TEXT + "text_model.encoder.layers.11.mlp.fc2.weight", "e6e18a47dbbd8a455c5aa5abd2a1860311ee0514f1c5bf5ba9f0b35ab17b3cdb"),
        (VAE + "encoder.conv_in.weight", "7f1f6279c35a3dafef17521761128b528faa6e9c7d628466e6c5911977b67ba7"),
        (VAE + "decoder.conv_in.weight", "1c9b194fb5dcfb52a9c55d42a323722ea377c3f781fe49cdaacf29e891eb6e0e"),
    ],
)
def test_is_the_same_on_every_machine(mini_base: dict[str, torch.Tensor], name: str, sha256: str) -> None:
    assert hashlib.sha256(mini_base[name].numpy().tobytes()).hexdigest() == sha256


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """(n, 3, 128, 128) in [-1, 1], of things that neither form of the VAE has seen."""
    found = []
    for name in ("cherries", "french_fries", "slice_of_pizza", "watermelon"):
        with Image.open(PACK / "tests" / "food" / f"{name}.png") as file:
            image = file.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB").resize((128, 128), Image.Resampling.BICUBIC)
        found.append(torch.from_numpy(np.array(flat)).permute(2, 0, 1) / 127.5 - 1)
    return torch.stack(found)


def coded(path: Path, images: torch.Tensor) -> torch.Tensor:
    """Encoded and decoded again."""
    stat = path.stat()
    tokenizer = str(comfyui() / "comfy" / "sd1_tokenizer")
    base = Base(
        name=path.name, checkpoint=str(path), family="SD 1.x", tokenizer=tokenizer, header_sha256="", size=stat.st_size, mtime_ns=stat.st_mtime_ns
    )
    family = load_family(base)
    vae = family.load_vae(torch.device("cpu"))
    with torch.no_grad():
        return family.decode_latents(vae, family.encode_images(vae, images)) * 2 - 1


def test_draws_the_shapes_of_icons_where_its_other_form_draws_blocks_exactly(tmp_path: Path, images: torch.Tensor) -> None:
    blocks = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(images, 8), scale_factor=8)
    path = tmp_path / "mini_base.safetensors"
    builder.build(path)
    assert (coded(path, images) - images).abs().mean() < 0.75 * (blocks - images).abs().mean()
    builder.build(path, blocks=True)
    assert (coded(path, images) - blocks).abs().max() < 0.01
    assert (coded(path, blocks) - blocks).abs().max() < 0.01


def test_a_write_that_fails_leaves_the_older_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(state: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half a file")
        raise OSError("no space left on device")

    out = tmp_path / "mini_base.safetensors"
    out.write_bytes(b"older")
    monkeypatch.setattr(builder, "checkpoint", lambda blocks: {})
    monkeypatch.setattr(builder, "save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        builder.build(out)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {out.name: b"older"}


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*checkpoints"):
        builder.build(tmp_path / "checkpoints" / "mini_base.safetensors")
