"""The adapters' benchmark: ten LoRAs on a full-size SD 1.5 against a chain of ComfyUI's own loaders, and a merge against peft's; this machine's CPU.

    nox -s bench    (after the training's; `python bench/adapters.py --comfyui FOLDER` alone)

Applying: the UNet is in memory and has taken steps; then ten files of rank 16 are read, put on it and a step is taken. After that one weight changes.
"To first step" ends with the step; the ratios leave a plain step out of it. Each way has a process of its own and they take turns; medians of all.

Merging: five adapters with SDXL's layers, every 20th of them, to rank 32: `trainer.adapters.merge` with svd against peft's `add_weighted_adapter`
with `combination_type="svd"`. The error is that of what is saved (ours in fp32, as peft's) against the exact sum in float64.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))
sys.path.append(str(Path(__file__).resolve().parent.parent / "demo"))
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from random_adapters import write_lora
from sizes import FULL, write_checkpoint
from torch import Tensor, nn

from trainer.adapters.delta import low_rank
from trainer.adapters.lowrank import concatenated, norm_and_distance
from trainer.adapters.merge import Svd, merge

HERE = Path(__file__).resolve().parent
WAYS = {"merged": "Apply Adapters, merged", "live": "Apply Adapters, live", "core": "ten of core's LoraLoader"}
ADAPTERS, RANK, REPEATS = 10, 16, 3
MERGED, MERGED_RANK, WEIGHTS = 5, 32, (0.8, 0.5, -0.3, 1.0, 0.6)
# The matrices of SDXL's transformers (out, in), and how many of each; every 20th of them is merged.
SDXL = {(640, 640): 100, (5120, 640): 10, (640, 2560): 10, (640, 2048): 20, (1280, 1280): 300, (10240, 1280): 60, (1280, 5120): 60, (1280, 2048): 120}
SHARE = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/adapters.py", description="Measure applying and merging adapters against core and peft.")
    parser.add_argument("--comfyui", type=Path, required=True, help="the ComfyUI to measure in")
    parser.add_argument("--out", type=Path, default=HERE / "adapters.json", metavar="FILE", help="where the report goes")
    arguments = parser.parse_args()
    report = {"applying": _applying(arguments.comfyui.resolve()), "merging": _merging()}
    report["goals"] = _goals(report)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("\n".join(_lines(report)))
    print(f"written: {arguments.out}")
    return 0


def _applying(comfyui: Path) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="lora-loom-bench-", ignore_cleanup_errors=True) as place:
        checkpoint, loras = Path(place) / "full.safetensors", Path(place) / "loras"
        loras.mkdir()
        write_checkpoint(FULL, checkpoint)
        for number in range(ADAPTERS):
            write_lora(loras / f"{number}.safetensors", checkpoint, rank=RANK, strength=0.02, seed=number)
        paths = [comfyui, HERE.parent, HERE.parent / "tests", HERE]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "CUDA_VISIBLE_DEVICES": ""}
        for repeat in range(1, REPEATS + 1):
            for way, title in WAYS.items():
                command = [sys.executable, str(HERE / "apply_child.py"), way, str(checkpoint), str(loras)]
                done = subprocess.run(command, cwd=comfyui, env=environment, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"{title}: {done.stderr[-2000:]}")
                runs[way].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"applying {repeat}/{REPEATS}: {title}: first step after {runs[way][-1]['to_first_step']:.2f} s", flush=True)
    return {way: {name: statistics.median(run[name] for run in of) for name in of[0]} for way, of in runs.items()}


def _merging() -> dict[str, Any]:
    numbers = torch.Generator().manual_seed(0)
    shapes = [shape for shape, count in SDXL.items() for _ in range(max(1, count // SHARE))]
    adapters = [
        {
            f"layer_{number}": {
                "lora_up.weight": torch.randn(shape[0], RANK, generator=numbers) * 0.02,
                "lora_down.weight": torch.randn(RANK, shape[1], generator=numbers) * 0.02,
                "alpha": torch.tensor(float(RANK)),
            }
            for number, shape in enumerate(shapes)
        }
        for _ in range(MERGED)
    ]
    times: dict[str, list[float]] = {"ours": [], "peft": []}
    merged: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for _ in range(REPEATS):
        began = time.perf_counter()
        result = merge(adapters, WEIGHTS, Svd(rank=MERGED_RANK), dtype=torch.float32)
        times["ours"].append(time.perf_counter() - began)
        merged["ours"] = {key: (layer["lora_up.weight"], layer["lora_down.weight"]) for key, layer in result.layers.items()}
        seconds, merged["peft"] = _peft(shapes, adapters)
        times["peft"].append(seconds)
        print(f"merging: ours {times['ours'][-1]:.2f} s, peft {seconds:.2f} s", flush=True)
    return {
        peer: {"seconds": statistics.median(of), "error": _error(adapters, merged[peer])} for peer, of in times.items()
    } | {"layers": len(shapes)}


def _peft(shapes: list[tuple[int, int]], adapters: list[dict[str, dict[str, Tensor]]]) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
    from peft import LoraConfig, LoraModel

    base = nn.Module()
    for number, (out, inputs) in enumerate(shapes):
        base.add_module(f"layer_{number}", nn.Linear(inputs, out, bias=False))
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=[f"layer_{number}" for number in range(len(shapes))])
    model = LoraModel(base, config, "0")
    for number in range(1, len(adapters)):
        model.peft_config[str(number)] = config
        model.inject_adapter(base, str(number))
    with torch.no_grad():
        for number, adapter in enumerate(adapters):
            for key, layer in adapter.items():
                getattr(base, key).lora_B[str(number)].weight.copy_(layer["lora_up.weight"])
                getattr(base, key).lora_A[str(number)].weight.copy_(layer["lora_down.weight"])
    began = time.perf_counter()
    model.add_weighted_adapter([str(n) for n in range(len(adapters))], list(WEIGHTS), "merged", combination_type="svd", svd_rank=MERGED_RANK)
    seconds = time.perf_counter() - began
    found = {}
    for key in adapters[0]:
        layer = getattr(base, key)
        found[key] = (layer.lora_B["merged"].weight.detach() * layer.scaling["merged"], layer.lora_A["merged"].weight.detach())
    return seconds, found


def _error(adapters: list[dict[str, dict[str, Tensor]]], merged: dict[str, tuple[Tensor, Tensor]]) -> float:
    """Frobenius distance from the exact sum over its norm, all layers together."""
    from trainer.adapters.lowrank import Factors

    norms = distances = 0.0
    for key, (up, down) in merged.items():
        exact = concatenated([(weight, low_rank(adapter[key])) for weight, adapter in zip(WEIGHTS, adapters, strict=True)])
        norm, distance = norm_and_distance(exact, Factors(up.double(), down.double()))
        norms, distances = norms + norm**2, distances + distance**2
    return (distances / norms) ** 0.5


def _goals(report: dict[str, Any]) -> list[dict[str, Any]]:
    applying, merging = report["applying"], report["merging"]
    core, live = applying["core"], applying["live"]

    def without_step(way: str, name: str) -> float:
        return applying[way][name] - applying[way]["plain_step"]

    found = [
        ("ten LoRAs to the first step, merged / core", 1.0, without_step("merged", "to_first_step") / without_step("core", "to_first_step")),
        ("ten LoRAs to the first step, live / core", 1.0, without_step("live", "to_first_step") / without_step("core", "to_first_step")),
        ("a changed weight, merged / core", 1.0, applying["merged"]["change"] / core["change"]),
        ("a changed weight, live / core's patching", 0.01, live["change"] / core["change"]),
        ("peak memory, live / core", 1.0, live["peak_mib"] / core["peak_mib"]),
        ("merging five to rank 32, ours / peft", 1.0, merging["ours"]["seconds"] / merging["peft"]["seconds"]),
        ("its error, ours / peft", 1.0, merging["ours"]["error"] / merging["peft"]["error"]),
    ]
    return [{"goal": goal, "at_most": limit, "value": value, "met": value <= limit} for goal, limit, value in found]


def _lines(report: dict[str, Any]) -> list[str]:
    rows = ["", f"{ADAPTERS} LoRAs of rank {RANK} on a full-size SD 1.5, 256 px, fp32, {REPEATS} runs each"]
    rows.append(f"  {'':26}  plain step   to first step     a step   changed weight   to its step   peak MiB")
    for way, title in WAYS.items():
        of = report["applying"][way]
        rows.append(
            f"  {title:26}{of['plain_step']:10.2f} s{of['to_first_step']:14.2f} s{of['step']:10.2f} s{of['change']:14.3f} s"
            f"{of['change_to_first_step']:13.2f} s{of['peak_mib']:11,.0f}"
        )
    ours, peft = report["merging"]["ours"], report["merging"]["peft"]
    rows += ["", f"{MERGED} adapters of rank {RANK} to rank {MERGED_RANK}, {report['merging']['layers']} of SDXL's layers"]
    rows += [f"  {name:26}{of['seconds']:10.2f} s   error {of['error']:.6f}" for name, of in (("ours, svd", ours), ("peft, svd", peft))]
    wide = max(len(goal["goal"]) for goal in report["goals"])
    rows.append("")
    for goal in report["goals"]:
        rows.append(f"  {goal['goal']:{wide}}  {goal['value']:8.4f}  at most {goal['at_most']:<5}  {'met' if goal['met'] else 'NOT MET'}")
    return rows


if __name__ == "__main__":
    sys.exit(main())
