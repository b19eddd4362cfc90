"""Trainings through the trainer's own front door, on a tiny base and real pictures, without a ComfyUI: a spec in a folder, and what comes out."""
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from killing import PACK, Nursery
from loom_server import comfyui
from PIL import Image
from tiny_checkpoints import tiny_checkpoint

from trainer.history import History, history, read_events

STEPS = 12


@dataclass
class Workshop:
    """`run` writes a spec, `nursery` starts attempts at it, `train` does both and expects the end to be good."""

    place: Path
    nursery: Nursery
    base: dict[str, Any]

    def run(self, name: str, /, **spec: Any) -> Path:
        """A new run's folder; its adapter goes to `output(folder)`. Each is one level down, so that nobody else's files are there."""
        folder = self.place / name / "run"
        folder.mkdir(parents=True)
        output(folder).parent.mkdir()
        whole = {
            "task": "train_lora",
            "name": "bun",
            "output": str(output(folder)),
            "base": self.base,
            "steps": STEPS,
            "learning_rate": 1e-3,
            **spec,
        }
        if whole["task"] == "train_lora":
            whole.setdefault("network", {"rank": 2, "alpha": 2.0})
        whole.setdefault("datasets", [self.dataset("lemon", "banana", "bread")])
        (folder / "spec.json").write_text(json.dumps(whole), encoding="utf-8")
        return folder

    def train(self, name: str, /, **spec: Any) -> tuple[Path, History]:
        """Train to the end: the run's folder and what it told."""
        folder = self.run(name, **spec)
        code, _, _ = self.nursery.attempt(folder)
        assert code == 0, log_of(folder)
        return folder, told(folder)

    def refused(self, name: str, /, **spec: Any) -> str:
        """Expect the spec to be refused: with what message."""
        folder = self.run(name, **spec)
        code, _, _ = self.nursery.attempt(folder)
        assert code == 2, log_of(folder)
        return told(folder).end.message

    def dataset(self, *names: str, side: int = 64, **settings: Any) -> dict[str, Any]:
        """A dataset of pictures of food, each `side` pixels wide and high unless `picture` has made another."""
        images = []
        for name in names:
            path = self.place / f"{name}.png"
            if not path.is_file():
                with Image.open(PACK / "tests" / "food" / path.name) as picture:
                    self.picture(name, picture.convert("RGB").resize((side, side)))
            images.append({"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "caption": f"{name}, food, drawn, small"})
        return {"name": "food", "images": images, "framing": {"resolution": side}, **settings}

    def picture(self, name: str, image: Image.Image) -> Path:
        """Keep a picture that `dataset` then knows by `name`."""
        image.save(self.place / f"{name}.png")
        return self.place / f"{name}.png"


@contextmanager
def opened(place: Path, family: str = "SD 1.x") -> Iterator[Workshop]:
    """A workshop in `place`, on a base of `family`."""
    base = place / "tiny.safetensors"
    tiny_checkpoint(base, family)
    facts = {
        "name": base.name,
        "checkpoint": str(base),
        "family": family,
        "tokenizer": str(comfyui() / "comfy" / "sd1_tokenizer"),
        "header_sha256": "",
        "size": base.stat().st_size,
        "mtime_ns": 1,
    }
    with Nursery() as nursery:
        yield Workshop(place, nursery, facts)
    base.unlink()  # a file that pytest would keep for three runs


def output(folder: Path) -> Path:
    """The adapter of a run."""
    return folder.parent / "loras" / "bun.safetensors"


def told(folder: Path) -> History:
    """What a run has told."""
    return history(read_events(folder / "events.jsonl"))


def log_of(folder: Path) -> str:
    """The end of a run's log, and its last event."""
    events = (folder / "events.jsonl").read_text().splitlines()[-1:] if (folder / "events.jsonl").is_file() else []
    return "\n".join([*events, (folder / "log.txt").read_text()[-2000:]])
