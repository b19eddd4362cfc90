"""Wires one run: reads the spec, checks what can be checked at once, does the work, says how it ended."""
import logging
import os
import sys
import traceback
from pathlib import Path

from .adapters.files import FileError
from .channel import Channel
from .events import ExitCode, Failed, Finished, Phase, Started
from .failures import explained
from .families.detect import FamilyError, check_vae, describe_checkpoint
from .hidden import hidden
from .history import EVENTS_FILE
from .launch import is_first, is_launched, launch
from .optim import check
from .spec import SPEC_FILE, CaptionSpec, TrainingSpec, read_spec
from .typed import SpecError


def run_job(folder: Path) -> ExitCode:
    """Carry out `folder/spec.json`. Every way out but a kill is told as an event and as the exit code."""
    channel = Channel(folder / EVENTS_FILE if is_first() else None)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    task = ""
    try:
        spec = read_spec(folder / SPEC_FILE)
        task = spec.task
        if isinstance(spec, TrainingSpec) and spec.hardware.processes > 1 and not is_launched():
            _check(spec)
            # Commands are for the process that trains: this one must not read them.
            return launch(spec, folder, folder / EVENTS_FILE, channel.stdout)
        channel.listen()
        channel.emit(Phase(name="starting"))
        stopped = _train(spec, folder, channel) if isinstance(spec, TrainingSpec) else _caption(spec, folder, channel)
        # A launcher takes every code but 0 for a crash; ours tells a stop from the events.
        return ExitCode.STOPPED if stopped and not is_launched() else ExitCode.FINISHED
    except (SpecError, FamilyError) as error:
        channel.emit(Failed(message=str(error)))
        return ExitCode.SPEC_WRONG
    except Exception as error:
        traceback.print_exc()
        channel.emit(Failed(message=explained(error, channel.doing, folder, task) or _in_words(error)))
        return ExitCode.FAILED


def _check(spec: TrainingSpec) -> None:
    """What can be told at once."""
    try:
        describe_checkpoint(Path(spec.base.checkpoint))
        if spec.base.vae:
            check_vae(Path(spec.base.vae))
    except FileError as error:
        raise SpecError(str(error)) from error
    check(spec.optimizer)


def _train(spec: TrainingSpec, folder: Path, channel: Channel) -> bool:
    _check(spec)
    # Seconds of imports: after the checks, so that a wrong spec is answered at once.
    channel.emit(Phase(name="loading libraries"))
    with hidden("bitsandbytes", "scipy"):
        from .training import Training

        training = Training(spec, folder, channel)
    return training.run()


def _caption(spec: CaptionSpec, folder: Path, channel: Channel) -> bool:
    from .captioning.folder import check_captioner

    total = len(spec.images_to_caption())
    channel.emit(Started(run=folder.name, pid=os.getpid(), task=spec.task, total_steps=total))
    check_captioner(Path(spec.captioner))
    from .captioning.blip import run_captioning

    channel.something_to_save()
    written = run_captioning(spec, channel.emit, channel.stop_requested)
    stopped = channel.stop_requested() and written < total
    channel.emit(Finished(step=written, stopped=stopped))
    return stopped


def _in_words(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    named = type(error).__module__.startswith(__package__ or "")
    return text if named else f"{type(error).__name__}: {text}"
