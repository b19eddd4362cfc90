"""Which rectangle of a picture is trained, and at which size: plain arithmetic on widths and heights in pixels."""
import math
from dataclasses import dataclass

import torch

from ..dataset import Framing
from .order import generator

# A picture that is longer is cropped: at 512 px its short side would be below 256, where Stable Diffusion 1.x knows little.
_LONGEST_ASPECT = 4


@dataclass(frozen=True)
class Cut:
    """A picture of `original` size, scaled to `scaled`, of which the rectangle of `size` at (`left`, `top`) is taken; then mirrored if `flip`.

    Sizes are (width, height).
    """

    original: tuple[int, int]
    scaled: tuple[int, int]
    size: tuple[int, int]
    left: int
    top: int
    flip: bool = False

    @property
    def enlarged(self) -> bool:
        """Whether the picture had fewer pixels than it is trained with."""
        return self.scaled[0] > self.original[0] or self.scaled[1] > self.original[1]

    @property
    def conditioning(self) -> tuple[int, ...]:
        """SDXL's sizes (https://arxiv.org/abs/2307.01952, section 2.2): original height and width, the crop's top and left, target height and
        width. The left of a mirrored crop is counted in the mirrored picture.
        """
        width, height = self.size
        left = self.scaled[0] - width - self.left if self.flip else self.left
        return self.original[1], self.original[0], self.top, left, height, width


def bucket(width: int, height: int, framing: Framing) -> tuple[int, int]:
    """The (width, height) that a picture of this size is trained at.

    With buckets: of all sizes in multiples of the step, of at most the resolution's area and no larger than the picture (unless enlarging is
    asked for), the one whose aspect ratio is nearest to the picture's; of those that are equally near, the largest. A picture smaller than
    one step becomes a square of it.
    """
    side, step = framing.resolution, framing.bucket_step
    if not framing.buckets:
        return side, side
    step = min(step, side)
    widest, highest = (side * side, side * side) if framing.upscale else (width, height)
    # For each side the longest other one.
    sizes = {(w, min(side * side // w, highest, _LONGEST_ASPECT * w) // step * step) for w in _sides(widest, side, step)}
    sizes |= {(min(side * side // h, widest, _LONGEST_ASPECT * h) // step * step, h) for h in _sides(highest, side, step)}
    possible = [(w, h) for w, h in sizes if min(w, h) and max(w, h) <= _LONGEST_ASPECT * min(w, h)]
    return min(possible, key=lambda size: (round(abs(math.log(size[0] / size[1] * height / width)), 9), -size[0] * size[1]), default=(step, step))


def _sides(longest: int, side: int, step: int) -> range:
    return range(step, min(longest, _LONGEST_ASPECT * side) + 1, step)


def cuts(width: int, height: int, sha256: str, framing: Framing) -> list[Cut]:
    """Every different rectangle of a picture that a visit may take; mirrored ones follow those they mirror.

    The random places depend on the picture alone (`sha256`), so that what was encoded for one training serves another.
    """
    size = bucket(width, height, framing)
    scale = max(size[0] / width, size[1] / height)
    scaled = max(size[0], round(width * scale)), max(size[1], round(height * scale))
    slack = scaled[0] - size[0], scaled[1] - size[1]
    if framing.crop == "center":
        places = [(slack[0] // 2, slack[1] // 2)]
    else:
        shares = _places(sha256, framing.crops)
        # Places that fall together, as where there is nothing to crop, are one.
        places = list(dict.fromkeys((round(slack[0] * across), round(slack[1] * down)) for across, down in shares))
    mirrored = (False, True) if framing.flip else (False,)
    return [Cut((width, height), scaled, size, left, top, flip) for left, top in places for flip in mirrored]


def _places(sha256: str, count: int) -> list[tuple[float, float]]:
    """`count` points in the unit square that belong to a picture."""
    points: list[list[float]] = torch.rand((count, 2), generator=generator(0, "crop", sha256)).tolist()
    return [(across, down) for across, down in points]
