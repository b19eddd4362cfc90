"""Methods side by side in the real server, trained, drawn and told in one graph run."""
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loom_server import Server, few_pictures, inverting_graph, node, tuning_graph
from PIL import Image
from random_adapters import write_hypernetwork

COMPARING = {
    "model": ["checkpoint", 0], "clip": ["checkpoint", 1], "vae": ["checkpoint", 2], "prompts": "WORD, red food\nsmiley", "base_word": "apple",
    "negative": "", "width": 128, "height": 128, "seed": 3, "steps": 3, "cfg": 3.0, "sampler": "euler", "scheduler": "normal",
}
CHECKPOINT = {"checkpoint": node("CheckpointLoaderSimple", ckpt_name="mini_base.safetensors")}


def numbers_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_methods_are_trained_drawn_and_told_in_one_run(server: Server) -> None:
    lora = {"name": "compared", "rank": 4, "alpha": 4.0, "steps": 3, "batch_size": 1, "learning_rate": 1e-2, "seed": 1}
    # DreamBooth takes a fine-tune too: here the same one, which has to be drawn the same.
    trained = {"lora": ["lora", 6], "dreambooth": ["tuned", 7], "textual_inversion": ["word", 6], "fine_tune": ["tuned", 7]}
    models = server.base / "models"
    (models / "hypernetworks").mkdir(exist_ok=True)
    write_hypernetwork(models / "hypernetworks" / "compared.pt")
    graph: dict[str, Any] = {
        **few_pictures(trigger_word="sks"),
        **CHECKPOINT,
        "held_out": node("LoomDatasetFromFolder", folder="input/few", repeats=1, trigger_word="", missing_captions="refuse"),
        "lora": node("LoomTrainLoRA", base=["base", 0], dataset=["size", 0], options=["sampling", 0], validation=["held_out", 0], **lora),
        "word": inverting_graph("compared_word")["train"],
        "tuned": tuning_graph("compared_model")["train"],
        "hyper": node("LoomAdapterStack", rows=json.dumps([{"name": "hypernetwork:compared.pt"}])),
        "compare": node("LoomCompareMethods", **COMPARING, **trained, hypernetwork=["hyper", 0]),
        "save": node("SaveImage", images=["compare", 2], filename_prefix="compared"),
    }
    whole = server.run(graph)
    done = whole["compare"]
    lines = [numbers_of(line) for line in done["text"][0].splitlines()]
    methods = {line[0]: line for line in lines[2:]}
    assert list(methods) == ["base", "LoRA", "DreamBooth", "textual inversion", "full fine-tune", "hypernetwork"]
    assert {label: line[2] for label, line in methods.items()} == {
        "base": "–",
        "LoRA": size_of(models / "loras" / "compared.safetensors", "KiB"),
        "DreamBooth": size_of(models / "checkpoints" / "compared_model.safetensors", "MiB"),
        "textual inversion": size_of(models / "embeddings" / "compared_word.safetensors", "KiB"),
        "full fine-tune": size_of(models / "checkpoints" / "compared_model.safetensors", "MiB"),
        "hypernetwork": size_of(models / "hypernetworks" / "compared.pt", "MiB"),
    }
    assert (methods["textual inversion"][1], methods["textual inversion"][3]) == ("1,536", "3")
    assert "→" in methods["LoRA"][-1] and methods["DreamBooth"][-1] == "–"
    saved = server.base / "output" / done["images"][0]["subfolder"] / done["images"][0]["filename"]
    with Image.open(saved) as grid:
        told = json.loads(grid.info["lora_loom.compare_methods"])
    assert [column["word"] for column in told["columns"]] == ["apple", "sks", "sks", "embedding:compared_word", "sks", "apple"]
    assert told["prompts"] == ["WORD, red food", "smiley"]
    pictures = [opened(server, shown) for shown in whole["save"]["images"]]
    with_word, without = pictures[:6], pictures[6:]
    assert np.array_equal(with_word[2], with_word[4])
    assert all(np.abs(with_word[0] - other).mean() > 0.5 for other in with_word[1:])
    # A prompt without the new word is drawn as by the base.
    assert np.array_equal(without[0], without[3])
    assert not np.array_equal(without[0], without[2])


def opened(server: Server, shown: dict[str, str]) -> np.ndarray:
    with Image.open(server.base / "output" / shown["subfolder"] / shown["filename"]) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)


def size_of(file: Path, unit: str) -> str:
    return f"{file.stat().st_size / {'KiB': 2**10, 'MiB': 2**20}[unit]:.3g} {unit}"


@pytest.mark.parametrize(
    ("slot", "output", "told"),
    [
        ("lora", 6, "lora is the column of LoRA, and compared_word comes of textual_inversion"),
        ("hypernetwork", 0, "hypernetwork is the column of hypernetworks, and embedding:compared_word is none"),
    ],
)
def test_what_is_connected_to_the_column_of_another_method_is_refused(server: Server, slot: str, output: int, told: str) -> None:
    graph = {**inverting_graph("compared_word"), **CHECKPOINT, "compare": node("LoomCompareMethods", **COMPARING, **{slot: ["train", output]})}
    assert told in server.fail(graph)
