"""Starts, watches and stops the trainer process: the only subprocess code.

The trainer runs in a process group of its own and listens on its stdin; when ComfyUI dies, however it dies, that pipe ends and the
trainer saves and leaves by itself (`trainer/channel.py`).
"""
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import comfy.model_management
from pydantic import ValidationError
from server import PromptServer

from ..trainer.adapters.files import DISK_FULL, write_bytes
from ..trainer.events import Event, ExitCode, Failed, Finished, Progress, Started, Stop, parse_event
from ..trainer.failures import disk_full, ended_by, kept
from ..trainer.history import EVENTS_FILE, History, history, is_cut_off, read_events
from ..trainer.messages import system_reason
from ..trainer.patience import Patience, bytes_of, seconds_of_step
from ..trainer.spec import SPEC_FILE, CaptionSpec, TrainingSpec, run_id
from .paths import runs_root

PACK = Path(__file__).resolve().parent.parent
# `python -m trainer` where python does not look into the current folder: that of Windows' portable ComfyUI does not.
_START = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('trainer', run_name='__main__', alter_sys=True)"
_POLL_SECONDS = 0.1
_LEAVE_SECONDS = 30.0
_LOG_LINES = 12

State = Literal["running", "stopping", "finished", "stopped", "failed"]


class TrainerFailed(RuntimeError):
    """The trainer process did not end well. The message is its own, with the last lines of its log where they help."""


@dataclass
class Run:
    """One run of this server: what the routes tell of it."""

    id: str
    node: str
    name: str
    task: str
    folder: Path
    history: History
    state: State = "running"
    step: int = 0
    total: int = 0
    started: float = field(default_factory=time.time)
    process: "subprocess.Popen[bytes] | None" = None

    def summary(self) -> dict[str, Any]:
        """The JSON of `GET /lora_loom/runs`."""
        shown = ("id", "node", "name", "task", "state", "step", "total", "started")
        return {key: getattr(self, key) for key in shown}

    def stop(self, save: Literal["adapter", "state", "nothing"]) -> None:
        """Ask the trainer to end after its current step."""
        self.state = "stopping"
        if self.process is not None and self.process.stdin is not None:
            try:
                self.process.stdin.write(Stop(save=save).model_dump_json().encode() + b"\n")
                self.process.stdin.flush()
            except (OSError, ValueError):
                pass  # It has just left by itself. Windows calls a broken pipe an invalid argument.


RUNS: dict[str, Run] = {}


def finished_history(folder: Path) -> History | None:
    """The history of a run that finished here earlier, in this server or one before it; None if it has not."""
    told = history(read_events(folder / "events.jsonl"))
    return told if isinstance(told.end, Finished) and not told.end.stopped else None


def remember(spec: TrainingSpec | CaptionSpec, node: str, name: str, told: History) -> None:
    """Let the routes tell of a run that was found finished, so that a page shows it on the node that asked for it."""
    run = Run(run_id(spec), node, name, spec.task, runs_root() / run_id(spec), told, state="finished")
    if isinstance(told.end, Finished):
        run.step = run.total = told.end.step
    RUNS[run.id] = run


def execute(spec: TrainingSpec | CaptionSpec, node: str, name: str, on_event: Callable[[Event], None]) -> Run:
    """Run the trainer on `spec` to its end; gives the run, finished or stopped with its work saved.

    Raises:
        TrainerFailed: any other end.
        comfy.model_management.InterruptProcessingException: the prompt was cancelled; the run's state is saved.
    """
    folder = runs_root() / run_id(spec)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / SPEC_FILE, spec.model_dump_json(indent=2).encode())
    except OSError as error:
        told = disk_full(error, folder) if error.errno in DISK_FULL else f"{folder} cannot be written: {system_reason(error)}."
        raise TrainerFailed(told) from error
    outputs = [result.output for result in spec.results] if isinstance(spec, TrainingSpec) else []
    run = Run(folder.name, node, name, spec.task, folder, history(read_events(folder / "events.jsonl")))
    RUNS[run.id] = run
    run.history.end = None  # of an attempt before
    with (folder / "log.txt").open("ab") as log:
        run.process = _start(folder, log)
        try:
            code = _watch(run, outputs, on_event)
        finally:
            _end(run.process)
            if run.state in ("running", "stopping"):
                run.state = "failed"
    if code == ExitCode.FINISHED:
        run.state = "finished"
    elif code == ExitCode.STOPPED:
        run.state = "stopped"
        comfy.model_management.throw_exception_if_processing_interrupted()
    else:
        run.state = "failed"
        comfy.model_management.throw_exception_if_processing_interrupted()
        raise TrainerFailed(_told(run, code))
    return run


