"""Families: which checkpoints are recognised, and what is loaded from them."""
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from loom_server import comfyui
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_checkpoints import TELLTALE, TINY, UNET, XL_CLIP_L, XL_OPEN_CLIP, Plan, Shapes, TextPlan, shapes, tiny_checkpoint

from trainer.families import load_family
from trainer.families.detect import FamilyError, TextShape, UNetShape, describe_checkpoint
from trainer.families.protocol import Conditioning, Family
from trainer.methods import lora
from trainer.options import Network, TextOptions
from trainer.spec import Base, TrainLoRASpec
from trainer.typed import SpecError

CPU = torch.device("cpu")
NAMES = list(TINY)
BIG_TEXTS = (TextPlan(XL_CLIP_L, 768, 12, 3072), TextPlan(XL_OPEN_CLIP, 1280, 32, 5120, True))
SDXL = Plan((320, 640, 1280), (0, 2, 10), 2, 10, 2048, True, BIG_TEXTS, 2816)
VEGA = Plan((320, 640, 1280), (0, 1, 2), 2, 0, 2048, True, BIG_TEXTS, 2816)


def header_alone(path: Path, tensors: Shapes) -> Path:
    """A file whose tensors are a byte each: all that detection reads is the header."""
    header = {name: {"dtype": "F16", "shape": shape, "data_offsets": [i, i + 1]} for i, (name, shape) in enumerate(tensors.items())}
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(len(tensors)))
    return path


def family_of(path: Path) -> Family:
    tokenizer = str(comfyui() / "comfy" / "sd1_tokenizer")
    return load_family(Base(name=path.name, checkpoint=str(path), family="", tokenizer=tokenizer, header_sha256="", size=0, mtime_ns=0))


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    tiny_checkpoint(path, request.param)
    yield request.param, path
    path.unlink()


@pytest.mark.parametrize("learning_rate", [0.0, 1e-4])
def test_what_will_be_trained_is_counted_from_the_header(checkpoint: tuple[str, Path], learning_rate: float) -> None:
    family = family_of(checkpoint[1])
    spec = TrainLoRASpec.model_construct(network=Network(rank=3), seed=0, word=None, text=TextOptions(learning_rate=learning_rate))
    parameters = lora.inject(family.load_unet(torch.float32, CPU), spec.network, 0)
    for number, part in enumerate(family.load_text_parts(torch.float32, CPU) if learning_rate else []):
        parameters += lora.inject_text(part.encoder, spec.network, 0, number)
    # A layer of the text encoder that is not computed is not trained either, but is counted.
    assert 1 <= lora.LoRA(spec, family).trained_numbers() / sum(parameter.numel() for parameter in parameters) < 1.2


def test_a_checkpoint_of_untouched_models_is_the_base_to_the_bit(checkpoint: tuple[str, Path], tmp_path: Path) -> None:
    family = family_of(checkpoint[1])
    unet = family.load_unet(torch.float32, CPU)
    encoders = [part.encoder for part in family.load_text_parts(torch.float32, CPU)]
    zero_terminal_snr = not bool(family.alphas_cumprod[-1])
    family.write_checkpoint(tmp_path / "again.safetensors", unet, encoders, torch.float32, {}, family.prediction, zero_terminal_snr)
    again, base = load_file(tmp_path / "again.safetensors"), load_file(checkpoint[1])
    assert again.keys() == base.keys()
    assert all(torch.equal(tensor.to(again[name].dtype), again[name]) for name, tensor in base.items())
    assert family.checkpoint_bytes(torch.float32) == sum(tensor.nbytes for tensor in again.values())
    # Trained, each of them would be in the file: a weight that is another is another there.
    for model in (unet, *encoders):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
    family.write_checkpoint(tmp_path / "moved.safetensors", unet, encoders, torch.float32, {}, family.prediction, zero_terminal_snr)
    moved = load_file(tmp_path / "moved.safetensors")
    still = {name for name in again if torch.equal(moved[name], again[name])}
    numbers = sum(parameter.numel() for model in (unet, *encoders) for parameter in model.parameters())
    assert sum(tensor.numel() for name, tensor in moved.items() if name not in still) == numbers


def test_a_file_of_sdxl_tells_what_it_predicts(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "tiny.safetensors", "SDXL")
    family = family_of(tmp_path / "tiny.safetensors")
    unet = family.load_unet(torch.float32, CPU)
    family.write_checkpoint(tmp_path / "v.safetensors", unet, [], torch.float16, {}, "v", True)
    assert {"v_pred", "ztsnr"} <= load_file(tmp_path / "v.safetensors").keys()
    of_v = family_of(tmp_path / "v.safetensors")
    assert (of_v.prediction, float(of_v.alphas_cumprod[-1])) == ("v", 0.0)
    of_v.write_checkpoint(tmp_path / "epsilon.safetensors", unet, [], torch.float16, {}, "epsilon", False)
    assert not {"v_pred", "ztsnr"} & load_file(tmp_path / "epsilon.safetensors").keys()


