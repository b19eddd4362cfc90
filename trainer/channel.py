"""The trainer's two ends of the pipe: events out on stdout, commands in on stdin.

Libraries print. So the real stdout is put aside at the start and file descriptor 1 becomes stderr, which ComfyUI's side writes to
`log.txt`: nothing but events ever reaches the other side.

End of file on stdin means that ComfyUI is gone, however it went (a pipe's end survives `kill -9`): the run saves its state and leaves.
"""
import os
import sys
import threading
import time
from pathlib import Path

from pydantic import ValidationError

from .events import DrawSample, Event, ExitCode, Finished, Stop, Warned, parse_command

_LEAVE_SECONDS = 120.0


class Channel:
    """Sends events, remembers commands."""

    def __init__(self, events_file: Path | None) -> None:
        """`events_file`: where events are kept; None for a process that is not to be heard, as all but the first of several are."""
        self._silent = events_file is None
        self.stop: Stop | None = None
        self._sample = threading.Event()
        self._lock = threading.Lock()
        self._nothing_to_save = True
        if events_file is None:
            os.dup2(2, 1)
            return
        sys.stdout.flush()
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        cut_off = events_file.is_file() and events_file.read_bytes()[-1:] not in (b"", b"\n")
        self._file = events_file.open("ab", buffering=0)
        if cut_off:
            # An earlier process died in the middle of a line: the next event begins one of its own.
            self._file.write(b"\n")

    @property
    def stdout(self) -> int:
        """The descriptor of the real stdout."""
        return self._out.fileno()

    def listen(self) -> None:
        """Start reading commands in the background."""
        if self._silent:
            return
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    def emit(self, event: Event) -> None:
        """Send one event and keep it in `events.jsonl`."""
        if self._silent:
            return
        line = event.model_dump_json().encode() + b"\n"
        with self._lock:
            self._file.write(line)
            try:
                self._out.write(line)
            except OSError:
                # A broken pipe, which Windows calls an invalid argument.
                # ComfyUI is gone; the reader of stdin sees the same and ends the run. The file still gets every event.
                pass

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

    def something_to_save(self) -> None:
        """From now on a stop waits for the current step; before this call it ends the process at once."""
        with self._lock:
            self._nothing_to_save = False

    def _read(self) -> None:
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
        time.sleep(_LEAVE_SECONDS)
        os._exit(ExitCode.FAILED)

    def _request_stop(self, command: Stop) -> None:
        with self._lock:
            self.stop = command
            leave = self._nothing_to_save
        if leave or command.save == "nothing":
            # Loading and caching can take minutes inside a library call that does not look at a flag.
            self.emit(Finished(stopped=True))
            os._exit(ExitCode.STOPPED)
