"""What a run is asked to do, as typed data.

A run folder holds one `spec.json`: either a `TrainLoRASpec` or a `CaptionSpec`, told apart by `task`. Everything that changes the
result of the run is in it, so the same spec gives the same result; nothing in it is looked up later by name.

Unknown keys are errors everywhere: a misspelt setting must not be ignored in silence.
"""
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

Precision = Literal["auto", "fp16", "bf16", "fp32"]
Targets = Literal["transformer", "attention"]
MissingCaptions = Literal["refuse", "use the trigger word"]
CaptionMode = Literal["missing only", "all images"]

MAX_REPEATS = 10_000
NAME_PATTERN = re.compile(r"[\w][\w .+-]{0,99}")
RUN_ID_PATTERN = re.compile(r"[a-z0-9_]+(?:-[a-z0-9_]+)*-[0-9a-f]{12}")


class SpecError(ValueError):
    """The spec asks for something that cannot be done. The message is for the user: what, where, what to do."""


class Model(BaseModel):
    """Immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _utf8(text: str) -> str:
    text.encode()  # UnicodeEncodeError is a ValueError, so pydantic tells it like any other.
    return text


Utf8 = Annotated[str, AfterValidator(_utf8)]
"""A string that JSON can hold: names on a disk need not be one."""


class DatasetImage(Model):
    """One picture and how it is used.

    `path` is absolute; `sha256` is that of the file's bytes, so a changed picture is another dataset; `repeats` is how often it is
    visited in one pass.
    """

    path: Utf8
    sha256: str
    caption: str | None = None
    repeats: int = Field(default=1, ge=1, le=MAX_REPEATS)


class Dataset(Model):
    """Where pictures and captions are and how they are used; never pixels.

    `resolution` is in pixels: the shorter side is scaled to it and the middle square is taken.
    """

    name: Utf8
    images: tuple[DatasetImage, ...] = Field(min_length=1)
    trigger_word: str = ""
    missing_captions: MissingCaptions = "refuse"
    resolution: int = Field(default=512, ge=64, le=4096, multiple_of=8)

    def without_caption(self) -> list[DatasetImage]:
        """Pictures that have neither a caption nor, where that is allowed, a trigger word to stand in for it."""
        if self.missing_captions == "use the trigger word" and self.trigger_word:
            return []
        return [image for image in self.images if not image.caption]

    def training_caption(self, image: DatasetImage) -> str:
        """The caption as it is trained: the trigger word goes first, unless the caption already holds it as whole words."""
        caption = (image.caption or "").strip()
        if not self.trigger_word:
            return caption
        if not caption:
            return self.trigger_word
        held = re.search(rf"(?<!\w){re.escape(self.trigger_word)}(?!\w)", caption, re.IGNORECASE)
        return caption if held else f"{self.trigger_word}, {caption}"


class Base(Model):
    """The checkpoint to train on.

    `name` is as in ComfyUI's combo; `checkpoint`, `vae` and `tokenizer` are absolute paths (`tokenizer`: a folder with CLIP's
    vocabulary). `header_sha256`, `size` and `mtime_ns` say which file it was without reading gigabytes.
    """

    name: str
    checkpoint: str
    family: str
    tokenizer: str
    header_sha256: str
    size: int
    mtime_ns: int
    vae: str | None = None
    vae_mtime_ns: int | None = None


class Network(Model):
    """LoRA (https://arxiv.org/abs/2106.09685): W + alpha / rank * up @ down.

    `targets`: `transformer` is every linear and 1x1 layer of the UNet's transformers (what kohya's trainer adapts), `attention` only
    the q, k, v and output projections.
    """

    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=16.0, gt=0, le=4096)
    targets: Targets = "transformer"


class Sampling(Model):
    """Pictures drawn while training. `every_steps` 0 means only at the end; sizes in pixels."""

    prompts: tuple[str, ...] = ()
    negative: str = ""
    every_steps: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**64)
    steps: int = Field(default=20, ge=1, le=200)
    guidance_scale: float = Field(default=7.0, ge=0, le=50)
    width: int = Field(default=512, ge=64, le=4096, multiple_of=8)
    height: int = Field(default=512, ge=64, le=4096, multiple_of=8)


class TrainLoRASpec(Model):
    """Train a LoRA on `base` with `dataset`; the finished file goes to `output` (absolute)."""

    version: Literal[1] = 1
    task: Literal["train_lora"] = "train_lora"
    name: str
    output: str
    base: Base
    dataset: Dataset
    validation: Dataset | None = None
    network: Network = Network()
    steps: int = Field(ge=1, le=1_000_000)
    batch_size: int = Field(default=1, ge=1, le=1024)
    learning_rate: float = Field(default=1e-4, gt=0, le=10)
    max_grad_norm: float = Field(default=1.0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**64)
    precision: Precision = "auto"
    sampling: Sampling = Sampling()
    save_every_steps: int = Field(default=500, ge=0)

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not NAME_PATTERN.fullmatch(name) or name.endswith((".", " ")):
            raise ValueError(
                f"the adapter name {name!r} is not a plain file name: use letters, digits, spaces and . _ + - (at most 100)"
            )
        return name


class CaptionSpec(Model):
    """Write a caption beside each picture. `captioner` is a folder (absolute) with a BLIP model."""

    version: Literal[1] = 1
    task: Literal["caption"] = "caption"
    captioner: str
    dataset: Dataset
    mode: CaptionMode = "missing only"
    trigger_word: str = ""
    max_new_tokens: int = Field(default=40, ge=1, le=500)
    precision: Precision = "auto"

    def images_to_caption(self) -> list[DatasetImage]:
        """The pictures this run writes a caption for."""
        return [image for image in self.dataset.images if self.mode == "all images" or not image.caption]


Spec = Annotated[TrainLoRASpec | CaptionSpec, Field(discriminator="task")]
_SPEC: TypeAdapter[TrainLoRASpec | CaptionSpec] = TypeAdapter(Spec)


def explain(error: ValidationError) -> str:
    """Pydantic's findings on one line: `steps: Input should be greater than or equal to 1 (got 0); ...`."""
    findings = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "spec"
        message = item["msg"].removeprefix("Value error, ")
        shown = repr(item["input"])
        findings.append(f"{where}: {message}" + (f" (got {shown})" if len(shown) <= 60 else ""))
    return "; ".join(findings)


def read_spec(path: Path) -> TrainLoRASpec | CaptionSpec:
    """Read `spec.json`.

    Raises:
        SpecError: the file is missing, is not JSON, or says something that the models above reject.
    """
    try:
        return _SPEC.validate_json(path.read_bytes())
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise SpecError(f"{path.name}: {explain(error)}") from error


def fingerprint(spec: TrainLoRASpec | CaptionSpec) -> str:
    """64 hex digits that change when the result of the run would: a picture, a caption, the base, a number.

    Where the dataset lies does not change the result, so folders are left out: a moved dataset is the same dataset.
    """
    data: dict[str, Any] = spec.model_dump(mode="json")
    for key in ("dataset", "validation"):
        if data.get(key):
            for image in data[key]["images"]:
                image["path"] = Path(image["path"]).name
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def run_id(spec: TrainLoRASpec | CaptionSpec) -> str:
    """The name of the run's folder: readable, and the same for the same work, so that a run can be found again and continued."""
    label = spec.name if isinstance(spec, TrainLoRASpec) else f"caption {spec.dataset.name}"
    slug = re.sub(r"[^a-z0-9_]+", "-", label.lower()).strip("-") or "run"
    return f"{slug[:60].strip('-')}-{fingerprint(spec)[:12]}"
