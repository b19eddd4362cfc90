"""What a training warns of before it starts."""
from typing import Any

import pytest

from trainer.dataset import Dataset, DatasetImage
from trainer.remarks import remarks
from trainer.spec import TrainLoRASpec

BASE = {"name": "a", "checkpoint": "/a", "family": "SD 1.x", "tokenizer": "/t", "header_sha256": "", "size": 1, "mtime_ns": 1}


def dataset(*names: str, **settings: Any) -> Dataset:
    """Images whose bytes are known by the first letter of their names."""
    return Dataset(name="food", images=tuple(DatasetImage(path=f"/{name}", sha256=name[0], caption="a") for name in names), **settings)


def told(**settings: Any) -> list[str]:
    spec = {"name": "bun", "output": "/bun.safetensors", "base": BASE, "datasets": (dataset("a.png", "b.png"),), "steps": 100, **settings}
    return remarks(TrainLoRASpec.model_validate(spec))


def test_there_is_nothing_to_say_of_an_ordinary_training() -> None:
    assert told(validation=(dataset("c.png"),), optimizer={"warmup": 99}) == []


def test_what_datasets_leave_out_is_told_once() -> None:
    noted = dataset("a.png", notes=("1 file is left out: b.mp4",))
    assert told(datasets=(noted, noted), validation=(dataset("c.png", notes=("odd",)),)) == ["food: 1 file is left out: b.mp4", "food: odd"]


def test_validation_on_training_images_is_told_whatever_they_are_called() -> None:
    (message,) = told(validation=(dataset("a copy.png", "c.png"),))
    assert message.startswith("1 of 2 validation images are trained on as well, so the validation loss says nothing")
    assert "a copy.png" in message and "c.png" not in message


@pytest.mark.parametrize(("warmup", "steps", "share"), [(100, "100", "99%"), (399, "399", "25%"), (0.999, "100", "99%")])
def test_a_warm_up_that_never_ends_is_told(warmup: float, steps: str, share: str) -> None:
    (message,) = told(optimizer={"warmup": warmup})
    assert message.startswith(f"the warm-up takes {steps} steps and the training 100, so the learning rate never gets beyond {share} of")
