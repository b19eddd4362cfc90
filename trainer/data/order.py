"""Which pictures a step sees, and which random numbers it draws: pure functions of (seed, step).

Nothing about order or randomness is state, so a resumed run sees exactly what the uninterrupted one would have seen, and a step's noise
is the same on every device.
"""
import hashlib
from functools import lru_cache

import torch


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for one purpose, e.g. `generator(seed, "noise", step)`; different names give independent streams."""
    text = "\0".join(str(part) for part in (seed, *names))
    value = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") & (2**63 - 1)
    return torch.Generator().manual_seed(value)


@lru_cache(maxsize=4)
def _pass_order(seed: int, number: int, length: int) -> tuple[int, ...]:
    return tuple(torch.randperm(length, generator=generator(seed, "order", number)).tolist())


def batch_indices(seed: int, step: int, batch_size: int, length: int) -> list[int]:
    """Positions of step `step` (from 0) in a list of `length` visits.

    Passes over the list, each in an order of its own, follow one another without a gap: every batch is full, and no visit is skipped.
    """
    start = step * batch_size
    return [_pass_order(seed, i // length, length)[i % length] for i in range(start, start + batch_size)]
