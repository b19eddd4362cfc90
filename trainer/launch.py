"""Several processes for one training, through `accelerate launch` (https://huggingface.co/docs/accelerate/basic_tutorials/launch).

The launcher passes stdin and stdout on, of which only the first process makes use. It gives every failure the exit code 1, so how the run ended
is told from the last event.
"""
import os
import subprocess
import sys
from collections import deque
from pathlib import Path

import torch

from .events import Event, ExitCode, Finished
from .history import read_events
from .spec import TrainingSpec
from .typed import SpecError

_PACK = Path(__file__).resolve().parent.parent


def is_launched() -> bool:
    """Whether a launcher has started this process as one of several: torch's sets these for each."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_first() -> bool:
    """Whether this is the process that hears commands, tells events and saves."""
    return os.environ.get("RANK", "0") == "0"


def launch(spec: TrainingSpec, folder: Path, events: Path, stdout: int) -> ExitCode:
    """Train `folder` in the spec's number of processes, and give how it ended. `stdout`: the descriptor that events go to.

    Raises SpecError where there are fewer GPUs than processes.
    """
    count = spec.hardware.processes
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_PACK), *filter(None, sys.path)]), "OMP_NUM_THREADS": _threads(count)}
    if torch.cuda.is_available():
        if count > torch.cuda.device_count():
            raise SpecError(f"hardware.processes is {count}, and there are {torch.cuda.device_count()} GPUs: set it to that number or less.")
        options = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
        launcher = ["accelerate.commands.launch", "--num_processes", str(count), *options, "--module"]
    else:
        # accelerate's way without GPUs asks for MPI; torch's launcher, which it uses for GPUs, does not.
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(count), "--module"]
        environment["ACCELERATE_USE_CPU"] = "true"
    command = [sys.executable, "-m", *launcher, __package__ or "trainer", "run", str(folder)]
    before = events.stat().st_size if events.is_file() else 0
    code = subprocess.run(command, cwd=_PACK, env=environment, stdout=stdout, check=False).returncode
    return _outcome(code, events, before)


def _threads(processes: int) -> str:
    # torch's launcher would give each process a single one.
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))


def _outcome(code: int, events: Path, before: int) -> ExitCode:
    said_something = events.is_file() and events.stat().st_size > before
    newest: deque[Event] = deque(read_events(events) if said_something else (), maxlen=1)
    last = newest[0] if newest else None
    if isinstance(last, Finished) and not code:
        return ExitCode.STOPPED if last.stopped else ExitCode.FINISHED
    return ExitCode.FAILED
