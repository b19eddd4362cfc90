"""What the optimiser makes small: noised latents, targets and losses. Pure functions of tensors, and none waits for the device.

`alphas_cumprod` (T,) is the schedule, on the device of the other tensors; `timesteps` (n,) are integers in [0, T). An example is latents
(channels, h, w), a batch has n of them.
"""
import math

import torch
from torch import Tensor
from torch.nn import functional

from .options import Objective, PredictionKind
from .typed import SpecError

_DEBIASED_SNR = (1e-3, 1e3)


def prediction_kind(objective: Objective, base: PredictionKind) -> PredictionKind:
    """What the model is taken to predict: the setting, or where it is auto what the `base` is known to give."""
    return base if objective.prediction == "auto" else objective.prediction


def check(objective: Objective, prediction: PredictionKind, alphas_cumprod: Tensor) -> None:
    """Raise SpecError where the settings contradict one another, the `prediction`, or the schedule (T,) of the base."""
    timesteps = len(alphas_cumprod)
    if prediction == "epsilon" and (objective.zero_terminal_snr or not alphas_cumprod[-1]):
        whose = "objective.zero_terminal_snr" if objective.zero_terminal_snr else "the base's own schedule, which ends in pure noise,"
        raise SpecError(
            f"{whose} needs a model that predicts v, and this one is to predict epsilon: at the last timestep its input would be the very "
            "noise it has to predict, and it would learn nothing there. Turn zero_terminal_snr off, or set prediction to v if the base is a v "
            "model."
        )
    if objective.loss != "l2" and objective.huber_schedule != "constant" and objective.huber_c > 1:
        raise SpecError(
            f"objective.huber_c is {objective.huber_c:g}, and the schedule {objective.huber_schedule} falls from 1 to huber_c: set huber_c to 1 "
            "or less, or huber_schedule to constant."
        )
    if objective.timestep_min >= timesteps:
        raise SpecError(f"objective.timestep_min is {objective.timestep_min}, and the base has only {timesteps} timesteps: set it below {timesteps}.")


