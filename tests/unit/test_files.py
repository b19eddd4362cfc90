"""Safetensors files: what is said of broken ones, writes that leave nothing half done, and what a checkpoint is from its header."""
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainer.adapters.files import FileError, read_header, replacing, sha256_of, write_bytes, write_safetensors
from trainer.families.detect import FamilyError, TextShape, UNetShape, check_vae, describe_checkpoint

UNET, CLIP, VAE = "model.diffusion_model.", "cond_stage_model.transformer.text_model.", "first_stage_model."




def with_header(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def header_error(path: Path) -> str:
    with pytest.raises(FileError) as caught:
        read_header(path)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_a_header_is_read_without_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(2, 3, dtype=torch.float16), "y": torch.zeros(())}, path, {"k": "v"})
    header = read_header(path)
    assert {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()} == {"x": ("F16", (2, 3)), "y": ("F32", ())}
    assert header.metadata == {"k": "v"}
    assert header.has("x", "y")
    assert not header.has("x", "z")
    assert header.shape("x") == (2, 3)


def test_the_headers_hash_is_of_the_header_alone(tmp_path: Path) -> None:
    for name, tensor in (("a", torch.zeros(2)), ("b", torch.ones(2)), ("c", torch.zeros(3))):
        save_file({"x": tensor}, tmp_path / name)
    a, b, c = (read_header(tmp_path / name).sha256 for name in "abc")
    assert a == b
    assert a != c


def test_a_header_beyond_what_the_format_allows_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "vast.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(100_000_100)
    assert header_error(path).startswith("vast.safetensors is not a .safetensors file: its header would be 100,000,001 bytes long")


def test_pickles_are_named_as_such_and_never_opened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "zip.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps({"a": list(range(100))}))
    torch.save({"x": torch.zeros(2)}, tmp_path / "torch.pt")
    for name in ("zip.safetensors", "old.ckpt", "torch.pt"):
        assert "pickle" in header_error(tmp_path / name)


def test_a_saved_web_page(tmp_path: Path) -> None:
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><html><body>Please log in</body></html>")
    assert "web page" in header_error(tmp_path / "page.safetensors")


@pytest.mark.parametrize("content", [b"", b"abc", b"1234567"])
def test_a_tiny_file_says_how_small_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tiny.safetensors").write_bytes(content)
    assert f"holds {len(content)} bytes" in header_error(tmp_path / "tiny.safetensors")


def test_truncation_is_found_in_the_data_and_in_the_header(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(100)}, tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "part.safetensors"
    path.write_bytes(data[:-1])
    assert f"is truncated: it holds {len(data) - 1} bytes and its header promises {len(data)}" in header_error(path)
    path.write_bytes(data[:20])
    assert "truncated" in header_error(path)


@pytest.mark.parametrize(
    "header",
    [
        b"not json at all",
        b"\xff\xfe\x00",
        b"[1, 2]",
        b'"text"',
        b"null",
        b'{"x": 5}',
        b'{"x": {"dtype": "F32"}}',
        b'{"x": {"dtype": "F32", "shape": 4, "data_offsets": [0, 0]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}}',
        b'{"__metadata__": null}',
        b'{"__metadata__": [1]}',
        b"[" * 200_000,
    ],
)
def test_a_nonsense_header(tmp_path: Path, header: bytes) -> None:
    message = header_error(with_header(tmp_path / "odd.safetensors", header, b"\0" * 8))
    assert "not a .safetensors file" in message


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in header_error(tmp_path / "none.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    assert "cannot be read" in header_error(tmp_path / "folder.safetensors")


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half of the ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_shows_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_makes_folders(tmp_path: Path) -> None:
    write_bytes(tmp_path / "deep" / "er" / "a.bin", b"x")
    assert (tmp_path / "deep" / "er" / "a.bin").read_bytes() == b"x"


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="no umask there")
def test_the_files_mode_follows_the_umask_and_the_umask_stays(tmp_path: Path, umask: int) -> None:
    write_bytes(tmp_path / "a.bin", b"x")
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o640
    assert os.umask(umask) == umask


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_broken_numbers_are_not_written(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    tensors = {"fine": torch.ones(3), "broken": torch.tensor([1.0, value]).half(), "counts": torch.tensor([1])}
    with pytest.raises(FileError, match=r"a\.safetensors was not written: 1 of 3 tensors hold NaN or infinity, the first is broken"):
        write_safetensors(path, tensors)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_tensors_and_metadata_give_the_same_bytes(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": torch.full((2, 3), float(i)) for i in range(20)}
    tensors["turned"] = torch.arange(6.0).reshape(2, 3).T
    metadata = {f"key{i}": str(i) for i in range(30)}
    sums = {
        write_safetensors(tmp_path / "a", tensors, metadata),
        write_safetensors(tmp_path / "b", dict(reversed(tensors.items())), dict(reversed(metadata.items()))),
        sha256((tmp_path / "a").read_bytes()).hexdigest(),
        sha256_of(tmp_path / "b"),
    }
    assert len(sums) == 1


def test_the_same_tensors_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": torch.full((2, 3), float(i)) for i in range(20)}
    first, second = (write_safetensors(tmp_path / "a", tensors), write_safetensors(tmp_path / "b", dict(reversed(tensors.items()))))
    assert first == second == sha256((tmp_path / "a").read_bytes()).hexdigest() == sha256_of(tmp_path / "b")


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(2, 3).T, "a": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    write_safetensors(tmp_path / "a.safetensors", tensors, {"k": "ä"})
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) and read[name].dtype == tensors[name].dtype for name in tensors)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"k": "ä"}


