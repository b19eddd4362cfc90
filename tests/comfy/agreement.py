"""Run in ComfyUI's folder: how far ComfyUI's pictures of a model and the trainer's are from each other, as JSON on the last line.

    python agreement.py CHECKPOINT ADAPTER

An adapter with a strong random delta in every layer is written to ADAPTER as the trainer writes its own, and read by ComfyUI's own loader;
both sides then predict on the same noisy latents, timesteps and caption.
"""
import json
import sys
from pathlib import Path

import torch
from comfy.cli_args import args

from trainer.adapters.files import write_safetensors
from trainer.data.order import generator
from trainer.families import load_family
from trainer.families.detect import describe_checkpoint
from trainer.families.protocol import Conditioning
from trainer.methods import lora
from trainer.objective import add_noise
from trainer.options import Network
from trainer.spec import Base

CAPTION = "red apple, red food"
TIMESTEPS = (1, 250, 500, 750, 999)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def main(checkpoint: Path, adapter: Path) -> None:
    # ComfyUI chooses its device when these are imported.
    args.cpu = True
    import comfy.sd
    import comfy.utils

    cpu = torch.device("cpu")
    header = describe_checkpoint(checkpoint).header
    tokenizer = str(Path(comfy.__path__[0], "sd1_tokenizer"))
    base = Base(
        name=checkpoint.name, checkpoint=str(checkpoint), family="SD 1.x", tokenizer=tokenizer, header_sha256=header.sha256, size=0, mtime_ns=0
    )
    family = load_family(base)
    unet = family.load_unet(torch.float32, cpu)
    # alpha is not rank, so that a scale that is forgotten shows.
    network = Network(rank=8, alpha=3.0)
    for number, parameter in enumerate(lora.inject(unet, network, seed=0)):
        noise = torch.randn(parameter.shape, generator=generator(0, "delta", number)) * 0.2
        parameter.data = noise.half().float()  # as the file stores it
    tensors = lora.adapter_tensors(unet, network)
    write_safetensors(adapter, tensors, {})

    model, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False)
    plain = model.model
    adapted, _ = comfy.sd.load_lora_for_models(model, clip, comfy.utils.load_torch_file(str(adapter)), 1.0, 1.0)

    with torch.no_grad():
        text = family.encode_text(family.load_text_parts(torch.float32, cpu), [CAPTION]).hidden
    their_text, _ = clip.encode_from_tokens(clip.tokenize(CAPTION), return_pooled=True)

    latents = torch.randn(1, 4, 16, 16, generator=generator(0, "latents"))
    noise = torch.randn(1, 4, 16, 16, generator=generator(0, "noise"))

    def predictions(sample: object) -> list[torch.Tensor]:
        """ComfyUI's predicted noise, taken from its denoised latents."""
        found = []
        for timestep in TIMESTEPS:
            sigma = plain.model_sampling.sigma(torch.tensor([float(timestep)]))
            x = latents + sigma * noise
            found.append((x - sample(x, sigma, c_crossattn=text)) / sigma)
        return found

    with torch.inference_mode():
        ours = [
            family.predict(
                unet, add_noise(latents, noise, family.alphas_cumprod, torch.tensor([t])), torch.tensor([t]), Conditioning(text)
            )
            for t in TIMESTEPS
        ]
        adapted.patch_model(device_to=cpu)
        with_adapter = predictions(adapted.model.apply_model)
        adapted.unpatch_model(device_to=cpu)
        without = predictions(plain.apply_model)
    told = {
        "text": relative(text, their_text),
        "unet": [relative(a, b) for a, b in zip(ours, with_adapter, strict=True)],
        "delta": [relative(a, b) for a, b in zip(without, with_adapter, strict=True)],
        "layers": len(tensors) // 3,
        "patched": len(adapted.patches),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
