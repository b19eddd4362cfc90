"""Run in ComfyUI's folder: how far the trainer's prediction with each kind of network is from ComfyUI's with its file, as JSON on the last line.

    python agreement_kinds.py CHECKPOINT FOLDER
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
from trainer.methods import lora
from trainer.options import Network
from trainer.spec import Base

CONVOLUTIONS = {"targets": "transformer+conv", "conv_rank": 4, "conv_alpha": 3.0}
KINDS = {
    "lora": Network(rank=8, alpha=3.0),
    "lora, all linear": Network(rank=8, alpha=3.0, targets="all linear"),
    "lora with convolutions": Network(rank=8, alpha=3.0, **CONVOLUTIONS),
    "lora with block ranks": Network(rank=8, alpha=3.0, block_ranks=(("down_blocks", 2), ("mid_block", 0))),
    "rslora": Network(rank=8, alpha=3.0, rank_stabilized=True),
    "dora": Network(rank=8, alpha=3.0, decompose=True),
    "dora with convolutions": Network(rank=8, alpha=3.0, decompose=True, **CONVOLUTIONS),
    "loha": Network(rank=8, alpha=3.0, kind="loha"),
    "loha with convolutions": Network(rank=8, alpha=3.0, kind="loha", **CONVOLUTIONS),
    "lokr": Network(rank=8, alpha=3.0, kind="lokr"),
    "lokr of low rank with convolutions": Network(rank=2, alpha=3.0, kind="lokr", lokr_factor=4, targets="transformer+conv"),
}
# LoHa's delta is a product of four factors, so it takes more to be seen.
STRENGTHS = {"lora": 0.1, "loha": 0.3, "lokr": 0.2}
TIMESTEP = 500


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def randomise(parameters: list[torch.nn.Parameter], strength: float) -> None:
    for number, parameter in enumerate(parameters):
        noise = torch.randn(parameter.shape, generator=generator(0, "delta", number)) * strength
        parameter.data = (parameter.data + noise).half().float()  # as the file stores it


def main(checkpoint: Path, folder: Path) -> None:
    # ComfyUI chooses its device when these are imported.
    args.cpu = True
    import comfy.sd
    import comfy.utils

    cpu = torch.device("cpu")
    header = describe_checkpoint(checkpoint).header
    family = load_family(
        Base(name=checkpoint.name, checkpoint=str(checkpoint), family="SD 1.x", tokenizer="", header_sha256=header.sha256, size=0, mtime_ns=0)
    )
    model, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False)
    plain = model.model
    latents = torch.randn(1, 4, 16, 16, generator=generator(0, "latents"))
    noise = torch.randn(1, 4, 16, 16, generator=generator(0, "noise"))
    sigma = plain.model_sampling.sigma(torch.tensor([float(TIMESTEP)]))
    x = latents + sigma * noise
    told = {}
    for kind, network in KINDS.items():
        unet = family.load_unet(torch.float32, cpu)
        width = unet.config.cross_attention_dim
        text = torch.randn(1, 77, width, generator=generator(0, "text"))
        randomise(lora.inject(unet, network, seed=0), STRENGTHS[network.kind])
        tensors = lora.adapter_tensors([lora.Adapted("lora_unet", unet)], network)
        file = folder / f"{kind}.safetensors"
        write_safetensors(file, tensors, {})
        adapted, _ = comfy.sd.load_lora_for_models(model, clip, comfy.utils.load_torch_file(str(file)), 1.0, 1.0)
        with torch.inference_mode():
            ours = unet(x / (sigma**2 + 1).sqrt(), torch.tensor([TIMESTEP]), encoder_hidden_states=text, return_dict=False)[0]
            without = (x - plain.apply_model(x, sigma, c_crossattn=text)) / sigma
            adapted.patch_model(device_to=cpu)
            theirs = (x - adapted.model.apply_model(x, sigma, c_crossattn=text)) / sigma
            adapted.unpatch_model(device_to=cpu)
        told[kind] = {
            "unet": relative(ours, theirs),
            "delta": relative(without, theirs),
            "layers": len({name.split(".")[0] for name in tensors}),
            "patched": len(adapted.patches),
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
