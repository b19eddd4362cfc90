"""The three that are compared, each run once a call: ours and core's through a ComfyUI server of its own, the bare loop as a process.

All of them train on the CPU in fp32 with batch 1, without gradient checkpointing unless core is asked to, and on a fresh base directory, so
that nothing is found ready from an earlier run. A step's time is the time between two signs of life of the peer itself: ours in `events.jsonl`,
core's progress messages on the websocket, the bare loop's lines.
"""
import asyncio
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from comfy_server import Server
from processes import CPU_TICK_SECONDS, PeakWatch, cpu_seconds, peak_mib
from sizes import ALPHA, LEARNING_RATE, PICTURES, RANK, SEED, Size, write_pictures

from trainer.adapters.files import read_header

HERE = Path(__file__).resolve().parent
_NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
_DATA = "bench"
# Given where the node has such an input: a graph of the benchmark says the same to older and newer packs.
_RESOLUTION = {"buckets": False}
_SAMPLING = {"prompts": "", "negative": "", "every_steps": 0, "guidance_scale": 1.0, "steps": 1, "seed": 0, "draw": False}


@dataclass(frozen=True)
class Settings:
    """What is the same for every run. `pattern`: the layers that ours and the bare loop adapt; core adapts all and its norms and biases."""

    comfyui: Path
    pattern: str
    core_checkpointing: bool


@dataclass(frozen=True)
class Measured:
    """One run of one peer. Memory in MiB, None where it cannot be read. `phases`: seconds of what came before ours's first step.

    `events_share`: the part of ours's step that telling its events takes. `server_share`: the CPU time that the ComfyUI process uses while ours
    trains, as a part of the training time.
    """

    step_seconds: list[float]
    first_step_seconds: float
    parameters: int
    peak: float | None
    server_peak: float | None = None
    events_share: float | None = None
    server_share: float | None = None
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The median step."""
        return statistics.median(self.step_seconds)


class PeerFailed(RuntimeError):
    """A peer did not train to its end; the message has its own words."""


def bare(settings: Settings, size: Size, checkpoint: Path, home: Path) -> Measured:
    """The bare loop. Its first step counts from the start of its process and has no pictures to encode."""
    numbers = {
        "resolution": size.resolution, "steps": size.total("bare"), "rank": RANK, "alpha": ALPHA, "learning-rate": LEARNING_RATE,
        "pictures": PICTURES, "seed": SEED,
    }
    command = [sys.executable, str(HERE / "bare_loop.py"), str(checkpoint), "--pattern", settings.pattern]
    command += [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
    started = time.time()
    log = home / "bare.log"
    with log.open("wb") as errors, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **_NO_GPU}
    ) as process:
        try:
            lines = [json.loads(line) for line in process.stdout or ()]
        finally:
            process.kill()
    if process.returncode or not lines or "parameters" not in lines[-1]:
        raise PeerFailed(f"the bare loop ended with exit code {process.returncode}:\n{log.read_text(errors='replace')[-2000:]}")
    times = {line["step"]: line["time"] for line in lines[:-1]}
    return Measured(_step_seconds(times, size.warm_up), times[1] - started, lines[-1]["parameters"], lines[-1]["peak_mib"])


def core(settings: Settings, size: Size, checkpoint: Path, home: Path) -> Measured:
    """ComfyUI core's TrainLoraNode, with core's own nodes around it."""
    server, times = _server(settings, size, checkpoint, home), {}

    def see(message: dict[str, Any]) -> None:
        data = message["data"]
        if message["type"] == "progress" and data["node"] == "train":
            times[data["value"]] = time.time()

    try:
        server.start("--cpu", **_NO_GPU)
        graph = _core_graph(server, size, checkpoint.name, settings.core_checkpointing)
        started = time.time()
        asyncio.run(_follow(server, graph, see))
        peak = peak_mib(_pid(server))
    finally:
        server.stop()
    if len(times) != size.total("core"):
        raise PeerFailed(f"TrainLoraNode told of {len(times)} steps and was asked for {size.total('core')}: see {server.log}")
    weights = _weights(next((server.base / "output").rglob("*.safetensors")))
    return Measured(_step_seconds(times, size.warm_up), times[1] - started, weights, peak)


def ours(settings: Settings, size: Size, checkpoint: Path, home: Path) -> Measured:
    """LoomTrainLoRA, as a user's graph runs it."""
    server, total = _server(settings, size, checkpoint, home), size.total("ours")
    watch: PeakWatch | None = None
    cpu: dict[int, tuple[float, float | None]] = {}
    finished = False

    def see(message: dict[str, Any]) -> None:
        nonlocal watch
        if message["type"] != "lora_loom.run":
            return
        event = message["data"]["event"]
        if event["event"] == "started":
            watch = PeakWatch(event["pid"])
        elif event["event"] == "progress":
            cpu[event["step"]] = time.time(), cpu_seconds(_pid(server))

    try:
        server.start("--cpu", **_NO_GPU)
        graph = _our_graph(server, size, checkpoint.name, settings.pattern)
        started = time.time()
        asyncio.run(_follow(server, graph, see))
        finished = True
        server_peak = peak_mib(_pid(server))
    finally:
        server.stop()
        peak = watch.stop() if watch else None
        if watch and not finished:
            _kill_group(watch.pid)  # it would save its state first, into a folder that is about to go
    events_file = next((server.base / "output").rglob("events.jsonl"))
    events = [json.loads(line) for line in events_file.read_text(encoding="utf-8").splitlines()]
    times = {event["step"]: event["time"] for event in events if event["event"] == "progress"}
    if max(times, default=0) != total:
        raise PeerFailed(f"the training told of step {max(times, default=0)} and was asked for {total}: see {events_file}")
    first = times[min(times)]
    seconds = _step_seconds(times, size.warm_up)
    told = sum(1 for event in events if first < event["time"] <= times[total])
    return Measured(
        seconds,
        first - started,
        _weights(next((server.base / "models" / "loras").glob("*.safetensors"))),
        peak,
        server_peak,
        events_share=told / (total - min(times)) * _emit_seconds(events_file) / statistics.median(seconds),
        server_share=_share(cpu),
        phases=_phases(events, started, first),
    )


