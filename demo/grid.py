"""The demo's table of pictures: drawn as Compare Adapters draws its own, of pictures of any size."""
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

sys.path.append(str(Path(__file__).resolve().parent.parent))

from trainer import grid


def labelled_grid(rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str], side: int = 128) -> Image.Image:
    """`rows` of (label, pictures) under the labels `columns`; each picture is fitted into `side` pixels, small ones without smoothing."""
    return grid.labelled_grid([[_fitted(picture, side) for picture in pictures] for _, pictures in rows], columns, [label for label, _ in rows])


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    rgba = picture.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    scale = side / max(flat.size)
    size = (max(1, round(flat.width * scale)), max(1, round(flat.height * scale)))
    fitted = flat.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    square = Image.new("RGB", (side, side), "white")
    square.paste(fitted, ((side - fitted.width) // 2, (side - fitted.height) // 2))
    return square
