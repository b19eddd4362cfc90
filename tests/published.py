"""The published workflows. They are made for a full-size checkpoint and one's own pictures, so tests run them on what they have instead."""
import json
from typing import Any

from comfy_server import PACK

_NAMES = {
    "v1-5-pruned-emaonly-fp16.safetensors": "mini_base.safetensors",
    "input/my_images": "input/food",
    "input/my_images_heldout": "input/food_heldout",
}
# By input: the size and the cfg at which the mini base draws; the pictures are smaller squares.
_NUMBERS = {"resolution": 128, "buckets": False, "upscale": True, "width": 128, "height": 128, "guidance_scale": 3.0, "cfg": 3.0}
_LEARNING_RATES = {"LoomTrainLoRA": 1e-3, "LoomFineTune": 4e-5, "LoomTrainTextualInversion": 0.02}

Graph = dict[str, Any]


def published(path: str) -> Graph:
    """A workflow as it is: NAME as the page saves it, api/NAME in the API format."""
    graph: Graph = json.loads((PACK / "workflows" / f"{path}.json").read_text())
    return graph


def on_mini_base(graph: Graph, **changes: Graph) -> Graph:
    """A workflow of either format with the names and numbers of the mini base and of the pictures of food. `changes`: inputs by class of node."""
    if "nodes" not in graph:
        return {key: {**node, "inputs": _replaced(node["class_type"], node["inputs"], changes)} for key, node in graph.items()}
    return {**graph, "nodes": [_saved_replaced(node, changes) for node in graph["nodes"]]}


def _saved_replaced(node: Graph, changes: dict[str, Graph]) -> Graph:
    if "widgets_values" not in node:
        return node
    names = [entry["name"] for entry in node["inputs"] if "widget" in entry]
    if node["type"] == "KSampler":
        names.insert(names.index("seed") + 1, "control_after_generate")
    values = dict(zip(names, node["widgets_values"], strict=True))
    return {**node, "widgets_values": list(_replaced(node["type"], values, changes).values())}


def _replaced(node: str, inputs: Graph, changes: dict[str, Graph]) -> Graph:
    numbers = _NUMBERS | ({"learning_rate": _LEARNING_RATES[node]} if node in _LEARNING_RATES else {})
    named = {name: _NAMES.get(value, value) if isinstance(value, str) else value for name, value in inputs.items()}
    return {name: numbers.get(name, value) for name, value in named.items()} | changes.get(node, {})
