"""The demo: trains a LoRA in a real ComfyUI through its API, and draws with it. `nox -s demo` prepares ComfyUI and runs this.

    nox -s demo -- [--checkpoint FILE] [--images DIR] [--serve]

Leaves `demo/out/`: the LoRA, `grid.png` (the same prompts at adapter weights 0, 0.5 and 1), `loss.png` and `report.json`.
"""
import argparse
import asyncio
import json
import os
import shutil
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_server import PACK, Refused, Server
from grid import labelled_grid
from mini_base.build import build
from PIL import Image
from tqdm import tqdm

WEIGHTS = (0.0, 0.5, 1.0)
# Of the training set; and last a smiley that is not in it, which the base could draw before and still should.
PROMPTS = ("red apple, red food", "purple aubergine, purple food", "yellow lemon, yellow food", "orange carrot, orange food", "smiley, winking face")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_SHOWN_PROMPTS = 6
_HELD_OUT = 8

Graph = dict[str, Any]


@dataclass(frozen=True)
class Material:
    """What is trained on, with names as ComfyUI's combos have them. `held_out` is empty where there are too few pictures to spare."""

    checkpoint: str
    folder: str
    held_out: str
    prompts: tuple[str, ...]
    resolution: int
    learning_rate: float | None
    cfg: float | None


def main() -> int:
    """Exit code 0 if everything was made."""
    arguments = _arguments()
    try:
        material = _place(arguments.home, arguments.checkpoint, arguments.images)
    except (OSError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    print("starting ComfyUI")
    server = Server(arguments.comfyui, arguments.home, port=8188 if arguments.serve else 0)
    try:
        server.start(*([] if _has_cuda() else ["--cpu"]))
        _make(server, material, arguments.out)
        if arguments.serve:
            _serve(server)
    except (RuntimeError, Refused) as error:
        print(f"demo: {error}\nComfyUI's log: {server.log}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        server.stop()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s demo --", description="Train a LoRA in a real ComfyUI and draw with it.")
    parser.add_argument("--comfyui", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="an SD 1.x checkpoint (.safetensors) instead of the mini base")
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of pictures with .txt captions instead of the food emoji")
    parser.add_argument("--out", type=Path, metavar="DIR", default=PACK / "demo" / "out", help="where the results go (demo/out)")
    parser.add_argument("--home", type=Path, metavar="DIR", default=PACK / ".cache" / "demo", help="ComfyUI's models, input and output")
    parser.add_argument("--serve", action="store_true", help="keep ComfyUI running with the workflow open in a browser")
    return parser.parse_args()


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


# Placing files


def _place(home: Path, checkpoint: Path | None, images: Path | None) -> Material:
    """Put checkpoint and pictures where ComfyUI looks for them. Raises ValueError or OSError that names what is wrong."""
    checkpoints, pictures = home / "models" / "checkpoints", home / "input"
    for folder in (checkpoints, home / "models" / "loras", pictures):
        folder.mkdir(parents=True, exist_ok=True)
    if checkpoint is None:
        name = "mini_base.safetensors"
        if not (checkpoints / name).is_file():
            print("building the mini base (10 s)")
            build(checkpoints / name)
    else:
        name = _link_file(checkpoint.expanduser(), checkpoints)
    if images is None:
        folder, held_out, prompts = "food", "food_heldout", PROMPTS
        for chosen in (folder, held_out):
            source = PACK / "demo" / chosen
            _copy({str(file.relative_to(source)): file for file in source.rglob("*") if file.is_file()}, pictures / chosen)
    else:
        folder, held_out, prompts = _place_own(images.expanduser(), pictures)
    mini = checkpoint is None
    return Material(
        checkpoint=name,
        folder=f"input/{folder}",
        held_out=f"input/{held_out}" if held_out else "",
        prompts=prompts,
        resolution=128 if mini else 512,
        learning_rate=None if mini else 1e-4,
        cfg=None if mini else 7.0,
    )


def _link_file(file: Path, folder: Path) -> str:
    if not file.is_file() or file.suffix != ".safetensors":
        raise ValueError(f"--checkpoint {file}: not a .safetensors file")
    target = folder / file.name
    if not target.exists() or not target.samefile(file):
        target.unlink(missing_ok=True)
        try:
            os.link(file, target)
        except OSError:  # another disk
            shutil.copyfile(file, target)
    return file.name


def _place_own(images: Path, inputs: Path) -> tuple[str, str, tuple[str, ...]]:
    """(folder, held-out folder or "", prompts). One picture in eight is held out where there are sixteen or more."""
    if not images.is_dir():
        raise ValueError(f"--images {images}: not a folder")
    pictures = sorted(file for file in images.iterdir() if file.suffix.lower() in PICTURES)
    if not pictures:
        raise ValueError(f"--images {images}: no pictures in it ({', '.join(PICTURES)})")
    name = f"own_{images.resolve().name}"
    held_out = pictures[::_HELD_OUT] if len(pictures) >= 2 * _HELD_OUT else []
    for chosen, folder in ((set(pictures) - set(held_out), name), (held_out, f"{name}_heldout")):
        _copy({file.name: file for picture in chosen for file in _with_caption(picture)}, inputs / folder)
    captions = [file.read_text(encoding="utf-8").strip() for picture in pictures for file in _with_caption(picture)[1:]]
    prompts = tuple(dict.fromkeys(captions))[:_SHOWN_PROMPTS]
    if not prompts:
        raise ValueError(f"--images {images}: no captions: write a .txt beside each picture")
    return name, f"{name}_heldout" if held_out else "", prompts


def _with_caption(picture: Path) -> list[Path]:
    return [picture, *(picture.with_suffix(suffix) for suffix in (".txt", ".caption") if picture.with_suffix(suffix).is_file())]


def _copy(files: dict[str, Path], folder: Path) -> None:
    """Make `folder` hold just `files`, by their names in it; what is the same already is left alone, so that its time does not change."""
    for old in [file for file in folder.rglob("*") if file.is_file()]:
        if str(old.relative_to(folder)) not in files:
            old.unlink()
    for name, file in files.items():
        target = folder / name
        if not target.is_file() or target.read_bytes() != file.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


# Training and drawing


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
            saved = server.file(server.run(graph)[save]["images"][0])
            name = f"{number}_weight_{weight:g}.png"
            shutil.copyfile(saved, out / name)
            images[f"{prompt} @ {weight:g}"] = name
    return images


def _workflow(name: str) -> Graph:
    return json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


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
