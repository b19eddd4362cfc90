"""Captions around a new word: what textual inversion trains on instead of the pictures' own (https://arxiv.org/abs/2208.01618, section 4)."""
import re
from typing import Literal, get_args

from .dataset import Dataset

Template = Literal["object", "style", "captions"]
TEMPLATES: tuple[Template, ...] = get_args(Template)

_OBJECT = (
    "a photo of {}",
    "a close-up photo of {}",
    "a bright photo of {}",
    "a dark photo of {}",
    "a good photo of {}",
    "a cropped photo of {}",
    "a picture of {}",
    "a rendering of {}",
    "a drawing of {}",
    "one {}",
    "a small {}",
    "a large {}",
    "a nice {}",
    "{}",
)
_STYLE = (
    "a painting in the style of {}",
    "a picture in the style of {}",
    "a drawing in the style of {}",
    "a rendering in the style of {}",
    "a detailed work in the style of {}",
    "a close-up in the style of {}",
    "a bright picture in the style of {}",
    "a dark picture in the style of {}",
    "a large picture in the style of {}",
    "something in the style of {}",
    "art by {}",
    "{}",
)


def templated(datasets: tuple[Dataset, ...], template: Template, word: str) -> tuple[Dataset, ...]:
    """The datasets with captions about `word`: each visit of a picture takes one of the template's, validation its first.

    `captions`: the pictures' own, see `with_word`.
    """
    if template == "captions":
        return with_word(datasets, word)
    first, *others = [text.format(word) for text in (_OBJECT if template == "object" else _STYLE)]
    return tuple(
        dataset.model_copy(
            update={
                "images": tuple(image.model_copy(update={"caption": first, "more_captions": tuple(others)}) for image in dataset.images),
                "trigger_word": "",
            }
        )
        for dataset in datasets
    )


def named(prompt: str, word: str, name: str) -> str:
    """The prompt with `name` wherever it says `word`, as captions are read: as a whole word, in capitals or not."""
    return re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", lambda _: name, prompt, flags=re.IGNORECASE)


def with_word(datasets: tuple[Dataset, ...], word: str) -> tuple[Dataset, ...]:
    """The datasets with `word` in every caption: first, where it is not there already."""
    return tuple(_with_word(dataset, word) for dataset in datasets)


def _with_word(dataset: Dataset, word: str) -> Dataset:
    images = []
    for image in dataset.images:
        first, *others = dataset.captions(image)
        images.append(image.model_copy(update={"caption": first or None, "more_captions": tuple(others)}))
    return dataset.model_copy(update={"images": tuple(images), "trigger_word": word, "missing_captions": "use the trigger word"})
