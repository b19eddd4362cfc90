"""Going on from another run's saved state."""
import json
from pathlib import Path
from typing import Any

from .checkpoint import State, StateError, state_at
from .spec import SPEC_FILE, TrainingSpec, read_spec, without_folders
from .typed import SpecError

# What the state's tensors belong to: with other settings they would fit nothing.
_OF_NO_STATE = ("save_format", "start_from", "learning_rate")
_FIXED = ("task", "base.checkpoint", "base.header_sha256", "base.size", "base.mtime_ns", "network", "word", "optimizer.name", "optimizer.arguments")


def first_state(spec: TrainingSpec) -> State | None:
    """The state that the spec's run starts from; None if it starts from nothing.

    Steps, learning rate, schedule, data and objective may differ from the other run's. Raises SpecError where what a state belongs to differs, by
    name, where the state is gone, or where there would be nothing to do.
    """
    start = spec.checkpointing.start
    if start is None:
        return None
    run = Path(start.run)
    if start.step >= spec.steps:
        raise SpecError(f"the run goes on from step {start.step} and has {spec.steps} steps in all: set steps higher.")
    try:
        state = state_at(run, start.step)
    except StateError as error:
        raise SpecError(f"{error}: choose another state, or train from the start.") from error
    other = read_spec(run / SPEC_FILE)
    if not isinstance(other, TrainingSpec):
        raise SpecError(f"{run.name} is no training: choose another state.")
    differing = _differing(spec, other)
    if differing:
        raise SpecError(
            f"the state of {run.name} cannot be gone on from, because these settings differ: {'; '.join(differing)}. Set them as they were, or "
            "train from the start."
        )
    # Which of the other run's steps was best says nothing here: this run has none of its states, and perhaps other pictures to validate with.
    return state.model_copy(update={"best": None})


def _differing(spec: TrainingSpec, other: TrainingSpec) -> list[str]:
    here, there = without_folders(spec), without_folders(other)
    found = []
    for path in _FIXED:
        new, old = _at(here, path), _at(there, path)
        if isinstance(new, dict) and isinstance(old, dict):
            found += [_told(f"{path}.{key}", old[key], new[key]) for key in new if new[key] != old[key] and key not in _OF_NO_STATE]
        elif new != old:
            found.append(_told(path, old, new))
    pairs = (
        ("optimizer.ema_decay", spec.optimizer.ema_decay, other.optimizer.ema_decay),
        ("text.learning_rate", spec.text.learning_rate, other.text.learning_rate),
    )
    found += [_told(name, old, new) for name, new, old in pairs if (new > 0) != (old > 0)]
    return found


def _at(data: dict[str, Any], path: str) -> Any:
    """None where the method has no such setting."""
    *outer, last = path.split(".")
    for key in outer:
        data = data[key]
    return data.get(last)


def _told(name: str, old: Any, new: Any) -> str:
    return f"{name} was {json.dumps(old)} and is {json.dumps(new)}"