def _server(settings: Settings, size: Size, checkpoint: Path, home: Path) -> Server:
    checkpoints = home / "models" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (home / "models" / "loras").mkdir()
    os.link(checkpoint, checkpoints / checkpoint.name)
    write_pictures(size, home / "input" / _DATA)
    return Server(settings.comfyui, home)


def _pid(server: Server) -> int:
    if server.process is None:
        raise PeerFailed("the server is not running")
    return server.pid


async def _follow(server: Server, graph: dict[str, Any], see: Callable[[dict[str, Any]], None]) -> None:
    async for message in server.follow(graph, client="lora-loom-bench"):
        see(message)
        if message["type"] == "execution_error":
            raise PeerFailed(f"{message['data']['node_type']}: {message['data']['exception_message']}\nComfyUI's last words:\n{server.last_words()}")


def _our_graph(server: Server, size: Size, checkpoint: str, pattern: str) -> dict[str, Any]:
    train = {
        "name": "bench", "rank": RANK, "alpha": ALPHA, "steps": size.total("ours"), "batch_size": 1, "learning_rate": LEARNING_RATE, "seed": SEED,
        "precision": "fp32",
    }
    return {
        "data": _node(server, "LoomDatasetFromFolder", folder=f"input/{_DATA}"),
        "size": _node(server, "LoomResolution", dataset=["data", 0], resolution=size.resolution, **_RESOLUTION),
        "base": _node(server, "LoomBaseModel", checkpoint=checkpoint),
        "sampling": _node(server, "LoomSampling", **_SAMPLING),
        "network": _node(server, "LoomNetwork", pattern=pattern, options=["sampling", 0]),
        "train": _node(server, "LoomTrainLoRA", base=["base", 0], dataset=["size", 0], options=["network", 0], **train),
    }


