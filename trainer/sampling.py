"""Pictures drawn from the model as it is now."""
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from .data.order import generator
from .families.sd import LATENT_FACTOR, StableDiffusion1
from .spec import Sampling


def draw(
    family: StableDiffusion1,
    unet: nn.Module,
    text: Tensor,
    negative: Tensor,
    sampling: Sampling,
    index: int,
    device: torch.device,
    should_stop: Callable[[], bool],
) -> Tensor | None:
    """Scaled latents (1, 4, h/8, w/8) for one prompt, with classifier-free guidance (https://arxiv.org/abs/2207.12598).

    `text`, `negative`: embeddings (1, 77, width). Prompt `index` has its own noise, the same at every step of the training, so that
    pictures of different steps can be compared. None if `should_stop` said so on the way: a picture must not delay a stop.
    """
    scheduler = family.sampler(sampling.steps, device)
    shape = (1, 4, sampling.height // LATENT_FACTOR, sampling.width // LATENT_FACTOR)
    latents = torch.randn(shape, generator=generator(sampling.seed, "sample", index)).to(device) * scheduler.init_noise_sigma
    context = torch.cat([negative, text]).to(device)
    with torch.inference_mode():
        for timestep in scheduler.timesteps:
            if should_stop():
                return None
            scaled = scheduler.scale_model_input(latents, timestep)
            without, with_text = family.predict(unet, torch.cat([scaled, scaled]), timestep, context).float().chunk(2)
            latents = scheduler.step(without + sampling.guidance_scale * (with_text - without), timestep, latents).prev_sample
    return latents


def save_png(pixels: Tensor, path: Path) -> None:
    """Write pixels (3, h, w) in [0, 1] as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = (pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
    Image.fromarray(array).save(path)
