"""Pictures and captions encoded once, before training: the VAE and the text encoder are not needed at any step."""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..events import Event, Phase, Warned
from ..families.protocol import Conditioning, Family, TextPart
from ..spec import Dataset, DatasetImage
from ..typed import SpecError
from .images import open_rgb, square
from .sources import listed


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures, on the CPU: scaled `latents` (n, channels, h/8, w/8), and `sizes` (n, 6) as in `Conditioning`."""

    latents: Tensor
    sizes: Tensor


@dataclass(frozen=True)
class Encoded:
    """A dataset ready to train on, on the CPU.

    `latents` (pictures, channels, h/8, w/8), scaled; `conditioning`: a row for each picture; `visits`: one pass, an index for each visit
    of a picture; `files`: the pictures' names.
    """

    latents: Tensor
    conditioning: Conditioning
    visits: tuple[int, ...]
    files: tuple[str, ...]

    def batch(self, positions: list[int]) -> tuple[Tensor, Conditioning]:
        """Latents and conditioning of the visits at `positions`."""
        rows = torch.tensor([self.visits[p] for p in positions])
        return self.latents[rows], self.conditioning.rows(rows)

    def names(self, positions: list[int]) -> list[str]:
        """File names of the visits at `positions`."""
        return [self.files[self.visits[p]] for p in positions]


def encoded(pictures: Pictures, text: Conditioning, dataset: Dataset, uses_sizes: bool) -> Encoded:
    """Pictures and text of one dataset together."""
    conditioning = Conditioning(text.hidden, text.pooled, pictures.sizes if uses_sizes else None)
    return Encoded(pictures.latents, conditioning, visits(dataset), tuple(Path(image.path).name for image in dataset.images))


def _open(image: DatasetImage) -> Image.Image:
    try:
        return open_rgb(Path(image.path))
    except OSError as error:
        raise SpecError(f"{image.path} cannot be read any more: {error}") from error


def pixels_of(picture: Image.Image) -> Tensor:
    """(3, h, w) in [-1, 1]."""
    array = np.asarray(picture, dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(array).permute(2, 0, 1)


def size_conditioning(width: int, height: int, side: int) -> tuple[int, ...]:
    """SDXL's (https://arxiv.org/abs/2307.01952, section 2.2) for `square`: original height and width, the crop's top and left, target height and
    width.
    """
    scale = side / min(width, height)
    return height, width, round((height * scale - side) / 2), round((width * scale - side) / 2), side, side


def encode_pictures(
    family: Family, vae: torch.nn.Module, dataset: Dataset, device: torch.device, emit: Callable[[Event], None], phase: str
) -> Pictures:
    """Every picture of `dataset`, in its order. Raises SpecError if one is gone or broken since it was checked."""
    latents: list[Tensor] = []
    sizes: list[tuple[int, ...]] = []
    total, side = len(dataset.images), dataset.resolution
    smaller = 0
    for number, image in enumerate(dataset.images):
        emit(Phase(name=phase, done=number, total=total, detail=Path(image.path).name))
        picture = _open(image)
        smaller += min(picture.size) < side
        sizes.append(size_conditioning(*picture.size, side))
        latents.append(family.encode_images(vae, pixels_of(square(picture, side)).unsqueeze(0).to(device)).cpu())
    emit(Phase(name=phase, done=total, total=total))
    if smaller:
        emit(Warned(message=f"{dataset.name}: {smaller} of {total} pictures are smaller than {side} px and were enlarged."))
    return Pictures(torch.cat(latents), torch.tensor(sizes))


def encode_captions(family: Family, parts: list[TextPart], captions: list[str], emit: Callable[[Event], None]) -> Conditioning:
    """A row for each caption, in fp32 on the CPU; each different caption is encoded once."""
    unique = list(dict.fromkeys(captions))
    long = [caption for caption in unique if family.too_long(parts, caption)]
    if long:
        emit(Warned(message=f"{len(long)} captions are longer than 75 tokens, and their ends are not trained: {listed([c[:80] for c in long])}"))
    rows: list[Conditioning] = []
    for start in range(0, len(unique), 16):
        emit(Phase(name="encoding captions", done=start, total=len(unique)))
        with torch.no_grad():
            rows.append(family.encode_text(parts, unique[start : start + 16]).map(lambda tensor: tensor.float().cpu()))
    hidden = torch.cat([row.hidden for row in rows])
    pooled = [row.pooled for row in rows if row.pooled is not None]
    position = {caption: index for index, caption in enumerate(unique)}
    return Conditioning(hidden, torch.cat(pooled) if pooled else None).rows(torch.tensor([position[caption] for caption in captions]))


def visits(dataset: Dataset) -> tuple[int, ...]:
    """One pass over the dataset: each picture's index as often as it repeats."""
    return tuple(index for index, image in enumerate(dataset.images) for _ in range(image.repeats))
