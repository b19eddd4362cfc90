"""Options nodes, chained to a training in the real server."""
import json

import numpy as np
import pytest
from loom_server import Refused, Server, drawing_graph, node, training_graph
from PIL import Image
from safetensors import safe_open

OPTIMIZER = {
    "name": "adamw", "arguments": "{}", "schedule": "constant", "warmup": 0.0, "cycles": 1.0, "power": 1.0,
    "gradient_accumulation_steps": 1, "max_grad_norm": 1.0, "ema_decay": 0.0,
}
OBJECTIVE = {
    "prediction": "auto", "zero_terminal_snr": False, "weighting": "none", "min_snr_gamma": 5.0, "noise_offset": 0.0, "multires_noise": 0,
    "multires_discount": 0.3, "input_perturbation": 0.0, "loss": "l2", "huber_c": 0.1, "huber_schedule": "snr", "timestep_min": 0,
    "timestep_max": 1000, "timestep_distribution": "uniform", "timestep_mean": 0.0, "timestep_deviation": 1.0,
}
NETWORK = {
    "kind": "lora", "rank_stabilized": False, "decompose": False, "lokr_factor": 0, "targets": "transformer", "conv_rank": 0, "conv_alpha": 0.0,
    "dropout": 0.0, "pattern": "", "block_ranks": "", "save_format": "fp16",
}


def graph(name: str, *, optimizer: dict | None = None, objective: dict | None = None, network: dict | None = None, **numbers: object) -> dict:
    found = training_graph(name, **numbers)
    found["optimizer"] = node("LoomOptimizer", **{**OPTIMIZER, **(optimizer or {})}, options=["sampling", 0])
    found["objective"] = node("LoomObjective", **{**OBJECTIVE, **(objective or {})}, options=["optimizer", 0])
    found["network"] = node("LoomNetwork", **{**NETWORK, **(network or {})}, options=["objective", 0])
    found["train"]["inputs"]["options"] = ["network", 0]
    return found


def test_every_group_of_options_reaches_the_training_and_cores_loader_takes_the_file(server: Server) -> None:
    optimizer = {
        "name": "radam", "arguments": '{"weight_decay": 0.02, "betas": [0.9, 0.98]}', "schedule": "cosine", "warmup": 2.0,
        "gradient_accumulation_steps": 2, "ema_decay": 0.5,
    }
    objective = {"weighting": "min_snr", "noise_offset": 0.05, "multires_noise": 3, "input_perturbation": 0.1, "loss": "huber", "timestep_min": 50}
    network = {"kind": "loha", "targets": "attention", "block_ranks": "mid_block = 2", "save_format": "fp32"}
    trained = server.run(graph("optioned", optimizer=optimizer, objective=objective, network=network, steps=10))["train"]["lora_loom"][0]
    assert trained["steps"] == 10
    with safe_open(server.base / "models" / "loras" / "optioned.safetensors", "pt") as file:
        spec = json.loads(file.metadata()["lora_loom.spec"])
        names = list(file.keys())
        middle = next(name for name in names if "mid_block" in name and name.endswith("hada_w1_b"))
        assert file.get_tensor(middle).shape[0] == 2
    assert spec["optimizer"]["name"] == "radam"
    assert spec["objective"]["weighting"] == "min_snr"
    told = [json.loads(line) for line in (server.base / f"output/lora_loom/runs/{trained['run']}/events.jsonl").read_text().splitlines()]
    rates = [event["learning_rate"] for event in told if event["event"] == "progress"]
    assert rates[-1] < 0.5e-3, "the cosine has not come down"

    log_before = len(server.log.read_text())
    pictures = []
    for strength in (0.0, 1.0):
        drawing = drawing_graph(["lora", 0], ["lora", 1], "red apple, red food", f"options_{strength}", steps=3)
        drawing["lora"] = node(
            "LoraLoader", model=["checkpoint", 0], clip=["checkpoint", 1], lora_name="optioned.safetensors",
            strength_model=strength, strength_clip=1.0,
        )
        saved = server.run(drawing)["save"]["images"][0]
        with Image.open(server.base / "output" / saved["subfolder"] / saved["filename"]) as image:
            pictures.append(np.asarray(image.convert("RGB"), dtype=np.int16))
    assert "not loaded" not in server.log.read_text()[log_before:].lower()
    assert not np.array_equal(*pictures)


def test_states_are_kept_and_held_out_pictures_looked_at_as_often_as_asked(server: Server) -> None:
    asked = graph("often", steps=11)
    asked["often"] = node("LoomCheckpointing", every_steps=2, every_minutes=0.0, keep_last=3, validate_every_steps=5, options=["network", 0])
    asked["train"]["inputs"] |= {"options": ["often", 0], "validation": ["dataset", 0]}
    asked["shown"] = node("PreviewImage", images=["train", 3])
    outputs = server.run(asked)
    # Without sample pictures what shows them does not run, and is no error.
    assert "shown" not in outputs
    assert [image["filename"] for image in outputs["train"]["images"]] == ["loss.png"]
    result = outputs["train"]["lora_loom"][0]
    assert [step for step, _ in result["validation"]] == [0, 5, 10, 11]
    assert result["validation_by_dataset"] == {}
    states = server.base / "output" / "lora_loom" / "runs" / result["run"] / "state"
    assert sorted(folder.name for folder in states.iterdir()) == ["step-00000008", "step-00000010", "step-00000011"]


def test_options_that_are_set_to_their_defaults_train_what_no_options_train(server: Server) -> None:
    server.run(training_graph("without", steps=3))
    server.run(graph("with", steps=3))
    hashes = []
    for name in ("without", "with"):
        with safe_open(server.base / "models" / "loras" / f"{name}.safetensors", "pt") as file:
            hashes.append(file.metadata()["modelspec.hash_sha256"])
    assert hashes[0] == hashes[1]


def test_a_group_that_is_chained_twice_is_refused(server: Server) -> None:
    twice = graph("twice")
    twice["again"] = node("LoomOptimizer", **OPTIMIZER, options=["network", 0])
    twice["train"]["inputs"]["options"] = ["again", 0]
    assert "two Optimizer Options nodes" in server.fail(twice)


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ({"optimizer": {"arguments": '{"wieght_decay": 1}'}}, "wieght_decay"),
        ({"objective": {"timestep_min": 500, "timestep_max": 400}}, "timestep_min 500 is not below timestep_max 400"),
        ({"objective": {"zero_terminal_snr": True}}, "zero_terminal_snr"),
        ({"network": {"kind": "lokr", "decompose": True}}, "belong to the kind lora"),
        ({"network": {"block_ranks": "down_blocks.7 = 4"}}, "down_blocks.7"),
        ({"network": {"block_ranks": "down_blocks.1: 4"}}, "is not a line like"),
        ({"network": {"pattern": "("}}, "not a regular expression"),
        ({"network": {"pattern": "attn9"}}, "attn9"),
    ],
)
def test_settings_that_cannot_be_carried_out_are_named(server: Server, groups: dict, says: str) -> None:
    assert says in server.fail(graph("wrong", **groups))


def test_arguments_that_are_no_json_are_refused_when_they_are_queued(server: Server) -> None:
    with pytest.raises(Refused) as refused:
        server.queue(graph("wrong", optimizer={"arguments": "weight_decay=0.1"}))
    assert "arguments is not JSON" in str(refused.value)
