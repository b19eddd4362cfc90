"""Run in ComfyUI's folder: how far ComfyUI's model of a family and the trainer's are from each other, as JSON on the last line.

    python family_agreement.py FAMILY FOLDER

A checkpoint that ComfyUI itself recognises is written into FOLDER: text encoders of full size, a narrow UNet, random weights. Both sides then
encode a caption and predict on the same noisy latents, without and with an adapter of random weights in every layer, which ComfyUI reads from the
file that the trainer writes.
"""
import gc
import json
import sys
from pathlib import Path

import torch
from comfy.cli_args import args
from tiny_checkpoints import CLIP_L, OPEN_CLIP, XL_CLIP_L, XL_OPEN_CLIP, Plan, TextPlan, write_checkpoint

from trainer.adapters.files import write_safetensors
from trainer.data.order import generator
from trainer.families import load_family
from trainer.families.detect import describe_checkpoint
from trainer.families.protocol import Conditioning, Family
from trainer.methods import lora
from trainer.methods.words import Words
from trainer.objective import add_noise
from trainer.options import Network, NewWord, TextOptions
from trainer.spec import Base

# With a word that ends in an exclamation mark, which is what OpenCLIP pads with.
CAPTION = "a red apple on a table, wow!"
LONG = ", ".join(f"(apple {number}:1.{number % 4})" if number % 3 else f"a lemon of kind {number}" for number in range(30))
# What is read how, and ComfyUI's setting for it.
READINGS = {"long and emphasised": (LONG, TextOptions(max_tokens=225, emphasis=True), None), "clip skip": (CAPTION, TextOptions(clip_skip=3), -3)}
EMBEDDED = ("a photo of <thing>, red", "<thing>", "one <thing> beside another <thing>")
TIMESTEPS = (1, 500, 999)
SIZES = (96, 160, 8, 16, 128, 64)
_WIDE = (320, 320, 320, 320)
_CLIP_L = (768, 12, 3072)
PLANS = {
    "SD 1.x": Plan((320, 320), (1, 1), 1, 1, 768, False, (TextPlan(CLIP_L, *_CLIP_L),)),
    "SD 2.x v": Plan(_WIDE, (1, 1, 1, 0), 2, 1, 1024, True, (TextPlan(OPEN_CLIP, 1024, 24, 4096),), wide_bias=True),
    # Segmind Vega's depths, by which ComfyUI knows it for an SDXL.
    "SDXL": Plan((320, 640, 320), (0, 1, 2), 2, 0, 2048, True, (TextPlan(XL_CLIP_L, *_CLIP_L), TextPlan(XL_OPEN_CLIP, 1280, 32, 5120, True)), 2816),
}


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def our_family(checkpoint: Path, tokenizer: Path, text: TextOptions) -> Family:
    described = describe_checkpoint(checkpoint)
    return load_family(
        Base(
            name=checkpoint.name,
            checkpoint=str(checkpoint),
            family=described.family,
            tokenizer=str(tokenizer),
            header_sha256=described.header.sha256,
            size=0,
            mtime_ns=0,
        ),
        text,
    )


