"""Textual inversion (https://arxiv.org/abs/2208.01618): the vectors of a new word train, and nothing of the base does."""
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..families.protocol import Family, TextPart
from ..spec import TextualInversionSpec
from .protocol import Group
from .words import Words


class TextualInversion:
    """See `protocol.Method`."""

    trains_unet = False
    trains_text = True
    drops_out = False
    warnings: tuple[str, ...] = ()

    def __init__(self, spec: TextualInversionSpec, family: Family) -> None:
        self._spec = spec
        self._words = Words(spec.word, family, spec.seed)

    def trained_numbers(self) -> int:
        """See `Method`. Raises SpecError as `Words.check` does."""
        self._words.check()
        return self._words.numbers()

    def result_bytes(self) -> int:
        """See `Method`."""
        return 4 * self._words.numbers()

    def formats(self, weights: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
        """See `Method`."""
        return weights, weights

    def set_up(self, unet: nn.Module, parts: list[TextPart]) -> tuple[list[TextPart], list[Group]]:
        """See `Method`."""
        parts, vectors = self._words.add(parts)
        return parts, [Group(vectors, self._spec.learning_rate)]

    def tensors(self) -> dict[str, Tensor]:
        """See `Method`."""
        return self._words.tensors()

    def write(self, result: str, path: Path, metadata: Mapping[str, str]) -> str:
        """See `Method`: the embedding, in fp32."""
        return self._words.write(path, metadata)
