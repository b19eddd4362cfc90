"""The trainer process: stopping, cancelling, killing, going on."""
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from loom_server import PACK, Refused, Server, comfyui, error_of, node, training_graph
from safetensors.torch import load_file


def events(server: Server, run: str) -> list[dict]:
    file = server.base / "output" / "lora_loom" / "runs" / run / "events.jsonl"
    # The server knows of a run before its process has written a word.
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def pid_of(server: Server, run: str) -> int:
    return next(event["pid"] for event in reversed(events(server, run)) if event["event"] == "started")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_gone(pid: int, seconds: float) -> float:
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if not is_alive(pid):
            return time.monotonic() - started
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is still there after {seconds} s")


def test_cancel_keeps_the_state_and_the_next_queue_goes_on_to_the_same_adapter(server: Server) -> None:
    graph = training_graph("cancelled", steps=30)
    prompt = server.queue(graph)
    run = server.wait_for_step("cancelled", 5)["id"]
    pid = pid_of(server, run)
    server.post("/interrupt", {})
    wait_gone(pid, 60)
    entry = server.wait(prompt)
    told = events(server, run)
    last = [event for event in told if event["event"] == "progress"][-1]
    assert told[-1]["time"] - last["time"] < 5 + 1 / last["steps_per_second"], "more than 5 s after the step that was under way"
    assert any(kind == "execution_interrupted" for kind, _ in entry["status"]["messages"])
    assert not (server.base / "models" / "loras" / "cancelled.safetensors").exists(), "Cancel left a half-trained adapter"
    saved = [event for event in events(server, run) if event["event"] == "checkpoint"][-1]["step"]
    assert 5 <= saved < 30

    server.run(graph)
    assert [event["resumed_from"] for event in events(server, run) if event["event"] == "started"] == [0, saved]
    server.run(training_graph("uncut", steps=30))
    cut, whole = (load_file(server.base / "models" / "loras" / f"{name}.safetensors") for name in ("cancelled", "uncut"))
    assert all(bool((cut[key] == whole[key]).all()) for key in whole)


def test_cancel_waits_for_a_save_as_long_as_it_moves_and_for_nothing_else(server: Server, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PACK / "tests" / "slow_trainer.py"}" "$@"\n')
    python.chmod(0o755)
    database = f"sqlite:///{tmp_path / 'comfy.db'}"
    other = Server(comfyui(), server.base).start("--database-url", database, LORA_LOOM_PYTHON=str(python))
    try:
        for name in ("slowly_saved", "hanging"):
            prompt = other.queue(training_graph(name, steps=100))
            run = other.wait_for_step(name, 1)["id"]
            other.post("/interrupt", {})
            assert any(kind == "execution_interrupted" for kind, _ in other.wait(prompt)["status"]["messages"])
            last, state = events(other, run)[-1], other.training(name)["state"]
            if name == "slowly_saved":
                assert (last["event"], state) == ("finished", "stopped"), "the save was cut"
                assert (other.base / "output" / "lora_loom" / "runs" / run / "state" / "step-00000001").is_dir()
            else:
                assert (last["event"], state) == ("failed", "failed")
                assert "moved nothing on the disk for 30 s and was ended. It had saved no state yet" in last["message"]
    finally:
        other.stop()


def test_cancel_while_samples_are_drawn_is_as_quick_and_keeps_the_state(server: Server) -> None:
    graph = training_graph("drawing", steps=50, draw=True)
    graph["sampling"]["inputs"].update(prompts="\n".join("abcdefgh"), every_steps=2, steps=200)
    prompt = server.queue(graph)
    deadline = time.monotonic() + 60
    while not ((run := server.training("drawing")) and any(e.get("name") == "drawing samples" for e in events(server, run["id"]))):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    pid = pid_of(server, run["id"])
    server.post("/interrupt", {})
    wait_gone(pid, 10)
    told = events(server, run["id"])
    assert not any(event["event"] == "sample" for event in told), "this machine draws too fast for this test"
    assert [event["step"] for event in told if event["event"] == "checkpoint"] == [0], "the pictures of step 0 come before the first step"
    server.wait(prompt)


def test_a_stopped_training_goes_on_also_when_its_name_comes_by_a_link(server: Server) -> None:
    graph = training_graph("linked", steps=30)
    graph["name"] = node("PrimitiveString", value="linked")
    graph["train"]["inputs"]["name"] = ["name", 0]
    prompt = server.queue(graph)
    run = server.wait_for_step("linked", 3)["id"]
    server.post(f"/lora_loom/runs/{run}/stop", {"save": True})
    assert server.wait(prompt)["outputs"]["train"]["lora_loom"][0]["steps"] < 30
    assert server.run(graph)["train"]["lora_loom"][0]["steps"] == 30


