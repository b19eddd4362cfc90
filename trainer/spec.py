"""What a run is asked to do, as typed data.

A run folder holds one `spec.json`: either a `TrainLoRASpec` or a `CaptionSpec`, told apart by `task`. Everything that changes the
result of the run is in it, so the same spec gives the same result; nothing in it is looked up later by name.
"""
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from .dataset import Dataset, DatasetImage
from .options import Checkpointing, Hardware, Network, Objective, OptimizerOptions, Prior, Sampling, TextOptions
from .typed import Model, SpecError, explain

Precision = Literal["auto", "fp16", "bf16", "fp32"]
CaptionMode = Literal["missing only", "all images"]

NAME_PATTERN = re.compile(r"[\w][\w .+-]{0,99}")
STEP_PATTERN = re.compile(r"-step(\d{8})")
RUN_ID_PATTERN = re.compile(r"[a-z0-9_]+(?:-[a-z0-9_]+)*-[0-9a-f]{12}")


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
    """Train a LoRA on `base` with `datasets`; the finished file goes to `output` (absolute).

    `class_images`: pictures of the class for prior preservation, which `prior` weighs and adds to. `cache`: the folder (absolute) that keeps what
    was encoded for the next training; empty: nothing is kept.
    """

    version: Literal[1] = 1
    task: Literal["train_lora"] = "train_lora"
    name: str
    output: str
    base: Base
    datasets: tuple[Dataset, ...] = Field(min_length=1)
    validation: tuple[Dataset, ...] = ()
    class_images: tuple[Dataset, ...] = ()
    cache: str = ""
    network: Network = Network()
    steps: int = Field(ge=1, le=1_000_000)
    batch_size: int = Field(default=1, ge=1, le=1024)
    learning_rate: float = Field(default=1e-4, gt=0, le=10)
    seed: int = Field(default=0, ge=0, lt=2**64)
    precision: Precision = "auto"
    optimizer: OptimizerOptions = OptimizerOptions()
    objective: Objective = Objective()
    text: TextOptions = TextOptions()
    prior: Prior | None = None
    sampling: Sampling = Sampling()
    checkpointing: Checkpointing = Checkpointing()
    hardware: Hardware = Hardware()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not NAME_PATTERN.fullmatch(name) or name.endswith((".", " ")):
            raise ValueError(
                f"the adapter name {name!r} is not a plain file name: use letters, digits, spaces and . _ + - (at most 100)"
            )
        return name


    @model_validator(mode="after")
    def _has_a_best(self) -> "TrainLoRASpec":
        if not self.validation and (self.checkpointing.keep_best or self.checkpointing.adapter == "best"):
            raise ValueError("the best state is that with the lowest validation loss, and there is no validation dataset: connect one")
        return self

    @model_validator(mode="after")
    def _has_a_class(self) -> "TrainLoRASpec":
        if self.class_images and not self.prior:
            raise ValueError("there is a class dataset and no prior preservation: chain Prior Preservation to the options")
        if self.prior and not self.class_images and not self.prior.class_prompt:
            raise ValueError(
                "prior preservation has no pictures: connect a class dataset, or give Prior Preservation a class_prompt to draw them from"
            )
        return self


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


def step_output(output: Path, step: int) -> Path:
    """Where the adapter of a step goes, beside the last one: `NAME-step00000500.safetensors`."""
    return output.with_name(f"{output.stem}-step{step:08d}{output.suffix}")


def steps_of(output: Path) -> dict[int, Path]:
    """The adapters of steps that are there, by step."""
    found = ((STEP_PATTERN.fullmatch(path.stem.removeprefix(output.stem)), path) for path in output.parent.glob("*-step*.safetensors"))
    return dict(sorted((int(match[1]), path) for match, path in found if match and path.stem.startswith(output.stem)))


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
    datasets = [dataset for key in ("datasets", "validation", "class_images") for dataset in data.get(key, ())]
    images = [image for dataset in [*datasets, data.get("dataset", {"images": []})] for image in dataset["images"]]
    data.pop("cache", None)
    start: dict[str, Any] = data.get("checkpointing", {}).get("start") or {}
    adapter: dict[str, Any] = data.get("network", {}).get("start_from") or {}
    places = [(start, "run"), (adapter, "path"), (data, "output"), (data, "captioner"), *((base, key) for key in ("checkpoint", "vae", "tokenizer"))]
    for holder, key in [*places, *((image, key) for image in images for key in ("path", "mask"))]:
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
