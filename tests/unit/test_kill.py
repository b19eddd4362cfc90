"""A training that is killed, at any moment and again and again: what is left of it, and that it ends as if nothing had been."""
import json
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if sys.platform == "win32":
    pytest.skip("a process cannot be forked on Windows", allow_module_level=True)

from killing import KILLED, PACK, Nursery
from loom_server import comfyui
from PIL import Image
from tiny_checkpoints import tiny_checkpoint

from trainer.checkpoint import latest_state
from trainer.events import Checkpoint, Finished, Started
from trainer.history import history, read_events

STEPS, EVERY, KEEP = 12, 2, 2


@dataclass
class Workshop:
    """Base and pictures, the process that starts attempts, and an uninterrupted run to compare with."""

    place: Path
    nursery: Nursery
    spec: dict[str, Any]
    changes: int = 0
    seconds: float = 0.0

    def run(self, name: str, **checkpointing: Any) -> Path:
        """A new run's folder; its adapter goes to `output(folder)`. Each is one level down, so that nobody else's files are there."""
        folder = self.place / name / "run"
        folder.mkdir(parents=True)
        output(folder).parent.mkdir()
        spec = {**self.spec, "output": str(output(folder)), "checkpointing": {**self.spec["checkpointing"], **checkpointing}}
        (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        return folder


def output(folder: Path) -> Path:
    return folder.parent / "loras" / "bun.safetensors"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    place = tmp_path_factory.mktemp("kill")
    base = place / "tiny.safetensors"
    tiny_checkpoint(base, "SD 1.x")

    def dataset(*names: str) -> dict[str, Any]:
        images = []
        for name in names:
            path = place / f"{name}.png"
            with Image.open(PACK / "demo" / "food" / path.name) as picture:
                picture.convert("RGB").resize((64, 64)).save(path)
            images.append({"path": str(path), "sha256": name, "caption": name})
        return {"name": "food", "resolution": 64, "images": images}

    spec = {
        "task": "train_lora",
        "name": "bun",
        "base": {
            "name": base.name,
            "checkpoint": str(base),
            "family": "SD 1.x",
            "tokenizer": str(comfyui() / "comfy" / "sd1_tokenizer"),
            "header_sha256": "",
            "size": base.stat().st_size,
            "mtime_ns": 1,
        },
        "dataset": dataset("lemon", "banana", "bread"),
        "validation": dataset("carrot"),
        "network": {"rank": 2, "alpha": 2.0, "dropout": 0.2},
        "steps": STEPS,
        "learning_rate": 1e-3,
        "optimizer": {"schedule": "cosine", "ema_decay": 0.9, "gradient_accumulation_steps": 2},
        "checkpointing": {"every_steps": EVERY, "keep_last": KEEP},
    }
    with Nursery() as nursery:
        made = Workshop(place, nursery, spec)
        whole = made.run("uninterrupted")
        code, changes, made.seconds = nursery.attempt(whole)
        assert code == 0, (whole / "log.txt").read_text()
        assert len(list((whole / "state").iterdir())) == KEEP
        made.changes = len(changes)
        yield made
    base.unlink()  # a file that pytest would keep for three runs


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


@pytest.mark.parametrize("seed", range(6))
def test_a_training_killed_at_random_moments_ends_with_the_same_bytes(workshop: Workshop, seed: int) -> None:
    chance, whole = random.Random(seed), workshop.place / "uninterrupted" / "run"
    landed, killed_here, runs = 0, 0, 0
    moments: list[dict[str, Any]] = []
    folder = workshop.run(f"seed-{seed}-{runs}")
    # At any time, and in the middle of changes to files, in turns. A run may end before it is killed: the next kills are another's.
    while landed < 4 or killed_here:
        if landed == 4:
            moment: dict[str, Any] = {}
        elif landed % 2:
            moment = {"change": chance.randrange(workshop.changes // 2), "later": chance.choice([0.0, chance.uniform(0, 0.01)])}
        else:
            moment = {"seconds": chance.uniform(0, workshop.seconds)}
        moments.append(moment)
        word = f"seed {seed}, run {runs}, {moments}"
        before, starts = told(folder), sum(isinstance(event, Started) for event in read_events(folder / "events.jsonl"))
        code, _, _ = workshop.nursery.attempt(folder, **moment)
        resumed_from = [event.resumed_from for event in read_events(folder / "events.jsonl") if isinstance(event, Started)][starts:]
        assert all(step >= before for step in resumed_from), f"{word}: step {before} was told as saved, and {resumed_from} is gone on from"
        assert code in (0, KILLED), f"{word}: exit code {code}\n{(folder / 'log.txt').read_text()[-2000:]}"
        if code == KILLED:
            landed, killed_here = landed + 1, killed_here + 1
            continue
        check_finished(folder, whole, killed_here, word)
        shutil.rmtree(folder.parent)
        killed_here, runs, moments = 0, runs + 1, []
        folder = workshop.run(f"seed-{seed}-{runs}")


def test_a_finished_state_is_not_lost_while_it_is_saved_again(workshop: Workshop) -> None:
    # A run that is started again after its last step has nothing to train and saves once more; only one state is kept.
    folder = workshop.run("again", keep_last=1)
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
