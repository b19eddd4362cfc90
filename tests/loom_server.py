"""A real ComfyUI server with the pack in it, and the few requests that a client makes."""
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parent.parent


class Refused(Exception):
    """The server answered with an error; `body` is its JSON."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {json.dumps(body)}")
        self.status, self.body = status, body


def comfyui() -> Path:
    """The ComfyUI to test in."""
    folder = os.environ.get("LORA_LOOM_COMFYUI")
    if not folder or not Path(folder, "main.py").is_file():
        raise RuntimeError("LORA_LOOM_COMFYUI must name a ComfyUI folder: run the tests through `nox -s tests`, which makes one")
    return Path(folder)


class Server:
    """One server process on a base directory of its own, so that models, inputs and outputs are the test's."""

    def __init__(self, comfyui: Path, base: Path) -> None:
        self.comfyui, self.base = comfyui, base
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = base / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> "Server":
        """Start and wait until it answers."""
        (self.base / "custom_nodes").mkdir(parents=True, exist_ok=True)
        link = self.base / "custom_nodes" / "lora-loom"
        if not link.exists():
            link.symlink_to(PACK, target_is_directory=True)
        command = [sys.executable, "main.py", "--cpu", "--port", str(self.port), "--base-directory", str(self.base)]
        command += ["--database-url", f"sqlite:///{self.base / 'comfy.db'}", "--disable-auto-launch"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.comfyui, stdout=log, stderr=log, env={**os.environ, **environment}, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-3000:]}")
            try:
                self.get("/system_stats")
                return self
            except OSError:
                time.sleep(0.3)
        raise RuntimeError("ComfyUI did not answer within 120 s")

    def stop(self) -> None:
        """End the server and wait."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def get(self, path: str) -> Any:
        """GET as JSON."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        """POST JSON; raises Refused."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.code, json.loads(error.read() or b"null")) from error
        return json.loads(text) if text else None

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue a graph in API format; gives its id."""
        return self.post("/prompt", {"prompt": prompt})["prompt_id"]  # type: ignore[no-any-return]

    def wait(self, prompt_id: str, timeout: float = 300) -> dict[str, Any]:
        """The history entry once the prompt is done."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                return entry  # type: ignore[no-any-return]
            time.sleep(0.2)
        raise TimeoutError(f"prompt not done in {timeout} s; server log:\n{self.log.read_text()[-3000:]}")

    def run(self, prompt: dict[str, Any], timeout: float = 300) -> dict[str, Any]:
        """Queue, wait, and expect success; gives the outputs by node id."""
        entry = self.wait(self.queue(prompt), timeout)
        assert entry["status"]["status_str"] == "success", error_of(entry)
        return entry["outputs"]  # type: ignore[no-any-return]

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
        raise TimeoutError(f"{name} did not reach step {step}; server log:\n{self.log.read_text()[-3000:]}")


def error_of(entry: dict[str, Any]) -> str:
    """The message of the node that failed."""
    for kind, message in entry["status"]["messages"]:
        if kind in ("execution_error", "execution_interrupted"):
            return str(message.get("exception_message", kind))
    return ""


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node of the API format."""
    return {"class_type": class_type, "inputs": inputs}


def training_graph(name: str, *, folder: str = "input/few", checkpoint: str = "mini_base.safetensors", **numbers: Any) -> dict[str, Any]:
    """Dataset -> training on the mini base, ending in node "train"."""
    settings = {"rank": 4, "alpha": 4.0, "steps": 12, "batch_size": 1, "learning_rate": 1e-3, "seed": 1, **numbers}
    return {
        "dataset": node("LoomDatasetFromFolder", folder=folder, repeats=1, trigger_word="", missing_captions="refuse"),
        "size": node("LoomResolution", dataset=["dataset", 0], resolution=128),
        "base": node("LoomBaseModel", checkpoint=checkpoint),
        "sampling": node("LoomSampling", prompts="", negative="", every_steps=0, guidance_scale=3.0, steps=2, seed=0),
        "train": node("LoomTrainLoRA", base=["base", 0], dataset=["size", 0], name=name, options=["sampling", 0], **settings),
    }


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
