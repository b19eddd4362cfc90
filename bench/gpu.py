"""LoRA training on a CUDA card: seconds a step, images a second, memory, and the share of the card's peak, in ten minutes at most.

    python bench/gpu.py                        (a CUDA machine with requirements.txt installed; writes bench/gpu_report.json)
    python bench/gpu.py --device cpu --tiny    (no card: shows that every path runs, measures nothing)

SD 1.5 at 512 px and SDXL at 1024 px, LoRA rank 16 on attention, fp16 and bf16, batch 1, 4, 8 and the largest that fits, with and without gradient
checkpointing and compilation. It needs no file: the UNets are made on the card with random weights. The trainer's own parts do the training
(`methods.lora.inject`, `optim.build`, `precision.accelerator`, `loop.Loop`, a family's `predict`); pictures and text are random as well and come
from the CPU at each step, as encoded ones do. The VAE and the text encoders are not there, as in a training on encoded data.

`compile`: "blocks" compiles each residual and transformer block, "whole" the UNet. Peak memory is what tensors took (`max_memory_allocated`);
"reserved" is with the allocator's slack. FLOPs are 2 x MAC: with checkpointing those of the second forward count, since the card does them; the
goal of 40% looks only at what ran without. Each model and precision runs in a process of its own (gpu_child.py), so that nothing is left over.
"""
import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LIMIT_SECONDS = 600.0
_LAST_SECONDS = 10.0  # for the end of a process and the report
# Dense fp16 and bf16 TFLOP/s of NVIDIA's data sheets; the first name that the card's contains.
_PEAKS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "B200": 2250, "A100": 312, "L40S": 362}
Row = dict[str, Any]


def main() -> int:
    """Exit code 0 when something was measured, whether or not a goal is met."""
    arguments = _arguments()
    began = time.monotonic()
    import torch

    cuda = arguments.device == "cuda"
    if cuda and not torch.cuda.is_available():
        print("gpu: torch sees no CUDA device here. `--device cpu --tiny` shows that the benchmark runs.", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name() if cuda else "none (CPU, tiny models)"
    peak = next((tflops for name, tflops in _PEAKS.items() if name in card), None)
    print(f"{card}, torch {torch.__version__}, peak {f'{peak} TFLOP/s' if peak else 'not known here'}")
    print(_HEADER)
    # On the CPU fp16 is not trained in; one precision each shows enough.
    parts = [(model, precision) for model in ("SD 1.5", "SDXL") for precision in ("fp16", "bf16")] if cuda else [("SD 1.5", "fp32"), ("SDXL", "bf16")]
    rows: list[Row] = []
    for number, (model, precision) in enumerate(parts):
        left = max(LIMIT_SECONDS - _LAST_SECONDS - (time.monotonic() - began), 0.0)
        for row in _measured(model, precision, left / (len(parts) - number), arguments):
            row["share_of_peak"] = row["tflops"] / peak if peak and row.get("tflops") else None
            rows.append(row)
            print(_line(row), flush=True)
    told = goals(rows) if cuda else []
    print()
    for goal in told:
        print(f"  {goal['goal']:62}  {goal['value']:8.4f}  {goal['way']} {goal['limit']:<5}  {'met' if goal['met'] else 'NOT MET'}  {goal['by']}")
    report = {"card": card, "peak_tflops": peak, "torch": torch.__version__, "cuda": torch.version.cuda, "goals": told, "rows": rows}
    out: Path | None = arguments.out or (HERE / "gpu_report.json" if cuda else None)
    if out:
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(f"written: {out}")
    return 0 if any("seconds" in row for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure LoRA training on a CUDA card.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models and pictures, to see that everything runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the report goes (bench/gpu_report.json; on the CPU nowhere)")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("--device cpu needs --tiny: the full models would take hours there")
    return arguments


def _measured(model: str, precision: str, seconds: float, arguments: argparse.Namespace) -> Iterator[Row]:
    """The rows of one model and precision as they come, from a process that has `seconds`. What is cut off is told in a last row."""
    command = [sys.executable, str(HERE / "gpu_child.py"), model, precision, str(seconds), *(["--tiny"] if arguments.tiny else [])]
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if arguments.device == "cpu" else {})}
    about = {"model": model, "precision": precision}
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        cut_off = threading.Timer(seconds + _LAST_SECONDS, process.kill)
        cut_off.start()
        try:
            for line in process.stdout or ():
                if line.startswith("{"):  # libraries print as well
                    yield {**about, **json.loads(line)}
        except BaseException:  # Ctrl+C too: nothing is left on the card
            process.kill()
            raise
        finally:
            cut_off.cancel()
    if time.monotonic() - began > seconds + _LAST_SECONDS:
        yield {**about, "skipped": f"the rest: over {seconds:.0f} s, its part of the {LIMIT_SECONDS / 60:.0f} minutes"}
    elif process.returncode:
        yield {**about, "skipped": f"the rest: the process ended with exit code {process.returncode}; its last words are above"}


def goals(rows: list[Row]) -> list[dict[str, Any]]:
    """Every goal that was measured, on an H100. `by`: the row that gives the value."""
    measured = [row for row in rows if "seconds" in row]
    found = []
    for model, limit in (("SD 1.5", 0.06), ("SDXL", 0.30)):
        single = [row for row in measured if row["model"] == model and row["batch"] == 1]
        if single:
            best = min(single, key=lambda row: row["seconds"])
            found.append((f"{model}, batch 1, the fastest: seconds a step", best["seconds"], limit, "at most", best))
            if model == "SD 1.5" and best["peak_gib"] is not None:
                found.append((f"{model}, batch 1, the fastest: peak GiB", best["peak_gib"], 2.9, "at most", best))
        shares = [row for row in measured if row["model"] == model and row["share_of_peak"] and not row["checkpointing"]]
        if shares:
            best = max(shares, key=lambda row: row["share_of_peak"])
            found.append((f"{model}, the best batch: share of the card's peak", best["share_of_peak"], 0.4, "at least", best))
    return [
        {"goal": goal, "value": value, "limit": limit, "way": way, "met": value <= limit if way == "at most" else value >= limit, "by": _name(row)}
        for goal, value, limit, way, row in found
    ]


_HEADER = f"{'':48}    s/step   images/s   peak GiB (reserved)   of peak   first step"


def _name(row: Row) -> str:
    words = [row["model"], row["precision"]]
    if "batch" in row:
        way = f"compile {row['compile']}" if row["compile"] else ""
        words += [f"batch {row['batch'] or 'largest'}", "checkpointing" if row["checkpointing"] else "", way]
    return " ".join(filter(None, words))


def _line(row: Row) -> str:
    name = f"{_name(row):48}"
    if "skipped" in row:
        return f"{name}  skipped: {row['skipped']}"
    if "failed" in row:
        return f"{name}  {row['failed']}"
    memory = f"{row['peak_gib']:8.2f} ({row['reserved_gib']:.2f})" if row["peak_gib"] is not None else ""
    share = f"{row['share_of_peak']:.1%}" if row["share_of_peak"] is not None else ""
    return f"{name}  {row['seconds']:8.4f}  {row['images_per_second']:9.2f}   {memory:19}   {share:>7}  {row['first_step_seconds']:9.1f} s"


if __name__ == "__main__":
    sys.exit(main())
