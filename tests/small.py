"""A training small enough for a unit test: a real optimiser on a real model."""
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.checkpoint import save_state
from trainer.data.order import generator
from trainer.optim import build
from trainer.options import OptimizerOptions

WIDTH = 64  # bitsandbytes quantises the state of matrices of 4096 numbers and more


class Small:
    """Two layers; which inputs a step sees depends on nothing but the step."""

    def __init__(self, name: Any = "adamw", **arguments: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
        self.optimizer = build(OptimizerOptions(name=name, arguments=tuple(arguments.items())), self.model.parameters(), 0.001)
        self.parameters = {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def train(self, first: int, last: int) -> None:
        """Steps `first` to `last` - 1."""
        for step in range(first, last):
            self.optimizer.zero_grad()
            x = torch.randn(5, WIDTH, generator=generator(0, "x", step))
            self.model(x).pow(2).mean().backward()
            self.optimizer.step()

    def loss(self) -> float:
        """On inputs that no step sees."""
        with torch.no_grad():
            return float(self.model(torch.randn(256, WIDTH, generator=generator(0, "held out"))).pow(2).mean())

    def copy(self) -> list[torch.Tensor]:
        """The weights, as they are now."""
        return [tensor.clone() for tensor in self.parameters.values()]

    def is_at(self, weights: list[torch.Tensor]) -> bool:
        """Whether the weights are those, to the bit."""
        return all(torch.equal(a, b) for a, b in zip(weights, self.parameters.values(), strict=True))

    def save(self, run: Path, step: int, scaler: dict[str, float] | None = None) -> Path:
        """A state of the run."""
        return save_state(run, step, step + 1, self.parameters, self.optimizer, scaler)