def _start(folder: Path, log: Any) -> "subprocess.Popen[bytes]":
    python = os.environ.get("LORA_LOOM_PYTHON") or sys.executable
    # The hub is never asked: every file a run needs is named in its spec.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUTF8": "1"}
    group: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {"creationflags": 0x00000200}
    try:
        return subprocess.Popen(
            [python, "-c", _START, str(PACK), "run", str(folder)],
            cwd=PACK,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            **group,
        )
    except OSError as error:
        raise TrainerFailed(f"the trainer could not be started with {python}: {error}. Check LORA_LOOM_PYTHON.") from error


def _watch(run: Run, outputs: Sequence[Path], on_event: Callable[[Event], None]) -> int:
    process = run.process
    assert process is not None and process.stdout is not None
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def read(stream: Any) -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, args=(process.stdout,), name="lora loom events", daemon=True).start()
    patience: Patience | None = None
    gave_up = False
    interrupt: BaseException | None = None
    while True:
        if patience is None and (interrupt is not None or comfy.model_management.processing_interrupted()):
            run.stop("state")
            # A step that has begun is let through, and a save for as long as it moves.
            step = seconds_of_step(run.history.progress.steps_per_second if run.history.progress else 0.0)
            patience = Patience(lambda: bytes_of(run.folder, outputs), _LEAVE_SECONDS, step)
        if patience is not None and patience.is_over():
            gave_up = True
            _kill(process)
        try:
            line = lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            code = process.wait()
            if code not in (ExitCode.FINISHED, ExitCode.STOPPED) and not isinstance(run.history.end, Failed):
                _take(run, _last_words(run, code, gave_up))
            if interrupt is not None:
                run.state = "stopped" if code == ExitCode.STOPPED else "failed"
                raise interrupt
            return code
        try:
            event = parse_event(line)
        except ValidationError:
            continue  # Not one of ours: an interpreter's own last words.
        _take(run, event)
        if interrupt is None:
            try:
                on_event(event)
            except comfy.model_management.InterruptProcessingException as error:
                # ComfyUI's progress bar raises on Cancel and takes the flag with it; the trainer still has to save and leave first.
                interrupt = error


def _take(run: Run, event: Event) -> None:
    run.history.add(event)
    if isinstance(event, Progress):
        run.step, run.total = event.step, event.total
    elif isinstance(event, Started):
        run.step, run.total = event.resumed_from, event.total_steps
    message = {"run": run.id, "node": run.node, "name": run.name, "event": event.model_dump(mode="json")}
    PromptServer.instance.send_sync("lora_loom.run", message)


def _last_words(run: Run, code: int, gave_up: bool) -> Failed:
    """What a trainer that ended without a word would have told; its run then tells it as if it had. `gave_up`: it was ended from here."""
    late = f"the trainer process was asked to leave, moved nothing on the disk for {_LEAVE_SECONDS:.0f} s and was ended"
    failed = Failed(message=f"{late}. {kept(run.folder, run.task)}" if gave_up else ended_by(code, run.folder, run.task))
    path = run.folder / EVENTS_FILE
    with contextlib.suppress(OSError):
        start = b"\n" if is_cut_off(path) else b""
        with path.open("ab") as events:
            events.write(start + failed.model_dump_json().encode() + b"\n")
    return failed


def _told(run: Run, code: int) -> str:
    message = run.history.end.message if isinstance(run.history.end, Failed) else ""
    if code == ExitCode.SPEC_WRONG:
        return message
    try:
        lines = (run.folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    except OSError:
        lines = []
    return "\n".join([message, f"Last lines of {run.folder / 'log.txt'}:", *lines])


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if os.name == "posix":
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    else:
        process.kill()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Nothing of the group is left when this returns."""
    if process.poll() is None:
        _kill(process)
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:
                pass
