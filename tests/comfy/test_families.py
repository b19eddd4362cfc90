"""Training on each family, in the real server, on tiny checkpoints."""
import json

import pytest
from loom_server import Server, training_graph
from safetensors import safe_open
from tiny_checkpoints import tiny_checkpoint

FAMILIES = {
    "SD 2.x": ("sd-v2-1", "stable-diffusion-v2-512/lora", "epsilon"),
    "SD 2.x v": ("sd-v2-1", "stable-diffusion-v2-768-v/lora", "v"),
    "SDXL": ("sdxl", "stable-diffusion-xl-v1-base/lora", "epsilon"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_of_every_family_is_trained_and_says_of_which(server: Server, family: str) -> None:
    name = family.replace(" ", "_").replace(".", "")
    checkpoint = server.base / "models" / "checkpoints" / f"{name}.safetensors"
    tiny_checkpoint(checkpoint, family)
    try:
        graph = training_graph(name, checkpoint=checkpoint.name, steps=4)
        graph["train"]["inputs"]["validation"] = ["size", 0]
        result = server.run(graph)["train"]["lora_loom"][0]
    finally:
        checkpoint.unlink()
    assert result["steps"] == 4
    assert [step for step, _ in result["validation"]] == [0, 4]
    with safe_open(server.base / "models" / "loras" / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata()
        names = list(file.keys())
        assert all(bool(file.get_tensor(key).isfinite().all()) for key in names)
        assert any(bool(file.get_tensor(key).any()) for key in names if key.endswith("lora_up.weight")), "nothing was learned"
    found = (metadata["ss_base_model_version"], metadata["modelspec.architecture"], metadata["modelspec.prediction_type"])
    assert found == FAMILIES[family]
    assert json.loads(metadata["lora_loom.spec"])["base"]["family"] == family.removesuffix(" v")
