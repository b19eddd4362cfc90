"""What a run is asked to do, as typed data.

A run folder holds one `spec.json`: that of a training or a `CaptionSpec`, told apart by `task`. Everything that changes the result of the run is
in it, so the same spec gives the same result; nothing in it is looked up later by name.
"""
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from .dataset import Dataset, DatasetImage
from .file_names import check_file_name, check_word_name
from .messages import explain
from .options import (
    Checkpointing,
    Hardware,
    Network,
    NewWord,
    Objective,
    OptimizerOptions,
    PivotalWord,
    Prior,
    Sampling,
    SaveFormat,
    TextOptions,
)
from .typed import Model, SpecError

Precision = Literal["auto", "fp16", "bf16", "fp32"]
CaptionMode = Literal["missing only", "all images"]

STEP_PATTERN = re.compile(r"-step(\d{8})")
SPEC_FILE = "spec.json"
"""Its name in a run's folder."""
METADATA_KEY = "lora_loom.spec"
"""Under which a trained file's metadata hold the spec, as JSON, see `without_folders`."""
_OUTPUTS = ("output", "word_output")
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


@dataclass(frozen=True)
class Result:
    """A file that a training makes, and where it goes. `kept`: the run's folder has a copy under this `name`, since the file itself may be moved or
    removed; not where it is as large as a checkpoint.
    """

    name: str
    output: Path
    kept: bool = True

    @property
    def copy(self) -> str:
        """The name of the copy."""
        return f"{self.name}.safetensors"


class TrainingSpec(Model):
    """What every training is told, whatever its method; the finished file goes to `output` (absolute), which `placing` gives a number where `name`
    is taken.

    `class_images`: pictures of the class for prior preservation, which `prior` weighs and adds to. `cache`: the folder (absolute) that keeps what
    was encoded for the next training; empty: nothing is kept.
    """

    version: Literal[1] = 1
    task: str
    name: str
    output: str
    base: Base
    datasets: tuple[Dataset, ...] = Field(min_length=1)
    validation: tuple[Dataset, ...] = ()
    class_images: tuple[Dataset, ...] = ()
    cache: str = ""
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

    @property
    def results(self) -> tuple[Result, ...]:
        """The files that this makes, the main one first."""
        raise NotImplementedError

    def saved_as(self, stem: str) -> Self:
        """The same with all its files under another name, which is given without the ending."""
        outputs = {key: getattr(self, key) for key in _OUTPUTS if getattr(self, key, "")}
        return self.model_copy(update={key: str(Path(output).with_name(f"{stem}.safetensors")) for key, output in outputs.items()})

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        check_file_name(name)
        return name

    @model_validator(mode="after")
    def _has_a_best(self) -> Self:
        if not self.validation and (self.checkpointing.keep_best or self.checkpointing.adapter == "best"):
            raise ValueError("the best state is that with the lowest validation loss, and there is no validation dataset: connect one")
        return self

    @model_validator(mode="after")
    def _has_a_class(self) -> Self:
        if self.class_images and not self.prior:
            raise ValueError("there is a class dataset and no prior preservation: chain Prior Preservation to the options")
        if self.prior and not self.class_images and not self.prior.class_prompt:
            raise ValueError(
                "prior preservation has no pictures: connect a class dataset, or give Prior Preservation a class_prompt to draw them from"
            )
        subject = {image.sha256 for dataset in self.datasets for image in dataset.images}
        shared = [image.path for dataset in self.class_images for image in dataset.images if image.sha256 in subject]
        if shared:
            raise ValueError(
                f"{len(shared)} of the class pictures are pictures of the subject too, the first is {Path(shared[0]).name}: the class dataset has to "
                "show others of its kind. Choose another folder"
            )
        return self


class TrainLoRASpec(TrainingSpec):
    """Train a LoRA on `base`. `word`: an embedding that is trained along (pivotal tuning) and goes to `word_output` (absolute)."""

    task: Literal["train_lora"] = "train_lora"
    network: Network = Network()
    word: PivotalWord | None = None
    word_output: str = ""

    @property
    def results(self) -> tuple[Result, ...]:
        """The adapter, and the embedding where there is one."""
        embedding = (Result("embedding", Path(self.word_output)),) if self.word else ()
        return (Result("adapter", Path(self.output)), *embedding)

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        if (self.word is not None) != bool(self.word_output):
            raise ValueError("word and word_output belong together")
        if self.word:
            check_word_name(self.name)
        return self


