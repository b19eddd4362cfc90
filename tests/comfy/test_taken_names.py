"""Training under a name that is taken: what is there stays, the new file gets a number, and everything says so."""
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from loom_server import NEW_WORD, Refused, Server, few_pictures, inverting_graph, node, training_graph, tuning_graph
from safetensors.torch import save_file


def run_folder(server: Server, told: dict[str, Any]) -> Path:
    return server.base / "output" / "lora_loom" / "runs" / told["run"]


def trained(server: Server, graph: dict[str, Any]) -> dict[str, Any]:
    """What the training node put into the history, its texts among it."""
    output = server.run(graph)["train"]
    return {**output["lora_loom"][0], "text": output.get("text", [])}


def starts(server: Server, told: dict[str, Any]) -> int:
    return (run_folder(server, told) / "events.jsonl").read_text().count('"event":"started"')


def test_an_earlier_training_is_kept_and_the_new_one_gets_a_number(server: Server) -> None:
    loras = server.base / "models" / "loras"
    first_graph, second_graph = training_graph("twice", steps=2), training_graph("twice", steps=3)
    second_graph["seen"] = node("PreviewAny", source=["train", 5])
    first = trained(server, first_graph)
    bytes_of_first = (loras / "twice.safetensors").read_bytes()
    outputs = server.run(second_graph)
    second = outputs["train"]["lora_loom"][0]
    assert (first["adapter"], first["text"]) == ("twice.safetensors", [])
    assert second["adapter"] == "twice-2.safetensors"
    assert outputs["seen"]["text"] == ["twice-2.safetensors"]
    said = "the name twice was taken by another file, which stays as it is: this training is saved as twice-2.safetensors."
    assert outputs["train"]["text"] == [said]
    assert said in [event.get("message") for event in server.get(f"/lora_loom/runs/{second['run']}")["events"]]
    assert Path(json.loads((run_folder(server, second) / "spec.json").read_text())["output"]) == loras / "twice-2.safetensors"
    assert (loras / "twice.safetensors").read_bytes() == bytes_of_first

    # Each is found done under its own name, however often and in which order they are queued.
    for graph, told in ((first_graph, first), (second_graph, second), (first_graph, first)):
        server.post("/free", {"unload_models": True, "free_memory": True})
        again = trained(server, graph)
        assert (again["adapter"], again["run"], starts(server, told)) == (told["adapter"], told["run"], 1)

    # The name is free again once its file is gone.
    (loras / "twice.safetensors").unlink()
    third = trained(server, training_graph("twice", steps=4))
    assert third["adapter"] == "twice.safetensors"
    # What the first one made has a number now, since the run's folder has a copy of it and its place is taken.
    again = trained(server, first_graph)
    assert (again["adapter"], starts(server, first)) == ("twice-3.safetensors", 1)
    assert (loras / "twice-3.safetensors").read_bytes() == bytes_of_first


def test_a_stopped_training_goes_on_in_the_file_that_it_has_begun(server: Server) -> None:
    loras = server.base / "models" / "loras"
    server.run(training_graph("begun", steps=1))
    graph = training_graph("begun", steps=40)
    prompt = server.queue(graph)
    run = server.wait_for_step("begun", 2)["id"]
    server.post(f"/lora_loom/runs/{run}/stop", {"save": True})
    assert server.wait(prompt)["outputs"]["train"]["lora_loom"][0]["adapter"] == "begun-2.safetensors"
    so_far = (loras / "begun-2.safetensors").read_bytes()
    assert trained(server, graph)["adapter"] == "begun-2.safetensors"
    assert (loras / "begun-2.safetensors").read_bytes() != so_far
    assert sorted(path.name for path in loras.glob("begun*")) == ["begun-2.safetensors", "begun.safetensors"]


@pytest.mark.parametrize(("name", "metadata"), [("precious", None), ("merged", {"lora_loom.made_by": '{"node": "LoomMergeAdapters"}'})])
def test_what_is_no_training_keeps_its_name_too(server: Server, name: str, metadata: dict[str, str] | None) -> None:
    path = server.base / "models" / "loras" / f"{name}.safetensors"
    save_file({"lora_unet_x.alpha": torch.ones(())}, path, metadata)
    before = path.read_bytes()
    assert trained(server, training_graph(name, steps=1))["adapter"] == f"{name}-2.safetensors"
    assert path.read_bytes() == before
    path.unlink()


