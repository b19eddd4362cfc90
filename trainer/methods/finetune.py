"""Full fine-tuning: the UNet's own weights train, and the text encoders' where they have a learning rate. What is saved is a whole checkpoint.

The recipe is that of latent diffusion (https://arxiv.org/abs/2112.10752) with the base's own noise schedule; with pictures of a class beside those of
the subject it is DreamBooth (https://arxiv.org/abs/2208.12242).
"""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..families.protocol import Family, TextPart
from ..objective import prediction_kind
from ..precision import SAVE_FORMATS
from ..spec import FineTuneSpec
from .protocol import Group


class FineTune:
    """See `protocol.Method`."""

    trains_unet = True
    drops_out = False
    warnings: tuple[str, ...] = ()

    def __init__(self, spec: FineTuneSpec, family: Family) -> None:
        self._spec, self._family = spec, family
        self.trains_text = spec.text.learning_rate > 0
        self._models: list[nn.Module] = []

    def trained_numbers(self) -> int:
        """See `Method`."""
        models = [self._family.empty_unet(), *(self._family.empty_text_encoders() if self.trains_text else [])]
        return sum(parameter.numel() for model in models for parameter in model.parameters())

    def result_bytes(self) -> int:
        """See `Method`."""
        return self._family.checkpoint_bytes(SAVE_FORMATS[self._spec.save_format])

    def formats(self, weights: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
        """See `Method`. What trains is fp32: the step of a usual learning rate is lost in half precision, and GradScaler refuses it."""
        return torch.float32, torch.float32 if self.trains_text else weights

    def set_up(self, unet: nn.Module, parts: list[TextPart]) -> tuple[list[TextPart], list[Group]]:
        """See `Method`."""
        self._models = [unet, *(part.encoder for part in parts)]
        unet.requires_grad_(True)
        for part in parts:
            encoder: Any = part.encoder
            encoder.requires_grad_(True)
            for layer in part.unused():
                layer.requires_grad_(False)
            if self._spec.hardware.gradient_checkpointing:
                encoder.gradient_checkpointing_enable({"use_reentrant": False})
        groups = [Group(_trained(unet), self._spec.learning_rate)]
        if parts:
            groups.append(Group([parameter for part in parts for parameter in _trained(part.encoder)], self._spec.text.learning_rate))
        return parts, groups

    def tensors(self) -> dict[str, Tensor]:
        """See `Method`."""
        return {
            f"{number}.{name}": parameter.data
            for number, model in enumerate(self._models)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    def write(self, result: str, path: Path, metadata: Mapping[str, str]) -> str:
        """See `Method`: the base with what has been trained in its place."""
        unet, *encoders = self._models
        dtype, objective = SAVE_FORMATS[self._spec.save_format], self._spec.objective
        prediction = prediction_kind(objective, self._family.prediction)
        return self._family.write_checkpoint(path, unet, encoders, dtype, metadata, prediction, objective.zero_terminal_snr)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
