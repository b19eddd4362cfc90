"""Run in ComfyUI's folder: the pack's nodes and the choices of their lists as a server's start makes them, as JSON on the last line.

    python nodes_at_start.py BASE

BASE holds input/, output/ and models/. The lists are made without root's rights.
"""
import asyncio
import importlib
import json
import sys
import time
import types
from pathlib import Path

from comfy.cli_args import args
from unreadable import unprivileged

PACK = Path(__file__).resolve().parents[2]
KINDS = ("loras", "checkpoints", "vae", "embeddings", "hypernetworks")


def main(base: Path) -> None:
    args.cpu = True
    importlib.import_module("utils.extra_config")  # first, as ComfyUI's main.py has it: another module is called utils too
    import folder_paths
    from server import PromptServer

    folder_paths.set_input_directory(str(base / "input"))
    folder_paths.set_output_directory(str(base / "output"))
    folder_paths.models_dir = str(base / "models")
    for kind in KINDS:
        folder_paths.folder_names_and_paths[kind] = ([str(base / "models" / kind)], {".safetensors", ".pt"})
    PromptServer(asyncio.new_event_loop())
    module = types.ModuleType("lora_loom")
    module.__path__ = [str(PACK)]
    sys.modules["lora_loom"] = module
    import lora_loom.nodes

    with unprivileged():
        nodes = asyncio.run(start(lora_loom.nodes))
        time.sleep(1)  # longer than the threads take that read the lists
        options = {
            f"{node.GET_SCHEMA().node_id}.{field.id}": field.options
            for node in nodes
            for field in node.define_schema().inputs
            if hasattr(field, "options")
        }
    print(json.dumps({"nodes": [node.GET_SCHEMA().node_id for node in nodes], "options": options}))


async def start(pack: types.ModuleType) -> list[type]:
    """As ComfyUI does once: the entry point, and each node's schema."""
    nodes = await (await pack.comfy_entrypoint()).get_node_list()
    for node in nodes:
        node.GET_SCHEMA()
    return nodes


main(Path(sys.argv[1]))
