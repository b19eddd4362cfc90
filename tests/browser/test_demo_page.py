"""What `nox -s demo -- --serve` opens: all of it is on the screen, and the page queues what the command queues."""
import json
from collections.abc import Callable
from typing import Any

import pytest
from graphs import page_graph
from loom_server import PACK
from material import SUBJECTS, WORDS, Material
from playwright.sync_api import Page, expect

# Where nodes are on the screen: left, top, right, bottom in pixels, titles included.
BOXES = """() => app.graph.nodes.map((node) => {
    const [x, y, width, height] = node.getBounding();
    const { scale, offset } = app.canvas.ds;
    return { title: node.title, left: (x + offset[0]) * scale, top: (y + offset[1]) * scale,
             right: (x + width + offset[0]) * scale, bottom: (y + height + offset[1]) * scale };
})"""
CANVAS = "() => { const box = app.canvas.canvas.getBoundingClientRect(); return [box.left, box.top]; }"


def demo() -> dict[str, Any]:
    prompts = tuple(f"{subject}, {WORDS}" for subject in SUBJECTS)
    folders = ("input/sunset_heldout", "input/plain_heldout")
    return page_graph(Material("sunset_style", "mini_base.safetensors", "input/sunset", folders, prompts, WORDS, {}, is_demo=True))


@pytest.mark.parametrize("open_page", ["canvas"], indirect=True)
def test_all_of_it_is_on_a_small_screen_and_a_note_says_what_to_press(open_page: Callable[[str], Page]) -> None:
    page = open_page("train_lora_sd15")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.evaluate("(graph) => app.loadGraphData(graph)", demo())
    page.wait_for_timeout(1000)
    left, top = page.evaluate(CANVAS)
    boxes = page.evaluate(BOXES)
    assert len(boxes) == 11
    for box in boxes:
        assert box["left"] + left > 58 and box["top"] + top > 78, box  # the page's own bars
        assert box["right"] + left < 1280 and box["bottom"] + top < 800, box
    expect(page.get_by_role("heading", name="Press Run")).to_be_visible()


@pytest.mark.parametrize("open_page", ["canvas"], indirect=True)
def test_the_page_queues_the_twin(open_page: Callable[[str], Page]) -> None:
    page = open_page("train_lora_sd15")
    page.evaluate("(graph) => app.loadGraphData(graph)", demo())
    expect(page.get_by_text("Invalid workflow")).to_have_count(0)
    queued = page.evaluate("async () => (await app.graphToPrompt()).output")
    twin = json.loads((PACK / "demo" / "workflow_api.json").read_text())
    assert {node: {"class_type": entry["class_type"], "inputs": entry["inputs"]} for node, entry in queued.items()} == twin
