"""The training loop: knows steps, precision and time; what trains, on what, and what is saved are given to it."""
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .data.encode import Encoded
from .data.order import batch_indices, generator
from .events import Event, Progress
from .objective import denoising_loss, draw_noise

_REPORT_SECONDS = 0.25
_HOPELESS_SKIPS = 50


class TrainingError(RuntimeError):
    """Training cannot go on. The message names the likely causes."""


class Predicts(Protocol):
    """The part of a family that a step needs."""

    timesteps: int

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...

    def predict(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor: ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...


@dataclass
class Position:
    """Where a run is. `step`: optimiser steps taken; `draws`: batches drawn, which is more when fp16 skipped steps."""

    step: int = 0
    draws: int = 0


@dataclass
class Loop:
    """One run's loop. `run` goes on from `position` until `total` steps are taken or `should_stop` says so.

    Losses stay on the device and are read back four times a second, so that a step never waits for one.
    """

    family: Predicts
    unet: nn.Module
    parameters: list[nn.Parameter]
    data: Encoded
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    emit: Callable[[Event], None]
    should_stop: Callable[[], bool]
    after_step: Callable[[int], None]
    batch_size: int
    total: int
    seed: int
    max_grad_norm: float
    position: Position = field(default_factory=Position)
    losses: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Train. Raises TrainingError when the loss is no number, or fp16 overflows without end."""
        self._waiting: list[Tensor] = []
        self._elapsed = 0.0
        self._steps_timed = 0
        self._skipped_in_a_row = 0
        self._scale = self._current_scale()
        device = self.accelerator.device
        last_report = started = time.perf_counter()
        while self.position.step < self.total and not self.should_stop():
            loss = self._step(device)
            self.position.draws += 1
            if self._was_skipped():
                self._count_skip()
                continue
            self._skipped_in_a_row = 0
            self.position.step += 1
            self._steps_timed += 1
            self._waiting.append(loss)
            now = time.perf_counter()
            if now - last_report >= _REPORT_SECONDS or self.position.step in (1, self.total):
                self._report(now - started)
                last_report = now
            # What happens between steps (pictures, saves) is not training time.
            paused = time.perf_counter()
            self.after_step(self.position.step)
            started += time.perf_counter() - paused
        if self._waiting:
            self._report(time.perf_counter() - started)

    def _step(self, device: torch.device) -> Tensor:
        positions = batch_indices(self.seed, self.position.draws, self.batch_size, len(self.data.visits))
        latents, text = self.data.batch(positions)
        noise, timesteps = draw_noise(tuple(latents.shape), self.family.timesteps, generator(self.seed, "noise", self.position.draws))
        latents, text, noise, timesteps = (_to(tensor, device) for tensor in (latents, text, noise, timesteps))
        noisy = self.family.add_noise(latents, noise, timesteps)
        prediction = self.family.predict(self.unet, noisy, timesteps, text)
        loss = denoising_loss(prediction, self.family.target(latents, noise, timesteps))
        self.accelerator.backward(loss)
        if self.max_grad_norm:
            self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _was_skipped(self) -> bool:
        # A scale that has shrunk is the scaler's word for an overflow. accelerate's own sign is whether step() was called, and the fused
        # optimiser is called all the same: it leaves the step out inside its kernel.
        before, self._scale = self._scale, self._current_scale()
        return self._scale < before

    def _current_scale(self) -> float:
        scaler = self.accelerator.scaler
        return float(scaler.get_scale()) if scaler is not None else 1.0

    def _count_skip(self) -> None:
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= _HOPELESS_SKIPS:
            raise TrainingError(
                f"fp16 overflowed {_HOPELESS_SKIPS} times in a row after step {self.position.step}: lower learning_rate, or set precision "
                "to bf16 or fp32."
            )

    def _report(self, elapsed: float) -> None:
        losses = torch.stack(self._waiting).tolist()
        self._waiting.clear()
        finite = all(map(_is_finite, losses))
        if not finite:
            raise TrainingError(
                f"the loss is no longer a number near step {self.position.step}. Likely causes: learning_rate too high, or fp16 with a base "
                "that overflows (set precision to bf16 or fp32). Nothing of this run was saved as an adapter."
            )
        self.losses += losses
        self.emit(
            Progress(
                step=self.position.step,
                total=self.total,
                losses=tuple(losses),
                learning_rate=self.optimizer.param_groups[0]["lr"],
                elapsed_seconds=elapsed,
                steps_per_second=self._steps_timed / elapsed if elapsed > 0 else 0.0,
                skipped_steps=self.position.draws - self.position.step,
            )
        )


def _is_finite(value: float) -> bool:
    return value - value == 0.0


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    # Pinned memory lets the copy run beside the kernels; the CPU needs neither.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def validation_loss(family: Predicts, unet: nn.Module, data: Encoded, device: torch.device, seed: int, draws: int = 8) -> float:
    """Mean loss over every picture of `data` at `draws` fixed timesteps each, spread evenly, with fixed noise.

    The same pictures, noise and timesteps at every call, so two values differ only by the model.
    """
    spread = torch.linspace(0, family.timesteps - 1, draws + 2)[1:-1].long()
    losses = []
    with torch.no_grad():
        for row in range(len(data.latents)):
            latents = data.latents[row : row + 1].expand(draws, -1, -1, -1)
            noise, _ = draw_noise(tuple(latents.shape), family.timesteps, generator(seed, "validation", row))
            noisy = family.add_noise(latents, noise, spread).to(device)
            text = data.text[row : row + 1].expand(draws, -1, -1).to(device)
            prediction = family.predict(unet, noisy, spread.to(device), text).cpu()
            losses.append(denoising_loss(prediction, family.target(latents, noise, spread)))
    return float(torch.stack(losses).mean())
