"""The loop's dealings with fp16's gradient scaler, on the CPU with the real scaler and the real fused optimiser."""
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trainer.data.encode import Encoded
from trainer.events import Event, Progress
from trainer.loop import Loop, TrainingError


class Line:
    """A family whose model multiplies by one weight."""

    timesteps = 10

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise

    def predict(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        return unet(noisy.flatten()[:, None]).view_as(noisy)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return 100 * noise


def scaled_loop(scale: float, steps: int) -> tuple[Loop, list[Event]]:
    accelerator = Accelerator(cpu=True)
    # accelerate refuses fp16 on the CPU; its scaler does not.
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    unet = nn.Linear(1, 1, bias=False)
    unet, optimizer = accelerator.prepare(unet, torch.optim.AdamW(unet.parameters(), lr=1e-3, fused=True))
    told: list[Event] = []
    loop = Loop(
        family=Line(),
        unet=unet,
        parameters=list(unet.parameters()),
        data=Encoded(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1), (0,)),
        optimizer=optimizer,
        accelerator=accelerator,
        emit=told.append,
        should_stop=lambda: False,
        after_step=lambda step: None,
        batch_size=1,
        total=steps,
        seed=0,
        max_grad_norm=0.0,
    )
    return loop, told


def test_steps_that_the_scaler_refuses_are_counted_and_are_not_steps() -> None:
    loop, told = scaled_loop(scale=2.0**126, steps=5)
    weight = next(iter(loop.unet.parameters())).detach().clone()
    loop.run()
    last = [event for event in told if isinstance(event, Progress)][-1]
    assert last.step == 5
    assert last.skipped_steps == loop.position.draws - 5 > 0
    assert bool((next(iter(loop.unet.parameters())) != weight).all())


def test_an_overflow_without_end_is_an_error_that_says_what_to_do() -> None:
    loop, _ = scaled_loop(scale=2.0**126, steps=5)
    with torch.no_grad():
        next(iter(loop.unet.parameters())).fill_(1e20)  # fifty halvings of the scale are not enough
    with pytest.raises(TrainingError, match="lower learning_rate"):
        loop.run()
    assert loop.position.step == 0
