"""One batch's loss: which pictures, what noise, what the model is asked and what it should have said."""
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from .data.encode import Encoded
from .data.order import batch_indices, generator
from .families.protocol import Conditioning, Family
from .noise import draw
from .objective import add_noise, denoising_loss, prediction_kind, rescale_zero_terminal_snr, velocity
from .options import Objective, PredictionKind


@dataclass
class Denoising:
    """The denoising objective of `family` on `data`: pure functions of the number of the batch.

    `dropout`: the network drops out, and which parts is drawn from the number of the batch as well.
    """

    family: Family
    unet: nn.Module
    data: Encoded
    objective: Objective
    batch_size: int
    seed: int
    device: torch.device
    dropout: bool = False
    _alphas: Tensor = field(init=False)

    def __post_init__(self) -> None:
        alphas = self.family.alphas_cumprod
        self._alphas = (rescale_zero_terminal_snr(alphas) if self.objective.zero_terminal_snr else alphas).to(self.device)

    @cached_property
    def prediction(self) -> PredictionKind:
        """What the model gives: epsilon or v."""
        return prediction_kind(self.objective, self.family.prediction)

    def positions(self, number: int) -> list[int]:
        """The visits of batch `number` (from 0)."""
        return batch_indices(self.seed, number, self.batch_size, len(self.data.visits))

    def names(self, number: int) -> list[str]:
        """The file names of batch `number`."""
        return self.data.names(self.positions(number))

    def loss(self, number: int) -> Tensor:
        """The loss () of batch `number`, in fp32, to go backward from."""
        latents, conditioning = self.data.batch(self.positions(number))
        if self.dropout:
            torch.manual_seed(generator(self.seed, "dropout", number).initial_seed())
        drawn = draw(self.objective, tuple(latents.shape), self.family.timesteps, generator(self.seed, "noise", number))
        return self._loss(latents, drawn.noise, drawn.input_noise, drawn.timesteps, conditioning, self.objective)

    def validation_loss(self, held_out: Encoded, draws: int = 8) -> float:
        """Mean loss over every picture of `held_out` at `draws` fixed timesteps each, spread evenly, with fixed noise, without weighting.

        The same pictures, noise and timesteps at every call, so two values differ only by the model.
        """
        plain = Objective(prediction=self.objective.prediction)
        spread = torch.linspace(0, self.family.timesteps - 1, draws + 2)[1:-1].long()
        losses = []
        with torch.no_grad():
            for row in range(len(held_out.latents)):
                index = torch.full((draws,), row)
                latents = held_out.latents[index]
                noise = torch.randn(latents.shape, generator=generator(self.seed, "validation", row))
                losses.append(self._loss(latents, noise, noise, spread, held_out.conditioning.rows(index), plain))
        return float(torch.stack(losses).mean())

    def _loss(
        self, latents: Tensor, noise: Tensor, input_noise: Tensor, timesteps: Tensor, conditioning: Conditioning, objective: Objective
    ) -> Tensor:
        same_noise = input_noise is noise
        latents, noise, timesteps = (_to(tensor, self.device) for tensor in (latents, noise, timesteps))
        input_noise = noise if same_noise else _to(input_noise, self.device)
        conditioning = conditioning.map(lambda tensor: _to(tensor, self.device))
        noisy = add_noise(latents, input_noise, self._alphas, timesteps)
        prediction = self.family.predict(self.unet, noisy, timesteps, conditioning)
        target = velocity(latents, noise, self._alphas, timesteps) if self.prediction == "v" else noise
        return denoising_loss(prediction, target, objective, self._alphas, timesteps, self.prediction)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    # Pinned memory lets the copy run beside the kernels; the CPU needs neither.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
