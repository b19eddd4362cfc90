"""A run that breaks in the middle: it says why, what is kept and what to do, and what is kept is there."""
import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workshop import Workshop, log_of, told

from trainer.checkpoint import latest_state
from trainer.events import Checkpoint, Failed, Started, parse_event
from trainer.failures import ended_by
from trainer.history import read_events

if sys.platform != "linux":
    pytest.skip("limits of another process are set here, which only Linux can do", allow_module_level=True)

import resource

PACK = Path(__file__).resolve().parents[2]
STEPS, EVERY = 400, 10


def run_of(workshop: Workshop, name: str, **spec: object) -> Path:
    return workshop.run(name, **{"steps": STEPS, "checkpointing": {"every_steps": EVERY, "keep_last": 1}, **spec})


def failed_after(folder: Path, break_it: Callable[[int], None]) -> str:
    """Train, call `break_it` with the process id once a state is saved, and expect a failure: its message as ComfyUI hears it."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    command = [sys.executable, "-m", "trainer", "run", str(folder)]
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, cwd=PACK, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment)
    with process:
        broken, last = False, b""
        for line in process.stdout:
            last = line
            if not broken and isinstance(parse_event(line), Checkpoint):
                break_it(process.pid)
                broken = True
    event = parse_event(last)
    assert isinstance(event, Failed), f"{last!r}\n{log_of(folder)}"
    assert process.returncode == 1
    return event.message


def check_kept(folder: Path, message: str) -> int:
    """What the message says of the state is true, and nothing half made is left; gives the step."""
    state = latest_state(folder)
    assert state is not None and state.step >= EVERY
    assert f"Its state of step {state.step} is kept: queue it again, and it resumes from there." in message
    assert [path.name for path in (folder / "state").iterdir()] == [f"step-{state.step:08d}"]
    return state.step


def test_a_state_that_may_not_be_written_is_told_with_its_file(workshop: Workshop) -> None:
    folder = run_of(workshop, "limited")
    message = failed_after(folder, lambda pid: resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, 4096)))
    step = check_kept(folder, message)
    assert "weights.safetensors could not be written" in message
    assert f"It was saving, after step {step + EVERY}." in message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "none", disk], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_up_is_told_and_the_run_resumes_when_there_is_room(workshop: Workshop, small_disk: Path) -> None:
    folder = run_of(dataclasses.replace(workshop, place=small_disk), "full", steps=60)
    filler = small_disk / "filler"

    def fill(_: int) -> None:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**16))
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x")

    message = failed_after(folder, fill)
    step = check_kept(folder, message)
    assert message.startswith("the disk is full: ")
    assert f"0 MiB are free in {folder}" in message
    assert "Make room there." in message
    filler.unlink()
    assert workshop.nursery.attempt(folder)[0] == 0, log_of(folder)
    assert [event.resumed_from for event in read_events(folder / "events.jsonl") if isinstance(event, Started)] == [0, step]
    assert set(told(folder).losses) >= set(range(step + 1, 61))


def test_memory_that_runs_out_is_told_and_costs_no_step(workshop: Workshop) -> None:
    # Pictures of samples need more than a step does.
    sampling = {"prompts": ["lemon"], "width": 640, "height": 640, "steps": 1, "every_steps": EVERY + 5}
    folder = run_of(workshop, "memory", sampling=sampling)

    def limit(pid: int) -> None:
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize() + 32 * 2**20
        resource.prlimit(pid, resource.RLIMIT_AS, (size, size))

    message = failed_after(folder, limit)
    assert message.startswith("out of memory while drawing samples, after step 15 (")
    assert check_kept(folder, message) == 15
    for advice in ("batch_size", "gradient_checkpointing in Hardware Options", "continue_from in Checkpointing Options"):
        assert advice in message


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (-signal.SIGKILL, "the system stopped the trainer process (SIGKILL), most often for lack of memory"),
        (128 + signal.SIGKILL, "the system stopped the trainer process (SIGKILL), most often for lack of memory"),
        (-signal.SIGTERM, "was stopped from outside (SIGTERM)"),
        (-signal.SIGSEGV, "crashed (SIGSEGV)"),
        (-signal.SIGBUS, "crashed (SIGBUS)"),
        (1, "without a word (exit code 1)"),
        (0xC0000005, "without a word (exit code 3221225477)"),
    ],
)
def test_how_a_process_ended_is_told_with_whether_it_resumes(tmp_path: Path, code: int, says: str) -> None:
    message = ended_by(code, tmp_path, "train_lora")
    assert says in message
    assert "It had saved no state yet: queue it again, and it starts anew." in message
    (tmp_path / "state" / "step-00000040").mkdir(parents=True)
    (tmp_path / "state" / ".step-00000050.tmp").mkdir()
    assert "Its state of step 40 is kept: queue it again, and it resumes from there." in ended_by(code, tmp_path, "train_lora")
    assert "captions that are written stay" in ended_by(code, tmp_path, "caption")


def test_a_log_on_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from trainer.channel import Channel; from trainer.events import Phase\n"
        f"channel = Channel(Path({str(tmp_path / 'events.jsonl')!r}))\n"
        "print('a library', 'x' * 100_000); print('another', file=sys.stderr); channel.emit(Phase(name='training'))\n"
    )
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", script], cwd=PACK, stdout=subprocess.PIPE, stderr=full, timeout=60, check=False)
    assert done.returncode == 0
    assert b'"training"' in done.stdout


def test_an_event_after_one_that_the_disk_cut_off_is_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    script = (
        "import resource; from pathlib import Path; from trainer.channel import Channel; from trainer.events import Phase\n"
        f"channel = Channel(Path({str(path)!r}))\n"
        "channel.emit(Phase(name='first')); resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        "channel.emit(Phase(name='cut'))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)); channel.emit(Phase(name='last'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PACK, capture_output=True, timeout=60, check=True)
    assert [parse_event(line).name for line in done.stdout.splitlines()] == ["first", "cut", "last"], "ComfyUI hears all of them"
    assert len(path.read_bytes().splitlines()) == 3
    assert [event.name for event in read_events(path)] == ["first", "last"]
