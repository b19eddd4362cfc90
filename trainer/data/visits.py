"""The data of a training: which pictures, cuts and captions batch number n holds. A pure function of (seed, n)."""
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..families.protocol import Conditioning
from .batches import Batches
from .caption_draws import drawn
from .examples import Example
from .order import generator
from .texts import Texts


@dataclass(frozen=True)
class Batch:
    """`latents` (n, channels, h, w); `conditioning`: n rows; `mask` (n, 1, h, w), None: everything counts."""

    latents: Tensor
    conditioning: Conditioning
    mask: Tensor | None


class Visits:
    """Batches of visits to `examples`, each of which comes as often in a pass as its picture repeats.

    `share` (of which process, of how many): a batch of all processes together has `batch_size` visits times their number, and this one sees its
    part of it.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        texts: Texts,
        batch_size: int,
        seed: int,
        uses_sizes: bool,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._visits = [example for example in examples for _ in range(example.image.repeats)]
        self._texts, self._seed, self._uses_sizes = texts, seed, uses_sizes
        process, processes = share
        self._batches = Batches([example.size for example in self._visits], batch_size * processes, seed)
        self._share = slice(process * batch_size, (process + 1) * batch_size)

    def names(self, number: int) -> list[str]:
        """File names of batch `number`."""
        return [self._visits[visit].name for visit in self._batches[number][self._share]]

    def __getitem__(self, number: int) -> Batch:
        """Batch `number` (from 0)."""
        chance = generator(self._seed, "visit", number)
        taken = []
        for visit in self._batches[number]:
            example = self._visits[visit]
            cut = int(torch.randint(len(example.latents), (), generator=chance))
            taken.append((example, cut, drawn(example.dataset, example.image, chance)))
        taken = taken[self._share]
        latents = torch.stack([example.latents[cut] for example, cut, _ in taken])
        text = self._texts([caption for _, _, caption in taken])
        sizes = torch.stack([example.sizes[cut] for example, cut, _ in taken]) if self._uses_sizes else None
        return Batch(latents, Conditioning(text.hidden, text.pooled, sizes), _masks(taken))


def _masks(taken: list[tuple[Example, int, str]]) -> Tensor | None:
    if all(example.mask is None for example, _, _ in taken):
        return None
    return torch.stack(
        [torch.ones_like(example.latents[cut][:1]) if example.mask is None else example.mask[cut] for example, cut, _ in taken]
    )
