"""The loop: what a step is, and what is none. On the CPU, with the real optimisers and fp16's real scaler."""
from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trainer.ema import Ema
from trainer.events import Event, Progress, Warned
from trainer.loop import Loop, Position, TrainingError


class Line:
    """A model of one weight whose right value is 100; `broken` batches have a loss that is no number."""

    def __init__(self, broken: Callable[[int], bool] = lambda number: False) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.broken = broken
        self.asked: list[int] = []

    def loss(self, number: int) -> Tensor:
        self.asked.append(number)
        x = torch.tensor([[1.0 + number % 3]])
        loss = (self.model(x) - 100 * x).pow(2).mean()
        return loss * float("nan") if self.broken(number) else loss

    def names(self, number: int) -> list[str]:
        return [f"picture_{number}.png"]

    @property
    def weight(self) -> float:
        return float(self.model.weight.detach())


def looped(
    line: Line, steps: int, *, scale: float | None = None, optimizer: type = torch.optim.AdamW, **settings: object
) -> tuple[Loop, list[Event]]:
    accelerator = Accelerator(cpu=True)
    # accelerate refuses fp16 on the CPU; its scaler does not.
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
    options = {"fused": True} if optimizer is torch.optim.AdamW else {}
    _, prepared = accelerator.prepare(line.model, optimizer(line.model.parameters(), lr=1e-3, **options))
    told: list[Event] = []
    loop = Loop(
        **{
            "models": [line.model],
            "loss_of": line.loss,
            "names_of": line.names,
            "parameters": list(line.model.parameters()),
            "rates": [1e-3],
            "optimizer": prepared,
            "accelerator": accelerator,
            "factor": lambda step: 1.0,
            "emit": told.append,
            "should_stop": lambda: False,
            "due": lambda step: False,
            "after_step": lambda step: None,
            "total": steps,
            **settings,
        }
    )
    return loop, told


def last_progress(told: list[Event]) -> Progress:
    return [event for event in told if isinstance(event, Progress)][-1]


def test_steps_that_the_scaler_refuses_are_counted_and_are_not_steps() -> None:
    line = Line()
    loop, told = looped(line, 5, scale=2.0**126)
    loop.run()
    assert last_progress(told).step == 5
    assert last_progress(told).skipped_steps == loop.position.draws - 5 > 0
    assert line.weight != 0
    assert not [event for event in told if isinstance(event, Warned)], "the scaler's search for its scale is no cause for alarm"


def test_an_overflow_without_end_is_an_error_that_says_what_to_do() -> None:
    line = Line()
    loop, _ = looped(line, 5, scale=2.0**126)
    with torch.no_grad():
        line.model.weight.fill_(1e18)  # fifty halvings of the scale are not enough
    with pytest.raises(TrainingError, match="lower learning_rate"):
        loop.run()
    assert loop.position.step == 0


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_a_batch_whose_loss_is_no_number_is_no_step_and_is_named(optimizer: type, scale: float | None) -> None:
    clean, broken = Line(), Line(lambda number: number == 2)
    looped(clean, 2, optimizer=optimizer)[0].run()
    loop, told = looped(broken, 2, optimizer=optimizer, scale=scale, total=3)
    loop.should_stop = lambda: len(broken.asked) == 3
    loop.run()
    assert broken.weight == clean.weight != 0
    assert (loop.position.step, loop.position.draws) == (2, 3)
    assert ["picture_2.png" in event.message for event in told if isinstance(event, Warned)] == [True]
    loop.should_stop = lambda: False
    loop.run()
    assert loop.position.step == 3
    assert broken.weight != clean.weight


def test_batch_after_batch_without_a_number_is_an_error_and_the_weights_are_those_before() -> None:
    line = Line(lambda number: number >= 4)
    loop, told = looped(line, 50)
    with pytest.raises(TrainingError, match=r"10 times in a row after step 4, last for picture_13.png"):
        loop.run()
    assert loop.position == Position(step=4, draws=14)
    good = Line()
    looped(good, 4)[0].run()
    assert line.weight == good.weight
    assert len([event for event in told if isinstance(event, Warned)]) == 10


def test_accumulated_batches_are_one_step_of_their_mean() -> None:
    together, apart = Line(), Line()
    loop, told = looped(together, 2, gradient_accumulation_steps=3, optimizer=torch.optim.SGD)
    loop.run()
    assert together.asked == list(range(6))
    assert last_progress(told).step == 2
    sgd = torch.optim.SGD(apart.model.parameters(), lr=1e-3)
    for first in (0, 3):
        torch.stack([apart.loss(number) for number in range(first, first + 3)]).mean().backward()
        sgd.step()
        sgd.zero_grad()
    assert together.weight == pytest.approx(apart.weight, rel=1e-6)


def test_clipping_bounds_the_step_and_none_leaves_it() -> None:
    clipped, free = Line(), Line()
    looped(clipped, 1, max_grad_norm=1.0, optimizer=torch.optim.SGD)[0].run()
    looped(free, 1, optimizer=torch.optim.SGD)[0].run()
    assert clipped.weight == pytest.approx(1e-3, rel=1e-4)
    assert free.weight == pytest.approx(0.2, rel=1e-4)


def test_each_step_has_the_rate_of_the_steps_before_it() -> None:
    line = Line()
    rates = [0.0, 1e-3, 0.0]
    loop, told = looped(line, 3, rates=[1.0], factor=lambda step: rates[step], optimizer=torch.optim.SGD)
    loop.run()
    only = Line()
    only.asked.append(0)
    loss = only.loss(1)
    loss.backward()
    assert line.weight == pytest.approx(float(-1e-3 * only.model.weight.grad), rel=1e-6)
    assert last_progress(told).learning_rate == rates[2]


def test_what_is_due_is_done_after_its_step_and_not_again() -> None:
    done: list[int] = []
    loop, _ = looped(Line(), 7, due=lambda step: step % 3 == 0, after_step=done.append)
    loop.run()
    assert done == [3, 6]


def test_every_loss_is_told_once() -> None:
    line = Line()
    loop, told = looped(line, 20)
    loop.run()
    losses = [loss for event in told if isinstance(event, Progress) for loss in event.losses]
    assert len(losses) == 20
    assert losses[0] == pytest.approx(10_000)


def test_the_average_follows_the_weights() -> None:
    line = Line()
    ema = Ema([line.model.weight.data], 0.9)
    loop, _ = looped(line, 50, ema=ema)
    loop.run()
    with ema.swapped():
        average = line.weight
    assert 0 < average < line.weight
