"""Every kind of network draws in ComfyUI what it was trained to."""
from pathlib import Path

from loom_server import told_in_comfyui


def test_comfyui_and_the_trainer_predict_the_same_with_every_kind_of_network(base_directory: Path, tmp_path: Path) -> None:
    told = told_in_comfyui("agreement_kinds.py", base_directory / "models" / "checkpoints" / "mini_base.safetensors", tmp_path)
    for kind, found in told.items():
        assert found["patched"] == found["layers"], kind
        assert found["unet"] < min(1e-3, found["delta"] / 100), (kind, found)
        assert found["delta"] > 1e-2, f"{kind}: the adapter is too weak to show whether it was applied"
