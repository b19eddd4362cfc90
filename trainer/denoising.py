"""One batch's loss: which pictures, what noise, what the model is asked and what it should have said."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from .data.examples import Example
from .data.order import generator
from .data.texts import Texts
from .data.visits import Batch, Visits
from .families.protocol import Conditioning, Family
from .noise import Draw, draw
from .objective import add_noise, denoising_loss, prediction_kind, rescale_zero_terminal_snr, velocity
from .options import Objective, PredictionKind


@dataclass(frozen=True)
class _Part:
    """A batch with its noise, on the device. `batch` as in Visits, `noisy` and `target` (n, channels, h, w), `timesteps` (n,)."""

    batch: Batch
    noisy: Tensor
    target: Tensor
    timesteps: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """What two parts must share to go through the model together."""
        return (*self.noisy.shape[1:], self.batch.conditioning.hidden.shape[1])


@dataclass
class Denoising:
    """The denoising objective of `family` on `data`: pure functions of the number of the batch.

    `prior`: pictures of the class, whose loss counts `prior_weight` times (https://arxiv.org/abs/2208.12242). `dropout`: the network drops out, and
    which parts is drawn from the number of the batch as well. `share`: which of how many processes this is; each sees its part of a batch and
    of its noise, so that together they compute what one with their whole batch would.
    """

    family: Family
    unet: nn.Module
    data: Visits
    objective: Objective
    seed: int
    device: torch.device
    prior: Visits | None = None
    prior_weight: float = 1.0
    dropout: bool = False
    share: tuple[int, int] = (0, 1)
    _alphas: Tensor = field(init=False)

    def __post_init__(self) -> None:
        alphas = self.family.alphas_cumprod
        self._alphas = (rescale_zero_terminal_snr(alphas) if self.objective.zero_terminal_snr else alphas).to(self.device)

    @cached_property
    def prediction(self) -> PredictionKind:
        """What the model gives: epsilon or v."""
        return prediction_kind(self.objective, self.family.prediction)

    def names(self, number: int) -> list[str]:
        """The file names of batch `number`."""
        return self.data.names(number) + (self.prior.names(number) if self.prior else [])

    def loss(self, number: int) -> Tensor:
        """The loss () of batch `number`, in fp32, to go backward from."""
        parts = [self._drawn(self.data[number], self.objective, generator(self.seed, "noise", number))]
        if self.prior:
            parts.append(self._drawn(self.prior[number], self.objective, generator(self.seed, "prior noise", number)))
        if self.dropout:
            torch.manual_seed(generator(self.seed, "dropout", number, self.share[0]).initial_seed())
        losses = [
            denoising_loss(predicted, part.target, self.objective, self._alphas, part.timesteps, self.prediction, part.batch.mask)
            for part, predicted in zip(parts, self._predicted(self.unet, parts), strict=True)
        ]
        return losses[0] if len(losses) == 1 else losses[0] + self.prior_weight * losses[1]

    def validation_losses(
        self, unet: nn.Module, held_out: Sequence[Example], texts: Texts, should_stop: Callable[[], bool], draws: int = 8
    ) -> Tensor | None:
        """The loss (n,) of `unet` on each picture of `held_out` at `draws` fixed timesteps, spread evenly, with fixed noise, without weighting.

        The same pictures, noise and timesteps at every call, so two values differ only by the model. None if `should_stop` has cut it short.
        """
        plain = Objective(prediction=self.objective.prediction)
        spread = torch.linspace(0, self.family.timesteps - 1, draws + 2)[1:-1].long()
        losses = []
        with torch.no_grad():
            for row, example in enumerate(held_out):
                if should_stop():
                    return None
                text = texts([example.dataset.training_caption(example.image)])
                sizes = example.sizes[:1] if self.family.uses_sizes else None
                conditioning = Conditioning(text.hidden, text.pooled, sizes).rows(torch.zeros(draws, dtype=torch.long))
                latents = example.latents[:1].expand(draws, -1, -1, -1)
                noise = torch.randn(latents.shape, generator=generator(self.seed, "validation", row))
                mask = None if example.mask is None else example.mask[:1].expand(draws, -1, -1, -1)
                part = self._noised(Batch(latents, conditioning, mask), Draw(noise, noise, spread))
                predicted = self._predicted(unet, [part])[0]
                losses.append(denoising_loss(predicted, part.target, plain, self._alphas, part.timesteps, self.prediction, part.batch.mask))
        return torch.stack(losses)

    def _drawn(self, batch: Batch, objective: Objective, chance: torch.Generator) -> _Part:
        process, processes = self.share
        n, *shape = batch.latents.shape
        whole = draw(objective, (n * processes, *shape), self.family.timesteps, chance)
        mine = slice(process * n, (process + 1) * n)
        noise = whole.noise[mine]
        input_noise = noise if whole.input_noise is whole.noise else whole.input_noise[mine]
        return self._noised(batch, Draw(noise, input_noise, whole.timesteps[mine]))

    def _noised(self, batch: Batch, drawn: Draw) -> _Part:
        latents, noise, timesteps = (_to(tensor, self.device) for tensor in (batch.latents, drawn.noise, drawn.timesteps))
        input_noise = noise if drawn.input_noise is drawn.noise else _to(drawn.input_noise, self.device)
        moved = Batch(
            latents,
            batch.conditioning.map(lambda tensor: _to(tensor, self.device)),
            None if batch.mask is None else _to(batch.mask, self.device),
        )
        noisy = add_noise(latents, input_noise, self._alphas, timesteps)
        target = velocity(latents, noise, self._alphas, timesteps) if self.prediction == "v" else noise
        return _Part(moved, noisy, target, timesteps)

    def _predicted(self, unet: nn.Module, parts: list[_Part]) -> list[Tensor]:
        """The model's answer to each; at once where they have one shape, since a GPU takes longer for two small batches."""
        if len({part.shape for part in parts}) > 1:
            return [self._predicted(unet, [part])[0] for part in parts]
        conditionings = [part.batch.conditioning for part in parts]
        together = conditionings[0] if len(parts) == 1 else _joined(conditionings)
        noisy, timesteps = (torch.cat([getattr(part, name) for part in parts]) for name in ("noisy", "timesteps"))
        predicted = self.family.predict(unet, noisy, timesteps, together)
        return list(predicted.split([len(part.noisy) for part in parts]))


def loss_by_dataset(losses: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Mean of the `losses` (n,) of each dataset, by name. `names`: of each picture's dataset; nothing if it is one and the same."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return {name: float(losses[found].mean()) for name, found in rows.items()} if len(rows) > 1 else {}


def _joined(conditionings: list[Conditioning]) -> Conditioning:
    hidden, pooled, sizes = ([getattr(one, name) for one in conditionings] for name in ("hidden", "pooled", "sizes"))
    return Conditioning(
        torch.cat(hidden),
        None if pooled[0] is None else torch.cat(pooled),
        None if sizes[0] is None else torch.cat(sizes),
    )


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    # Pinned memory lets the copy run beside the kernels; the CPU needs neither.
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
