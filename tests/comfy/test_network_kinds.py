"""Every kind of network draws in ComfyUI what it was trained to."""
import json
import os
import subprocess
import sys
from pathlib import Path

from loom_server import PACK, comfyui


def test_comfyui_and_the_trainer_predict_the_same_with_every_kind_of_network(base_directory: Path, tmp_path: Path) -> None:
    checkpoint = base_directory / "models" / "checkpoints" / "mini_base.safetensors"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("agreement_kinds.py")), str(checkpoint), str(tmp_path)],
        cwd=comfyui(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(comfyui()), str(PACK)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lora key not loaded" not in done.stderr + done.stdout
    told = json.loads(done.stdout.splitlines()[-1])
    for kind, found in told.items():
        assert found["patched"] == found["layers"], kind
        assert found["unet"] < min(1e-3, found["delta"] / 100), (kind, found)
        assert found["delta"] > 1e-2, f"{kind}: the adapter is too weak to show whether it was applied"
