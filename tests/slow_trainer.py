"""The trainer's side of the protocol alone, with a state that takes as long to save as on a slow disk: what LORA_LOOM_PYTHON names in a test.

A training that is called `hanging` saves nothing and does not leave.
"""
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from trainer.events import Checkpoint, Event, ExitCode, Finished, Progress, Started, parse_command
from trainer.history import EVENTS_FILE

SECONDS = 45


def main(folder: Path) -> int:
    """Take a step, wait for the command to stop, and save."""

    def tell(event: Event) -> None:
        line = event.model_dump_json() + "\n"
        with (folder / EVENTS_FILE).open("a") as file:
            file.write(line)
        print(line, end="", flush=True)

    tell(Started(run=folder.name, pid=os.getpid(), task="train_lora", total_steps=100))
    tell(Progress(step=1, total=100, losses=(0.5,), learning_rate=1e-3, elapsed_seconds=0.1, steps_per_second=10.0))
    parse_command(sys.stdin.readline())
    if folder.name.startswith("hanging"):
        time.sleep(600)
    temporary = folder / "state" / ".step-00000001.tmp"
    temporary.mkdir(parents=True)
    with (temporary / "weights.safetensors").open("wb") as file:
        for _ in range(SECONDS):
            file.write(b"x" * 4096)
            file.flush()
            time.sleep(1)
    temporary.rename(folder / "state" / "step-00000001")
    tell(Checkpoint(step=1, folder="state/step-00000001"))
    tell(Finished(step=1, stopped=True))
    return ExitCode.STOPPED


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[-1])))
