"""A process that has to leave is waited for as long as what it saves moves on the disk, and no longer."""
import subprocess
import sys
import threading
import time
from pathlib import Path

from trainer.adapters.files import replacing
from trainer.patience import Patience, bytes_of, seconds_of_step

PACK = Path(__file__).resolve().parents[2]
SECONDS = 0.5


def seconds_until_over(patience: Patience) -> float:
    started = time.monotonic()
    while not patience.is_over():
        time.sleep(0.02)
        assert time.monotonic() - started < 30
    return time.monotonic() - started


def test_what_does_not_move_is_waited_for_once() -> None:
    assert SECONDS <= seconds_until_over(Patience(lambda: 7, SECONDS)) < 2 * SECONDS
    assert seconds_until_over(Patience(lambda: 7, SECONDS, more=SECONDS)) >= 2 * SECONDS


def test_a_state_that_grows_is_waited_for(tmp_path: Path) -> None:
    temporary = tmp_path / "state" / ".step-00000005.tmp"
    temporary.mkdir(parents=True)

    def save() -> None:
        with (temporary / "weights.safetensors").open("wb") as file:
            for _ in range(30):
                file.write(b"x" * 4096)
                file.flush()
                time.sleep(SECONDS / 5)

    saving = threading.Thread(target=save)
    saving.start()
    taken = seconds_until_over(Patience(lambda: bytes_of(tmp_path, []), SECONDS))
    assert not saving.is_alive(), "it was given up in the middle"
    assert taken < 6 * SECONDS + 4 * SECONDS


def test_a_result_moves_while_it_is_written_and_a_log_is_nothing_that_is_saved(tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "loras" / "bun[1].safetensors"
    run.mkdir()
    before = bytes_of(run, [output])
    (run / "log.txt").write_text("line\n" * 100)
    (run / "events.jsonl").write_text("{}\n" * 100)
    assert bytes_of(run, [output]) == before
    for path in (output, output.with_name("bun[1]-step00000005.safetensors"), run / "adapter.safetensors"):
        with replacing(path) as file:
            file.write(b"x" * 10)
            file.flush()
            assert bytes_of(run, [output]) == before + 10


def test_a_step_that_has_begun_is_let_through() -> None:
    assert seconds_of_step(0.1) == 20
    assert seconds_of_step(0.0) == 0


TRAINER = """
import sys, time
from pathlib import Path
from trainer.channel import Channel
from trainer.events import Phase
from trainer.patience import bytes_of

run = Path(sys.argv[1])
channel = Channel(run / "events.jsonl")
channel.listen(leave_seconds=1.0)
channel.something_to_save(lambda: bytes_of(run, []))
channel.emit(Phase(name="training"))
while not channel.stop_requested():
    time.sleep(0.05)
(run / "state").mkdir()
with (run / "state" / "weights").open("wb") as file:
    for _ in range(16):
        file.write(b"x" * 4096)
        file.flush()
        time.sleep(0.25)
(run / "saved").touch()
time.sleep(600)
"""


def test_a_save_under_way_is_not_cut_when_comfyui_is_gone_and_a_hanging_trainer_is(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TRAINER, str(tmp_path)]
    with subprocess.Popen(command, cwd=PACK, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert b'"training"' in process.stdout.readline()
        process.stdin.close()
        assert process.wait(30) == 1
    assert (tmp_path / "saved").is_file(), "the save, which took longer than the limit, was cut"
