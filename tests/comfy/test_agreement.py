"""What is trained is what ComfyUI draws with: the two implementations of the model agree."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loom_server import PACK, comfyui


def test_comfyui_and_the_trainer_predict_the_same_with_the_same_adapter(
    base_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = base_directory / "models" / "checkpoints" / "mini_base.safetensors"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("agreement.py")), str(checkpoint), str(tmp_path / "random.safetensors")],
        cwd=comfyui(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(comfyui()), str(PACK)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\nComfyUI and the trainer differ by {max(told['unet']):.1e} in predicted noise, {told['text']:.1e} in text embeddings (relative)")
    assert told["patched"] == told["layers"]
    assert told["text"] < 1e-3
    assert max(told["unet"]) < 1e-3
    assert min(told["delta"]) > 1e-2, "the adapter is too weak to show whether it was applied"