# Detection


def test_sdxl_is_described(tmp_path: Path) -> None:
    found = describe_checkpoint(header_alone(tmp_path / "xl.safetensors", shapes(SDXL)))
    assert (found.family, found.has_vae) == ("SDXL", True)
    assert found.unet == UNetShape(4, 4, (320, 640, 1280), (0, 2, 10), 2, 2048, True, 10, True, 64, 2816)
    assert found.texts == (TextShape(XL_CLIP_L, False, 12, 768, 3072), TextShape(XL_OPEN_CLIP, True, 32, 1280, 5120))


def test_a_distilled_sdxl_is_described(tmp_path: Path) -> None:
    unet = describe_checkpoint(header_alone(tmp_path / "vega.safetensors", shapes(VEGA))).unet
    assert (unet.depths, unet.middle, unet.middle_depth) == ((0, 1, 2), True, 0)


@pytest.mark.parametrize("prefix", ["cond_stage_model.model.", "conditioner.embedders.0.model."])
def test_sd2_is_described_by_either_name_of_its_text_encoder(tmp_path: Path, prefix: str) -> None:
    plan = Plan((320, 640, 1280, 1280), (1, 1, 1, 0), 2, 1, 1024, True, (TextPlan(prefix, 1024, 24, 4096),))
    found = describe_checkpoint(header_alone(tmp_path / "sd2.safetensors", shapes(plan)))
    assert found.family == "SD 2.x"
    assert found.unet == UNetShape(4, 4, (320, 640, 1280, 1280), (1, 1, 1, 0), 2, 1024, True, 1, True, 64, 0)
    assert found.texts == (TextShape(prefix, True, 24, 1024, 4096),)


def without(plan: Plan, part: str) -> Shapes:
    return {name: shape for name, shape in shapes(plan).items() if part not in name}


def with_inputs(plan: Plan, channels: int) -> Shapes:
    return shapes(plan) | {UNET + "input_blocks.0.0.weight": (320, channels, 3, 3)}


REFINER = Plan((384, 768, 1536, 1536), (0, 4, 4, 0), 2, 4, 1280, True, (TextPlan("conditioner.embedders.0.model.", 1280, 32, 5120, True),), 2560)
REFUSED = {
    "refiner": (shapes(REFINER), "is the SDXL refiner"),
    "uneven on the way up, as SSD-1B": (without(SDXL, "output_blocks.0.1.transformer_blocks.9."), "SSD-1B"),
    "uneven on the way down": (without(SDXL, "input_blocks.4.1.transformer_blocks.1."), "blocks differ within a level"),
    "SDXL inpainting": (with_inputs(SDXL, 9), "is an SDXL inpainting checkpoint"),
    "SD 2.x inpainting": (with_inputs(TINY["SD 2.x"], 9), "is an SD 2.x inpainting checkpoint"),
    "SD 2.x depth": (with_inputs(TINY["SD 2.x"], 5), "an SD 2.x variant with 5 input channels"),
    "unCLIP": (shapes(TINY["SD 2.x"]) | {UNET + "label_emb.0.0.weight": (1280, 2048)}, "is SD 2.1 unCLIP"),
    "Playground": (shapes(SDXL) | {"edm_mean": (1, 4, 1, 1), "edm_std": (1, 4, 1, 1)}, "is Playground 2.5"),
    "SDXL without bigG": (without(SDXL, XL_OPEN_CLIP), "holds no OpenCLIP ViT-bigG text encoder"),
    "SDXL without CLIP-L": (without(SDXL, XL_CLIP_L), "holds no CLIP-L text encoder"),
    "text encoder that does not fit": (
        shapes(Plan((320, 64), (1, 1), 1, 1, 1024, True, (TextPlan("cond_stage_model.model.", 768, 2, 256),))),
        "do not fit its UNet (they give 768 numbers a token, the UNet takes 1024)",
    ),
    "convolutions where SD 2.x is linear": (
        shapes(Plan((320, 64), (1, 1), 1, 1, 1024, False, TINY["SD 2.x"].texts)),
        "a family that LoRA Loom does not know",
    ),
    "SDXL without its pooled input": (without(SDXL, "label_emb"), "a family that LoRA Loom does not know"),
}


