"""Where pictures and captions are and how they are used, as typed data; never pixels."""
import re
from collections import Counter
from typing import Literal

from pydantic import Field, model_validator

from .typed import Model, Utf8

MissingCaptions = Literal["refuse", "use the trigger word"]
Crop = Literal["center", "random"]

MAX_REPEATS = 10_000


class DatasetImage(Model):
    """One picture and how it is used.

    `path` is absolute; `sha256` is that of the file's bytes, so a changed picture is another dataset; `repeats` is how often it is visited in
    one pass. `more_captions`: others beside `caption`; each visit takes one of them. `mask` is the absolute path of a picture whose white
    parts are trained and whose black parts are not. `size`: (width, height) in pixels, upright, where it is known already; no result depends on it.
    """

    path: Utf8
    sha256: str
    caption: str | None = None
    more_captions: tuple[str, ...] = ()
    repeats: int = Field(default=1, ge=1, le=MAX_REPEATS)
    mask: Utf8 | None = None
    mask_sha256: str = ""
    size: tuple[int, int] | None = None


class Framing(Model):
    """Which rectangle of a picture is trained, and at which size. Sizes in pixels.

    Without `buckets` every picture becomes a square of `resolution`, enlarged where it is smaller. With them it keeps its shape as far as
    multiples of `bucket_step` allow, at an area of at most `resolution` squared, and is enlarged only with `upscale`
    (https://github.com/kohya-ss/sd-scripts, enable_bucket). `crop` random: `crops` places for each picture, the same ones at every training,
    and one of them is drawn at each visit. `flip`: half of the visits are mirrored.
    """

    resolution: int = Field(default=512, ge=64, le=4096, multiple_of=8)
    buckets: bool = True
    bucket_step: int = Field(default=64, ge=8, le=512, multiple_of=8)
    upscale: bool = False
    crop: Crop = "center"
    crops: int = Field(default=4, ge=1, le=64)
    flip: bool = False

    def plain(self) -> "Framing":
        """The same without what is drawn at random: for pictures that are only looked at."""
        return self.model_copy(update={"crop": "center", "flip": False})


class CaptionUse(Model):
    """What becomes of a caption at a visit. Its tags are what commas separate; the first `keep_tokens` of them stay where they are.

    `shuffle`: the others come in an order drawn at each visit. `tag_dropout`: the share of them that is left out. `dropout`: the share of visits
    that have no caption at all, which classifier-free guidance needs (https://arxiv.org/abs/2207.12598, section 3.2).
    """

    shuffle: bool = False
    keep_tokens: int = Field(default=1, ge=0, le=1000)
    dropout: float = Field(default=0.0, ge=0, le=1)
    tag_dropout: float = Field(default=0.0, ge=0, lt=1)


class Reading(Model):
    """How a dataset was read from its `folder` (absolute). `recursive`: subfolders without a number too; `caption_lines`: every line of a
    caption file is a caption of its own.
    """

    folder: Utf8
    recursive: bool = False
    caption_lines: bool = False


class Dataset(Model):
    """Pictures that are used in one way. `mask_from_alpha`: transparent parts are not trained. `notes`: what was left out of them and why, each a
    sentence for the user; `reading`: the folder that they come from, None where they come from none. No result depends on these two.
    """

    name: Utf8
    images: tuple[DatasetImage, ...] = Field(min_length=1)
    trigger_word: str = ""
    missing_captions: MissingCaptions = "refuse"
    framing: Framing = Framing()
    caption_use: CaptionUse = CaptionUse()
    mask_from_alpha: bool = False
    reading: Reading | None = None
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_mask(self) -> "Dataset":
        if self.mask_from_alpha and any(image.mask for image in self.images):
            raise ValueError(f"{self.name} has masks of its own and is to take them from the pictures' alpha channel: choose one of the two")
        return self

    def without_caption(self) -> list[DatasetImage]:
        """Pictures that have neither a caption nor, where that is allowed, a trigger word to stand in for it."""
        if self.missing_captions == "use the trigger word" and self.trigger_word:
            return []
        return [image for image in self.images if not image.caption]

    def copies(self) -> list[DatasetImage]:
        """Images whose bytes are those of another one."""
        counts = Counter(image.sha256 for image in self.images)
        return [image for image in self.images if counts[image.sha256] > 1]

    def captions(self, image: DatasetImage) -> list[str]:
        """Its captions as they are trained; a picture without one has the trigger word alone."""
        return [self._triggered(caption.strip()) for caption in (image.caption or "", *image.more_captions)]

    def training_caption(self, image: DatasetImage) -> str:
        """The first of `captions`."""
        return self.captions(image)[0]

    def _triggered(self, caption: str) -> str:
        """The trigger word goes first, unless the caption already holds it as whole words."""
        if not self.trigger_word:
            return caption
        if not caption:
            return self.trigger_word
        held = re.search(rf"(?<!\w){re.escape(self.trigger_word)}(?!\w)", caption, re.IGNORECASE)
        return caption if held else f"{self.trigger_word}, {caption}"
