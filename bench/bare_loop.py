"""The floor: a LoRA training loop of diffusers and peft and nothing else, in a process of its own.

What a step has to do is here (noise, UNet forward and backward in fp32, clipping, fused AdamW), and nothing that a trainer adds: no events, no
states, no check of the loss. Latents and text are drawn, not encoded: a step takes the same time on any. Only the UNet is loaded by
the trainer's code, as diffusers cannot read a single file without a config from the hub.

Each step prints one JSON line with its time; the last line has the number of trained weights and the peak memory.
"""
import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from peft import LoraConfig
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from processes import peak_mib

from trainer.families.detect import describe_checkpoint
from trainer.families.unet import load_unet

_MAX_GRAD_NORM = 1.0
_TOKENS = 77


def main() -> int:
    """Exit code 0 when all steps were taken."""
    arguments = _arguments()
    torch.manual_seed(arguments.seed)
    shape = describe_checkpoint(arguments.checkpoint).unet
    unet = load_unet(str(arguments.checkpoint), shape, torch.float32, torch.device("cpu"), arguments.checkpoint.name)
    layers = [
        name
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and re.fullmatch(arguments.pattern, name)
    ]
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=arguments.rank, lora_alpha=arguments.alpha, target_modules=layers))
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.learning_rate, fused=True)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    side = arguments.resolution // 8
    latents = torch.randn(arguments.pictures, 4, side, side)
    text = torch.randn(arguments.pictures, _TOKENS, shape.context_width)
    for step in range(1, arguments.steps + 1):
        row = slice(step % arguments.pictures, step % arguments.pictures + 1)
        noise = torch.randn_like(latents[row])
        timesteps = torch.randint(0, 1000, (1,))
        noisy = scheduler.add_noise(latents[row], noise, timesteps)
        prediction = unet(noisy, timesteps, encoder_hidden_states=text[row], return_dict=False)[0]
        loss = functional.mse_loss(prediction, noise)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, _MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print(json.dumps({"step": step, "time": time.time(), "loss": loss.item()}), flush=True)
    print(json.dumps({"parameters": sum(parameter.numel() for parameter in parameters), "peak_mib": peak_mib(os.getpid())}), flush=True)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A bare LoRA training loop; bench/run.py starts it.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pattern", default=".*", help="which Linear and Conv2d layers, by their whole diffusers name")
    for name in ("resolution", "steps", "rank", "pictures", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("alpha", "learning-rate"):
        parser.add_argument(f"--{name}", type=float, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
