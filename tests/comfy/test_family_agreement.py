"""ComfyUI and the trainer take a checkpoint for the same family, and its parts and an adapter of it give the same."""
from pathlib import Path

import pytest
from loom_server import told_in_comfyui

FOUND = {
    "SD 1.x": (["BaseModel", "EPS"], ["SD 1.x", "epsilon"]),
    "SD 2.x v": (["BaseModel", "V_PREDICTION"], ["SD 2.x", "v"]),
    "SDXL": (["SDXL", "EPS"], ["SDXL", "epsilon"]),
}


@pytest.mark.parametrize("family", FOUND)
def test_comfyui_and_the_trainer_agree_on_a_family(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = told_in_comfyui("family_agreement.py", family, tmp_path)
    (tmp_path / "family.safetensors").unlink()  # gigabytes that pytest would keep for three runs
    with capsys.disabled():
        worst = max(*told["unet"], *told["adapted"])
        readings, adapted = max(told["readings"].values()), f"{told['adapted text']:.1e} of a delta of {told['text delta']:.1e}"
        print(f"\n{family}: differ by {worst:.1e} in the prediction, {told['text']:.1e} in text embeddings, {told['pooled']} pooled,")
        print(f"{readings:.1e} in long, weighted and skipped text, {adapted} in adapted text encoders")
    assert (told["comfyui"], told["trainer"]) == FOUND[family]
    assert told["text"] < 1e-4
    assert (told["pooled"] is None) == (family != "SDXL")
    assert told["pooled"] is None or told["pooled"] < 1e-4
    assert all(difference < 1e-4 for difference in told["readings"].values()), told["readings"]
    assert max(told["embedding"]) < 1e-4
    # ComfyUI keeps text encoders in fp16, and rounds an adapted weight to it.
    assert told["adapted text"] < 2e-3 < 5e-2 < told["text delta"]
    assert max(told["unet"]) < 1e-4
    assert told["patched"] == told["layers"]
    assert max(told["adapted"]) < 1e-4
    assert min(told["delta"]) > 1e-2, "the adapter is too weak to show whether it was applied"
