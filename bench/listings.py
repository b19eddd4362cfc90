"""The lists' benchmark: what ComfyUI's event loop pays for large folders that lie beside the one that is used; this machine, a real server.

    python bench/listings.py --comfyui FOLDER [--folders 3000] [--files 100000] [--runs 300]

A dataset of 15 images is read by a graph that checks it and trains nothing: alone, and with many folders of one image each, one folder of many
files and many finished runs beside it. The files are empty; they are only listed. `/object_info` is what the page asks for when it is loaded, with
ComfyUI's own nodes and the pack's; "without the pack" it is ComfyUI's own alone. "Held up": for how long the event loop could do nothing else, at
most in one repetition; medians of all repetitions, and the longest of all.
"""
import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))
sys.path.append(str(Path(__file__).resolve().parent.parent / "demo"))

from comfy_server import PACK, Server

REPEATS, IMAGES = 10, 15
# Longer than a list that was read stands for, so that each repetition reads it again.
_PAUSE_SECONDS = 2.5


def main(comfyui: Path, folders: int, files: int, runs: int) -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        images = sorted((PACK / "tests" / "food").glob("*.png"))[:IMAGES]
        (base / "input" / "few").mkdir(parents=True)
        for image in images:
            for file in (image, image.with_suffix(".txt")):
                shutil.copy(file, base / "input" / "few")
        (base / "custom_nodes").mkdir()
        shutil.copy(Path(__file__).with_name("loop_pulse.py"), base / "custom_nodes")
        print(f"{'':<46}{'takes':>10}{'held up':>10}{'longest':>10}")
        measure("alone", comfyui, base)
        make_neighbours(base, folders, files, runs)
        measure(f"beside {folders:,} folders, {files:,} files, {runs:,} runs", comfyui, base)


def make_neighbours(base: Path, folders: int, files: int, runs: int) -> None:
    """The large folders beside the dataset."""
    for number in range(folders):
        folder = base / "input" / "collection" / f"set {number}"
        folder.mkdir(parents=True)
        (folder / "image.png").touch()
    many = base / "input" / "many"
    many.mkdir()
    for number in range(files):
        (many / f"{number}.png").touch()
    for number in range(runs):
        folder = base / "output" / "lora_loom" / "runs" / f"bun-{number:012x}"
        (folder / "state" / "step-00000500").mkdir(parents=True)
        (folder / "spec.json").write_text("{}")
        (folder / "events.jsonl").write_text(json.dumps({"event": "finished", "time": float(number), "step": 500}) + "\n")


def measure(title: str, comfyui: Path, base: Path) -> None:
    """One server without the pack and one with it."""
    print(title)
    without = ["--disable-all-custom-nodes", "--whitelist-custom-nodes", "loop_pulse.py"]
    for words, options in (("without the pack", without), ("", [])):
        server = Server(comfyui, base).start("--cpu", *options)
        try:
            time.sleep(_PAUSE_SECONDS)
            show(f"/object_info {words}", server, lambda server=server: server.get("/object_info"))
            if words:
                continue
            show("/object_info/LoomDatasetFromFolder", server, lambda server=server: server.get("/object_info/LoomDatasetFromFolder"))
            show("/lora_loom/runs", server, lambda server=server: server.get("/lora_loom/runs"))
            numbers = count(1)
            show("queue the 15 images, to the server's answer", server, lambda server=server, n=numbers: server.queue(graph(next(n))))
            show("queue them and wait for the end", server, lambda server=server, n=numbers: server.wait(server.queue(graph(next(n)))))
        finally:
            server.stop()


def show(words: str, server: Server, act: Callable[[], Any]) -> None:
    """Act again and again, and print how long it took."""
    seconds, held_up = [], []
    server.get("/loop_pulse")
    for _ in range(REPEATS):
        time.sleep(_PAUSE_SECONDS)
        server.get("/loop_pulse")
        started = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - started)
        held_up.append(server.get("/loop_pulse"))
    told = (statistics.median(seconds), statistics.median(held_up), max(held_up))
    print(f"  {words:<44}" + "".join(f"{1000 * value:>7.0f} ms" for value in told), flush=True)


def graph(repeats: int) -> dict[str, Any]:
    """Read and check the dataset. With other `repeats` it is another graph for ComfyUI, which remembers what it has done."""
    inputs = {"folder": "input/few", "repeats": repeats, "trigger_word": "", "missing_captions": "refuse"}
    return {
        "dataset": {"class_type": "LoomDatasetFromFolder", "inputs": inputs},
        "check": {"class_type": "LoomCheckDataset", "inputs": {"dataset": ["dataset", 0], "batch_size": 1}},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--folders", type=int, default=3000)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=300)
    arguments = parser.parse_args()
    main(arguments.comfyui, arguments.folders, arguments.files, arguments.runs)
