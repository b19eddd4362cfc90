"""The demo: trains a LoRA in a real ComfyUI through its API, and draws with it. `nox -s demo` prepares ComfyUI and runs this.

    nox -s demo -- [--checkpoint FILE] [--images DIR] [--serve]

Leaves `demo/out/`: the LoRA, `grid.png` (each subject at adapter weights 0, 0.5 and 1, and without the style's words), `loss.png` and
`report.json`. With `--serve` the same graph opens in a browser instead.
"""
import argparse
import asyncio
import json
import shutil
import signal
import sys
import time
import webbrowser
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
from comfy_server import PACK, Refused, Server
from graphs import COMPARING, TRAINING, Graph, api_graph, page_graph
from material import Material, place
from pictures import labeled_grid, opened
from report import closing, distances, facts
from teller import Teller

TEMPLATES = "lora-loom-demo"
"""A folder of custom_nodes with the demo's graph for the page."""
REPORT = "report.json"


def main() -> int:
    """Exit code 0 if everything was made."""
    arguments = _arguments()
    _on_signals(_leave)
    try:
        material = place(arguments.home, arguments.checkpoint, arguments.images, arguments.steps)
    except (OSError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return _run(arguments, material)


def _run(arguments: argparse.Namespace, material: Material) -> int:
    _say("Starting ComfyUI (about 20 seconds)")
    server = Server(arguments.comfyui, arguments.home, port=8188 if arguments.serve else 0)
    try:
        _offer_graph(server.base, material)
        _set_page_up(server.base)
        server.start(*([] if _has_cuda() else ["--cpu"]))
        if arguments.serve:
            _serve(server)
        else:
            _make(server, material, arguments.out)
    except (RuntimeError, Refused, OSError, aiohttp.ClientError) as error:
        print(f"demo: {error}\nComfyUI's log: {server.log}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _say("\nStopping; a training that is running saves its state first. The same command continues it.")
        return 130
    finally:
        _on_signals(signal.SIG_IGN)
        server.stop()
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


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
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="an SD 1.5 checkpoint (.safetensors) instead of the mini base")
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of captioned images instead of the emoji")
    parser.add_argument("--out", type=Path, metavar="DIR", default=PACK / "demo" / "out", help="where the results go (demo/out)")
    parser.add_argument("--home", type=Path, metavar="DIR", default=PACK / ".cache" / "demo", help="ComfyUI's models, input and output")
    parser.add_argument("--steps", type=_positive, metavar="N", help="training steps (250)")
    parser.add_argument("--serve", action="store_true", help="open the graph in a browser instead, for you to run it")
    return parser.parse_args()


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1 is needed")
    return int(text)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _make(server: Server, material: Material, out: Path) -> None:
    graph = api_graph(material)
    outputs = asyncio.run(_outputs(server, graph, material))
    result = outputs[TRAINING]["lora_loom"][0]
    _clear(out)
    shutil.copyfile(server.base / "models" / "loras" / result["adapter"], out / result["adapter"])
    shutil.copyfile(server.file(result["loss_plot"]), out / "loss.png")
    columns = [f"weight {weight.strip()}" for weight in graph[COMPARING]["inputs"]["weights"].split(",")]
    if material.words:
        columns.append(f"{columns[-1]}, without “{material.words}”")
    drawn = [server.file(image) for image in outputs["cells"]["images"]]
    rows = [drawn[number : number + len(columns)] for number in range(0, len(drawn), len(columns))]
    subjects = [prompt.removesuffix(f", {material.words}") for prompt in material.prompts]
    cells = [[opened(file) for file in row] for row in rows]
    labeled_grid(cells, columns, subjects).save(out / "grid.png", optimize=True)
    images = {}
    for number, (subject, row) in enumerate(zip(subjects, rows, strict=True)):
        for index, (column, file) in enumerate(zip(columns, row, strict=True)):
            name = f"{number}_{index}.png"
            shutil.copyfile(file, out / name)
            images[f"{subject} @ {column}"] = name
    report = {**facts(result, material), "color_distance": distances(cells) if material.words else {}, "images": images}
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for line in closing(report):
        _say(line)
    _say(f"Look at {out / 'grid.png'}")


def _clear(out: Path) -> None:
    """Take away what an earlier demo has left there."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / REPORT).is_file():
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
        for name in (report["lora"], *report["images"].values()):
            (out / name).unlink(missing_ok=True)


async def _outputs(server: Server, graph: Graph, material: Material) -> dict[str, Any]:
    """Run the graph and say what it is doing; gives the outputs by node."""
    outputs: dict[str, Any] = {}
    with Teller(with_times=material.is_demo and not _has_cuda()) as teller:
        async for message in server.follow(graph):
            data = message["data"]
            teller.tell(message)
            if message["type"] == "executed":
                outputs[data["node"]] = data["output"]
            elif message["type"] == "execution_error":
                raise RuntimeError(data["exception_message"])
            elif message["type"] == "execution_interrupted":
                raise RuntimeError("the training was canceled; the next demo continues it")
    return outputs


def _offer_graph(home: Path, material: Material) -> None:
    """Put the graph where ComfyUI's page looks for templates: into a custom node folder, which has no nodes."""
    folder = home / "custom_nodes" / TEMPLATES
    (folder / "workflows").mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n", encoding="utf-8")
    (folder / "workflows" / "demo.json").write_text(json.dumps(page_graph(material)), encoding="utf-8")


def _set_page_up(home: Path) -> None:
    """Without what would lie over the graph at the first visit: a dialog with templates, and the map."""
    settings = home / "user" / "default" / "comfy.settings.json"
    if not settings.exists():
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}), encoding="utf-8")


def _serve(server: Server) -> None:
    page = f"{server.url}/?template=demo&source={TEMPLATES}"
    _say(f"ComfyUI is at {page}\nPress Run in the page. Ctrl+C here stops it.")
    webbrowser.open(page)
    # Not one long wait: on Windows nothing interrupts that.
    while server.process and server.process.poll() is None:
        time.sleep(0.5)
    raise RuntimeError(f"ComfyUI ended:\n{server.last_words()}")


if __name__ == "__main__":
    sys.exit(main())
