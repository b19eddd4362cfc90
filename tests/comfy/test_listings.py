"""Lists in the real server: nothing that cannot be read takes the nodes away or hides the rest, and the event loop reads no folder."""
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from loom_server import PACK, Refused, Server, comfyui, node, told_in_comfyui
from safetensors.torch import save_file
from unreadable import open_place

from trainer.data.image_folders import leads_out
from trainer.events import Finished, Phase, Progress, Started
from trainer.past_runs import About

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")


def images(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for stem in ("lemon", "banana"):
        for suffix in (".png", ".txt"):
            shutil.copy(PACK / "tests" / "food" / f"{stem}{suffix}", folder)
    return folder


def finished_run(runs: Path, number: int, task: str = "train_lora") -> Path:
    folder = runs / f"bun-{number:012x}"
    folder.mkdir(parents=True)
    steps = [Progress(step=s, total=3, losses=(0.5,), learning_rate=1e-3, elapsed_seconds=1.0, steps_per_second=1.0) for s in (1, 2, 3)]
    counts = [Phase(name="encoding", done=done, total=500) for done in range(501)]
    events = [Started(run=folder.name, pid=1, task=task, total_steps=3), *counts, *steps, Finished(step=3)]
    (folder / "events.jsonl").write_text("".join(event.model_dump_json() + "\n" for event in events))
    (folder / "spec.json").write_text("{}")
    About(node="7", name="bun", task=task, client="a-page", prompt="a-prompt", workflow="a-workflow", started=1000.0 + number).write(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ComfyUI's folders with everything in them that has to be passed over."""
    base = tmp_path_factory.mktemp("hostile")
    outside = images(tmp_path_factory.mktemp("outside") / "photos").parent
    for name in ("a", "z", "a:b", "back\\slash"):
        images(base / "input" / name)
    (base / "input" / "loop").symlink_to("loop")
    (base / "input" / "z" / "up").symlink_to(base / "input", target_is_directory=True)
    (base / "input" / "registered").symlink_to(outside / "photos", target_is_directory=True)
    (base / "input" / "foreign").symlink_to(images(tmp_path_factory.mktemp("foreign") / "photos"), target_is_directory=True)
    line = re.search(r"lora_loom: .*\}", leads_out("input/registered", str(outside / "photos")))
    assert line is not None
    (base / "registered.yaml").write_text(line[0])
    for kind in ("loras", "datasets", "captioners"):
        (base / "models" / kind).mkdir(parents=True)
        (base / "models" / kind / "loop").symlink_to("loop")
    (base / "models" / "loras" / "gone.safetensors").symlink_to("nowhere")
    (base / "models" / "captioners" / "blip").mkdir()
    (base / "models" / "captioners" / "blip" / "config.json").write_text("{}")
    runs = base / "output" / "lora_loom" / "runs"
    for number in range(1, 6):
        finished_run(runs, number)
    (runs / "loop").symlink_to("loop")
    (runs / "notes.txt").touch()
    (runs / f"bun-{2:012x}" / "events.jsonl").unlink()
    (runs / f"bun-{2:012x}" / "events.jsonl").symlink_to("events.jsonl")
    (runs / f"bun-{3:012x}" / "spec.json").write_bytes(b"\xff")
    with (runs / f"bun-{4:012x}" / "events.jsonl").open("a") as events:
        events.write(Started(run="x", pid=1, task="train_lora", total_steps=3, resumed_from=3).model_dump_json()[:-3])
    (runs / f"bun-{5:012x}" / "state" / "step-00000003").mkdir(parents=True)
    (runs / f"bun-{5:012x}" / "state" / "step-00000002").write_text("a file")
    (runs / f"bun-{3:012x}" / "state").write_text("a file")
    (base / "custom_nodes").mkdir()
    shutil.copy(Path(__file__).with_name("loop_watch.py"), base / "custom_nodes")
    return base


@pytest.fixture(scope="module")
def hostile(place: Path) -> Iterator[Server]:
    running = Server(comfyui(), place).start("--extra-model-paths-config", str(place / "registered.yaml"))
    yield running
    running.stop()


def choices(server: Server, node_id: str, name: str) -> list[str]:
    groups = server.get(f"/object_info/{node_id}")[node_id]["input"]
    kind, more = {**groups["required"], **groups.get("optional", {})}[name]
    return list(more["options"] if kind == "COMBO" else kind)


def check(folder: str) -> dict[str, Any]:
    """A graph that reads a folder and trains nothing."""
    return {
        "dataset": node("LoomDatasetFromFolder", folder=folder, repeats=1, trigger_word="", missing_captions="refuse"),
        "check": node("LoomCheckDataset", dataset=["dataset", 0], batch_size=1),
    }


def test_all_nodes_are_there_and_lists_hold_what_can_be_read(hostile: Server) -> None:
    nodes = [name for name in hostile.get("/object_info") if name.startswith("Loom")]
    assert len(nodes) == len(json.loads((PACK / "locales" / "en" / "nodeDefs.json").read_text()))
    offered = choices(hostile, "LoomDatasetFromFolder", "folder")
    assert offered == [f"input/{name}" for name in ("a", "a:b", "back\\slash", "foreign", "registered", "z")]
    assert choices(hostile, "LoomCaptionDataset", "captioner") == ["blip"]
    assert choices(hostile, "LoomCheckpointing", "continue_from") == ["a new start", f"bun-{5:012x} @ 3"]
    log = hostile.log.read_text()
    assert log.count("input some names cannot be followed and are left out of the lists: loop") == 1


def test_every_folder_that_is_listed_is_read_or_says_what_to_do(hostile: Server) -> None:
    for folder in choices(hostile, "LoomDatasetFromFolder", "folder"):
        if folder == "input/foreign":
            with pytest.raises(Refused, match=r"leads out of input/.*register it: put the line lora_loom: .*into extra_model_paths\.yaml"):
                hostile.queue(check(folder))
        else:
            assert "2 pictures" in hostile.run(check(folder))["check"]["text"][0]


def test_the_line_that_registers_a_folder_is_yaml_whatever_its_name(tmp_path: Path) -> None:
    target = tmp_path / "it's: a {\"name\"} #1 \\ äöü"
    target.mkdir()
    line = re.search(r"lora_loom: \{.*\}(?= into)", leads_out("input/x", str(target)))
    assert line is not None
    assert yaml.safe_load(line[0]) == {"lora_loom": {"datasets": str(target)}}


def test_a_link_in_a_models_folder_that_leads_nowhere_is_named(hostile: Server) -> None:
    graph = {"load": node("LoomLoadAdapter", adapter="gone.safetensors", model_weight=1.0, clip_weight=1.0, blocks="")}
    graph["inspect"] = node("LoomInspectAdapter", adapters=["load", 0])
    with pytest.raises(Refused, match=r"gone\.safetensors' is a link in ComfyUI's loras folders that leads to no file"):
        hostile.queue(graph)


def test_a_new_folder_is_offered_when_the_page_asks_again(hostile: Server) -> None:
    images(hostile.base / "input" / "brand_new")
    assert "2 pictures" in hostile.run(check("input/brand_new"))["check"]["text"][0], "it need not be listed before"
    deadline = time.monotonic() + 10
    while "input/brand_new" not in choices(hostile, "LoomDatasetFromFolder", "folder"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    shutil.rmtree(hostile.base / "input" / "brand_new")
    while "input/brand_new" in choices(hostile, "LoomDatasetFromFolder", "folder"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_event_loop_reads_no_folder_no_run_and_no_adapter(hostile: Server) -> None:
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{layer}.lora_down.weight": torch.ones(2, 768), f"{layer}.lora_up.weight": torch.ones(320, 2)}
    save_file(tensors, hostile.base / "models" / "loras" / "bun.safetensors")
    hostile.get("/object_info")
    assert str(hostile.base / "input") in hostile.get("/loop_watch"), "it watches: ComfyUI's own Load Image reads there"
    for name in ("LoomDatasetFromFolder", "LoomCaptionDataset", "LoomCheckpointing"):
        hostile.get(f"/object_info/{name}")
    run = hostile.get("/lora_loom/runs")["runs"][0]["id"]
    hostile.get(f"/lora_loom/runs/{run}")
    hostile.run(check("input/a"))
    stack = {"stack": node("LoomAdapterStack", rows='[{"name": "bun", "blocks": "1, 2"}]')}
    with pytest.raises(Refused, match=r"row 1 .bun.: .*block"):
        hostile.queue({**stack, "inspect": node("LoomInspectAdapter", adapters=["stack", 0])})
    seen = hostile.get("/loop_watch")
    ours = [str(hostile.base / name) for name in ("input", "models/datasets", "models/captioners", "models/loras/bun", "output/lora_loom")]
    assert [name for name in seen if any(name.startswith(folder) for folder in ours)] == []


def test_runs_of_earlier_servers_are_listed_and_told(hostile: Server) -> None:
    answer = hostile.get("/lora_loom/runs")
    told = {int(run["id"][4:], 16): run for run in answer["runs"]}
    assert list(told) == [5, 4, 3, 1], "newest first, without the one that cannot be read"
    assert told[5] == {
        "id": f"bun-{5:012x}", "node": "7", "name": "bun", "task": "train_lora", "state": "finished", "step": 3, "total": 3,
        "started": 1005.0, "client": "a-page", "prompt": "a-prompt", "workflow": "a-workflow",
    }
    assert {run["state"] for run in told.values()} == {"finished"}
    assert [run["id"] for run in hostile.get("/lora_loom/runs?limit=2")["runs"]] == [told[5]["id"], told[4]["id"]]
    assert hostile.get("/lora_loom/runs?limit=2")["total"] == 5
    one = hostile.get(f"/lora_loom/runs/{told[5]['id']}")
    assert one["run"] == told[5]
    assert one["curve"] == [[1, 0.5], [2, 0.5], [3, 0.5]]
    assert [event["event"] for event in one["events"]] == ["started", "phase", "phase", "finished", "progress"]
    with pytest.raises(Refused) as refused:
        hostile.post(f"/lora_loom/runs/{told[5]['id']}/stop", {"save": True})
    assert refused.value.status == 409
    assert hostile.log.read_text().count(f"bun-{2:012x} cannot be read (Too many levels of symbolic links)") == 1


def test_nobody_loses_the_nodes_to_a_folder_that_may_not_be_read() -> None:
    with open_place() as base:
        for folder in ("input/lost+found", "models/captioners/locked", "models/captioners/good", "models/vae/names_only/inner"):
            (base / folder).mkdir(parents=True)
        for folder in ("models/loras/names_only/inner", "models/datasets/names_only/inner", "models/loras/good"):
            (base / folder).mkdir(parents=True)
        runs = base / "output" / "lora_loom" / "runs"
        for run in (f"bun-{1:012x}", f"bun-{2:012x}"):
            (runs / run / "state" / "step-00000005").mkdir(parents=True)
        for folder in ("input/good", "models/datasets/good"):
            images(base / folder)
        for file in ("models/loras/good/a.safetensors", "models/loras/b.safetensors", "models/captioners/good/config.json"):
            (base / file).touch()
        for locked in ("input/lost+found", "models/captioners/locked", runs / f"bun-{1:012x}"):
            (base / locked).chmod(0)
        for kind in ("loras", "vae", "datasets"):
            (base / "models" / kind / "names_only").chmod(0o644)
        told = told_in_comfyui("nodes_at_start.py", base)
    assert len(told["nodes"]) == len(json.loads((PACK / "locales" / "en" / "nodeDefs.json").read_text()))
    options = told["options"]
    assert options["LoomDatasetFromFolder.folder"] == ["input/good", "datasets/good"]
    assert options["LoomCaptionDataset.captioner"] == ["good"]
    assert options["LoomCheckpointing.continue_from"] == ["a new start", f"bun-{2:012x} @ 5"]
    assert options["LoomLoadAdapter.adapter"] == ["b.safetensors", "good/a.safetensors"]
    assert options["LoomBaseModel.vae"] == ["from the checkpoint"]


def test_a_server_holds_no_more_after_twenty_runs_than_after_the_first(tmp_path: Path) -> None:
    told = told_in_comfyui("many_runs.py", tmp_path, "20")
    one_run = told["held"][0]
    assert max(told["held"][1:]) < 1.5 * one_run
    assert told["listed"] == [f"bun-{number:012x}" for number in reversed(range(20))]
    assert told["first_losses"] == 5000
