"""Methods side by side in the real server, trained, drawn and told in one graph run."""
import json
from typing import Any

import numpy as np
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
    results = {"lora": ["lora", 6], "textual_inversion": ["word", 6], "dreambooth": ["tuned", 7], "hypernetwork": ["hyper", 0]}
    (server.base / "models" / "hypernetworks").mkdir(exist_ok=True)
    write_hypernetwork(server.base / "models" / "hypernetworks" / "compared.pt")
    graph: dict[str, Any] = {
        **few_pictures(trigger_word="sks"),
        **CHECKPOINT,
        "held_out": node("LoomDatasetFromFolder", folder="input/few", repeats=1, trigger_word="", missing_captions="refuse"),
        "lora": node("LoomTrainLoRA", base=["base", 0], dataset=["size", 0], options=["sampling", 0], validation=["held_out", 0], **lora),
        "word": inverting_graph("compared_word")["train"],
        "tuned": tuning_graph("compared_model")["train"],
        "hyper": node("LoomAdapterStack", rows=json.dumps([{"name": "hypernetwork:compared.pt"}])),
        "compare": node("LoomCompareMethods", **COMPARING, **results),
        "save": node("SaveImage", images=["compare", 2], filename_prefix="compared"),
    }
    whole = server.run(graph)
    done = whole["compare"]
    lines = [numbers_of(line) for line in done["text"][0].splitlines()]
    assert [line[0] for line in lines[2:]] == ["base", "LoRA", "DreamBooth", "textual inversion", "hypernetwork"]
    assert lines[5][1:4] == ["1,536", f"{(server.base / 'models' / 'embeddings' / 'compared_word.safetensors').stat().st_size / 1024:.3g} KiB", "3"]
    assert "→" in lines[3][-1] and lines[4][-1] == "–"
    saved = server.base / "output" / done["images"][0]["subfolder"] / done["images"][0]["filename"]
    with Image.open(saved) as grid:
        told = json.loads(grid.info["lora_loom.compare_methods"])
    assert [column["word"] for column in told["columns"]] == ["apple", "sks", "sks", "embedding:compared_word", "apple"]
    assert told["prompts"] == ["WORD, red food", "smiley"]
    pictures = [opened(server, shown) for shown in whole["save"]["images"]]
    with_word, without = pictures[:5], pictures[5:]
    assert all(np.abs(with_word[0] - other).mean() > 0.5 for other in with_word[1:])
    # A prompt without the new word is drawn as by the base.
    assert np.array_equal(without[0], without[3])
    assert not np.array_equal(without[0], without[2])


def opened(server: Server, shown: dict[str, str]) -> np.ndarray:
    with Image.open(server.base / "output" / shown["subfolder"] / shown["filename"]) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)


def test_a_result_in_the_column_of_another_method_is_refused(server: Server) -> None:
    message = server.fail({**inverting_graph("compared_word"), **CHECKPOINT, "compare": node("LoomCompareMethods", **COMPARING, lora=["train", 6])})
    assert "lora is the column of LoRA, and compared_word comes of textual_inversion" in message
