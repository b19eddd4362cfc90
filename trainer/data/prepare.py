"""From the datasets of a spec to what a training visits: pictures and captions encoded, from the cache where they are there."""
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..dataset import Dataset
from ..events import Bucket, Data, Event, Phase, Warned
from ..families.protocol import Family, TextPart
from ..spec import TextualInversionSpec, TrainingSpec, TrainLoRASpec
from .cache import Cache
from .caption_draws import possible
from .examples import Encoder, Example
from .texts import EncodedTexts, LiveTexts, Texts, encoded_texts, warn_of_long


@dataclass(frozen=True)
class Prepared:
    """`train`: pictures to train on; `prior`: those of the class; `held_out`: those to validate with; `texts`: captions and prompts."""

    train: list[Example]
    prior: list[Example]
    held_out: list[Example]
    texts: Texts


class Preparation:
    """Encodes; parts of the base are loaded when they are first needed, and a training whose data is in the cache needs none of them.

    `weights`: the number format of the text encoders. `trains_text`: captions are encoded at each step, with gradients.
    """

    def __init__(
        self, spec: TrainingSpec, family: Family, device: torch.device, weights: torch.dtype, trains_text: bool, emit: Callable[[Event], None]
    ) -> None:
        self._spec, self._family, self._device, self._emit = spec, family, device, emit
        self._weights, self._trains_text = weights, trains_text
        self._cache = Cache(Path(spec.cache) if spec.cache else None)

    @cached_property
    def _vae(self) -> Any:
        self._emit(Phase(name="loading VAE"))
        return self._family.load_vae(self._device)

    def pixels(self, latents: Tensor) -> Tensor:
        """Pixels (3, H, W) in [0, 1] of a picture's scaled latents (1, channels, h, w). The VAE is on the device for this moment only."""
        pixels = self._family.decode_latents(self._vae.to(self._device), latents)[0]
        self._vae.to("cpu")
        return pixels

    @cached_property
    def _text_parts(self) -> list[TextPart]:
        self._emit(Phase(name="loading text encoder"))
        return self._family.load_text_parts(self._weights, self._device)

    def prepared(self, class_images: Sequence[Dataset]) -> Prepared:
        """Everything encoded. Raises SpecError if a picture is gone or broken since it was checked."""
        spec = self._spec
        encoder = Encoder(self._family, lambda: self._vae.to(self._device), self._device, self._cache, self._emit)
        train, prior, held_out = (
            encoder.examples(datasets, f"encoding {what}pictures")
            for datasets, what in ((spec.datasets, ""), (class_images, "class "), (spec.validation, "held-out "))
        )
        if not spec.sampling.prompts:
            self.__dict__.pop("_vae", None)  # no picture will be drawn that would need it
        elif "_vae" in self.__dict__:
            self._vae.to("cpu")
        texts, new_captions = self._texts([*train, *prior, *held_out])
        self._emit(Data(buckets=table(train), pictures_encoded=encoder.encoded, captions_encoded=new_captions))
        if self._cache.problem:
            self._emit(Warned(message=f"what was encoded could not be kept for the next training ({self._cache.problem})."))
        return Prepared(train, prior, held_out, texts)

    def _texts(self, examples: Sequence[Example]) -> tuple[Texts, int]:
        """The captions of `examples` and the sample prompts, and how many had to be encoded."""
        spec = self._spec
        listings = [possible(example.dataset, example.image) for example in examples]
        plain = [caption for example in examples for caption in example.dataset.captions(example.image)]
        prompts = [spec.sampling.negative, *spec.sampling.prompts] if spec.sampling.prompts else []
        word = spec.word if isinstance(spec, TrainLoRASpec | TextualInversionSpec) else None
        warn_of_long(self._family, [*plain, *prompts], word, self._emit)
        if self._trains_text or any(listing is None for listing in listings):
            # Where tags are drawn there are as many captions as visits: they are encoded when they come.
            return LiveTexts(self._family, self._text_parts, self._trains_text), 0
        captions = [caption for listing in listings for caption in listing or ()]
        return self.encoded([*captions, *prompts])

    def encoded(self, captions: Sequence[str]) -> tuple[EncodedTexts, int]:
        """Captions encoded before training; the text encoders are gone afterwards."""
        texts = encoded_texts(self._family, lambda: self._text_parts, captions, self._cache, str(self._weights), self._emit)
        self.__dict__.pop("_text_parts", None)
        return texts


def table(examples: Sequence[Example]) -> tuple[Bucket, ...]:
    """The buckets of a training in pixels, from the most visited on."""
    pictures: Counter[tuple[int, int]] = Counter()
    visits: Counter[tuple[int, int]] = Counter()
    for example in examples:
        # Sizes hold height and width last.
        height, width = example.sizes[0, -2:].tolist()
        pictures[width, height] += 1
        visits[width, height] += example.image.repeats
    return tuple(Bucket(width=w, height=h, pictures=pictures[w, h], visits=count) for (w, h), count in visits.most_common())