def test_a_file_that_comes_while_a_training_runs_is_not_replaced(server: Server) -> None:
    path = server.base / "models" / "loras" / "late_comer.safetensors"
    prompt = server.queue(training_graph("late_comer", steps=30))
    server.wait_for_step("late_comer", 2)
    path.write_bytes(b"somebody else's")
    output = server.wait(prompt)["outputs"]["train"]
    told = output["lora_loom"][0]
    assert told["adapter"] == "late_comer-2.safetensors"
    assert "late_comer-2.safetensors" in output["text"][0]
    assert path.read_bytes() == b"somebody else's"
    assert Path(json.loads((run_folder(server, told) / "spec.json").read_text())["output"]).name == "late_comer-2.safetensors"
    path.unlink()


def test_a_fine_tune_does_not_replace_its_base(server: Server) -> None:
    base = server.base / "models" / "checkpoints" / "mini_base.safetensors"
    before = base.stat()
    output = server.run(tuning_graph("mini_base", steps=1))["train"]
    made = base.with_name("mini_base-2.safetensors")
    assert output["lora_loom"][0]["adapter"] == made.name
    assert made.is_file()
    assert (base.stat().st_size, base.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    made.unlink()


def test_an_embedding_with_a_number_is_called_by_it(server: Server) -> None:
    first, second = inverting_graph("taken_bun", steps=1), inverting_graph("taken_bun", steps=2)
    second["seen"] = node("PreviewAny", source=["train", 2])
    assert trained(server, first)["adapter"] == "embedding:taken_bun"
    outputs = server.run(second)
    assert outputs["train"]["lora_loom"][0]["adapter"] == "embedding:taken_bun-2"
    assert outputs["seen"]["text"] == ["embedding:taken_bun-2, red food"]


def test_both_files_of_pivotal_tuning_get_the_same_number(server: Server) -> None:
    (server.base / "models" / "embeddings").mkdir(exist_ok=True)
    (server.base / "models" / "embeddings" / "pair.safetensors").write_bytes(b"somebody else's")
    graph = training_graph("pair", steps=1)
    graph["word"] = node("LoomNewWord", placeholder=NEW_WORD, initializer="apple", vectors=1, learning_rate=1e-3, options=["sampling", 0])
    graph["train"]["inputs"]["options"] = ["word", 0]
    assert trained(server, graph)["adapter"] == "pair-2.safetensors"
    assert (server.base / "models" / "embeddings" / "pair-2.safetensors").is_file()
    assert not (server.base / "models" / "loras" / "pair.safetensors").exists()


def graph_of(server: Server, kind: str, name: str) -> dict[str, Any]:
    """A graph that gets as far as the names of its files: the node with its defaults, beside whatever its sockets want."""
    required = server.get(f"/object_info/{kind}")[kind]["input"]["required"]
    sockets = {"LOOM_BASE": ["base", 0], "LOOM_DATASET": ["size", 0], "LOOM_ADAPTERS": ["stack", 0]}
    values = {key: sockets.get(told[0], told[1]["default"] if len(told) > 1 and "default" in told[1] else None) for key, told in required.items()}
    values |= {key: "mini_base.safetensors" for key, told in required.items() if values[key] is None and told[0] == "COMBO"}
    return {**few_pictures(), "stack": node("LoomAdapterStack", rows="[]"), "make": node(kind, **{**values, "name": name})}


def test_a_name_that_no_file_can_have_is_refused_when_it_is_queued(server: Server) -> None:
    nodes = server.get("/object_info")
    kinds = [kind for kind, told in nodes.items() if kind.startswith("Loom") and told["input"].get("required", {}).get("name", [""])[0] == "STRING"]
    assert {"LoomTrainLoRA", "LoomFineTune", "LoomTrainTextualInversion", "LoomMergeAdapters", "LoomSaveAdapter", "LoomBakeCheckpoint"} <= set(kinds)
    for kind in kinds:
        for name, says in (("../../outside", "plain file name"), ("nul", "device"), ("食" * 80, "bytes"), ("ends.", "plain file name")):
            with pytest.raises(Refused) as refused:
                server.queue(graph_of(server, kind, name))
            told = refused.value.body["node_errors"]["make"]["errors"]
            assert says in json.dumps(told), f"{kind}, {name}: {told}"


def test_a_name_that_comes_by_a_link_is_refused_before_anything_is_trained(server: Server) -> None:
    graph = training_graph("x")
    graph["name"] = node("PrimitiveString", value="nul")
    graph["train"]["inputs"]["name"] = ["name", 0]
    assert "device" in server.fail(graph)
    assert server.training("nul") is None
