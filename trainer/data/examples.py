"""Pictures encoded once, before training: the VAE is needed at no step."""
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..dataset import Dataset, DatasetImage
from ..events import Event, Phase, Warned
from ..families.protocol import Family
from ..malloc import give_back
from ..messages import listed
from ..typed import SpecError
from .cache import Cache, key_of
from .colors import on_white
from .framing import Cut, cuts
from .images import ImageError, alpha_of, cut_out, mask_of, open_image, upright_size

_NAMED = 5
_PAUSE_SECONDS = 0.5
# Goes up whenever the same file gives other pixels than before, so that nothing encoded from the old ones is used.
_READING = 2
_GIVE_BACK_EVERY = 16


@dataclass(frozen=True)
class Example:
    """One picture ready to train on, on the CPU: a row for each of its cuts, of which a visit takes one.

    `latents` (cuts, channels, h, w), scaled; `sizes` (cuts, 6) as in `Conditioning`; `mask` (cuts, 1, h, w) in [0, 1], None: all of it counts.
    """

    dataset: Dataset
    image: DatasetImage
    latents: Tensor
    sizes: Tensor
    mask: Tensor | None

    @property
    def name(self) -> str:
        """The picture's file name."""
        return Path(self.image.path).name

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in latents."""
        return self.latents.shape[-1], self.latents.shape[-2]


class Encoder:
    """Encodes pictures with the family's VAE, which `vae` loads when the first one is not in the cache."""

    def __init__(self, family: Family, vae: Callable[[], nn.Module], device: torch.device, cache: Cache, emit: Callable[[Event], None]) -> None:
        self._family, self._vae, self._device, self._cache, self._emit = family, vae, device, cache, emit
        self._digest = family.vae_digest()
        self.encoded = 0
        """Pictures that were not in the cache."""

    def examples(self, datasets: Sequence[Dataset], phase: str) -> list[Example]:
        """Every picture of `datasets`, in their order. Raises SpecError if one is gone or broken since it was checked."""
        if not datasets:
            return []
        whole = [(dataset, image) for dataset in datasets for image in dataset.images]
        found, enlarged, unseen = [], [], []
        told = float("-inf")
        for number, (dataset, image) in enumerate(whole):
            name = Path(image.path).name
            # Every event is kept for good, and images may come by the thousand.
            if time.monotonic() - told >= _PAUSE_SECONDS:
                told = time.monotonic()
                self._emit(Phase(name=phase, done=number, total=len(whole), detail=name))
            try:
                example, larger = self._example(dataset, image)
            except ImageError as error:
                raise SpecError(f"{image.path} or its mask cannot be read any more ({error}): put it back, or queue the dataset again.") from error
            found.append(example)
            enlarged += [name] if larger and not dataset.framing.upscale else []
            unseen += [name] if example.mask is not None and not example.mask.any() else []
        give_back()
        self._emit(Phase(name=phase, done=len(whole), total=len(whole)))
        of = f"of {len(whole)} pictures"
        if enlarged:
            self._emit(Warned(message=f"{len(enlarged)} {of} are smaller than they are trained at and were enlarged: {_few(enlarged)}."))
        if unseen:
            self._emit(Warned(message=f"{len(unseen)} {of} have a mask that is all black where they are trained: {_few(unseen)}."))
        return found

    def _example(self, dataset: Dataset, image: DatasetImage) -> tuple[Example, bool]:
        rectangles = cuts(*(image.size or upright_size(Path(image.path))), image.sha256, dataset.framing)
        key = key_of("latents", _READING, image.sha256, self._digest, rectangles, image.mask_sha256, dataset.mask_from_alpha)
        entry = self._cache.get(key)
        if entry is None:
            entry = self._encode(dataset, image, rectangles)
            self._cache.put(key, entry)
            self.encoded += 1
            if self.encoded % _GIVE_BACK_EVERY == 0:
                give_back()
        sizes = torch.tensor([cut.conditioning for cut in rectangles])
        return Example(dataset, image, entry["latents"], sizes, entry.get("mask")), rectangles[0].enlarged

    def _encode(self, dataset: Dataset, image: DatasetImage, rectangles: list[Cut]) -> dict[str, Tensor]:
        opened = open_image(Path(image.path))
        shown = on_white(opened)
        pixels = torch.stack([_pixels(cut_out(shown, cut, cut.size)) for cut in rectangles])
        entry = {"latents": self._family.encode_images(self._vae(), pixels.to(self._device)).cpu()}
        mask = alpha_of(opened) if dataset.mask_from_alpha else mask_of(open_image(Path(image.mask))) if image.mask else None
        if mask is not None:
            height, width = entry["latents"].shape[-2:]
            # Each latent counts by the mean of the pixels that it stands for.
            entry["mask"] = torch.stack([_grey(cut_out(mask, cut, (width, height), Image.Resampling.BOX)) for cut in rectangles])
        return entry


def _few(names: list[str]) -> str:
    """A warning is to be read at a glance."""
    return listed(names) if len(names) <= _NAMED else f"{listed(names[:_NAMED])} and {len(names) - _NAMED} more"


def _pixels(picture: Image.Image) -> Tensor:
    """(3, h, w) in [-1, 1]."""
    array = np.asarray(picture, dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(array).permute(2, 0, 1)


def _grey(picture: Image.Image) -> Tensor:
    """(1, h, w) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0).unsqueeze(0)
