"""Where the files of a training go: under its name, or under that name with a number where it is taken, as `bun-2`.

Nothing that is there is replaced but what the same run has made: an earlier training under the name is work that somebody may still want.
"""
import itertools
from pathlib import Path
from typing import TypeVar

from .adapters.files import FileError, read_header
from .messages import listed
from .spec import TrainingSpec, fingerprint, steps_of, told_fingerprint

_Spec = TypeVar("_Spec", bound=TrainingSpec)
_FIRST_NUMBER = 2


def placed(spec: _Spec, before: TrainingSpec | None = None) -> _Spec:
    """`spec` with outputs at which there is nothing but files of its own run, all of them with the same number.

    `before`: as the run was placed by an earlier attempt, which is kept to as long as a file of it is there.
    """
    if before is not None:
        kept = spec.saved_as(Path(before.output).stem)
        if _files(kept) and not is_taken(kept):
            return kept
    candidates = (spec.saved_as(f"{spec.name}-{number}") for number in itertools.count(_FIRST_NUMBER))
    return next(candidate for candidate in itertools.chain([spec.saved_as(spec.name)], candidates) if not is_taken(candidate))


def is_taken(spec: TrainingSpec) -> bool:
    """Whether something else lies where one of the spec's files goes."""
    own = fingerprint(spec)
    return any(_run_of(path) != own for path in _files(spec))


def number_note(spec: TrainingSpec) -> str:
    """What a user is told of a training that is not saved under its own name; empty where it is."""
    files = [result.output.name for result in spec.results]
    if Path(spec.output).stem == spec.name:
        return ""
    return f"the name {spec.name} was taken by another file, which stays as it is: this training is saved as {listed(list(dict.fromkeys(files)))}."


def _files(spec: TrainingSpec) -> list[Path]:
    """What lies where the spec's results go."""
    outputs = [result.output for result in spec.results]
    steps = [path for output in outputs for path in steps_of(output).values()] if spec.checkpointing.adapter_every_steps else []
    return [path for path in (*outputs, *steps) if path.exists()]


def _run_of(path: Path) -> str | None:
    """The fingerprint of the run that made a file; None if it was none."""
    try:
        return told_fingerprint(read_header(path).metadata)
    except FileError:
        return None
