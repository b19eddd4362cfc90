"""The demo's graph says the same in both of ComfyUI's forms, whatever is trained."""
from typing import Any

import pytest
from graphs import api_graph, page_graph
from material import Material

PROMPTS = ("cool smiley, at sunset", "cat face, at sunset", "red heart, at sunset")


def material(*held_out: str, **settings: dict[str, Any]) -> Material:
    return Material("bun", "base.safetensors", "input/bun", held_out, PROMPTS, "at sunset", settings, is_demo=False)


def as_queued(graph: dict[str, Any], twin: dict[str, Any]) -> dict[str, Any]:
    """What the page would queue of a graph that it has saved; `twin` tells the names of the widgets."""
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    queued = {}
    for node in graph["nodes"]:
        if (key := str(node["id"])) in twin:
            linked = {entry["name"]: links[entry["link"]] for entry in node["inputs"] if entry.get("link") is not None}
            widgets = [name for name, value in twin[key]["inputs"].items() if not isinstance(value, list)]
            queued[key] = {"class_type": node["type"], "inputs": {**dict(zip(widgets, node.get("widgets_values", []), strict=True)), **linked}}
    return queued


@pytest.mark.parametrize("held_out", [(), ("input/one",), ("input/one", "input/two")], ids=len)
def test_both_forms_agree(held_out: tuple[str, ...]) -> None:
    chosen = material(*held_out, LoomResolution={"resolution": 512, "buckets": True}, LoomTrainLoRA={"steps": 7})
    twin = api_graph(chosen)
    page = as_queued(page_graph(chosen), twin)
    assert twin.pop("cells")["inputs"]["images"] == ["10", 1]
    # Only where the command draws no samples and names the adapter by what it trains do they differ.
    for key, values in (("7", {"draw": False}), ("8", {"name": "bun"})):
        page[key]["inputs"].update(values)
    assert page == twin
    assert twin["2"]["inputs"]["resolution"] == 512
    assert twin["8"]["inputs"]["steps"] == 7
    validated = twin["8"]["inputs"].get("validation")
    assert validated == [None, ["3", 0], ["5", 0]][len(held_out)]


def test_every_link_of_the_page_has_two_ends() -> None:
    for held_out in ((), ("input/one",)):
        graph = page_graph(material(*held_out))
        nodes = {node["id"]: node for node in graph["nodes"]}
        for link, source, slot, target, place, _ in graph["links"]:
            assert link in nodes[source]["outputs"][slot]["links"]
            assert nodes[target]["inputs"][place]["link"] == link
