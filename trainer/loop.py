"""The training loop: knows steps, precision and time; what trains, on what, and what is saved are given to it."""
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from .ema import Ema
from .events import Event, Progress, Warned
from .optim import supports_found_inf

_REPORT_SECONDS = 0.25
_HOPELESS_OVERFLOWS = 50
_HOPELESS_LOSSES = 10
# On a GPU the outcome of a step is read two steps later, when it has long been known: reading it at once would make every step wait.
_LAG_ON_CUDA = 2


class TrainingError(RuntimeError):
    """Training cannot go on. The message names the likely causes."""


@dataclass
class Position:
    """Where a run is. `step`: optimiser steps taken; `draws`: batches drawn, which is more where steps were left out."""

    step: int = 0
    draws: int = 0


class _Outcome:
    """A step's numbers on their way from the device: its loss, and whether loss and gradient were finite."""

    def __init__(self, loss: Tensor, norm: Tensor, first_draw: int) -> None:
        self.first_draw = first_draw
        values = torch.stack((loss, norm.to(loss)))
        self.event: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self.values = torch.empty(2, dtype=values.dtype, pin_memory=True)
            self.values.copy_(values, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.values = values

    def read(self) -> tuple[float, bool]:
        """The loss, and whether the gradient was finite; waits until they are here."""
        if self.event is not None:
            self.event.synchronize()
        loss, norm = self.values.tolist()
        return loss, _is_finite(loss) and _is_finite(norm)


@dataclass
class Loop:
    """One run's loop. `run` goes on from `position` until `total` steps are taken or `should_stop` says so.

    `loss_of(n)` is the loss of batch n, `names_of(n)` its file names. A step whose loss or gradient is not finite is not taken. `due(step)` says
    whether `after_step(step)` has anything to do: only then does a GPU have to be waited for. `rates`: the learning rates of the optimiser's
    groups, which `factor(step)` multiplies at the step after `step` steps. `models`: those that train.
    Several processes of one training take the same steps: what the first one is asked to do (`should_stop`, `due`) all of them do.
    """

    models: Sequence[nn.Module]
    loss_of: Callable[[int], Tensor]
    names_of: Callable[[int], list[str]]
    parameters: list[nn.Parameter]
    rates: Sequence[float]
    optimizer: AcceleratedOptimizer
    accelerator: Accelerator
    factor: Callable[[int], float]
    emit: Callable[[Event], None]
    should_stop: Callable[[], bool]
    due: Callable[[int], bool]
    after_step: Callable[[int], None]
    total: int
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 0.0
    ema: Ema | None = None
    position: Position = field(default_factory=Position)

    def run(self) -> None:
        """Train. Raises TrainingError when the loss is no number many times in a row, or fp16 overflows without end."""
        self._pending: deque[_Outcome] = deque()
        self._losses: list[float] = []
        self._steps_timed = 0
        self._left_out_in_a_row = 0
        self._between_steps = True
        inner = self.optimizer.optimizer
        # Under fp16 the scaler keeps a bad step from being taken; elsewhere the optimiser itself, if it can, without being waited for.
        self._guarded = self.accelerator.scaler is None and supports_found_inf(inner)
        self._inner = inner
        on_cuda, alone = self.accelerator.device.type == "cuda", self.accelerator.num_processes == 1
        self._lag = _LAG_ON_CUDA if on_cuda and alone and (self.accelerator.scaler or self._guarded) else 0
        last_report = self._started = time.perf_counter()
        while not self._is_to_stop():
            if self.position.step + len(self._pending) >= self.total:
                self._settle(0)
                if self.position.step >= self.total:
                    break
                continue
            self._step()
            ahead = self.position.step + len(self._pending)
            pause = self._is_due(ahead) or ahead in (1, self.total)
            before = self.position.step
            self._settle(0 if pause else self._lag)
            now = time.perf_counter()
            if self._losses and (now - last_report >= _REPORT_SECONDS or (pause and self.position.step in (1, self.total))):
                self._report(now - self._started)
                last_report = now
            if pause and self.position.step > before and self._is_due(self.position.step):
                # What happens between steps (pictures, saves) is not training time. Losses are told before a state is saved: a run that goes
                # on from it does not take their steps again.
                paused = time.perf_counter()
                if self._losses:
                    self._report(paused - self._started)
                self.after_step(self.position.step)
                self._started += time.perf_counter() - paused
        self._settle(0)
        if self._losses:
            self._report(time.perf_counter() - self._started)

    def broke_between_steps(self) -> bool:
        """After `run` has raised: whether weights and optimizer are those of whole steps, which are told then, so that they can be saved."""
        if self._between_steps:
            self._settle(0)
            if self._losses:
                self._report(time.perf_counter() - self._started)
        return self._between_steps

    def _is_to_stop(self) -> bool:
        return self._agreed(self.should_stop())

    def _is_due(self, step: int) -> bool:
        return self._agreed(self.due(step))

    def _agreed(self, answer: bool) -> bool:
        """What the first process says: only it hears commands, and a clock gives each another answer."""
        if self.accelerator.num_processes == 1:
            return answer
        said = torch.tensor([answer], device=self.accelerator.device)
        torch.distributed.broadcast(said, 0)
        return bool(said)

    def _step(self) -> None:
        first = self.position.draws
        factor = self.factor(self.position.step + len(self._pending))
        for group, rate in zip(self._inner.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        losses = []
        for number in range(first, first + self.gradient_accumulation_steps):
            with contextlib.ExitStack() as stack:
                if number < first + self.gradient_accumulation_steps - 1:
                    for model in self.models:
                        stack.enter_context(self.accelerator.no_sync(model))
                loss = self.loss_of(number)
                self.accelerator.backward(loss / self.gradient_accumulation_steps)
            losses.append(loss.detach())
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm or float("inf"))
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        if self.accelerator.num_processes > 1:
            loss = self.accelerator.reduce(loss, "mean")
        outcome = _Outcome(loss, norm, first)
        if self._guarded:
            self._inner.found_inf = (~torch.isfinite(loss + norm)).float()
        if self._guarded or self.accelerator.scaler is not None or outcome.read()[1]:
            self._between_steps = False
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update(self.position.step + len(self._pending))
        self.position.draws += self.gradient_accumulation_steps
        self._pending.append(outcome)
        self._between_steps = True
        self.optimizer.zero_grad(set_to_none=True)

    def _settle(self, most: int) -> None:
        """Read outcomes until at most `most` are still on their way."""
        while len(self._pending) > most:
            outcome = self._pending.popleft()
            loss, finite = outcome.read()
            if finite:
                self._left_out_in_a_row = 0
                self.position.step += 1
                self._steps_timed += 1
                self._losses.append(loss)
            else:
                self._left_out(outcome, loss)

    def _left_out(self, outcome: _Outcome, loss: float) -> None:
        self._left_out_in_a_row += 1
        overflow = self.accelerator.scaler is not None and _is_finite(loss)
        if overflow and self._left_out_in_a_row < _HOPELESS_OVERFLOWS:
            return  # the scaler is finding its scale
        numbers = range(outcome.first_draw, outcome.first_draw + self.gradient_accumulation_steps)
        names = ", ".join(dict.fromkeys(name for number in numbers for name in self.names_of(number)))
        if overflow:
            raise TrainingError(
                f"fp16 overflowed {_HOPELESS_OVERFLOWS} times in a row after step {self.position.step}: lower learning_rate, or set precision "
                "to bf16 or fp32."
            )
        what = "the loss" if not _is_finite(loss) else "the gradient"
        self.emit(Warned(message=f"{what} was not a number after step {self.position.step}; the step was not taken. Its pictures: {names}."))
        if self._left_out_in_a_row >= _HOPELESS_LOSSES:
            raise TrainingError(
                f"{what} was not a number {_HOPELESS_LOSSES} times in a row after step {self.position.step}, last for {names}. Likely causes: "
                "learning_rate too high, fp16 with a base that overflows (set precision to bf16 or fp32), or a damaged checkpoint or VAE. "
                "No step of these was taken, and the state before them is saved."
            )

    def _report(self, elapsed: float) -> None:
        losses = tuple(self._losses)
        self._losses.clear()
        self.emit(
            Progress(
                step=self.position.step,
                total=self.total,
                losses=losses,
                learning_rate=self.rates[0] * self.factor(self.position.step - 1),
                elapsed_seconds=elapsed,
                steps_per_second=self._steps_timed / elapsed if elapsed > 0 else 0.0,
                skipped_steps=self.position.draws // self.gradient_accumulation_steps - self.position.step,
            )
        )


def _is_finite(value: float) -> bool:
    return value - value == 0.0
