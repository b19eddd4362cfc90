"""The demo's graph in both of ComfyUI's forms, with the material in it: for `POST /prompt`, and for the page.

`workflow.json` is what the page saves and `workflow_api.json` what it queues, so nodes have the same ids in both.
"""
import json
from pathlib import Path
from typing import Any

from material import Material

Graph = dict[str, Any]

HERE = Path(__file__).resolve().parent
TRAINING, COMPARING = "8", "10"
_DATASET, _RESOLUTION, _HELD_OUT, _COMBINED, _BASE, _SAMPLING, _LOADER = "1", "2", ("3", "4"), "5", "6", "7", "9"
_NOTE = "11"


def api_graph(material: Material) -> Graph:
    """The graph for `POST /prompt`, without sample pictures, which nobody would see; the cells of its grid are saved one by one, by node "cells"."""
    graph = _read("workflow_api.json")
    for node, values in _values(graph, material).items():
        graph[node]["inputs"].update(values)
    for node in _unused(material):
        del graph[node]
    training = graph[TRAINING]["inputs"]
    if len(material.held_out) < 2:
        del training["validation"]
    if len(material.held_out) == 1:
        training["validation"] = [_HELD_OUT[0], 0]
    training["name"] = material.name
    graph[_SAMPLING]["inputs"]["draw"] = False
    graph["cells"] = {"class_type": "SaveImage", "inputs": {"images": [COMPARING, 1], "filename_prefix": "lora_loom/demo"}}
    return graph


def page_graph(material: Material) -> Graph:
    """The graph as the page opens it."""
    graph, twin = _read("workflow.json"), _read("workflow_api.json")
    nodes = {str(node["id"]): node for node in graph["nodes"]}
    for node, values in _values(twin, material).items():
        # The page keeps the values of widgets in their order, which is that of the inputs that are no links.
        widgets = [name for name, value in twin[node]["inputs"].items() if not isinstance(value, list)]
        for name, value in values.items():
            nodes[node]["widgets_values"][widgets.index(name)] = value
    if len(material.held_out) == 1:
        link = next(link for link in graph["links"] if str(link[1]) == _COMBINED)
        link[1] = int(_HELD_OUT[0])
        nodes[_HELD_OUT[0]]["outputs"][0]["links"].append(link[0])
    _remove(graph, [*_unused(material), *([] if material.is_demo else [_NOTE])])
    return graph


def _read(name: str) -> Graph:
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def _values(twin: Graph, material: Material) -> dict[str, dict[str, Any]]:
    """What differs from the files, by node and input."""
    by_class = {entry["class_type"]: node for node, entry in twin.items()}
    values: dict[str, dict[str, Any]] = {by_class[kind]: dict(settings) for kind, settings in material.settings.items()}

    def put(node: str, **inputs: Any) -> None:
        values.setdefault(node, {}).update(inputs)

    put(_DATASET, folder=material.folder)
    for node, folder in zip(_HELD_OUT, material.held_out, strict=False):
        put(node, folder=folder)
    put(_BASE, checkpoint=material.checkpoint)
    put(_LOADER, ckpt_name=material.checkpoint)
    put(_SAMPLING, prompts="\n".join(material.prompts[:2]))
    put(COMPARING, prompt="\n".join(material.prompts), without=material.words)
    return values


def _unused(material: Material) -> list[str]:
    """Nodes that there is nothing for: two folders of held-out images are combined."""
    return [*_HELD_OUT[len(material.held_out) :], *([] if len(material.held_out) == 2 else [_COMBINED])]


def _remove(graph: Graph, unused: list[str]) -> None:
    graph["nodes"] = [node for node in graph["nodes"] if str(node["id"]) not in unused]
    graph["links"] = [link for link in graph["links"] if str(link[1]) not in unused and str(link[3]) not in unused]
    left = {link[0] for link in graph["links"]}
    for node in graph["nodes"]:
        for entry in node.get("inputs", []):
            entry["link"] = entry.get("link") if entry.get("link") in left else None
        for entry in node.get("outputs", []):
            entry["links"] = [link for link in entry.get("links") or [] if link in left]
