"""The random numbers of a step: noise and timesteps, drawn on the CPU so that they are the same for every device."""
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .options import Objective


@dataclass(frozen=True)
class Draw:
    """What a step draws, on the CPU. `noise` (n, channels, h, w) makes the target and `input_noise` the noised latents; without input
    perturbation they are one tensor. `timesteps` (n,) in int64."""

    noise: Tensor
    input_noise: Tensor
    timesteps: Tensor


def draw(objective: Objective, shape: tuple[int, ...], timesteps: int, generator: torch.Generator) -> Draw:
    """Everything random of a step for latents of `shape` (n, channels, h, w), of a base with `timesteps` timesteps.

    Drawn in the order noise, timesteps, perturbation.
    """
    noise = draw_noise(objective, shape, generator)
    chosen = draw_timesteps(objective, shape[0], timesteps, generator)
    return Draw(noise, perturb(objective, noise, generator), chosen)


def draw_noise(objective: Objective, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise of `shape` (n, channels, h, w) for the target.

    Normal; plus `noise_offset` times one normal number for each example and channel
    (https://www.crosslabs.org/blog/diffusion-with-offset-noise); plus coarser noises, as `_add_coarser` says.
    """
    noise = torch.randn(shape, generator=generator)
    if objective.noise_offset:
        noise += objective.noise_offset * torch.randn((*shape[:2], 1, 1), generator=generator)
    return _add_coarser(objective, noise, generator) if objective.multires_noise else noise


def draw_timesteps(objective: Objective, n: int, timesteps: int, generator: torch.Generator) -> Tensor:
    """n timesteps (int64) in [timestep_min, timestep_max), and below `timesteps`.

    logit_normal: the sigmoid of a normal number, stretched over that range (https://arxiv.org/abs/2403.03206, section 3.1); a higher
    `timestep_mean` means more noise.
    """
    low, high = objective.timestep_min, min(objective.timestep_max, timesteps)
    if objective.timestep_distribution == "uniform":
        return torch.randint(low, high, (n,), generator=generator)
    normal = torch.randn(n, generator=generator) * objective.timestep_deviation + objective.timestep_mean
    # The sigmoid of a large number is 1 itself in fp32.
    return (low + (normal.sigmoid() * (high - low)).long()).clamp(max=high - 1)


def perturb(objective: Objective, noise: Tensor, generator: torch.Generator) -> Tensor:
    """The noise for the input, `noise` plus `input_perturbation` times fresh normal noise: https://arxiv.org/abs/2301.11706.

    `noise` itself when the setting is 0.
    """
    if not objective.input_perturbation:
        return noise
    return noise + objective.input_perturbation * torch.randn(noise.shape, generator=generator)


def _add_coarser(objective: Objective, noise: Tensor, generator: torch.Generator) -> Tensor:
    """`noise` with coarser noises added, each example then brought back to a standard deviation of 1.

    Noise number i = 1, 2, ... has sides 2 to 4 times (drawn) smaller than the one before it, is scaled up bilinearly and weighted by
    multires_discount ** i. The first with a side of 1 is the last.
    https://wandb.ai/johnowhitaker/multires_noise/reports/Multi-Resolution-Noise-for-Diffusion-Model-Training--VmlldzozNjYyOTU2
    """
    n, channels, full_height, full_width = noise.shape
    height, width = full_height, full_width
    for number in range(1, objective.multires_noise + 1):
        if min(height, width) == 1:
            break
        shrink = 2 + 2 * torch.rand((), generator=generator).item()
        height, width = max(1, int(height / shrink)), max(1, int(width / shrink))
        coarse = torch.randn((n, channels, height, width), generator=generator)
        noise = noise + objective.multires_discount**number * functional.interpolate(coarse, (full_height, full_width), mode="bilinear")
    return noise / noise.std(dim=(1, 2, 3), keepdim=True)
