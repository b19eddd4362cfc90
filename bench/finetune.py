"""What a full fine-tune of SD 1.5 takes on this machine's CPU: memory and time of a step, for several optimisers.

    python bench/finetune.py --comfyui FOLDER

A checkpoint of SD 1.5's size with a random UNet, one picture of 256 px a step, fp32, gradient checkpointing. Peak memory is the trainer process's,
as the system tells it, beside the lower bound that the trainer reckons before it starts. Needs 24 GiB of memory and 40 GiB of disk, and about ten
minutes on two cores.
"""
import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))
sys.path.append(str(Path(__file__).resolve().parent.parent / "demo"))
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from sizes import FULL, PACK, write_checkpoint, write_pictures

from trainer.families import load_family
from trainer.history import history, read_events
from trainer.memory import needed
from trainer.methods import load_method
from trainer.spec import FineTuneSpec

_GIB = 2**30
_STEPS = 3
_CASES: dict[str, dict[str, Any]] = {
    "adafactor": {"name": "adafactor"},
    "adamw": {"name": "adamw"},
    "adamw with EMA": {"name": "adamw", "ema_decay": 0.999},
}


def main() -> int:
    """Measure every case and print a table."""
    parser = argparse.ArgumentParser(description="Measure a full fine-tune of SD 1.5 on the CPU.")
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI folder, for CLIP's vocabulary")
    comfyui: Path = parser.parse_args().comfyui
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="lora-loom-finetune-", ignore_cleanup_errors=True) as place:
        checkpoint, pictures = Path(place, "sd15.safetensors"), Path(place, "pictures")
        write_checkpoint(FULL, checkpoint)
        write_pictures(FULL, pictures)
        for number, (name, optimizer) in enumerate(_CASES.items()):
            found[name] = _measured(Path(place, str(number)), _spec(comfyui, checkpoint, pictures, Path(place, str(number)), optimizer))
            print(name, json.dumps(found[name]), flush=True)
    print(f"\n{'optimizer':<16} {'reckoned':>10} {'peak':>10} {'a step':>8}")
    for name, told in found.items():
        print(f"{name:<16} {told['reckoned_gib']:>6.1f} GiB {told['peak_gib']:>6.1f} GiB {told['seconds_per_step']:>6.1f} s")
    return 0


def _spec(comfyui: Path, checkpoint: Path, pictures: Path, folder: Path, optimizer: dict[str, Any]) -> FineTuneSpec:
    images = [
        {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "caption": path.with_suffix(".txt").read_text()}
        for path in sorted(pictures.glob("*.png"))
    ]
    base = {"name": checkpoint.name, "checkpoint": str(checkpoint), "family": "SD 1.x", "tokenizer": str(comfyui / "comfy" / "sd1_tokenizer")}
    return FineTuneSpec.model_validate(
        {
            "name": "tuned",
            "output": str(folder / "tuned.safetensors"),
            "base": {**base, "header_sha256": "", "size": checkpoint.stat().st_size, "mtime_ns": 1},
            "datasets": [{"name": "food", "images": images, "framing": {"resolution": FULL.resolution, "buckets": False}}],
            "steps": _STEPS,
            "precision": "fp32",
            "optimizer": optimizer,
            "sampling": {"draw": False},
            "checkpointing": {"every_steps": 0, "keep_last": 0},
            "hardware": {"gradient_checkpointing": True},
        }
    )


def _measured(folder: Path, spec: FineTuneSpec) -> dict[str, float]:
    run = folder / "run"
    run.mkdir(parents=True)
    (run / "spec.json").write_text(spec.model_dump_json())
    family = load_family(spec.base)
    reckoned = sum(needed(spec, load_method(spec, family), family, torch.float32, on_cpu=True).values())
    with (run / "log.txt").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "trainer", "run", str(run)], cwd=PACK, stdin=subprocess.PIPE, stdout=log, stderr=log)
        code = process.wait()
    if code:
        raise RuntimeError(f"the trainer ended with {code}: {(run / 'log.txt').read_text()[-2000:]}")
    told = history(read_events(run / "events.jsonl"))
    (folder / "tuned.safetensors").unlink()
    return {
        "reckoned_gib": round(reckoned / _GIB, 1),
        "peak_gib": round(told.end.peak_memory / _GIB, 1),
        "seconds_per_step": round(told.seconds_per_step() or 0.0, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
