"""The demo is ended in the middle of its training: nothing outlives the command, and the training is kept."""
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from loom_server import PACK, comfyui

pytestmark = pytest.mark.timeout(900)
if sys.platform == "win32":
    pytest.skip("there are no such signals on Windows", allow_module_level=True)

# The demo as nox runs it, without making an environment first.
NOXFILE = """
import importlib.util, nox
spec = importlib.util.spec_from_file_location("project", {noxfile!r})
project = importlib.util.module_from_spec(spec)
spec.loader.exec_module(project)
nox.registry._REGISTRY.clear()
nox.options.sessions = ["ended"]

@nox.session(venv_backend="none")
def ended(session):
    project.run_to_its_end(session, *session.posargs)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo_home")


def demo(home: Path) -> list[str]:
    return [sys.executable, str(PACK / "demo" / "run.py"), "--comfyui", str(comfyui()), "--home", str(home), "--out", str(home / "out")]


def processes(home: Path) -> list[psutil.Process]:
    """Those that were started for this demo: each has its folder on its command line."""
    return [process for process in psutil.process_iter(["cmdline"]) if any(str(home) in part for part in process.info["cmdline"] or ())]


def progress(home: Path) -> int:
    return sum(file.read_text().count('"event":"progress"') for file in home.glob("output/lora_loom/runs/*/events.jsonl"))


def with_default_signals() -> None:
    """Signals do what they do in a terminal, whoever started the tests: in the background and under nohup, some are ignored."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def ended_in_the_middle(home: Path, command: list[str], end: Callable[[subprocess.Popen[bytes]], None]) -> None:
    before = progress(home)
    with (home / "demo.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=PACK,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            preexec_fn=with_default_signals,
        )
    try:
        deadline = time.monotonic() + 600
        while progress(home) == before:
            assert process.poll() is None and time.monotonic() < deadline, (home / "demo.log").read_text()[-3000:]
            time.sleep(0.2)
        assert len(processes(home)) >= 4, "the command, the server and its keeper, the trainer"
        end(process)
        process.wait(100)
        assert processes(home) == []
        assert list(home.glob("output/lora_loom/runs/*/state/step-*")), "the training was not saved"
    finally:
        for left in processes(home):
            left.kill()


def test_ctrl_c_leaves_nothing_behind(home: Path) -> None:
    # A terminal sends it to all of the command's group.
    ended_in_the_middle(home, demo(home), lambda process: os.killpg(process.pid, signal.SIGINT))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM], ids=["hangup", "terminate"])
def test_a_signal_to_nox_leaves_nothing_behind(home: Path, number: signal.Signals) -> None:
    nox = shutil.which("nox")
    if nox is None:
        pytest.skip("nox is not on the path")
    (home / "noxfile.py").write_text(NOXFILE.format(noxfile=str(PACK / "noxfile.py")))
    command = [nox, "-f", str(home / "noxfile.py"), "-s", "ended", "--", *demo(home)]
    ended_in_the_middle(home, command, lambda process: process.send_signal(number))


def test_a_killed_demo_leaves_nothing_behind_for_long(home: Path) -> None:
    def kill(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        psutil.wait_procs([left for left in processes(home) if left.pid != process.pid], timeout=90)

    ended_in_the_middle(home, demo(home), kill)