# Checkpoints. Detection reads the header alone, so the tensors behind it need not be there in full: one byte each, shapes as in the
# real thing. (The offsets fit the file, which is all that read_header asks.)


def checkpoint(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    header = {name: {"dtype": "F16", "shape": shape, "data_offsets": [i, i + 1]} for i, (name, shape) in enumerate(shapes.items())}
    return with_header(path, json.dumps(header).encode(), b"\0" * len(shapes))


def sd_unet(in_channels: int = 4, context: int = 768) -> dict[str, tuple[int, ...]]:
    """As SD 1.x: four levels of two blocks, transformers on the first three."""
    shapes: dict[str, tuple[int, ...]] = {
        UNET + "input_blocks.0.0.weight": (320, in_channels, 3, 3),
        UNET + "out.2.weight": (4, 320, 3, 3),
        UNET + "middle_block.0.in_layers.0.weight": (1280,),
    }
    index = 1
    for level, width in enumerate((320, 640, 1280, 1280)):
        for _ in range(2):
            block = f"{UNET}input_blocks.{index}."
            shapes[block + "0.in_layers.0.weight"] = (width,)
            shapes[block + "0.out_layers.3.weight"] = (width, width, 3, 3)
            if level < 3:
                shapes[block + "1.transformer_blocks.0.attn2.to_k.weight"] = (width, context)
            index += 1
        if level < 3:
            shapes[f"{UNET}input_blocks.{index}.0.op.weight"] = (width, width, 3, 3)
            index += 1
    return shapes


def clip(prefix: str = CLIP) -> dict[str, tuple[int, ...]]:
    layers: dict[str, tuple[int, ...]] = {f"{prefix}encoder.layers.{i}.mlp.fc1.weight": (3072, 768) for i in range(12)}
    return layers | {prefix + "embeddings.token_embedding.weight": (49408, 768)}


VAE_SHAPES = {VAE + "encoder.conv_in.weight": (128, 3, 3, 3), VAE + "decoder.conv_in.weight": (512, 4, 3, 3)}


@pytest.mark.parametrize("prefix", [CLIP, "cond_stage_model.transformer."])
def test_sd1_is_described(tmp_path: Path, prefix: str) -> None:
    found = describe_checkpoint(checkpoint(tmp_path / "sd.safetensors", sd_unet() | clip(prefix) | VAE_SHAPES))
    assert found.family == "SD 1.x"
    assert found.unet == UNetShape(
        in_channels=4,
        out_channels=4,
        widths=(320, 640, 1280, 1280),
        depths=(1, 1, 1, 0),
        blocks_per_level=2,
        context_width=768,
        middle=True,
        middle_depth=0,
        linear_projection=False,
        head_width=None,
        pooled_width=0,
    )
    assert found.texts == (TextShape(prefix, False, 12, 768, 3072),)
    assert found.has_vae
    assert found.header == read_header(tmp_path / "sd.safetensors")


def test_sd1_without_a_vae(tmp_path: Path) -> None:
    assert not describe_checkpoint(checkpoint(tmp_path / "sd.safetensors", sd_unet() | clip())).has_vae


def test_a_distilled_sd1(tmp_path: Path) -> None:
    shapes = sd_unet() | clip()
    del shapes[UNET + "middle_block.0.in_layers.0.weight"]
    assert not describe_checkpoint(checkpoint(tmp_path / "small.safetensors", shapes)).unet.middle


ONE: tuple[int, ...] = (1,)
FOREIGN = {
    "SDXL without pooled conditioning": (sd_unet(context=2048), "a family that LoRA Loom does not know"),
    "SDXL refiner": (sd_unet(context=1280), "is the SDXL refiner,"),
    "SD 2.1 unCLIP": (sd_unet(context=1024) | {UNET + "label_emb.0.0.weight": (1280, 2048)}, "is SD 2.1 unCLIP,"),
    "SD 2.x without its text encoder": (sd_unet(context=1024), "holds no OpenCLIP ViT-H text encoder"),
    "SD 3": ({UNET + "joint_blocks.0.context_block.attn.qkv.weight": ONE}, "is Stable Diffusion 3."),
    "Flux": ({UNET + "double_blocks.0.img_attn.qkv.weight": ONE}, "is Flux."),
    "Flux alone": ({"double_blocks.0.img_attn.qkv.weight": ONE}, "is Flux (diffusion model alone)."),
    "inpainting": (sd_unet(in_channels=9) | clip(), "is an SD 1.x inpainting checkpoint;"),
    "pix2pix": (sd_unet(in_channels=8) | clip(), "is an InstructPix2Pix checkpoint;"),
    "five channels": (sd_unet(in_channels=5) | clip(), "5 input channels"),
    "kohya LoRA": ({"lora_unet_a.lora_down.weight": ONE, "lora_unet_a.lora_up.weight": ONE}, "is a LoRA, not a checkpoint."),
    "PEFT LoRA": ({"unet.a.lora_A.weight": ONE}, "is a LoRA, not a checkpoint."),
    "LoHa": ({"lora_unet_a.hada_w1_a": ONE}, "is a LoRA, not a checkpoint."),
    "VAE alone": ({"encoder.conv_in.weight": ONE, "decoder.conv_in.weight": ONE}, "is a VAE alone."),
    "text encoder": ({"text_model.encoder.layers.0.mlp.fc1.weight": ONE}, "is a text encoder alone."),
    "diffusers UNet": ({"down_blocks.0.resnets.0.conv1.weight": ONE, "conv_in.weight": ONE}, "is a diffusers UNet alone."),
    "UNet alone": ({"input_blocks.0.0.weight": (320, 4, 3, 3)}, "is a UNet alone."),
    "nothing known": ({"weight": ONE}, "is not a Stable Diffusion checkpoint"),
    "no tensors": ({}, "is not a Stable Diffusion checkpoint"),
    "narrow UNet": (sd_unet() | clip() | {UNET + "input_blocks.0.0.weight": (64, 4, 3, 3)}, "a family that LoRA Loom does not know"),
    "no text encoder": (sd_unet() | VAE_SHAPES, "holds no CLIP-L text encoder"),
    "uneven UNet": (
        {k: v for k, v in (sd_unet() | clip()).items() if not k.startswith(UNET + "input_blocks.2.1.")},
        "blocks differ within a level",
    ),
    "deep transformers": (
        sd_unet() | clip() | {UNET + "input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 768)},
        "blocks differ within a level",
    ),
}


@pytest.mark.parametrize(("shapes", "wanted"), FOREIGN.values(), ids=FOREIGN.keys())
def test_what_cannot_be_trained_on_is_named(tmp_path: Path, shapes: dict[str, tuple[int, ...]], wanted: str) -> None:
    with pytest.raises(FamilyError) as caught:
        describe_checkpoint(checkpoint(tmp_path / "odd.safetensors", shapes))
    assert "odd.safetensors" in str(caught.value)
    assert wanted in str(caught.value)


def test_an_incomplete_unet_is_told_with_the_files_name(tmp_path: Path) -> None:
    shapes = sd_unet() | clip()
    del shapes[UNET + "out.2.weight"]
    with pytest.raises(FamilyError, match=r"odd\.safetensors"):
        describe_checkpoint(checkpoint(tmp_path / "odd.safetensors", shapes))


def test_a_broken_checkpoint_is_a_file_error(tmp_path: Path) -> None:
    (tmp_path / "page.safetensors").write_text("<html>" + "x" * 50)
    with pytest.raises(FileError, match="web page"):
        describe_checkpoint(tmp_path / "page.safetensors")


@pytest.mark.parametrize("prefix", ["", VAE])
def test_a_vae_is_accepted_by_either_name(tmp_path: Path, prefix: str) -> None:
    shapes = {prefix + "encoder.conv_in.weight": (128, 3, 3, 3), prefix + "decoder.conv_in.weight": (512, 4, 3, 3)}
    check_vae(checkpoint(tmp_path / "v.safetensors", shapes))


def test_other_files_are_refused_as_a_vae(tmp_path: Path) -> None:
    sixteen = {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 16, 3, 3)}
    with pytest.raises(FileError, match=r"flux\.safetensors is a VAE with 16 latent channels; SD 1\.x, SD 2\.x and SDXL need one with 4"):
        check_vae(checkpoint(tmp_path / "flux.safetensors", sixteen))
    for name, shapes in {"unet": sd_unet(), "half": {"decoder.conv_in.weight": (512, 4, 3, 3)}}.items():
        with pytest.raises(FileError, match=f"{name} is not a VAE"):
            check_vae(checkpoint(tmp_path / name, shapes))
