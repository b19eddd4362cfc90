"""What the optimiser makes small."""
import torch
from torch import Tensor
from torch.nn import functional


def denoising_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, in fp32 whatever came in: the simple objective of DDPM (https://arxiv.org/abs/2006.11239, eq. 14)."""
    return functional.mse_loss(prediction.float(), target.float())


def draw_noise(shape: tuple[int, ...], timesteps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise of `shape` (n, c, h, w) and n timesteps in [0, timesteps), on the CPU: the same numbers for every device."""
    noise = torch.randn(shape, generator=generator)
    return noise, torch.randint(0, timesteps, (shape[0],), generator=generator)