@pytest.mark.parametrize(("tensors", "wanted"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_trained_on_is_named(tmp_path: Path, tensors: Shapes, wanted: str) -> None:
    with pytest.raises(FamilyError) as caught:
        describe_checkpoint(header_alone(tmp_path / "odd.safetensors", tensors))
    assert str(caught.value).startswith("odd.safetensors ")
    assert wanted in str(caught.value)


# Loading


def test_every_part_loads_and_predicts(checkpoint: tuple[str, Path]) -> None:
    name, path = checkpoint
    family = family_of(path)
    assert (family.name, family.prediction) == (name.removesuffix(" v"), "v" if name.endswith(" v") else "epsilon")
    assert family.uses_sizes == (name == "SDXL")

    with torch.no_grad():
        text = family.encode_text(family.load_text_parts(torch.float32, CPU), ["a red apple", "a lemon"])
    assert text.hidden.shape == (2, 77, TINY[name].context)
    assert not torch.equal(text.hidden[0], text.hidden[1])
    assert (text.pooled is None) if name != "SDXL" else (text.pooled is not None and text.pooled.shape == (2, 1280))

    vae = family.load_vae(CPU)
    latents = family.encode_images(vae, torch.rand(2, 3, 64, 64) * 2 - 1)
    assert latents.shape == (2, 4, 8, 8)
    pixels = family.decode_latents(vae, latents)
    assert pixels.shape == (2, 3, 64, 64)
    assert 0 <= pixels.min() <= pixels.max() <= 1

    unet = family.load_unet(torch.float32, CPU)
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    assert [n for n, _ in family.empty_unet().named_modules()] == [n for n, _ in unet.named_modules()]
    sizes = torch.tensor([[64, 64, 0, 0, 64, 64]] * 2) if family.uses_sizes else None
    conditioning = Conditioning(text.hidden, text.pooled, sizes)
    with torch.no_grad():
        first = family.predict(unet, latents, torch.tensor([1, 900]), conditioning)
        swapped = family.predict(unet, latents, torch.tensor([1, 900]), conditioning.rows(torch.tensor([1, 0])))
    assert first.shape == latents.shape
    assert first.isfinite().all()
    assert not torch.equal(first, swapped)

    scheduler = family.sampler(4, CPU, family.prediction, False)
    assert len(scheduler.timesteps) == 4
    assert scheduler.config.prediction_type == {"epsilon": "epsilon", "v": "v_prediction"}[family.prediction]
    assert family.alphas_cumprod.shape == (1000,)


def test_a_caption_is_too_long_from_76_tokens_on_and_the_rest_is_cut(checkpoint: tuple[str, Path]) -> None:
    family = family_of(checkpoint[1])
    parts = family.load_text_parts(torch.float32, CPU)
    fits, too_long = " ".join(["apple"] * 75), " ".join(["apple"] * 76)
    assert not family.too_long(fits, {})
    assert family.too_long(too_long, {})
    # A word of its own takes as many tokens as it has vectors.
    with_word = f"<bun> {' '.join(['apple'] * 74)}"
    assert not family.too_long(with_word, {"<bun>": (0,)})
    assert family.too_long(with_word, {"<bun>": (0, 0)})
    with torch.no_grad():
        hidden = family.encode_text(parts, [fits, too_long]).hidden
    assert torch.equal(hidden[0], hidden[1])


def edited(path: Path, out: Path, changes: dict[str, torch.Tensor | None]) -> Path:
    tensors = load_file(path) | {name: value for name, value in changes.items() if value is not None}
    save_file({name: value for name, value in tensors.items() if name not in changes or changes[name] is not None}, str(out))
    return out


def test_sdxl_predicts_v_where_the_file_says_so(tmp_path: Path) -> None:
    plain = tmp_path / "tiny.safetensors"
    tiny_checkpoint(plain, "SDXL")
    v = family_of(edited(plain, tmp_path / "v.safetensors", {"v_pred": torch.tensor([])}))
    assert (v.prediction, v.sampler(2, CPU, "v", False).config.prediction_type) == ("v", "v_prediction")
    assert v.alphas_cumprod[-1] > 0
    terminal = family_of(edited(plain, tmp_path / "z.safetensors", {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}))
    assert (terminal.prediction, float(terminal.alphas_cumprod[-1])) == ("v", 0.0)

    conditioning = Conditioning(torch.randn(2, 77, 2048), torch.randn(2, 1280), torch.tensor([[64, 64, 0, 0, 64, 64], [512, 64, 0, 0, 64, 64]]))
    same = conditioning.rows(torch.tensor([0, 0]))
    with torch.no_grad():
        unet = v.load_unet(torch.float32, CPU)
        given = v.predict(unet, torch.ones(2, 4, 8, 8), torch.tensor([5, 5]), Conditioning(same.hidden, same.pooled, conditioning.sizes))
    assert not torch.equal(given[0], given[1]), "sizes change nothing"
    for file in tmp_path.iterdir():
        file.unlink()


def test_a_file_without_one_of_its_weights_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    tiny_checkpoint(path, "SD 2.x v")
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor(TELLTALE).float().std() > 0.09
    broken = family_of(edited(path, tmp_path / "broken.safetensors", {UNET + "out.0.weight": None}))
    with pytest.raises(SpecError, match=r"broken\.safetensors: the UNet: 1 tensors are missing, the first is conv_norm_out\.weight"):
        broken.load_unet(torch.float32, CPU)
    for file in tmp_path.iterdir():
        file.unlink()
