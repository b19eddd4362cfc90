"""Pictures and captions encoded once, before training: the VAE and the text encoder are not needed at any step."""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..events import Event, Phase, Warned
from ..families.sd import StableDiffusion1
from ..spec import Dataset, DatasetImage, SpecError
from .images import open_rgb, square
from .sources import listed


@dataclass(frozen=True)
class Encoded:
    """A dataset ready to train on, on the CPU.

    `latents` (pictures, 4, h/8, w/8), scaled; `text` (pictures, 77, width); `visits`: one pass, an index for each visit of a picture.
    """

    latents: Tensor
    text: Tensor
    visits: tuple[int, ...]

    def batch(self, positions: list[int]) -> tuple[Tensor, Tensor]:
        """Latents and text of the visits at `positions`."""
        rows = torch.tensor([self.visits[p] for p in positions])
        return self.latents[rows], self.text[rows]


def pixels_of(image: DatasetImage, side: int) -> Tensor:
    """(3, side, side) in [-1, 1]. Raises SpecError if the file is gone or broken since it was checked."""
    try:
        picture = square(open_rgb(Path(image.path)), side)
    except OSError as error:
        raise SpecError(f"{image.path} cannot be read any more: {error}") from error
    array = np.asarray(picture, dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(array).permute(2, 0, 1)


def encode_pictures(
    family: StableDiffusion1, vae: torch.nn.Module, dataset: Dataset, device: torch.device, emit: Callable[[Event], None], phase: str
) -> Tensor:
    """Latents of every picture of `dataset`, in its order."""
    latents: list[Tensor] = []
    total = len(dataset.images)
    smaller = 0
    for number, image in enumerate(dataset.images):
        emit(Phase(name=phase, done=number, total=total, detail=Path(image.path).name))
        smaller += _is_smaller(image, dataset.resolution)
        pixels = pixels_of(image, dataset.resolution).unsqueeze(0).to(device)
        latents.append(family.encode_images(vae, pixels).cpu())
    emit(Phase(name=phase, done=total, total=total))
    if smaller:
        emit(Warned(message=f"{dataset.name}: {smaller} of {total} pictures are smaller than {dataset.resolution} px and were enlarged."))
    return torch.cat(latents)


def _is_smaller(image: DatasetImage, side: int) -> bool:
    return min(open_rgb(Path(image.path)).size) < side


def encode_captions(
    family: StableDiffusion1, encoder: torch.nn.Module, tokenizer: object, captions: list[str], emit: Callable[[Event], None]
) -> Tensor:
    """Embeddings (len(captions), 77, width) on the CPU; each different caption is encoded once."""
    unique = list(dict.fromkeys(captions))
    long = [caption for caption in unique if family.is_too_long(tokenizer, caption)]
    if long:
        emit(Warned(message=f"{len(long)} captions are longer than 75 tokens, and their ends are not trained: {listed([c[:80] for c in long])}"))
    rows = []
    for start in range(0, len(unique), 16):
        emit(Phase(name="encoding captions", done=start, total=len(unique)))
        rows.append(family.encode_text(encoder, tokenizer, unique[start : start + 16]).float().cpu())
    position = {caption: index for index, caption in enumerate(unique)}
    return torch.cat(rows)[[position[caption] for caption in captions]]


def visits(dataset: Dataset) -> tuple[int, ...]:
    """One pass over the dataset: each picture's index as often as it repeats."""
    return tuple(index for index, image in enumerate(dataset.images) for _ in range(image.repeats))