def _core_graph(server: Server, size: Size, checkpoint: str, checkpointing: bool) -> dict[str, Any]:
    train = {
        "batch_size": 1, "grad_accumulation_steps": 1, "steps": size.total("core"), "learning_rate": LEARNING_RATE, "rank": RANK, "seed": SEED,
        "optimizer": "AdamW", "loss_function": "MSE", "training_dtype": "fp32", "lora_dtype": "fp32", "gradient_checkpointing": checkpointing,
        "existing_lora": "[None]",
    }
    return {
        "base": _node(server, "CheckpointLoaderSimple", ckpt_name=checkpoint),
        "data": _node(server, "LoadImageTextDataSetFromFolder", folder=_DATA),
        "encoded": _node(server, "MakeTrainingDataset", images=["data", 0], texts=["data", 1], vae=["base", 2], clip=["base", 1]),
        "train": _node(server, "TrainLoraNode", model=["base", 0], latents=["encoded", 0], positive=["encoded", 1], **train),
        "save": _node(server, "SaveLoRA", lora=["train", 1], prefix="bench"),
    }


def _node(server: Server, class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node with `inputs`, those that it knows, and its own default for whatever else it requires. Raises PeerFailed if there is none such."""
    known = server.get(f"/object_info/{class_type}").get(class_type)
    if known is None:
        raise PeerFailed(f"this ComfyUI has no node {class_type}: it needs a ComfyUI with core's training nodes (0.3.75 is known to do).")
    required: dict[str, Any] = known["input"].get("required", {})
    names = {*required, *known["input"].get("optional", {})}
    filled = {name: _default(*spec) for name, spec in required.items() if name not in inputs}
    return {"class_type": class_type, "inputs": {**filled, **{name: value for name, value in inputs.items() if name in names}}}


def _default(kind: Any, settings: dict[str, Any] | None = None) -> Any:
    choices = kind if isinstance(kind, list) else (settings or {}).get("options", [None])
    return (settings or {}).get("default", choices[0])


def _step_seconds(times: dict[int, float], warm_up: int) -> list[float]:
    """Seconds of every step after the warm-up; steps that were told of together share theirs evenly."""
    return [
        (times[after] - times[before]) / (after - before)
        for before, after in pairwise(sorted(times))
        if before >= warm_up
        for _ in range(after - before)
    ]


def _weights(adapter: Path) -> int:
    """Trained numbers in a file; `.alpha` is none."""
    return sum(math.prod(tensor.shape) for name, tensor in read_header(adapter).tensors.items() if not name.endswith(".alpha"))


def _emit_seconds(events_file: Path) -> float:
    command = [sys.executable, str(HERE / "emit_cost.py"), str(events_file)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **_NO_GPU})
    if done.returncode:
        raise PeerFailed(f"bench/emit_cost.py failed:\n{done.stderr[-2000:]}")
    return float(done.stderr.splitlines()[-1])


def _share(cpu: dict[int, tuple[float, float | None]]) -> float | None:
    (began, before), (ended, after) = cpu[min(cpu)], cpu[max(cpu)]
    if before is None or after is None or ended == began:
        return None
    # A tick more than was counted: less than that cannot be seen.
    return (after - before + CPU_TICK_SECONDS) / (ended - began)


def _phases(events: list[dict[str, Any]], started: float, first_step: float) -> dict[str, float]:
    """Seconds of each phase up to the first step; what the graph's other nodes and the start of the process take is "before the trainer speaks"."""
    marks = [("before the trainer speaks", started)]
    marks += [(event["name"], event["time"]) for event in events if event["event"] == "phase" and event["time"] < first_step]
    phases: dict[str, float] = {}
    for (name, begins), (_, ends) in pairwise([*marks, ("", first_step)]):
        phases[name] = phases.get(name, 0.0) + ends - begins
    return phases


def _kill_group(pid: int) -> None:
    if os.name != "posix":
        return
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