def snr(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Signal-to-noise ratio (n,), abar / (1 - abar): https://arxiv.org/abs/2303.09556. 0 or infinite at the ends of a schedule."""
    chosen = alphas_cumprod[timesteps]
    return chosen / (1 - chosen)


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """A schedule (T,) whose last value is 0, its first one unchanged: https://arxiv.org/abs/2305.08891, algorithm 1."""
    roots = alphas_cumprod.double().sqrt()
    first, last = roots[0], roots[-1]
    return ((roots - last) * (first / (first - last))).square().to(alphas_cumprod.dtype)


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Noised latents (n, channels, h, w), sqrt(abar) x + sqrt(1 - abar) noise: https://arxiv.org/abs/2006.11239, eq. 4."""
    signal, spread = _roots(alphas_cumprod, timesteps, latents)
    return signal * latents + spread * noise


def velocity(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """What a v model predicts (n, channels, h, w), sqrt(abar) noise - sqrt(1 - abar) x: https://arxiv.org/abs/2202.00512, appendix D."""
    signal, spread = _roots(alphas_cumprod, timesteps, latents)
    return signal * noise - spread * latents


def loss_weights(objective: Objective, prediction: PredictionKind, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor | None:
    """Each example's weight (n,), finite and never negative on every schedule; None: all weigh 1.

    min_snr: min(SNR, gamma) / SNR for epsilon and min(SNR, gamma) / (SNR + 1) for v, which are the same weight of the error of the clean
    latents (https://arxiv.org/abs/2303.09556). At a terminal SNR of 0 that is 0 for v.

    debiased: 1 / sqrt(SNR) for epsilon (https://arxiv.org/abs/2310.08442). The paper has nothing for v; there it is 1 / (SNR + 1), as in
    https://github.com/kohya-ss/sd-scripts, which makes the error of the clean latents weigh the same at every timestep. The SNR is kept
    within [0.001, 1000]: sd-scripts has the upper bound, and the lower one is below every schedule that does not end in 0.
    """
    if objective.weighting == "none":
        return None
    ratio = snr(alphas_cumprod, timesteps)
    if objective.weighting == "min_snr":
        if prediction == "v":
            return ratio.clamp(max=objective.min_snr_gamma) / (ratio + 1)
        return (objective.min_snr_gamma / ratio).clamp(max=1)
    ratio = ratio.clamp(*_DEBIASED_SNR)
    return 1 / (ratio + 1) if prediction == "v" else ratio.rsqrt()


def huber_thresholds(objective: Objective, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor | float:
    """The c of huber and smooth_l1, (n,) or one for all: above it an error counts by its size, below it by its square.

    exponential: huber_c ** (t / T). snr: (1 - huber_c) / (1 + sigma)**2 + huber_c with sigma = sqrt((1 - abar) / abar). Both fall from about 1
    where there is little noise to huber_c where there is most: https://arxiv.org/abs/2403.16728.
    """
    floor = objective.huber_c
    if objective.huber_schedule == "constant":
        return floor
    if objective.huber_schedule == "exponential":
        return torch.exp(timesteps * (math.log(floor) / len(alphas_cumprod)))
    chosen = alphas_cumprod[timesteps]
    sigma = ((1 - chosen) / chosen).sqrt()
    return (1 - floor) / (1 + sigma).square() + floor


def elementwise_loss(prediction: Tensor, target: Tensor, objective: Objective, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Loss of every element, in fp32 whatever came in, of the shape of `prediction` (n, ...).

    With d = prediction - target. l2: d**2. huber: 2 c (sqrt(d**2 + c**2) - c), which is d**2 for small d and 2 c |d| for large ones;
    smooth_l1: the same over c (https://arxiv.org/abs/2403.16728, with sd-scripts' factors, so that its huber_c means the same here).
    """
    if objective.loss == "l2":
        return functional.mse_loss(prediction.float(), target.float(), reduction="none")
    threshold = huber_thresholds(objective, alphas_cumprod, timesteps)
    if isinstance(threshold, Tensor):
        threshold = _per_example(threshold.float(), prediction)
    squared = functional.mse_loss(prediction.float(), target.float(), reduction="none")
    # sqrt(d**2 + c**2) - c, as a quotient: the difference has no correct digit left in fp32 when d is small beside c.
    excess = squared / ((squared + threshold**2).sqrt() + threshold)
    return 2 * threshold * excess if objective.loss == "huber" else 2 * excess


def denoising_loss(
    prediction: Tensor,
    target: Tensor,
    objective: Objective,
    alphas_cumprod: Tensor,
    timesteps: Tensor,
    kind: PredictionKind,
    mask: Tensor | None = None,
) -> Tensor:
    """The loss of a batch, a scalar in fp32: the mean over each example, times its weight, and the mean of those.

    `kind` is what `prediction` and `target` (n, channels, h, w) are. `mask` broadcasts to them, e.g. (n, 1, h, w) in [0, 1], and multiplies the
    loss of every element; what is masked out still counts in the mean, so an example with little in its mask weighs little. With the default
    settings this is the simple objective of DDPM (https://arxiv.org/abs/2006.11239, eq. 14).
    """
    if objective.loss == "l2" and objective.weighting == "none" and mask is None:
        return functional.mse_loss(prediction.float(), target.float())
    losses = elementwise_loss(prediction, target, objective, alphas_cumprod, timesteps)
    if mask is not None:
        losses = losses * mask.float()
    weights = loss_weights(objective, kind, alphas_cumprod, timesteps)
    per_example = losses.flatten(1).mean(1)
    return (per_example if weights is None else per_example * weights.float()).mean()


def _roots(alphas_cumprod: Tensor, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    # The roots are taken before the cast: 1 - abar is 0 in half precision at the first timesteps.
    chosen = alphas_cumprod[timesteps]
    return _per_example(chosen.sqrt().to(like.dtype), like), _per_example((1 - chosen).sqrt().to(like.dtype), like)


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
