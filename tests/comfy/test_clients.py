"""Headless use: the published workflows through the API, watched on /ws, and run by a client that is not ours."""
import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from loom_server import PACK, Server, training_graph
from tiny_blip import make_tiny_blip

API = PACK / "workflows" / "api"


def workflow(name: str) -> dict[str, Any]:
    return json.loads((API / f"{name}.json").read_text())


def small(graph: dict[str, Any], name: str) -> dict[str, Any]:
    """The same graph with a training that takes seconds."""
    for entry in graph.values():
        if entry["class_type"] == "LoomTrainLoRA":
            entry["inputs"].update(name=name, steps=3, batch_size=1)
        if entry["class_type"] == "LoomSampling":
            entry["inputs"].update(steps=2)
        if entry["class_type"] == "KSampler":
            entry["inputs"].update(steps=2)
    return graph


def test_progress_comes_on_the_websocket_and_results_in_the_history(server: Server) -> None:
    async def told() -> list[dict[str, Any]]:
        return [message async for message in server.follow(small(workflow("train_lora_sd15"), "watched"), client="a-client")]

    messages = asyncio.run(told())
    events = [message["data"]["event"] for message in messages if message["type"] == "lora_loom.run"]
    kinds = [event["event"] for event in events]
    assert kinds[0] in ("phase", "started")
    assert kinds[-1] == "finished"
    assert [event["step"] for event in events if event["event"] == "progress"][-1] == 3
    assert {"checkpoint", "sample"} <= set(kinds)
    # ComfyUI's own bar on the node, for clients that know nothing of the pack.
    bar = [message["data"] for message in messages if message["type"] == "progress"]
    assert any(data["value"] == 3 and data["max"] == 3 for data in bar)

    node, result = next(
        (message["data"]["node"], message["data"]["output"]["lora_loom"][0])
        for message in messages
        if message["type"] == "executed" and "lora_loom" in message["data"]["output"]
    )
    prompt = next(message["data"]["prompt_id"] for message in messages if message["type"] == "execution_success")
    assert server.wait(prompt)["outputs"][node]["lora_loom"] == [result]  # the history is written after the websocket's last word
    assert result["adapter"] == "watched.safetensors"
    assert result["seconds_per_step"] > 0
    assert server.file(result["loss_plot"]).is_file()
    run = server.training("watched")
    assert (run["id"], run["node"], run["client"], run["prompt"]) == (result["run"], node, "a-client", prompt)


def test_the_captioning_workflow_keeps_the_captions_that_are_there(server: Server) -> None:
    make_tiny_blip(server.base / "models" / "captioners" / "blip")
    captions = next(iter(server.run(workflow("caption_dataset")).values()))["text"]
    assert len(captions) == 30
    assert "red apple, red food" in captions


@pytest.mark.parametrize("form", ["api", "saved graph"])
def test_comfy_cli_runs_the_published_workflow(server: Server, tmp_path: Path, form: str) -> None:
    name = f"by_comfy_cli_{form.split()[0]}"
    if form == "api":
        graph: dict[str, Any] = small(workflow("train_lora_sd15"), name)
    else:
        # comfy-cli translates a graph as the page saves it; the numbers are in the order of the widgets.
        graph = json.loads((PACK / "workflows" / "train_lora_sd15.json").read_text())
        values = {node["type"]: node["widgets_values"] for node in graph["nodes"] if "widgets_values" in node}
        training = values["LoomTrainLoRA"]
        training[0], training[3], training[4] = name, 3, 1
        values["LoomSampling"][4] = values["KSampler"][2] = 2
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(graph))
    command = [os.environ["LORA_LOOM_COMFY_CLI"], "--skip-prompt", "run", "--workflow", str(path), "--wait"]
    done = subprocess.run(
        [*command, "--host", "127.0.0.1", "--port", str(server.port)],
        capture_output=True,
        text=True,
        timeout=300,
        # It keeps its settings in the home folder, and asks there whether it may report its use.
        env={**os.environ, "HOME": str(tmp_path), "DO_NOT_TRACK": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (server.base / "models" / "loras" / f"{name}.safetensors").is_file()


def test_a_client_sees_a_failure_as_one(server: Server) -> None:
    graph = training_graph("never", steps=1_000_000, draw=True)
    graph["sampling"]["inputs"].update(prompts="\n".join(map(str, range(1000))), every_steps=1)

    async def told() -> list[dict[str, Any]]:
        return [message async for message in server.follow(graph, client="another")]

    messages = asyncio.run(told())
    assert messages[-1]["type"] == "execution_error"
    assert "not enough disk space" in messages[-1]["data"]["exception_message"]
    assert messages[-1]["data"]["node_type"] == "LoomTrainLoRA"
