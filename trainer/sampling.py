"""Pictures drawn from the model as it is now."""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from .data.order import generator
from .families.protocol import Conditioning, Family
from .options import PredictionKind, Sampling


@dataclass(frozen=True)
class Sampler:
    """Draws with `unet`, which gives `prediction`; on the base's schedule, or one that ends in pure noise."""

    family: Family
    unet: nn.Module
    device: torch.device
    prediction: PredictionKind
    zero_terminal_snr: bool

    def draw(self, text: Conditioning, sampling: Sampling, index: int, should_stop: Callable[[], bool]) -> Tensor | None:
        """Scaled latents (1, channels, h/8, w/8) for one prompt, with classifier-free guidance (https://arxiv.org/abs/2207.12598).

        `text`: two rows, the negative prompt and the prompt. Prompt `index` has its own noise, the same at every step of the training, so that
        pictures of different steps can be compared. None if `should_stop` said so on the way: a picture must not delay a stop.
        """
        family, device = self.family, self.device
        scheduler = family.sampler(sampling.steps, device, self.prediction, self.zero_terminal_snr)
        shape = (1, family.latent_channels, sampling.height // family.latent_factor, sampling.width // family.latent_factor)
        latents = torch.randn(shape, generator=generator(sampling.seed, "sample", index)).to(device) * scheduler.init_noise_sigma
        size = (sampling.height, sampling.width)
        sizes = torch.tensor([[*size, 0, 0, *size]] * 2) if family.uses_sizes else None
        conditioning = Conditioning(text.hidden, text.pooled, sizes).map(lambda tensor: tensor.to(device))
        with torch.inference_mode():
            for timestep in scheduler.timesteps:
                if should_stop():
                    return None
                scaled = scheduler.scale_model_input(latents, timestep)
                without, with_text = family.predict(self.unet, torch.cat([scaled, scaled]), timestep.expand(2), conditioning).float().chunk(2)
                latents = scheduler.step(without + sampling.guidance_scale * (with_text - without), timestep, latents).prev_sample
        return latents


def save_png(pixels: Tensor, path: Path) -> None:
    """Write pixels (3, h, w) in [0, 1] as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = (pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
    Image.fromarray(array).save(path)
