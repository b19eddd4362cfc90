"""The benchmark: ours, a bare diffusers + peft loop (the floor) and ComfyUI core's `TrainLoraNode`, side by side on this machine's CPU.

    nox -s bench -- [--quick] [--pattern REGEX] [--core-checkpointing]

Prints one table and writes `bench/report.json`, in about 25 minutes on two cores. Nothing else should run meanwhile. Goals that are missed are told
and are no failure.

What is compared. Same checkpoint and pictures, batch 1, fp32, AdamW, rank 16, alpha 1. Core adapts every layer and gives no choice, so ours and the
bare loop adapt every Linear and Conv2d as well (`--pattern` for fewer); core's norms and biases, which it also trains, are beyond both: the table
shows how many numbers each trains. The three take turns, so that a drift of the machine meets all of them.

"Events and subprocess" is two measured things added: what the trainer pays to tell its events (events a step, times the cost of `Channel.emit` by
`bench/emit_cost.py`), and the CPU time that the ComfyUI process uses while the training runs (rounded up by one tick of its clock), over the time
that it runs, as if none of it fell on an idle core. What both do to caches and memory bandwidth cannot be told apart; it is in ours / bare loop.

First step: from the moment the graph is sent until the first step is told, of a server that has just started and a checkpoint in the disk cache. Ours
draws no sample pictures, as core draws none; the bare loop encodes nothing and counts from its process's start.
"""
import argparse
import dataclasses
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))
sys.path.append(str(Path(__file__).resolve().parent.parent / "demo"))
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from peers import Measured, PeerFailed, Settings, bare, core, ours
from sizes import ALPHA, FULL, LEARNING_RATE, MINI, PACK, PATTERN, PICTURES, QUICK, RANK, Size, write_checkpoint
from table import PEERS, Runs, goals, lines, summary

_MEASURES = {"ours": ours, "bare": bare, "core": core}
_BUSY_LOAD = 0.3


def main() -> int:
    """Exit code 0 when everything was measured, whether or not a goal is met."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped on the way out
    settings = Settings(arguments.comfyui, arguments.pattern, arguments.core_checkpointing)
    sizes = [QUICK] if arguments.quick else [MINI, FULL]
    about = _about(settings, sizes)
    load = about["machine"]["load_before"]
    if load is not None and load > _BUSY_LOAD:
        print(f"bench: the load before the start is {load:.2f}: something else is running, and the numbers will be off.", file=sys.stderr)
    started = time.monotonic()
    try:
        measured = {size.name: _measure(settings, size) for size in sizes}
    except (PeerFailed, RuntimeError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    results = {name: summary(runs) for name, runs in measured.items()}
    report = {
        **about,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "sizes": results,
        "goals": goals(results),
        "differences": _differences(settings, measured),
        "runs": {name: {peer: [dataclasses.asdict(run) for run in runs[peer]] for peer in runs} for name, runs in measured.items()},
    }
    out: Path | None = arguments.out or (None if arguments.quick else PACK / "bench" / "report.json")
    if out:  # before the table: a terminal that is gone by now takes nothing with it
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("\n" + "\n".join(lines(report)))
    if out:
        print(f"written: {out}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s bench --", description="Measure LoRA training against a bare loop and ComfyUI core.")
    parser.add_argument("--comfyui", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="the mini size and few steps: shows that it works, measures little")
    parser.add_argument("--pattern", default=PATTERN, metavar="REGEX", help="the layers that ours and the bare loop adapt (all)")
    parser.add_argument("--core-checkpointing", action="store_true", help="core with gradient checkpointing, its default: slower, less memory")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the report goes (bench/report.json; with --quick nowhere)")
    arguments = parser.parse_args()
    if not (arguments.comfyui / "main.py").is_file():
        parser.error(f"--comfyui {arguments.comfyui}: there is no ComfyUI; start it as `nox -s bench`, which makes one")
    return arguments


def _measure(settings: Settings, size: Size) -> Runs:
    """All runs of one size, the peers taking turns; everything they wrote is deleted."""
    runs: Runs = {peer: [] for peer in PEERS}
    with tempfile.TemporaryDirectory(prefix="lora-loom-bench-", ignore_cleanup_errors=True) as folder:
        checkpoint = Path(folder) / f"bench_{size.name}.safetensors"
        _say(f"{size.name}: writing the checkpoint")
        write_checkpoint(size, checkpoint)
        for repeat in range(1, size.repeats + 1):
            for peer, measure in _MEASURES.items():
                home = Path(folder) / f"{peer}-{repeat}"
                home.mkdir()
                run: Measured = measure(settings, size, checkpoint, home)
                shutil.rmtree(home, ignore_errors=True)
                runs[peer].append(run)
                _say(f"{size.name} {repeat}/{size.repeats}: {PEERS[peer]}: {run.seconds:.3f} s a step, first after {run.first_step_seconds:.1f} s")
    return runs


def _differences(settings: Settings, measured: dict[str, Runs]) -> list[str]:
    """What is not the same for all three, in words."""
    told = []
    for name, runs in measured.items():
        trained = {peer: runs[peer][0].parameters for peer in runs}
        told.append(f"{name}: trained numbers: " + ", ".join(f"{PEERS[peer]} {number:,}" for peer, number in trained.items()) + ".")
    told.append("Core adapts every layer and also trains norms and biases; ours and the bare loop train LoRA on the layers of the pattern.")
    if settings.core_checkpointing:
        told.append("Core recomputes activations (gradient checkpointing, its default); ours and the bare loop keep them.")
    else:
        told.append("None recomputes activations: core's gradient checkpointing, which is on by default, is off; with it, it is slower and smaller.")
    told.append("Core clips no gradients; ours and the bare loop clip to a norm of 1. The bare loop encodes no pictures and no text.")
    return told


def _about(settings: Settings, sizes: list[Size]) -> dict[str, Any]:
    packages = ("torch", "diffusers", "peft", "accelerate", "transformers")
    return {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        },
        "versions": {
            "python": platform.python_version(),
            "comfyui": _comfyui_version(settings.comfyui),
            **{name: version(name) for name in packages},
        },
        "settings": {
            "batch_size": 1, "precision": "fp32", "rank": RANK, "alpha": ALPHA, "learning_rate": LEARNING_RATE, "pictures": PICTURES,
            "pattern": settings.pattern, "core_checkpointing": settings.core_checkpointing,
            "sizes": {size.name: dataclasses.asdict(size) for size in sizes},
        },
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _comfyui_version(comfyui: Path) -> str:
    try:
        text = (comfyui / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    return text.rpartition("=")[2].strip().strip('"')


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
