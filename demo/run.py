"""The demo: trains a LoRA in a real ComfyUI through its API, and draws with it. `nox -s demo` prepares ComfyUI and runs this.

    nox -s demo -- [--checkpoint FILE] [--images DIR] [--serve]

Leaves `demo/out/`: the LoRA, `grid.png` (the same prompts at adapter weights 0, 0.5 and 1), `loss.png` and `report.json`.
"""
import argparse
import asyncio
import json
import shutil
import signal
import sys
import webbrowser
from pathlib import Path
from typing import Any, NoReturn

from comfy_server import PACK, Refused, Server
from grid import labelled_grid
from material import Material, place
from PIL import Image
from tqdm import tqdm

WEIGHTS = (0.0, 0.5, 1.0)

Graph = dict[str, Any]


def main() -> int:
    """Exit code 0 if everything was made."""
    arguments = _arguments()
    try:
        material = place(arguments.home, arguments.checkpoint, arguments.images)
    except (OSError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    print("starting ComfyUI")
    server = Server(arguments.comfyui, arguments.home, port=8188 if arguments.serve else 0)
    _on_signals(_leave)
    try:
        server.start(*([] if _has_cuda() else ["--cpu"]))
        _make(server, material, arguments.out)
        if arguments.serve:
            _serve(server)
    except (RuntimeError, Refused, OSError) as error:
        print(f"demo: {error}\nComfyUI's log: {server.log}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        _on_signals(signal.SIG_IGN)
        print("stopping ComfyUI; a training that is under way saves its state first")
        server.stop()
    return 0


def _on_signals(handler: Any) -> None:
    """Set what the signals that end a command do, but for those that the command was started to ignore, as by nohup."""
    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _leave(number: int, _: Any) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s demo --", description="Train a LoRA in a real ComfyUI and draw with it.")
    parser.add_argument("--comfyui", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="a checkpoint (.safetensors) instead of the mini base")
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of pictures with .txt captions instead of the food emoji")
    parser.add_argument("--out", type=Path, metavar="DIR", default=PACK / "demo" / "out", help="where the results go (demo/out)")
    parser.add_argument("--home", type=Path, metavar="DIR", default=PACK / ".cache" / "demo", help="ComfyUI's models, input and output")
    parser.add_argument("--serve", action="store_true", help="keep ComfyUI running with the workflow open in a browser")
    return parser.parse_args()


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _make(server: Server, material: Material, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    result = asyncio.run(_train(server, material))
    adapter = server.base / "models" / "loras" / result["adapter"]
    shutil.copyfile(adapter, out / adapter.name)
    shutil.copyfile(server.file(result["loss_plot"]), out / "loss.png")
    print("drawing with the adapter at weights " + ", ".join(f"{weight:g}" for weight in WEIGHTS))
    images = _draw(server, material, adapter.name, out)
    rows = [(prompt, [_opened(out / images[f"{prompt} @ {weight:g}"]) for weight in WEIGHTS]) for prompt in material.prompts]
    labelled_grid(rows, [f"weight {weight:g}" for weight in WEIGHTS]).save(out / "grid.png")
    validation = dict(result["validation"])
    report = {
        "lora": adapter.name,
        "base": material.checkpoint,
        "steps": result["steps"],
        "first_loss": result["first_loss"],
        "last_loss": result["last_loss"],
        "validation_before": validation.get(0),
        "validation_after": validation.get(result["steps"]),
        "seconds_per_step": result["seconds_per_step"],
        "images": images,
        "run": result["run"],
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in report.items() if key != "images"}, indent=2))
    print(f"look at {out / 'grid.png'}")


async def _train(server: Server, material: Material) -> dict[str, Any]:
    """Run the training workflow with a progress bar; gives what its training node put into the history."""
    graph = _training_graph(material)
    node, settings = _only(graph, "LoomTrainLoRA")
    result: dict[str, Any] = {}
    # A log file gets a line now and then, a terminal sees every step.
    seconds = 0.1 if sys.stdout.isatty() else 15
    with tqdm(total=settings["steps"], unit="step", desc="waiting", file=sys.stdout, mininterval=seconds, maxinterval=seconds) as bar:
        async for message in server.follow(graph):
            data = message["data"]
            if message["type"] == "lora_loom.run":
                _show(bar, data["event"])
            elif message["type"] == "executed" and data["node"] == node:
                result = data["output"]["lora_loom"][0]
            elif message["type"] == "execution_error":
                raise RuntimeError(data["exception_message"])
            elif message["type"] == "execution_interrupted":
                raise RuntimeError("the training was cancelled; the next demo continues it")
    return result


def _show(bar: Any, event: dict[str, Any]) -> None:
    if event["event"] == "started":
        bar.n = event["resumed_from"]
        bar.refresh()
    elif event["event"] == "phase":
        bar.set_description(event["name"], refresh=sys.stdout.isatty())
    elif event["event"] == "progress":
        bar.set_postfix(loss=f"{sum(event['losses']) / len(event['losses']):.4f}", refresh=False)
        bar.update(event["step"] - bar.n)
    elif event["event"] == "warning":
        bar.write(f"warning: {event['message']}")


def _training_graph(material: Material) -> Graph:
    graph = _workflow("train_lora_sd15")
    _, dataset = _only(graph, "LoomDatasetFromFolder")
    _, resolution = _only(graph, "LoomResolution")
    _, base = _only(graph, "LoomBaseModel")
    _, checkpoint = _only(graph, "CheckpointLoaderSimple")
    _, sampling = _only(graph, "LoomSampling")
    _, train = _only(graph, "LoomTrainLoRA")
    _, latent = _only(graph, "EmptyLatentImage")
    dataset["folder"] = material.folder
    base["checkpoint"] = checkpoint["ckpt_name"] = material.checkpoint
    resolution["resolution"] = latent["width"] = latent["height"] = material.resolution
    sampling["prompts"] = "\n".join(material.prompts[:2])
    train["name"] = material.folder.removeprefix("input/")
    if material.learning_rate:
        train["learning_rate"] = material.learning_rate
    if material.cfg:
        sampling["guidance_scale"] = material.cfg
    if material.held_out:
        graph["held out"] = {"class_type": "LoomDatasetFromFolder", "inputs": {**dataset, "folder": material.held_out}}
        train["validation"] = ["held out", 0]
    return graph


def _draw(server: Server, material: Material, adapter: str, out: Path) -> dict[str, str]:
    """Draw each prompt at each weight into `out`; gives the file names by `prompt @ weight`."""
    images = {}
    for number, prompt in enumerate(tqdm(material.prompts, unit="prompt", file=sys.stdout)):
        for weight in WEIGHTS:
            graph = _workflow("stack_adapters")
            _, checkpoint = _only(graph, "CheckpointLoaderSimple")
            _, stack = _only(graph, "LoomAdapterStack")
            _, latent = _only(graph, "EmptyLatentImage")
            _, sampler = _only(graph, "KSampler")
            save, _ = _only(graph, "SaveImage")
            checkpoint["ckpt_name"] = material.checkpoint
            stack["rows"] = json.dumps([{"on": True, "name": adapter, "model": weight, "clip": weight}])
            latent["width"] = latent["height"] = material.resolution
            graph[sampler["positive"][0]]["inputs"]["text"] = prompt
            if material.cfg:
                sampler["cfg"] = material.cfg
            saved = server.file(server.run(graph, timeout=3600)[save]["images"][0])
            name = f"{number}_weight_{weight:g}.png"
            shutil.copyfile(saved, out / name)
            images[f"{prompt} @ {weight:g}"] = name
    return images


def _workflow(name: str) -> Graph:
    return json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


def _only(graph: Graph, class_type: str) -> tuple[str, dict[str, Any]]:
    """Id and inputs of the one node of a class."""
    (found,) = [(node, entry["inputs"]) for node, entry in graph.items() if entry["class_type"] == class_type]
    return found


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _serve(server: Server) -> None:
    page = f"{server.url}/?template=train_lora_sd15&source=lora-loom"
    print(f"ComfyUI is at {page}\nstop it with Ctrl+C")
    webbrowser.open(page)
    if server.process:
        server.process.wait()


if __name__ == "__main__":
    sys.exit(main())