def test_a_python_that_does_not_look_into_the_current_folder_trains_too(server: Server, tmp_path: Path) -> None:
    # As that of ComfyUI's portable build for Windows.
    isolated = tmp_path / "python"
    isolated.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "$@"\n')
    isolated.chmod(0o755)
    database = f"sqlite:///{tmp_path / 'comfy.db'}"
    other = Server(comfyui(), server.base).start("--database-url", database, LORA_LOOM_PYTHON=str(isolated))
    try:
        assert other.run(training_graph("isolated", steps=1))["train"]["lora_loom"][0]["steps"] == 1
    finally:
        other.stop()


def test_stop_saves_the_adapter_so_far_and_the_graph_goes_on(server: Server) -> None:
    prompt = server.queue(training_graph("stopped", steps=500))
    run = server.wait_for_step("stopped", 3)["id"]
    assert server.post(f"/lora_loom/runs/{run}/stop", {"save": True}) == {"stopping": True}
    entry = server.wait(prompt)
    assert entry["status"]["status_str"] == "success"
    result = entry["outputs"]["train"]["lora_loom"][0]
    assert 3 <= result["steps"] < 500
    assert (server.base / "models" / "loras" / "stopped.safetensors").is_file()
    assert server.get(f"/lora_loom/runs/{run}")["run"]["state"] == "stopped"
    with pytest.raises(Refused) as refused:
        server.post(f"/lora_loom/runs/{run}/stop", {"save": True})
    assert refused.value.status == 409


def test_a_page_that_comes_late_is_told_the_whole_run(server: Server) -> None:
    prompt = server.queue(training_graph("late", steps=500))
    run = server.wait_for_step("late", 10)["id"]
    told = server.get(f"/lora_loom/runs/{run}")
    assert told["run"]["state"] == "running"
    assert [step for step, _ in told["curve"]][:10] == list(range(1, 11))
    assert told["events"][-1]["event"] == "progress"
    server.post(f"/lora_loom/runs/{run}/stop", {"save": False})
    server.wait(prompt)


@pytest.mark.parametrize("run", ["nothing-000000000000", "..%2F..%2Fetc"])
def test_an_unknown_run_is_not_found(server: Server, run: str) -> None:
    with pytest.raises(Refused) as refused:
        server.post(f"/lora_loom/runs/{run}/stop", {"save": True})
    assert refused.value.status == 404


def test_unknown_keys_in_a_request_are_refused(server: Server) -> None:
    server.run(training_graph("keys", steps=1))
    run = server.training("keys")["id"]
    with pytest.raises(Refused) as refused:
        server.post(f"/lora_loom/runs/{run}/stop", {"safe": True})
    assert refused.value.status == 400


def test_a_killed_trainer_fails_the_prompt(server: Server) -> None:
    prompt = server.queue(training_graph("killed", steps=500))
    run = server.wait_for_step("killed", 2)["id"]
    os.kill(pid_of(server, run), signal.SIGKILL)
    entry = server.wait(prompt)
    assert entry["status"]["status_str"] == "error"
    said = "the system stopped the trainer process (SIGKILL), most often for lack of memory."
    assert said in error_of(entry)
    assert "It had saved no state yet: queue it again, and it starts anew." in error_of(entry)
    # The page and whoever reads the run's folder are told the same.
    for told in (server.get(f"/lora_loom/runs/{run}")["events"], events(server, run)):
        assert [event["message"].startswith(said) for event in told if event["event"] == "failed"] == [True]
    assert server.training("killed")["state"] == "failed"
    assert not (server.base / "models" / "loras" / "killed.safetensors").exists()


def test_a_killed_comfyui_leaves_no_trainer_behind_and_loses_nothing(server: Server, tmp_path: Path) -> None:
    for folder in ("models/loras", "output"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("models/checkpoints", "input"):
        (tmp_path / folder).symlink_to(server.base / folder, target_is_directory=True)
    other = Server(comfyui(), tmp_path).start()
    try:
        other.queue(training_graph("orphan", steps=2000))
        run = other.wait_for_step("orphan", 5)["id"]
        pid = pid_of(other, run)
        os.kill(other.pid, signal.SIGKILL)
        wait_gone(pid, 60)
    finally:
        other.stop()
    told = events(other, run)
    assert told[-1]["event"] == "finished"
    assert told[-1]["stopped"]
    assert any(event["event"] == "checkpoint" and event["step"] >= 5 for event in told)


def test_states_are_saved_by_the_clock(server: Server) -> None:
    asked = training_graph("clocked", steps=20)
    asked["clocked"] = node("LoomCheckpointing", every_steps=0, every_minutes=0.005, keep_last=100, validate_every_steps=0, options=["sampling", 0])
    asked["train"]["inputs"]["options"] = ["clocked", 0]
    run = server.run(asked)["train"]["lora_loom"][0]["run"]
    states = sorted((server.base / "output" / "lora_loom" / "runs" / run / "state").iterdir())
    assert states[-1].name == "step-00000020"
    assert 2 <= len(states) < 20, "0.3 s are several steps here and not the whole training"
