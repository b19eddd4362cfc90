"""A training that is killed, at any moment and again and again: what is left of it, and that it ends as if nothing had been."""
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if sys.platform == "win32":
    pytest.skip("a process cannot be forked on Windows", allow_module_level=True)

from killing import KILLED
from workshop import STEPS, Workshop, log_of, output

from trainer.checkpoint import latest_state
from trainer.events import Checkpoint, Finished, Started
from trainer.history import history, read_events

EVERY, KEEP = 2, 2


@dataclass
class Whole:
    """An uninterrupted run to compare with: its folder, the changes that it made to files, and its seconds."""

    folder: Path
    changes: int
    seconds: float


@pytest.fixture(scope="module")
def whole(workshop: Workshop) -> Whole:
    folder = run_of(workshop, "uninterrupted")
    code, changes, seconds = workshop.nursery.attempt(folder)
    assert code == 0, log_of(folder)
    assert len(list((folder / "state").iterdir())) == KEEP
    return Whole(folder, len(changes), seconds)


def run_of(workshop: Workshop, name: str, **checkpointing: Any) -> Path:
    return workshop.run(
        name,
        # Encoding is killed in test_training.py; here every attempt is to be at its steps soon.
        cache=str(workshop.place / "cache"),
        validation=[workshop.dataset("carrot")],
        network={"rank": 2, "alpha": 2.0, "dropout": 0.2},
        optimizer={"schedule": "cosine", "ema_decay": 0.9, "gradient_accumulation_steps": 2},
        checkpointing={"every_steps": EVERY, "keep_last": KEEP, **checkpointing},
    )


def told(folder: Path) -> int:
    """The step of the newest state that the run has said to be saved."""
    return max((event.step for event in read_events(folder / "events.jsonl") if isinstance(event, Checkpoint)), default=0)


def check_finished(folder: Path, whole: Path, kills: int, word: str) -> None:
    """Nothing of the kills is left in what a finished run gives and tells."""
    for file in (output, lambda run: run / "adapter.safetensors"):
        assert file(folder).read_bytes() == file(whole).read_bytes(), f"{word}: {file(folder)} is not the uninterrupted run's"
    results = [path.name for path in output(folder).parent.iterdir() if path.suffix != ".tmp"]
    assert results == [output(folder).name], word
    states = sorted(path.name for path in (folder / "state").iterdir() if not path.name.startswith("."))
    assert states == [f"step-{step:08d}" for step in (STEPS - EVERY, STEPS)], word
    for name in states:
        for file in (folder / "state" / name).iterdir():
            assert file.read_bytes() == (whole / "state" / name / file.name).read_bytes(), f"{word}: {name}/{file.name}"
    story, as_it_was = (history(read_events(run / "events.jsonl")) for run in (folder, whole))
    assert isinstance(story.end, Finished) and not story.end.stopped, word
    assert story.losses == as_it_was.losses, word
    assert story.validation[STEPS] == as_it_was.validation[STEPS], word
    lines = (folder / "events.jsonl").read_bytes().splitlines()
    assert len(lines) - sum(1 for _ in read_events(folder / "events.jsonl")) <= 2 * kills, f"{word}: lines that do not read"


@pytest.mark.parametrize("seed", range(5))
def test_a_training_killed_at_random_moments_ends_with_the_same_bytes(workshop: Workshop, whole: Whole, seed: int) -> None:
    chance = random.Random(seed)
    landed, killed_here, runs = 0, 0, 0
    moments: list[dict[str, Any]] = []
    folder = run_of(workshop, f"seed-{seed}-{runs}")
    # At any time, and in the middle of changes to files, in turns. A run may end before it is killed: the next kills are another's.
    while landed < 4 or killed_here:
        if landed == 4:
            moment: dict[str, Any] = {}
        elif landed % 2:
            moment = {"change": chance.randrange(whole.changes // 2), "later": chance.choice([0.0, chance.uniform(0, 0.01)])}
        else:
            moment = {"seconds": chance.uniform(0, whole.seconds)}
        moments.append(moment)
        word = f"seed {seed}, run {runs}, {moments}"
        before, starts = told(folder), sum(isinstance(event, Started) for event in read_events(folder / "events.jsonl"))
        code, _, _ = workshop.nursery.attempt(folder, **moment)
        resumed_from = [event.resumed_from for event in read_events(folder / "events.jsonl") if isinstance(event, Started)][starts:]
        assert all(step >= before for step in resumed_from), f"{word}: step {before} was told as saved, and {resumed_from} is gone on from"
        assert code in (0, KILLED), f"{word}: exit code {code}\n{log_of(folder)}"
        if code == KILLED:
            landed, killed_here = landed + 1, killed_here + 1
            continue
        check_finished(folder, whole.folder, killed_here, word)
        shutil.rmtree(folder.parent)
        killed_here, runs, moments = 0, runs + 1, []
        folder = run_of(workshop, f"seed-{seed}-{runs}")


def test_a_finished_state_is_not_lost_while_it_is_saved_again(workshop: Workshop) -> None:
    # A run that is started again after its last step has nothing to train and saves once more; only one state is kept.
    folder = run_of(workshop, "again", keep_last=1)
    code, _, _ = workshop.nursery.attempt(folder)
    assert code == 0
    kept = folder.parent / "kept"
    shutil.copytree(folder, kept)
    change = 0
    while True:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        code, changes, _ = workshop.nursery.attempt(folder, change=change)
        state = latest_state(folder)
        assert state is not None and state.step == STEPS, f"killed before change {change}, after {changes[-3:]}"
        if code == 0:
            break
        change += 1
