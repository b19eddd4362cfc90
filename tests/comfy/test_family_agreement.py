"""ComfyUI and the trainer take a checkpoint for the same family, and its parts give the same."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loom_server import PACK, comfyui

FOUND = {
    "SD 1.x": (["BaseModel", "EPS"], ["SD 1.x", "epsilon"]),
    "SD 2.x v": (["BaseModel", "V_PREDICTION"], ["SD 2.x", "v"]),
    "SDXL": (["SDXL", "EPS"], ["SDXL", "epsilon"]),
}


@pytest.mark.parametrize("family", FOUND)
def test_comfyui_and_the_trainer_agree_on_a_family(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("family_agreement.py")), family, str(tmp_path)],
        cwd=comfyui(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(comfyui()), str(PACK), str(PACK / "tests")])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    (tmp_path / "family.safetensors").unlink(missing_ok=True)  # gigabytes that pytest would keep for three runs
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\n{family}: differ by {max(told['unet']):.1e} in the prediction, {told['text']:.1e} in text embeddings, {told['pooled']} pooled")
    assert (told["comfyui"], told["trainer"]) == FOUND[family]
    assert told["text"] < 1e-4
    assert (told["pooled"] is None) == (family != "SDXL")
    assert told["pooled"] is None or told["pooled"] < 1e-4
    assert max(told["unet"]) < 1e-4
