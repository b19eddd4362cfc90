"""What a training method is to the rest of the trainer, which knows none of them by name."""
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ..families.protocol import TextPart


@dataclass(frozen=True)
class Group:
    """Parameters that train at one learning rate."""

    parameters: list[nn.Parameter]
    learning_rate: float


class Method(Protocol):
    """What trains, how captions become conditioning, and what is saved."""

    trains_unet: bool
    """Whether the UNet holds parameters that train."""
    trains_text: bool
    """Whether captions are encoded at each step, with gradients."""
    drops_out: bool
    """Whether a step draws from torch's global generator, and the models have to be in training mode."""
    warnings: tuple[str, ...]
    """What `set_up` found that the user should know."""

    def trained_numbers(self) -> int:
        """How many numbers train, told from empty models. Raises SpecError where what the spec asks cannot be trained."""
        ...

    def result_bytes(self) -> int:
        """The size of all files that a finished training leaves, without their headers."""
        ...

    def formats(self, weights: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
        """The number formats of the UNet and of the text encoders, where `weights` is that of what stays as it is."""
        ...

    def set_up(self, unet: nn.Module, parts: list[TextPart]) -> tuple[list[TextPart], list[Group]]:
        """Make what trains trainable, in place; gives the text encoders as captions are to be read with them, and the parameters.

        `parts`: empty unless `trains_text`. Called once. Raises SpecError.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything that trains, by a name that stays: what a state holds. Writing into it changes the models."""
        ...

    def write(self, result: str, path: Path, metadata: Mapping[str, str]) -> str:
        """Write one of the spec's results to `path` as the models are now; gives the sha256 of its bytes. Raises FileError for broken numbers."""
        ...
