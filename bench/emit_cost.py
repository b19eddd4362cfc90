"""What the trainer pays to tell one event: `Channel.emit` in a loop, on a real progress event, into a file and a pipe that somebody reads.

    python bench/emit_cost.py EVENTS.jsonl

Prints the median of several rounds, in seconds, on stderr: the channel takes stdout for itself, as it does in a training.
"""
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainer.channel import Channel
from trainer.events import Progress
from trainer.history import read_events

_ROUNDS, _EVENTS = 7, 300


def main(events_file: Path) -> int:
    """Exit code 2 if the file holds no progress event to take."""
    progress = [event for event in read_events(events_file) if isinstance(event, Progress)]
    if not progress:
        print(f"{events_file} holds no progress event: name the events.jsonl of a run that has taken a step.", file=sys.stderr)
        return 2
    rounds, fields = [], progress[-1].model_dump()
    with tempfile.TemporaryDirectory() as folder:
        channel = Channel(Path(folder) / "events.jsonl")
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            for _ in range(_EVENTS):
                channel.emit(Progress(**fields))  # a step pays for the making as well
            rounds.append((time.perf_counter() - started) / _EVENTS)
    print(statistics.median(rounds), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
