"""What happened in a run, and what may be asked of it: one JSON object a line.

The trainer writes events to stdout and to `events.jsonl`; ComfyUI's side reads them there and passes them to the page unchanged.
Commands come in on the trainer's stdin.
"""
import time
from enum import IntEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from .typed import Model


class ExitCode(IntEnum):
    """How the trainer process ended."""

    FINISHED = 0
    FAILED = 1
    SPEC_WRONG = 2
    STOPPED = 3


class _Event(Model):
    time: float = Field(default_factory=time.time)
    """Unix time in seconds."""


class Started(_Event):
    """The process is up. `resumed_from` is the step whose state is continued, 0 for a new run; `parameters`: how many numbers train.

    `precision`: fp16, bf16 or fp32; empty where nothing trains, and in events from before it was told.
    """

    event: Literal["started"] = "started"
    run: str
    pid: int
    task: str
    total_steps: int
    resumed_from: int = 0
    parameters: int = 0
    precision: str = ""


class Phase(_Event):
    """What the run is doing now; `done` of `total` where that can be counted."""

    event: Literal["phase"] = "phase"
    name: str
    done: int = 0
    total: int = 0
    detail: str = ""


class Bucket(Model):
    """Pictures that are trained at one size in pixels; `visits`: of them in one pass."""

    width: int
    height: int
    pictures: int
    visits: int


class Data(_Event):
    """Everything is encoded: at which sizes pictures are trained, and what was not in the cache."""

    event: Literal["data"] = "data"
    buckets: tuple[Bucket, ...]
    pictures_encoded: int
    captions_encoded: int


class Progress(_Event):
    """Steps taken since the last progress event: `losses[-1]` is that of `step`.

    `elapsed_seconds` and `steps_per_second` count training time only (no loading, no sampling), of this process.
    """

    event: Literal["progress"] = "progress"
    step: int
    total: int
    losses: tuple[float, ...]
    learning_rate: float
    elapsed_seconds: float
    steps_per_second: float
    skipped_steps: int = 0
    """Steps that were not taken, and are not counted in `step`: fp16 overflowed, or the loss or its gradient was not finite."""


class Validation(_Event):
    """Mean loss on the held-out pictures with fixed noise and timesteps.

    `by_dataset`: the mean of each dataset by its name; empty where there is one, and in events from before it was told.
    """

    event: Literal["validation"] = "validation"
    step: int
    loss: float
    by_dataset: dict[str, float] = Field(default_factory=dict)


class Sample(_Event):
    """A picture was drawn; `file` is relative to the run folder."""

    event: Literal["sample"] = "sample"
    step: int
    prompt: str
    file: str


class Caption(_Event):
    """A caption was written; `image` is the picture's absolute path."""

    event: Literal["caption"] = "caption"
    image: str
    caption: str


class Checkpoint(_Event):
    """State was saved, whole and checked; `folder` is relative to the run folder."""

    event: Literal["checkpoint"] = "checkpoint"
    step: int
    folder: str


class Warned(_Event):
    """Something the user should know that does not end the run."""

    event: Literal["warning"] = "warning"
    message: str


class Finished(_Event):
    """The run ended well. `stopped`: it was asked to end early and what it had is saved.

    `adapter` is the finished file's name (empty where the run makes none) and `sha256` that of its bytes. `peak_memory`: bytes, of the GPU's
    memory where there is one; 0 where it is not known.
    """

    event: Literal["finished"] = "finished"
    step: int = 0
    stopped: bool = False
    adapter: str = ""
    sha256: str = ""
    peak_memory: int = 0


class Failed(_Event):
    """The run ended badly; `message` says what is wrong, where, and what to do. `expected`: it says all, and the log has no more to tell."""

    event: Literal["failed"] = "failed"
    message: str
    expected: bool = False


Event = Started | Phase | Data | Progress | Validation | Sample | Caption | Checkpoint | Warned | Finished | Failed
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


class Stop(Model):
    """End the run after the current step.

    `save`: `adapter` keeps the state and writes the adapter so far to where the finished one would go; `state` keeps the state
    only, so that a cancelled run never replaces a good adapter; `nothing` leaves at once.
    """

    command: Literal["stop"] = "stop"
    save: Literal["adapter", "state", "nothing"] = "adapter"


class DrawSample(Model):
    """Draw the sample pictures at the next step."""

    command: Literal["sample"] = "sample"


Command = Stop | DrawSample
_COMMAND: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="command")])


def parse_event(line: str | bytes) -> Event:
    """One line of stdout or of `events.jsonl`. Raises pydantic.ValidationError."""
    return _EVENT.validate_json(line)


def parse_command(line: str | bytes) -> Command:
    """One line of stdin. Raises pydantic.ValidationError."""
    return _COMMAND.validate_json(line)
