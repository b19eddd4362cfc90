"""Fine-tuning, textual inversion and pivotal tuning in the real server: what they make is loaded by ComfyUI's own nodes and changes what it draws."""
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from loom_server import NEW_WORD, Server, drawing_graph, few_pictures, inverting_graph, node, tuning_graph
from PIL import Image
from safetensors.torch import load_file


def picture(server: Server, result: dict[str, Any]) -> np.ndarray:
    saved = result["save"]["images"][0]
    with Image.open(server.base / "output" / saved["subfolder"] / saved["filename"]) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)


def drawn(server: Server, prompt: str, by: str = "checkpoint", **more: Any) -> np.ndarray:
    """With the model and text encoder of node `by`, the first two of its outputs."""
    return picture(server, server.run({**drawing_graph([by, 0], [by, 1], prompt, "methods", steps=3), **more}))


def trained(result: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = result["train"]["lora_loom"][0]
    return told


def test_a_fine_tune_is_a_checkpoint_that_cores_loader_draws_with(server: Server) -> None:
    graph = {**tuning_graph("tuned"), **drawing_graph(["train", 0], ["train", 1], "red apple", "tuned", steps=3)}
    done = server.run(graph)
    assert trained(done)["adapter"] == "tuned.safetensors"
    own = picture(server, done)
    tuned = drawn(server, "red apple", checkpoint=node("CheckpointLoaderSimple", ckpt_name="tuned.safetensors"))
    assert np.array_equal(own, tuned)
    assert np.abs(own - drawn(server, "red apple")).mean() > 0.5
    # Queued again it is found, and its file is made again where it is gone.
    file = server.base / "models" / "checkpoints" / "tuned.safetensors"
    made = file.read_bytes()
    assert trained(server.run(tuning_graph("tuned", options=["sampling", 0])))["run"] == trained(done)["run"]
    file.unlink()
    server.run(graph)
    assert file.read_bytes() == made


def test_a_learning_rate_of_zero_gives_back_the_checkpoint_to_the_bit(server: Server) -> None:
    server.run(tuning_graph("still", learning_rate=0.0, steps=1))
    checkpoints = server.base / "models" / "checkpoints"
    base, still = load_file(checkpoints / "mini_base.safetensors"), load_file(checkpoints / "still.safetensors")
    assert base.keys() == still.keys()
    assert all(still[name].dtype == tensor.dtype and torch.equal(still[name], tensor) for name, tensor in base.items())
    (checkpoints / "still.safetensors").unlink()


def test_a_new_word_draws_in_the_same_graph_run(server: Server) -> None:
    graph = {**inverting_graph("bun"), **drawing_graph(["checkpoint", 0], ["checkpoint", 1], ["train", 2], "word", steps=3)}
    done = server.run(graph)
    assert trained(done)["adapter"] == "embedding:bun"
    own = picture(server, done)
    assert np.array_equal(own, drawn(server, "embedding:bun, red food"))
    # Its file is what changed the picture: the word that it began as draws another.
    assert np.abs(own - drawn(server, "apple apple, red food")).mean() > 0.5
    inspected = server.run({"inspect": node("LoomInspectAdapter", adapter="embedding:bun.safetensors")})["inspect"]["text"][0]
    assert "textual inversion" in inspected.lower() or "embedding" in inspected.lower()
    assert "SD 1.x" in inspected


def test_a_word_and_a_lora_are_trained_together_and_stacked(server: Server) -> None:
    numbers = {"rank": 4, "alpha": 4.0, "steps": 3, "batch_size": 1, "learning_rate": 1e-3, "seed": 1}
    done = server.run(
        {
            **few_pictures(),
            "word": node("LoomNewWord", placeholder=NEW_WORD, initializer="apple", vectors=1, learning_rate=0.05, options=["sampling", 0]),
            "train": node("LoomTrainLoRA", base=["base", 0], dataset=["size", 0], name="my_bun", options=["word", 0], **numbers),
            "stack": node("LoomAdapterStack", rows="[]", adapters=["train", 0]),
            "apply": node("LoomApplyAdapters", model=["checkpoint", 0], clip=["checkpoint", 1], adapters=["stack", 0], mode="merged", strength=1.0),
            **drawing_graph(["apply", 0], ["apply", 1], ["stack", 2], "pivotal", steps=3),
        }
    )
    assert (server.base / "models" / "embeddings" / "my_bun.safetensors").is_file()
    own = picture(server, done)
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    lora = node("LoraLoader", model=["checkpoint", 0], clip=["checkpoint", 1], lora_name="my_bun.safetensors", **strengths)
    assert np.array_equal(own, drawn(server, "embedding:my_bun", "lora", lora=lora))


@pytest.mark.parametrize(
    ("name", "graph", "kind"),
    [("half_a_model", tuning_graph, "checkpoints"), ("half_a_word", inverting_graph, "embeddings")],
    ids=["fine-tune", "textual inversion"],
)
def test_cancel_keeps_the_state_and_stop_keeps_what_there_is(server: Server, name: str, graph: Callable[..., dict[str, Any]], kind: str) -> None:
    output = server.base / "models" / kind / f"{name}.safetensors"
    asked = graph(name, steps=500)
    prompt = server.queue(asked)
    run = server.wait_for_step(name, 2)["id"]
    server.post("/interrupt", {})
    messages = server.wait(prompt)["status"]["messages"]
    assert any(kind == "execution_interrupted" for kind, _ in messages)
    assert not output.exists()
    saved = server.training(name)["step"]
    prompt = server.queue(asked)
    server.wait_for_step(name, saved + 1)
    server.post(f"/lora_loom/runs/{run}/stop", {"save": True})
    told = server.wait(prompt)["outputs"]["train"]["lora_loom"][0]
    assert told["run"] == run and saved < told["steps"] < 500
    assert output.is_file()
    resumed = [event["resumed_from"] for event in server.get(f"/lora_loom/runs/{run}")["events"] if event["event"] == "started"]
    assert resumed == [0, saved]


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (inverting_graph("b", placeholder="apple"), "'apple' is a word that the base knows already"),
        (inverting_graph("b", vectors=1, initializer="apple pie"), "set vectors to 2"),
        (inverting_graph("b", options=["network", 0]) | {"network": node("LoomNetwork")}, "Network Options has no part in textual inversion"),
        (inverting_graph("b", options=["prior", 0]) | {"prior": node("LoomPrior", class_prompt="food")}, "Prior Preservation has no part in"),
        (tuning_graph("t", class_dataset=["size", 0], options=["prior", 0]) | {"prior": node("LoomPrior", class_prompt="")}, "of the subject too"),
    ],
    ids=["known word", "long initializer", "foreign options", "prior of a word", "class is subject"],
)
def test_what_cannot_be_trained_is_told(server: Server, graph: dict[str, Any], words: str) -> None:
    for entry in graph.values():
        if entry["class_type"] in ("LoomNetwork", "LoomPrior"):
            info = server.get(f"/object_info/{entry['class_type']}")[entry["class_type"]]["input"]
            defaults = {name: kind[1]["default"] for name, kind in info["required"].items() if "default" in kind[1]}
            entry["inputs"] = {**defaults, **entry["inputs"]}
    assert words in server.fail(graph)
