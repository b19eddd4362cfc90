"""A folder of pictures becomes a LoRA that changes what ComfyUI draws, in the real server."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from loom_server import Refused, Server, comfyui, drawing_graph, node, training_graph
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

PROMPT = "red apple, red food"


def picture(server: Server, graph: dict, folder: str = "output") -> np.ndarray:
    saved = server.run(graph)["save"]["images"][0]
    with Image.open(server.base / folder / saved["subfolder"] / saved["filename"]) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)


def stacked(name: str, weight: float, prefix: str) -> dict:
    rows = json.dumps([{"on": True, "name": f"{name}.safetensors", "model": weight, "clip": weight}])
    return {
        **drawing_graph(["apply", 0], ["apply", 1], PROMPT, prefix),
        "stack": node("LoomAdapterStack", rows=rows),
        "apply": node("LoomApplyAdapters", model=["checkpoint", 0], clip=["checkpoint", 1], adapters=["stack", 0], mode="merged", strength=1.0),
    }


@pytest.fixture(scope="module")
def trained(server: Server) -> dict:
    """One training, drawn with in the same graph run; gives the prompt's outputs."""
    graph = {
        **training_graph("spine", folder="input/food", steps=30, rank=8, draw=True),
        **drawing_graph(["apply", 0], ["apply", 1], PROMPT, "same_run"),
        "stack": node("LoomAdapterStack", rows="[]", adapters=["train", 0]),
        "apply": node("LoomApplyAdapters", model=["checkpoint", 0], clip=["checkpoint", 1], adapters=["stack", 0], mode="merged", strength=1.0),
    }
    return server.run(graph)


def test_results_are_in_the_history(server: Server, trained: dict) -> None:
    result = trained["train"]["lora_loom"][0]
    assert result["adapter"] == "spine.safetensors"
    assert result["steps"] == 30
    assert (server.base / "output" / "lora_loom" / "runs" / result["run"] / "spec.json").is_file()
    for shown in trained["train"]["images"]:
        assert (server.base / "output" / shown["subfolder"] / shown["filename"]).is_file()
    assert {shown["filename"] for shown in trained["train"]["images"]} >= {"loss.png", "step-00000030-0.png"}


def test_a_trained_adapter_changes_the_picture_in_the_same_graph_run(server: Server, trained: dict) -> None:
    saved = trained["save"]["images"][0]
    with Image.open(server.base / "output" / saved["subfolder"] / saved["filename"]) as image:
        adapted = np.asarray(image.convert("RGB"), dtype=np.int16)
    plain = picture(server, drawing_graph(["checkpoint", 0], ["checkpoint", 1], PROMPT, "plain"))
    assert np.abs(adapted - plain).mean() > 1.0
    # The same adapter by its name, from the file, gives the same picture to the bit.
    assert np.array_equal(adapted, picture(server, stacked("spine", 1.0, "by_name")))


def test_cores_own_loader_takes_every_key(server: Server, trained: dict) -> None:
    log_before = len(server.log.read_text())
    graph = {
        **drawing_graph(["lora", 0], ["lora", 1], PROMPT, "core"),
        "lora": node(
            "LoraLoader", model=["checkpoint", 0], clip=["checkpoint", 1], lora_name="spine.safetensors", strength_model=1.0, strength_clip=1.0
        ),
    }
    core = picture(server, graph)
    log = server.log.read_text()[log_before:]
    assert "lora key not loaded" not in log
    assert "NOT LOADED" not in log
    assert np.array_equal(core, picture(server, stacked("spine", 1.0, "ours")))


def test_weight_zero_changes_nothing_and_more_weight_more(server: Server, trained: dict) -> None:
    plain = picture(server, drawing_graph(["checkpoint", 0], ["checkpoint", 1], PROMPT, "plain"))
    moved = [float(np.abs(picture(server, stacked("spine", w, f"w{i}")) - plain).mean()) for i, w in enumerate((0.0, 0.25, 1.0))]
    assert moved[0] == 0.0
    assert 0.0 < moved[1] < moved[2]