class FineTuneSpec(TrainingSpec):
    """Train the UNet itself, and the text encoders where `text` gives them a learning rate; `output` is a whole checkpoint.

    `save_format`: of the UNet, the text encoders and the VAE in it. A learning rate of 0 gives the base back.
    """

    task: Literal["fine_tune"] = "fine_tune"
    learning_rate: float = Field(default=1e-5, ge=0, le=10)
    save_format: SaveFormat = "fp16"

    @property
    def results(self) -> tuple[Result, ...]:
        """The checkpoint."""
        return (Result("checkpoint", Path(self.output), kept=False),)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.hardware.base_format != "as precision":
            raise ValueError("base_format fp8 is for a base that stays as it is, and a fine-tune trains it: set it to as precision")
        return self


class TextualInversionSpec(TrainingSpec):
    """Train the vectors of a new word and nothing else; `output` is an embedding."""

    task: Literal["textual_inversion"] = "textual_inversion"
    learning_rate: float = Field(default=5e-4, gt=0, le=10)
    word: NewWord

    @property
    def results(self) -> tuple[Result, ...]:
        """The embedding."""
        return (Result("embedding", Path(self.output)),)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        check_word_name(self.name)
        if self.text.learning_rate:
            raise ValueError("textual inversion trains the new word alone: set learning_rate of Text Encoder Options to 0")
        if self.prior:
            raise ValueError("prior preservation has nothing to hold in textual inversion, which leaves the base as it is: take it out")
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


AnySpec = TrainLoRASpec | FineTuneSpec | TextualInversionSpec | CaptionSpec
_SPEC: TypeAdapter[AnySpec] = TypeAdapter(Annotated[AnySpec, Field(discriminator="task")])


def step_output(output: Path, step: int) -> Path:
    """Where the adapter of a step goes, beside the last one: `NAME-step00000500.safetensors`."""
    return output.with_name(f"{output.stem}-step{step:08d}{output.suffix}")


def steps_of(output: Path) -> dict[int, Path]:
    """The adapters of steps that are there, by step."""
    found = ((STEP_PATTERN.fullmatch(path.stem.removeprefix(output.stem)), path) for path in output.parent.glob("*-step*.safetensors"))
    return dict(sorted((int(match[1]), path) for match, path in found if match and path.stem.startswith(output.stem)))


def read_spec(path: Path) -> AnySpec:
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


def without_folders(spec: TrainingSpec | CaptionSpec) -> dict[str, Any]:
    """The spec as JSON data without what changes no result: of every path the file name is left, and nothing of what was only noted."""
    data: dict[str, Any] = spec.model_dump(mode="json")
    base: dict[str, Any] = data.get("base", {})
    datasets = [dataset for key in ("datasets", "validation", "class_images") for dataset in data.get(key, ())]
    datasets += [data["dataset"]] if "dataset" in data else []
    images = [image for dataset in datasets for image in dataset["images"]]
    data.pop("cache", None)
    not_results = [(dataset, key) for dataset in datasets for key in ("notes", "reading")]
    for holder, key in [*not_results, *((image, "size") for image in images)]:
        del holder[key]
    start: dict[str, Any] = data.get("checkpointing", {}).get("start") or {}
    adapter: dict[str, Any] = data.get("network", {}).get("start_from") or {}
    own = ((data, key) for key in (*_OUTPUTS, "captioner"))
    places = [(start, "run"), (adapter, "path"), *own, *((base, key) for key in ("checkpoint", "vae", "tokenizer"))]
    for holder, key in [*places, *((image, key) for image in images for key in ("path", "mask"))]:
        if holder.get(key):
            holder[key] = Path(holder[key]).name
    return data


def fingerprint(spec: TrainingSpec | CaptionSpec) -> str:
    """64 hex digits that change when the result of the run would: a picture, a caption, the base, a number."""
    return _fingerprint(without_folders(spec))


def told_fingerprint(metadata: Mapping[str, str]) -> str | None:
    """The fingerprint of the training that made a file, as its metadata tell it; None if they do not."""
    try:
        data = json.loads(metadata.get(METADATA_KEY, ""))
        return _fingerprint(data) if isinstance(data, dict) else None
    except (ValueError, RecursionError):
        return None


def _fingerprint(data: dict[str, Any]) -> str:
    # The number that a taken name is given changes no result.
    plain = {key: f"{data.get('name')}.safetensors" for key in _OUTPUTS if data.get(key)}
    text = json.dumps(data | plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def run_id(spec: TrainingSpec | CaptionSpec) -> str:
    """The name of the run's folder: readable, and the same for the same work, so that a run can be found again and continued."""
    label = spec.name if isinstance(spec, TrainingSpec) else f"caption {spec.dataset.name}"
    slug = re.sub(r"[^a-z0-9_]+", "-", label.lower()).strip("-") or "run"
    return f"{slug[:60].strip('-')}-{fingerprint(spec)[:12]}"
