"""Saved state of a run: `state/step-NNNNNNNN/`, whole or not there.

A state is written beside the others under a temporary name, flushed to the disk, and renamed; only then older ones go. Its manifest
holds the sha256 of each file, checked on load, since a flipped bit in a safetensors file loads without a word.

No random state is stored: order and noise are functions of (seed, step), see `data/order.py`.
"""
import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from .adapters.files import sha256_of, write_bytes, write_safetensors
from .ema import Ema
from .folder_memory import FolderMemory
from .optim import restore, state_tensors
from .typed import Model

_PREFIX = "step-"
_ASIDE = ".before"
_STATE = re.compile(rf"{_PREFIX}(\d+)(?:{re.escape(_ASIDE)})?")


class StateError(RuntimeError):
    """A saved state cannot be used; the message names it and why."""


class Best(Model):
    """The step with the lowest validation loss so far, and that loss."""

    step: int
    loss: float


class _Manifest(Model):
    """`step`: optimiser steps taken. `draws`: batches drawn, which is more when steps were left out. `optimizer`: what of it is no tensor."""

    step: int
    draws: int
    best: Best | None = None
    scaler: dict[str, float | int] | None
    optimizer: Any
    sha256: dict[str, str]


class State(Model):
    """Where training goes on from; tensors are in the files."""

    step: int
    draws: int
    folder: str
    best: Best | None = None


def save_state(
    run: Path,
    step: int,
    draws: int,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: dict[str, Any] | None,
    ema: Ema | None = None,
    keep: int = 2,
    best: Best | None = None,
) -> Path:
    """Save; gives the folder. Older states than the newest `keep`, but for this one and that of `best`, are removed after it is in place."""
    states = run / "state"
    final = states / f"{_PREFIX}{step:08d}"
    temporary = states / f".{final.name}.tmp"
    for left_by_a_kill in states.glob(f".{_PREFIX}*.tmp"):
        _remove(left_by_a_kill)
    temporary.mkdir(parents=True)
    tensors, numbers = state_tensors(optimizer)
    files = {"weights.safetensors": parameters, "optimizer.safetensors": tensors}
    if ema is not None:
        files["ema.safetensors"] = dict(zip(parameters, ema.tensors(), strict=True))
    try:
        sums = {name: write_safetensors(temporary / name, content) for name, content in files.items()}
        manifest = _Manifest(step=step, draws=draws, best=best, scaler=scaler, optimizer=numbers, sha256=sums)
        write_bytes(temporary / "state.json", manifest.model_dump_json(indent=2).encode())
    except Exception:
        # Half a state is of no use, and it may be what has filled the disk.
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(temporary)
    _put_in_place(temporary, final)
    _sync(states)
    others = [folder for folder in _folders(run) if folder != final]
    for old in others[: -max(keep - 1, 0) or None]:
        if best is None or step_of(old) != best.step:
            shutil.rmtree(old, ignore_errors=True)
    return final


def remove_states(run: Path) -> None:
    """Remove all states of a run that nobody goes on with."""
    shutil.rmtree(run / "state", ignore_errors=True)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename a whole new state, at every moment of which there is a whole one of its step if there was one before."""
    if not os.path.lexists(final):
        os.replace(temporary, final)
        return
    # A folder cannot be replaced by a rename: the one before steps aside under a name that `latest_state` reads as well.
    aside = final.with_name(final.name + _ASIDE)
    _remove(aside)
    os.replace(final, aside)
    os.replace(temporary, final)
    _remove(aside)


def _remove(path: Path) -> None:
    """Remove a state, or a file that has the name of one; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def latest_state(run: Path) -> State | None:
    """The newest state of a run that is whole, or None. A damaged one is passed over for the one before it."""
    for folder in reversed(_folders(run)):
        try:
            manifest = _checked(folder)
        except StateError:
            continue
        return _state(manifest, folder)
    return None


def newest_step(run: Path) -> int | None:
    """The step of a run's newest state, which is not read; None if there is none."""
    return max((step for step in map(step_of, _folders(run)) if step is not None), default=None)


def state_at(run: Path, step: int) -> State:
    """The state of one step of a run. Raises StateError if it is not there or damaged."""
    for folder in reversed(_folders(run)):
        if step_of(folder) == step:
            return _state(_checked(folder), folder)
    raise StateError(f"{run.name} has no saved state of step {step} any more")


def step_of(folder: Path) -> int | None:
    """The step of a state's folder, from its name; None if it is no such folder."""
    match = _STATE.fullmatch(folder.name)
    return int(match[1]) if match else None


def saved_steps(run: Path) -> set[int]:
    """The steps that a run has states of, whole or damaged."""
    return {step for step in map(step_of, _folders(run)) if step is not None}


def _state(manifest: _Manifest, folder: Path) -> State:
    return State(step=manifest.step, draws=manifest.draws, folder=str(folder), best=manifest.best)


def load_state(
    state: State, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, scaler: Any | None, ema: Ema | None = None
) -> None:
    """Copy a state into `parameters` (in place), `optimizer`, `scaler` and `ema`. Raises StateError if it does not fit."""
    folder = Path(state.folder)
    manifest = _checked(folder)
    saved = load_file(folder / "weights.safetensors")
    if saved.keys() != parameters.keys():
        raise StateError(f"{folder.name} belongs to a network with other layers")
    for name, tensor in parameters.items():
        tensor.copy_(saved[name])
    restore(optimizer, load_file(folder / "optimizer.safetensors"), manifest.optimizer)
    if scaler is not None and manifest.scaler:
        scaler.load_state_dict(manifest.scaler)
    if ema is not None:
        averages = load_file(folder / "ema.safetensors")
        ema.load([averages[name] for name in parameters])


def _folders(run: Path) -> list[Path]:
    """The states of a run, oldest first. What else lies beside them is nobody's state, and stays."""
    there = FolderMemory().read(str(run / "state"))
    folders = [run / "state" / name for name in (there.folders if there else ()) if step_of(Path(name)) is not None]
    return sorted(folders, key=lambda folder: (folder.stem, folder.suffix != _ASIDE))


def _checked(folder: Path) -> _Manifest:
    try:
        manifest = _Manifest.model_validate_json((folder / "state.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise StateError(f"{folder.name} has no readable state.json") from error
    for name, expected in manifest.sha256.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != expected:
            raise StateError(f"{folder.name}/{name} is damaged: it is not what was saved")
    return manifest


def _sync(folder: Path) -> None:
    # A rename is on the disk only when its folder is; Windows has no such call and needs none.
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
