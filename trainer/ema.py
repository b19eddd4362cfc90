"""The exponential moving average of the trained weights."""
import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Ema:
    """Average of `parameters` (those of the model themselves), kept in fp32 on their device, or on `device`.

    The decay grows as (1 + step) / (10 + step) up to `decay`, so that the first weights do not stay in it for long.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float, device: torch.device | None = None) -> None:
        self._parameters = list(parameters)
        self._device = device
        self._averages = [parameter.detach().to(device or parameter.device, torch.float32, copy=True) for parameter in self._parameters]
        self._decay = decay

    def update(self, step: int) -> None:
        """Take the weights after a step; `step` counts those before it."""
        decay = min(self._decay, (1 + step) / (10 + step))
        if self._device is None:
            torch._foreach_lerp_(self._averages, [parameter.float() for parameter in self._parameters], 1 - decay)
            return
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            # One at a time: together they would need the room that the other device is to be spared.
            average.lerp_(parameter.to(average), 1 - decay)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """The model has the average for its weights meanwhile, and its own again afterwards, to the bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            kept = average.clone()
            average.copy_(parameter)
            parameter.copy_(kept)

    def tensors(self) -> list[Tensor]:
        """The averages, in the order of the parameters: what a state holds."""
        return self._averages

    def load(self, averages: Sequence[Tensor]) -> None:
        """Take the averages of a state."""
        torch._foreach_copy_(self._averages, list(averages))
