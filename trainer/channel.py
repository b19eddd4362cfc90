"""The trainer's two ends of the pipe: events out on stdout, commands in on stdin.

Libraries print. So the real stdout is put aside at the start and file descriptor 1 becomes stderr, which ComfyUI's side writes to
`log.txt`: nothing but events ever reaches the other side.

End of file on stdin means that ComfyUI is gone, however it went (a pipe's end survives `kill -9`): the run saves its state and leaves.
"""
import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .events import DrawSample, Event, ExitCode, Finished, Phase, Progress, Started, Stop, Warned, parse_command
from .history import is_cut_off
from .patience import Patience, seconds_of_step

_LEAVE_SECONDS = 120.0
_LOOK_SECONDS = 0.5


class Channel:
    """Sends events, remembers commands."""

    def __init__(self, events_file: Path | None) -> None:
        """`events_file`: where events are kept; None for a process that is not to be heard, as all but the first of several are."""
        self._silent = events_file is None
        self.stop: Stop | None = None
        self._sample = threading.Event()
        self._lock = threading.Lock()
        self._nothing_to_save = True
        self._written: Callable[[], int] = lambda: 0
        self._phase, self._step, self._rate = "starting", 0, 0.0
        sys.stdout.flush()
        sys.stdout = sys.stderr = _log()
        if events_file is None:
            os.dup2(2, 1)
            return
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        # After half a line, of an earlier process that died or on a disk that was full, the next event begins one of its own.
        self._cut_off = is_cut_off(events_file)
        try:
            self._file = events_file.open("ab", buffering=0)
        except OSError:
            self._file = open(os.devnull, "wb", buffering=0)  # noqa: SIM115 - lives as long as the process; what the run saves first fails, and says why

    @property
    def stdout(self) -> int:
        """The descriptor of the real stdout."""
        return self._out.fileno()

    def listen(self, leave_seconds: float = _LEAVE_SECONDS) -> None:
        """Start reading commands in the background. `leave_seconds`: how long the run may take to save and leave once ComfyUI is gone."""
        if self._silent:
            return
        threading.Thread(target=self._read, args=(leave_seconds,), name="commands", daemon=True).start()

    def emit(self, event: Event) -> None:
        """Send one event and keep it in `events.jsonl`."""
        if self._silent:
            return
        line = event.model_dump_json().encode() + b"\n"
        self._take(event)
        with self._lock:
            self._keep(line)
            try:
                self._out.write(line)
            except OSError:
                # A broken pipe, which Windows calls an invalid argument.
                # ComfyUI is gone; the reader of stdin sees the same and ends the run. The file still gets every event.
                pass

    @property
    def doing(self) -> str:
        """What the run is at, by the events so far: `training, after step 12`."""
        return f"{self._phase}, after step {self._step}" if self._step else self._phase

    def _take(self, event: Event) -> None:
        if isinstance(event, Phase):
            self._phase = event.name
        elif isinstance(event, Progress):
            self._step, self._rate = event.step, event.steps_per_second
        elif isinstance(event, Started):
            self._step = event.resumed_from

    def _keep(self, line: bytes) -> None:
        # A disk that is full ends the run where something is saved, with words for it, and not here.
        with contextlib.suppress(OSError):
            whole = b"\n" + line if self._cut_off else line
            self._cut_off = self._file.write(whole) < len(whole)

    def stop_requested(self) -> bool:
        """Whether the run has been asked to end."""
        return self.stop is not None

    def sample_waiting(self) -> bool:
        """Whether sample pictures have been asked for and not yet been drawn."""
        return self._sample.is_set()

    def sample_requested(self) -> bool:
        """Whether sample pictures have been asked for since the last call."""
        asked = self._sample.is_set()
        self._sample.clear()
        return asked

    def something_to_save(self, written: Callable[[], int] = lambda: 0) -> None:
        """From now on a stop waits for the current step, and for a save as long as `written` moves (see `Patience`); before, it ends the process at
        once.
        """
        self._written = written
        with self._lock:
            self._nothing_to_save = False

    def _read(self, leave_seconds: float) -> None:
        # Unbuffered: a buffered reader holds its lock while it waits, and the interpreter's shutdown dies on that lock.
        commands = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - lives as long as the process
        while line := commands.readline():
            try:
                command = parse_command(line)
            except ValidationError as error:
                self.emit(Warned(message=f"a command was not understood and is ignored: {error.errors()[0]['msg']}"))
                continue
            if isinstance(command, DrawSample):
                self._sample.set()
            else:
                self._request_stop(command)
        if self.stop is None:
            self._request_stop(Stop(save="state"))
        patience = Patience(self._written, leave_seconds, seconds_of_step(self._rate))
        while not patience.is_over():
            time.sleep(_LOOK_SECONDS)
        os._exit(ExitCode.FAILED)

    def _request_stop(self, command: Stop) -> None:
        with self._lock:
            self.stop = command
            leave = self._nothing_to_save
        if leave or command.save == "nothing":
            # Loading and caching can take minutes inside a library call that does not look at a flag.
            self.emit(Finished(stopped=True))
            os._exit(ExitCode.STOPPED)


class _Log(io.FileIO):
    """Descriptor 2, which a full disk does not make fail: a run is not to die of its log."""

    def write(self, data: Any) -> int:
        """As a file's, and as if all were written where nothing is."""
        with contextlib.suppress(OSError):
            return super().write(data)
        return memoryview(data).nbytes


def _log() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(_Log(2, "wb", closefd=False)), encoding="utf-8", errors="backslashreplace", line_buffering=True)
