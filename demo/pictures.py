"""The demo's grid of pictures, and how far apart two of them are."""
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parent.parent))

from trainer import grid

_SIDE = 224


def opened(path: Path) -> Image.Image:
    """RGB, in memory."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def labeled_grid(cells: Sequence[Sequence[Image.Image]], columns: Sequence[str], rows: Sequence[str]) -> Image.Image:
    """`cells` under the labels `columns` and beside the labels `rows`; small ones are enlarged, so that they look sharp on a dense screen."""
    side = max(_SIDE, cells[0][0].width)
    enlarged = [[cell.resize((side, side), Image.Resampling.LANCZOS) for cell in line] for line in cells]
    return grid.labelled_grid(enlarged, columns, rows)


def color_distance(one: Image.Image, other: Image.Image) -> float:
    """Mean distance of two pictures' pixels in RGB, where black and white are 1 apart."""
    difference = (np.asarray(one, dtype=np.float32) - np.asarray(other, dtype=np.float32)) / 255
    return float(np.sqrt((difference**2).mean(axis=-1)).mean())
