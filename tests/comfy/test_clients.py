"""Headless use: the published workflows through the API, watched on /ws, and run by a client that is not ours."""
import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from loom_server import Server, training_graph
from published import on_mini_base, published
from tiny_blip import make_tiny_blip

FEW = {"steps": 2}


def training(path: str, **settings: Any) -> dict[str, Any]:
    """The workflow that trains, on the mini base and in seconds."""
    return on_mini_base(published(path), LoomTrainLoRA={"steps": 3, "batch_size": 1, **settings}, LoomSampling=FEW, KSampler=FEW)


def test_progress_comes_on_the_websocket_and_results_in_the_history(server: Server) -> None:
    async def told() -> list[dict[str, Any]]:
        return [message async for message in server.follow(training("api/train_lora_sd15", name="watched"), client="a-client")]

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
    graph = on_mini_base(published("api/caption_dataset"))
    captioning = next(node for node, entry in graph.items() if entry["class_type"] == "LoomCaptionDataset")
    captions = server.run(graph)[captioning]["text"]
    assert len(captions) == 30
    assert "red apple, red food" in captions


def test_the_published_workflows_draw_with_what_the_training_one_makes(server: Server) -> None:
    loras = server.base / "models" / "loras"
    server.run(training("api/train_lora_sd15"))
    shutil.copy(loras / "my_lora.safetensors", loras / "my_style.safetensors")  # the second of the two that are merged
    for name in ("inspect_adapter", "stack_adapters", "compare_weights", "merge_adapters"):
        server.run(on_mini_base(published(f"api/{name}"), KSampler=FEW, LoomCompare=FEW))
    assert (loras / "my_merge.safetensors").is_file()


def test_the_published_workflow_compares_methods(server: Server) -> None:
    methods = {name: {"steps": 1, "batch_size": 1} for name in ("LoomTrainLoRA", "LoomFineTune", "LoomTrainTextualInversion")}
    graph = on_mini_base(published("api/compare_methods"), LoomPrior={"num_class_images": 2, **FEW}, LoomCompareMethods=FEW, **methods)
    (comparing,) = (node for node, entry in graph.items() if entry["class_type"] == "LoomCompareMethods")
    _, _, *lines = server.run(graph)[comparing]["text"][0].splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| base", "| LoRA", "| DreamBooth", "| textual inversion"]
    assert all("→" in line for line in lines[1:])


@pytest.mark.parametrize("path", ["api/train_lora_sd15", "train_lora_sd15"])
def test_comfy_cli_runs_the_published_workflow(server: Server, tmp_path: Path, path: str) -> None:
    name = f"by_comfy_cli_{path.replace('/', '_')}"
    # It translates a graph as the page saves it.
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps(training(path, name=name)))
    command = [os.environ["LORA_LOOM_COMFY_CLI"], "--skip-prompt", "run", "--workflow", str(file), "--wait"]
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
