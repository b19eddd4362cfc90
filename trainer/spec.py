"""What a run is asked to do, as typed data.

A run folder holds one `spec.json`: either a `TrainLoRASpec` or a `CaptionSpec`, told apart by `task`. Everything that changes the
result of the run is in it, so the same spec gives the same result; nothing in it is looked up later by name.
"""
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from .options import Checkpointing, Network, Objective, OptimizerOptions, Sampling
from .typed import Model, SpecError, Utf8, explain

Precision = Literal["auto", "fp16", "bf16", "fp32"]
MissingCaptions = Literal["refuse", "use the trigger word"]
CaptionMode = Literal["missing only", "all images"]

MAX_REPEATS = 10_000
NAME_PATTERN = re.compile(r"[\w][\w .+-]{0,99}")
RUN_ID_PATTERN = re.compile(r"[a-z0-9_]+(?:-[a-z0-9_]+)*-[0-9a-f]{12}")


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
    seed: int = Field(default=0, ge=0, lt=2**64)
    precision: Precision = "auto"
    optimizer: OptimizerOptions = OptimizerOptions()
    objective: Objective = Objective()
    sampling: Sampling = Sampling()
    checkpointing: Checkpointing = Checkpointing()

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


def without_folders(spec: TrainLoRASpec | CaptionSpec) -> dict[str, Any]:
    """The spec as JSON data in which every path is a file name: where things lie is nobody else's business and changes no result."""
    data: dict[str, Any] = spec.model_dump(mode="json")
    base: dict[str, Any] = data.get("base", {})
    images = [image for key in ("dataset", "validation") if data.get(key) for image in data[key]["images"]]
    places = [(data, "output"), (data, "captioner"), *((base, key) for key in ("checkpoint", "vae", "tokenizer"))]
    for holder, key in [*places, *((image, "path") for image in images)]:
        if holder.get(key):
            holder[key] = Path(holder[key]).name
    return data


def fingerprint(spec: TrainLoRASpec | CaptionSpec) -> str:
    """64 hex digits that change when the result of the run would: a picture, a caption, the base, a number."""
    text = json.dumps(without_folders(spec), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def run_id(spec: TrainLoRASpec | CaptionSpec) -> str:
    """The name of the run's folder: readable, and the same for the same work, so that a run can be found again and continued."""
    label = spec.name if isinstance(spec, TrainLoRASpec) else f"caption {spec.dataset.name}"
    slug = re.sub(r"[^a-z0-9_]+", "-", label.lower()).strip("-") or "run"
    return f"{slug[:60].strip('-')}-{fingerprint(spec)[:12]}"
