"""Trainings that are killed: a process that has imported the trainer once, and forks a child for each attempt.

An attempt as a process of its own would spend most of its time importing. The process is apart from pytest's, where other tests have started
threads that do not survive a fork.
"""
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

PACK = Path(__file__).resolve().parents[1]
KILLED = -signal.SIGKILL
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "tempfile.mkstemp")


class Nursery:
    """Starts attempts one after another; a context manager."""

    def __enter__(self) -> "Nursery":
        paths = os.pathsep.join(map(str, (PACK, PACK / "tests", PACK / "demo")))
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, str(Path(__file__).resolve())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.stdin.close()
        self._process.wait(60)

    def attempt(self, folder: Path, seconds: float | None = None, change: int | None = None, later: float = 0.0) -> tuple[int, list[str], float]:
        """Train in `folder`: the exit code (`KILLED` after a kill), the changes made to files, the seconds that it took.

        Killed `seconds` after its start, or `later` seconds after it is about to make change number `change` (from 0), if it gets there.
        """
        request = {"folder": str(folder), "seconds": seconds, "change": change, "later": later}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the process that starts attempts ended with {self._process.wait(10)}"
        code, changes, taken = json.loads(answer)
        return code, changes, taken


def _serve() -> None:
    for module in ("trainer.job", "trainer.training", "trainer.families.sd1"):
        importlib.import_module(module)  # this is what takes seconds

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        log = Path(request["folder"]) / "changes.log"
        log.unlink(missing_ok=True)
        started = time.monotonic()
        stdin, kept_open = os.pipe()
        child = os.fork()
        if not child:
            os.close(kept_open)
            _attempt(request, stdin, log)
        os.close(stdin)
        code = _outcome(child, None if request["seconds"] is None else started + request["seconds"])
        taken = time.monotonic() - started
        os.close(kept_open)
        changes = log.read_text().splitlines() if log.is_file() else []
        print(json.dumps([code, changes, taken]), flush=True)


def _outcome(child: int, deadline: float | None) -> int:
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = None
        time.sleep(0.001)


def _attempt(request: dict[str, Any], stdin: int, log: Path) -> None:
    """In the child: never returns."""
    code = 70
    try:
        os.setsid()
        os.dup2(stdin, 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(log.with_name("log.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)
        _count_changes(request, os.open(log, os.O_WRONLY | os.O_CREAT, 0o644))
        from trainer.job import run_job

        code = int(run_job(Path(request["folder"])))
    finally:
        os._exit(code)


def _count_changes(request: dict[str, Any], log: int) -> None:
    place, number = str(Path(request["folder"]).parent), 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number
        if event not in _CHANGES:
            return
        name = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
        # A relative name is rmtree's, which names files from an open folder; others are libraries' own temporary files.
        if os.path.isabs(name) and not name.startswith(place):
            return
        if number == request["change"]:
            if request["later"]:
                threading.Timer(request["later"], os.kill, (os.getpid(), signal.SIGKILL)).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        number += 1
        os.write(log, f"{event} {os.path.basename(name)}\n".encode())

    sys.addaudithook(hook)


if __name__ == "__main__":
    _serve()
