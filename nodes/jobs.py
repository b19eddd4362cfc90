"""Starts, watches and stops the trainer process: the only subprocess code.

The trainer runs in a process group of its own and listens on its stdin; when ComfyUI dies, however it dies, that pipe ends and the
trainer saves and leaves by itself (`trainer/channel.py`).
"""
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
from pydantic import ValidationError
from server import PromptServer

from ..trainer.events import Event, ExitCode, Failed, Progress, Started, parse_event
from ..trainer.history import history, read_events
from ..trainer.spec import CaptionSpec, TrainingSpec, run_id
from .paths import runs_root
from .runs import Run, announce

PACK = Path(__file__).resolve().parent.parent
# `python -m trainer` where python does not look into the current folder: that of Windows' portable ComfyUI does not.
_START = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('trainer', run_name='__main__', alter_sys=True)"
_POLL_SECONDS = 0.1
_LEAVE_SECONDS = 30.0
_LOG_LINES = 12


class TrainerFailed(RuntimeError):
    """The trainer process did not end well. The message is its own, with the last lines of its log where they help."""


def execute(spec: TrainingSpec | CaptionSpec, node: str, name: str, on_event: Callable[[Event], None]) -> Run:
    """Run the trainer on `spec` to its end; gives the run, finished or stopped with its work saved.

    Raises:
        TrainerFailed: any other end.
        comfy.model_management.InterruptProcessingException: the prompt was cancelled; the run's state is saved.
    """
    folder = runs_root() / run_id(spec)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(spec.model_dump_json(indent=2), encoding="utf-8")
    run = Run(folder.name, node, name, spec.task, folder, history(read_events(folder / "events.jsonl")))
    announce(run)
    with (folder / "log.txt").open("ab") as log:
        run.process = _start(folder, log)
        try:
            code = _watch(run, on_event)
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


def _watch(run: Run, on_event: Callable[[Event], None]) -> int:
    process = run.process
    assert process is not None and process.stdout is not None
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def read(stream: Any) -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, args=(process.stdout,), name="lora loom events", daemon=True).start()
    deadline: float | None = None
    interrupt: BaseException | None = None
    while True:
        if deadline is None and (interrupt is not None or comfy.model_management.processing_interrupted()):
            run.stop("state")
            # A step that has begun is let through; its length is known from those before it.
            rate = run.history.progress.steps_per_second if run.history.progress else 0.0
            deadline = time.monotonic() + _LEAVE_SECONDS + (2 / rate if rate else 0.0)
        if deadline is not None and time.monotonic() > deadline:
            _kill(process)
        try:
            line = lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            code = process.wait()
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
    PromptServer.instance.send_sync("lora_loom.run", run.message(event))


def _told(run: Run, code: int) -> str:
    end = run.history.end
    message = end.message if isinstance(end, Failed) else f"the trainer process ended without a word (exit code {code})"
    if isinstance(end, Failed) and end.expected:
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
