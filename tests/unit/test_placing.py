"""Where a training's files go when its name is taken: nothing that is there is lost."""
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from trainer.adapters.metadata import training_metadata
from trainer.options import Checkpointing
from trainer.placing import number_note, placed
from trainer.spec import TrainLoRASpec, fingerprint, run_id, step_output

IMAGE: dict[str, Any] = {"path": "/data/food/a.png", "sha256": "aa", "caption": "a bun"}
BASE: dict[str, Any] = {
    **{"name": "sd.safetensors", "checkpoint": "/models/sd.safetensors", "family": "SD 1.x", "tokenizer": "/clip"},
    **{"header_sha256": "bb", "size": 5, "mtime_ns": 6},
}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for folder in ("loras", "embeddings"):
        (tmp_path / folder).mkdir()
    return tmp_path


def spec(models: Path, **changes: Any) -> TrainLoRASpec:
    dataset = {"name": "food", "images": [IMAGE]}
    whole = {"name": "bun", "output": str(models / "loras" / "bun.safetensors"), "base": BASE, "datasets": [dataset], "steps": 10, **changes}
    return TrainLoRASpec.model_validate(whole)


def pivotal(models: Path, **changes: Any) -> TrainLoRASpec:
    word = {"placeholder": "<bun>", "learning_rate": 1e-3}
    return spec(models, word=word, word_output=str(models / "embeddings" / "bun.safetensors"), **changes)


def trained(asked: TrainLoRASpec, at: Path | None = None) -> None:
    """Leave a file as its training does."""
    for result in asked.results:
        save_file({"x": torch.ones(1)}, at or result.output, training_metadata(asked, result.name, 10, "fp32", "epsilon"))


def names(asked: TrainLoRASpec) -> list[str]:
    return [result.output.name for result in asked.results]


def test_a_free_name_is_kept(models: Path) -> None:
    assert placed(spec(models)) == spec(models)
    assert number_note(spec(models)) == ""


def test_other_settings_under_the_same_name_get_the_next_number(models: Path) -> None:
    for steps, name in ((10, "bun"), (20, "bun-2"), (30, "bun-3")):
        asked = placed(spec(models, steps=steps))
        assert names(asked) == [f"{name}.safetensors"]
        assert (name == "bun") == (number_note(asked) == "")
        trained(asked)
    assert "bun-3.safetensors" in number_note(placed(spec(models, steps=30), asked))


@pytest.mark.parametrize("content", [b"<!doctype html>", b""], ids=["no adapter", "empty"])
def test_a_file_of_anybody_else_keeps_its_name(models: Path, content: bytes) -> None:
    (models / "loras" / "bun.safetensors").write_bytes(content)
    assert names(placed(spec(models))) == ["bun-2.safetensors"]


def test_a_number_changes_neither_the_run_nor_what_it_makes(models: Path) -> None:
    numbered = spec(models).saved_as("bun-2")
    assert run_id(numbered) == run_id(spec(models))
    assert fingerprint(numbered) == fingerprint(spec(models)) != fingerprint(spec(models, name="bun-2"))


def test_a_run_goes_on_in_its_own_file(models: Path) -> None:
    trained(spec(models))
    assert placed(spec(models)) == spec(models)
    trained(spec(models, steps=20).saved_as("bun-2"))
    before = spec(models, steps=20).saved_as("bun-2")
    assert placed(spec(models, steps=20), before) == before
    # Its place is its own also when the name has become free meanwhile.
    (models / "loras" / "bun.safetensors").unlink()
    assert placed(spec(models, steps=20), before) == before
    (models / "loras" / "bun-2.safetensors").unlink()
    assert placed(spec(models, steps=20), before) == spec(models, steps=20)


def test_a_run_does_not_go_on_in_a_file_that_somebody_has_put_in_its_place(models: Path) -> None:
    before = spec(models).saved_as("bun-2")
    trained(spec(models, steps=20))
    trained(spec(models, steps=30), at=models / "loras" / "bun-2.safetensors")
    assert names(placed(spec(models), before)) == ["bun-3.safetensors"]


def test_two_files_of_one_training_have_the_same_number(models: Path) -> None:
    (models / "embeddings" / "bun.safetensors").write_bytes(b"mine")
    asked = placed(pivotal(models))
    assert names(asked) == ["bun-2.safetensors", "bun-2.safetensors"]
    trained(asked)
    assert placed(pivotal(models), asked) == asked
    assert names(placed(pivotal(models, steps=20))) == ["bun-3.safetensors", "bun-3.safetensors"]


def test_adapters_of_steps_are_kept_too(models: Path) -> None:
    stepping = {"checkpointing": Checkpointing(adapter_every_steps=5)}
    first = spec(models, **stepping)
    trained(first, at=step_output(Path(first.output), 5))
    assert placed(first) == first
    assert names(placed(spec(models, steps=20, **stepping))) == ["bun-2.safetensors"]
    assert names(placed(spec(models, steps=20))) == ["bun.safetensors"], "this one makes no adapters of steps"


def test_the_file_says_by_which_name_it_was_saved(models: Path) -> None:
    asked = pivotal(models).saved_as("bun-2")
    metadata = training_metadata(asked, "adapter", 10, "fp32", "epsilon")
    assert metadata["ss_output_name"] == metadata["modelspec.title"] == "bun-2"
    assert metadata["modelspec.trigger_phrase"] == "embedding:bun-2"
    assert json.loads(metadata["lora_loom.spec"])["output"] == "bun-2.safetensors"