def main(name: str, folder: Path) -> None:
    # ComfyUI chooses its device and its dtypes when these are imported.
    args.cpu = True
    args.fp32_unet = True
    import comfy.sd
    import comfy.utils

    checkpoint = folder / "family.safetensors"
    write_checkpoint(checkpoint, PLANS[name])
    cpu = torch.device("cpu")
    family = our_family(checkpoint, Path(comfy.__path__[0], "sd1_tokenizer"), TextOptions())
    with torch.inference_mode():
        text = family.encode_text(family.load_text_parts(torch.float32, cpu), [CAPTION])
        gc.collect()
        readings = {}
        for name, (caption, options, _) in READINGS.items():
            reader = our_family(checkpoint, Path(family.base.tokenizer), options)
            readings[name] = reader.encode_text(reader.load_text_parts(torch.float32, cpu), [caption]).hidden
            gc.collect()
        embedded = random_embedding(family, folder / "thing.safetensors")
        text_tensors, adapted_text = random_text_adapter(family)
        gc.collect()
        unet = family.load_unet(torch.float32, cpu)
        latents = torch.randn(1, 4, 16, 16, generator=generator(0, "latents"))
        noise = torch.randn(1, 4, 16, 16, generator=generator(0, "noise"))
        conditioning = Conditioning(text.hidden, text.pooled, torch.tensor([SIZES]) if family.uses_sizes else None)

        def predictions(unet: torch.nn.Module) -> list[torch.Tensor]:
            noisy = [add_noise(latents, noise, family.alphas_cumprod, torch.tensor([t])) for t in TIMESTEPS]
            return [family.predict(unet, x, torch.tensor([t]), conditioning) for x, t in zip(noisy, TIMESTEPS, strict=True)]

        ours = predictions(unet)
        tensors = random_adapter(unet)
        ours_adapted = predictions(unet)
        write_safetensors(folder / "adapter.safetensors", tensors | text_tensors)
        del unet
        gc.collect()
        model, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False, embedding_directory=[str(folder)])
        their_text, their_pooled = clip.encode_from_tokens(clip.tokenize(CAPTION), return_pooled=True)
        differ = {}
        for name, (caption, _, layer) in READINGS.items():
            reading = clip.clone()
            if layer:
                reading.clip_layer(layer)
            differ[name] = relative(readings[name], reading.encode_from_tokens(reading.tokenize(caption)))
        adapted, adapted_clip = comfy.sd.load_lora_for_models(model, clip, comfy.utils.load_torch_file(str(folder / "adapter.safetensors")), 1.0, 1.0)
        their_adapted_text = adapted_clip.encode_from_tokens(adapted_clip.tokenize(CAPTION))
        theirs = [_their_prediction(model.model, latents, noise, t, text) for t in TIMESTEPS]
        adapted.patch_model(device_to=cpu)
        theirs_adapted = [_their_prediction(adapted.model, latents, noise, t, text) for t in TIMESTEPS]
    told = {
        "comfyui": [type(model.model).__name__, model.model.model_type.name],
        "trainer": [family.name, family.prediction],
        "text": relative(text.hidden, their_text),
        "pooled": None if text.pooled is None else relative(text.pooled, their_pooled),
        "readings": differ,
        "embedding": [relative(ours, clip.encode_from_tokens(clip.tokenize(named(text)))) for text, ours in embedded.items()],
        "adapted text": relative(adapted_text, their_adapted_text),
        "text delta": relative(their_text, their_adapted_text),
        "unet": [relative(a, b) for a, b in zip(ours, theirs, strict=True)],
        "adapted": [relative(a, b) for a, b in zip(ours_adapted, theirs_adapted, strict=True)],
        "delta": [relative(a, b) for a, b in zip(theirs, theirs_adapted, strict=True)],
        "layers": len(tensors) // 3,
        "patched": len(adapted.patches),
    }
    print(json.dumps(told))


def named(text: str) -> str:
    return text.replace("<thing>", "embedding:thing")


def random_embedding(family: Family, file: Path) -> dict[str, torch.Tensor]:
    """Save a new word of random vectors as `file`; gives texts with it as the trainer reads them."""
    words = Words(NewWord(placeholder="<thing>", vectors=3), family, seed=0)
    parts, _ = words.add(family.load_text_parts(torch.float32, torch.device("cpu")))
    words.write(file, {})
    return {text: family.encode_text(parts, [text]).hidden for text in EMBEDDED}


def random_text_adapter(family: Family) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A LoRA with a delta in every layer of the text encoders: the tensors of its file, and the caption's embeddings with it."""
    network = Network(rank=4, alpha=3.0)
    parts = family.load_text_parts(torch.float32, torch.device("cpu"))
    for number, part in enumerate(parts):
        randomise(lora.inject_text(part.encoder, network, 0, number))
    adapted = [lora.Adapted(prefix, part.encoder) for prefix, part in zip(family.text_keys, parts, strict=True)]
    return lora.adapter_tensors(adapted, network), family.encode_text(parts, [CAPTION]).hidden


def randomise(parameters: list[torch.nn.Parameter]) -> None:
    for number, parameter in enumerate(parameters):
        noise = torch.randn(parameter.shape, generator=generator(0, "delta", number)) * 0.1
        parameter.data = noise.half().float()  # as the file stores it


def random_adapter(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Put a LoRA with a delta in every layer into `unet`; the tensors of its file."""
    # alpha is not rank, so that a scale that is forgotten shows.
    network = Network(rank=4, alpha=3.0)
    randomise(lora.inject(unet, network, seed=0))
    return lora.adapter_tensors([lora.Adapted("lora_unet", unet)], network)


def _their_prediction(model: object, latents: torch.Tensor, noise: torch.Tensor, timestep: int, text: Conditioning) -> torch.Tensor:
    """What ComfyUI's UNet gives, taken from its denoised latents."""
    sigma = model.model_sampling.sigma(torch.tensor([float(timestep)]))
    x = latents + sigma * noise
    added = {}
    if text.pooled is not None:
        height, width, top, left, target_height, target_width = SIZES
        sizes = {"height": height, "width": width, "crop_h": top, "crop_w": left, "target_height": target_height, "target_width": target_width}
        added["y"] = model.encode_adm(pooled_output=text.pooled, **sizes)
    denoised = model.apply_model(x, sigma, c_crossattn=text.hidden, **added)
    if model.model_type.name == "V_PREDICTION":
        # denoised = x / (sigma^2 + 1) - v sigma / sqrt(sigma^2 + 1)
        return (x / (sigma**2 + 1) - denoised) * (sigma**2 + 1).sqrt() / sigma
    return (x - denoised) / sigma


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