def test_the_file_says_what_it_is(server: Server, trained: dict) -> None:
    path = server.base / "models" / "loras" / "spine.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        names = list(file.keys())
    assert metadata["ss_base_model_version"] == "sd_1.5"
    assert metadata["ss_network_dim"] == "8"
    assert json.loads(metadata["ss_tag_frequency"])["food"]["red food"] == 4
    assert str(server.base) not in json.dumps(metadata), "the file gives away folders of this computer"
    assert all(name.startswith("lora_unet_") for name in names)
    assert {name.split(".", 1)[1] for name in names} == {"lora_down.weight", "lora_up.weight", "alpha"}


def test_the_same_graph_does_not_train_again_and_a_changed_one_does(server: Server) -> None:
    graph = training_graph("again", steps=3)
    first = server.run(graph)["train"]["lora_loom"][0]
    run = server.base / "output" / "lora_loom" / "runs" / first["run"]

    def starts(folder: Path) -> int:
        return (folder / "events.jsonl").read_text().count('"event":"started"')

    server.run(graph)
    assert starts(run) == 1
    server.post("/free", {"unload_models": True, "free_memory": True})
    assert server.run(graph)["train"]["lora_loom"][0]["run"] == first["run"]
    assert starts(run) == 1, "ComfyUI had forgotten the result, the run folder had not"

    changed = server.run(training_graph("again", steps=3, learning_rate=2e-3))["train"]["lora_loom"][0]
    assert changed["run"] != first["run"]

    caption = server.base / "input" / "few" / "lemon.txt"
    before = caption.read_text()
    caption.write_text("a sour lemon, yellow food\n")
    try:
        recaptioned = server.run(graph)["train"]["lora_loom"][0]
    finally:
        caption.write_text(before)
    assert recaptioned["run"] not in (first["run"], changed["run"])


def test_a_later_server_finds_the_training_done_and_tells_pages_of_it(server: Server, tmp_path: Path) -> None:
    graph = training_graph("found", steps=3)
    first = server.run(graph)["train"]["lora_loom"][0]
    later = Server(comfyui(), server.base).start("--database-url", f"sqlite:///{tmp_path / 'comfy.db'}")
    try:
        before = next(run for run in later.get("/lora_loom/runs")["runs"] if run["id"] == first["run"])
        assert (before["state"], before["node"], before["name"], before["step"], before["total"]) == ("finished", "train", "found", 3, 3)
        assert later.run(graph)["train"]["lora_loom"] == [first]
        told = later.get(f"/lora_loom/runs/{first['run']}")
    finally:
        later.stop()
    assert told["run"]["state"] == "finished"
    assert told["run"]["node"] == "train"
    assert [step for step, _ in told["curve"]] == [1, 2, 3]
    assert [event["event"] for event in told["events"]].count("started") == 1


def test_the_same_seed_gives_the_same_adapter_to_the_bit(server: Server) -> None:
    for name in ("one", "two"):
        server.run(training_graph(name, steps=4))
    one, two = (load_file(server.base / "models" / "loras" / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(bool((one[key] == two[key]).all()) for key in one)
    server.run(training_graph("three", steps=4, seed=2))
    three = load_file(server.base / "models" / "loras" / "three.safetensors")
    assert any(bool((one[key] != three[key]).any()) for key in one)


def test_an_adapter_that_was_replaced_under_its_name_is_read_again(server: Server, trained: dict) -> None:
    loras = server.base / "models" / "loras"
    other = load_file(loras / "spine.safetensors")
    shutil.copy(loras / "spine.safetensors", loras / "replaced.safetensors")
    graph = stacked("replaced", 1.0, "replaced")
    before = picture(server, graph)
    save_file({name: -tensor if name.endswith("lora_up.weight") else tensor for name, tensor in other.items()}, loras / "replaced.safetensors")
    assert not np.array_equal(before, picture(server, graph))


def test_a_missing_adapter_is_refused_when_it_is_queued(server: Server) -> None:
    with pytest.raises(Refused) as refused:
        server.queue(stacked("never_made", 1.0, "x"))
    assert "row 1" in str(refused.value)
    assert "never_made.safetensors" in str(refused.value)
