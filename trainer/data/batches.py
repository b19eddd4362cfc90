"""Which pictures a batch holds when pictures have different sizes: every batch is full and of one size. Pure functions of (seed, number)."""
import bisect
from collections.abc import Hashable, Sequence
from functools import lru_cache

import torch

from .order import batch_indices, generator


class Batches:
    """Batches of `batch_size` over visits, `sizes[i]` being what visit i can share a batch with.

    Each bucket of visits goes round in an order of its own, pass after pass without a gap, and gives a batch whenever it has filled one; so
    buckets come as often as they have visits, a small one's remainder is not dropped, and no batch is short. In which order buckets take turns
    within a pass is drawn.
    """

    def __init__(self, sizes: Sequence[Hashable], batch_size: int, seed: int) -> None:
        self._batch_size, self._seed = batch_size, seed
        buckets: dict[Hashable, list[int]] = {}
        for visit, size in enumerate(sizes):
            buckets.setdefault(size, []).append(visit)
        self._buckets = list(buckets.values())
        self._turns = lru_cache(maxsize=2)(self._draw_turns)

    def __getitem__(self, number: int) -> list[int]:
        """The visits of batch `number` (from 0)."""
        if len(self._buckets) == 1:
            return batch_indices(self._seed, number, self._batch_size, len(self._buckets[0]))
        # In batch_size passes every bucket has filled a batch.
        passes = range((number + 1) * self._batch_size + 1)
        turn = bisect.bisect_right(passes, number, key=self._before) - 1
        which, within = self._turns(turn)[number - self._before(turn)]
        visits = self._buckets[which]
        seed = generator(self._seed, "bucket", which).initial_seed()
        return [visits[i] for i in batch_indices(seed, within, self._batch_size, len(visits))]

    def _before(self, passes: int) -> int:
        """Batches in the first `passes` passes."""
        return sum(self._filled(which, passes) for which in range(len(self._buckets)))

    def _filled(self, which: int, passes: int) -> int:
        return passes * len(self._buckets[which]) // self._batch_size

    def _draw_turns(self, number: int) -> list[tuple[int, int]]:
        """The batches of a pass: (bucket, number of the batch within the bucket)."""
        turns: list[int] = []
        for which in range(len(self._buckets)):
            turns += [which] * (self._filled(which, number + 1) - self._filled(which, number))
        order = torch.randperm(len(turns), generator=generator(self._seed, "turns", number)).tolist()
        upcoming = [self._filled(which, number) for which in range(len(self._buckets))]
        drawn = []
        for position in order:
            which = turns[position]
            drawn.append((which, upcoming[which]))
            upcoming[which] += 1
        return drawn
