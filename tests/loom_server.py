"""The server that the tests talk to, and the graphs that they queue."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import comfy_server
from comfy_server import PACK, Refused, error_of

__all__ = [
    "NEW_WORD",
    "PACK",
    "Refused",
    "Server",
    "comfyui",
    "drawing_graph",
    "error_of",
    "few_pictures",
    "inverting_graph",
    "node",
    "told_in_comfyui",
    "training_graph",
    "tuning_graph",
]

NEW_WORD = "<bun>"


def comfyui() -> Path:
    """The ComfyUI to test in."""
    folder = os.environ.get("LORA_LOOM_COMFYUI")
    if not folder or not Path(folder, "main.py").is_file():
        raise RuntimeError("LORA_LOOM_COMFYUI must name a ComfyUI folder: run the tests through `nox -s tests`, which makes one")
    return Path(folder)


def told_in_comfyui(script: str, *arguments: str | Path, timeout: float = 300) -> dict[str, Any]:
    """Run tests/comfy/`script` in ComfyUI's folder, with the trainer and tests' helpers to import; the JSON of its last line."""
    paths = [comfyui(), PACK, PACK / "tests"]
    done = subprocess.run(
        [sys.executable, str(PACK / "tests" / "comfy" / script), *map(str, arguments)],
        cwd=comfyui(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lora key not loaded" not in done.stderr + done.stdout
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


class Server(comfy_server.Server):
    """Adds what only tests ask: that a prompt fails, and how far a training is."""

    def start(self, *options: str, **environment: str) -> "Server":
        """On the CPU, the trainer too: results are to be the same at every run."""
        super().start("--cpu", *options, **{"CUDA_VISIBLE_DEVICES": "", **environment})
        return self

    def fail(self, prompt: dict[str, Any], timeout: float = 300) -> str:
        """Queue, wait, and expect an error; gives its message."""
        entry = self.wait(self.queue(prompt), timeout)
        assert entry["status"]["status_str"] == "error"
        return error_of(entry)

    def training(self, name: str) -> dict[str, Any] | None:
        """The newest run of an adapter's name, as the routes tell it."""
        return next((run for run in self.get("/lora_loom/runs")["runs"] if run["name"] == name), None)

    def wait_for_step(self, name: str, step: int, timeout: float = 120) -> dict[str, Any]:
        """Wait until the training of `name` has taken `step` steps."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            run = self.training(name)
            if run and run["step"] >= step:
                return run
            time.sleep(0.1)
        raise TimeoutError(f"{name} did not reach step {step}; server log:\n{self.last_words()}")


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node of the API format."""
    return {"class_type": class_type, "inputs": inputs}


def training_graph(
    name: str, *, folder: str = "input/few", checkpoint: str = "mini_base.safetensors", draw: bool = False, **numbers: Any
) -> dict[str, Any]:
    """Dataset -> training on the mini base, ending in node "train". `draw`: with sample pictures, which take longer than its few steps."""
    settings = {"rank": 4, "alpha": 4.0, "steps": 12, "batch_size": 1, "learning_rate": 1e-3, "seed": 1, **numbers}
    return {
        "dataset": node("LoomDatasetFromFolder", folder=folder, repeats=1, trigger_word="", missing_captions="refuse"),
        "size": node("LoomResolution", dataset=["dataset", 0], resolution=128, buckets=False),
        "base": node("LoomBaseModel", checkpoint=checkpoint),
        "sampling": node("LoomSampling", prompts="", negative="", every_steps=0, guidance_scale=3.0, steps=2, seed=0, draw=draw),
        "train": node("LoomTrainLoRA", base=["base", 0], dataset=["size", 0], name=name, options=["sampling", 0], **settings),
    }


def few_pictures(**settings: Any) -> dict[str, Any]:
    """Dataset, size, base and options of a short training without pictures."""
    folder = {"folder": "input/few", "repeats": 1, "trigger_word": "", "missing_captions": "refuse", **settings}
    return {
        "dataset": node("LoomDatasetFromFolder", **folder),
        "size": node("LoomResolution", dataset=["dataset", 0], resolution=128, buckets=False),
        "base": node("LoomBaseModel", checkpoint="mini_base.safetensors"),
        "sampling": node("LoomSampling", prompts="", negative="", every_steps=0, guidance_scale=3.0, steps=2, seed=0, draw=False),
    }


def tuning_graph(name: str, **settings: Any) -> dict[str, Any]:
    """A fine-tune, in node "train"."""
    numbers = {"steps": 3, "batch_size": 1, "learning_rate": 1e-4, "seed": 1, "save_format": "fp16", "options": ["sampling", 0], **settings}
    return {**few_pictures(), "train": node("LoomFineTune", base=["base", 0], dataset=["size", 0], name=name, **numbers)}


def inverting_graph(name: str, **settings: Any) -> dict[str, Any]:
    """A textual inversion, in node "train"."""
    numbers = {"steps": 3, "batch_size": 1, "learning_rate": 0.05, "seed": 1, "vectors": 2, "template": "object", "initializer": "apple"}
    whole = {**numbers, "placeholder": NEW_WORD, "prompt": f"{NEW_WORD}, red food", "options": ["sampling", 0], **settings}
    return {**few_pictures(), "train": node("LoomTrainTextualInversion", base=["base", 0], dataset=["size", 0], name=name, **whole)}


def drawing_graph(model: list[Any], clip: list[Any], prompt: str, prefix: str, steps: int = 6) -> dict[str, Any]:
    """Prompt -> picture in node "save"; the checkpoint is node "checkpoint"."""
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name="mini_base.safetensors"),
        "positive": node("CLIPTextEncode", clip=clip, text=prompt),
        "negative": node("CLIPTextEncode", clip=clip, text=""),
        "latent": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "sampler": node(
            "KSampler", model=model, positive=["positive", 0], negative=["negative", 0], latent_image=["latent", 0],
            seed=3, steps=steps, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix=prefix),
    }
