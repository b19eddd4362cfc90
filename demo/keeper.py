"""Runs a command that is not to outlive whoever has started it: `python keeper.py COMMAND...`, with a pipe for its stdin.

When the pipe ends, however its other end went, the command is killed. What it had started itself (a trainer, which saves its state when ComfyUI is
gone) has time to leave, and is killed then. The keeper ends when nothing is left, with the command's exit code.
"""
import signal
import subprocess
import sys
import threading
from typing import Any

import psutil

_LOOK_SECONDS = 2.0
_LEAVE_SECONDS = 60.0


def main(command: list[str]) -> int:
    """See the module."""
    asked = threading.Event()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: asked.set())
    threading.Thread(target=_wait_for_end_of_stdin, args=(asked,), daemon=True).start()
    process = psutil.Popen(command, stdin=subprocess.DEVNULL)
    started: set[psutil.Process] = set()
    # A process that has lost its parent is nobody's descendant any more: they are looked for while it is there.
    while process.poll() is None and not asked.wait(_LOOK_SECONDS):
        started |= _descendants(process)
    started |= _descendants(process)
    if process.poll() is None:
        process.kill()
    code = process.wait()
    _, staying = psutil.wait_procs(started, timeout=_LEAVE_SECONDS)
    for left in staying:
        _kill(left)
    psutil.wait_procs(staying)
    return code


def _wait_for_end_of_stdin(asked: threading.Event) -> None:
    # Unbuffered: the interpreter's shutdown would die on the lock that a buffered reader holds while it waits.
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        while stdin.read(1024):
            pass
    asked.set()


def _descendants(process: Any) -> set[psutil.Process]:
    try:
        return set(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
