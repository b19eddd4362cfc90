"""The published workflows in the page: found, loaded, saved and loaded again without losing a value."""
import re
from collections.abc import Callable
from typing import Any

import pytest
from comfy_page import SAVE_AND_LOAD
from loom_server import PACK, Server
from playwright.sync_api import Page, expect
from published import published

NAMES = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))

PROMPT = "async () => (await app.graphToPrompt()).output"


def prompt(page: Page) -> dict[str, Any]:
    """What the page would queue, in the API format."""
    return {node: {"class_type": entry["class_type"], "inputs": entry["inputs"]} for node, entry in page.evaluate(PROMPT).items()}


def test_workflows_give_their_api_twins_also_after_saving_and_loading(open_page: Callable[[str], Page]) -> None:
    page = open_page(NAMES[0])
    for name in NAMES:
        graph, twin = published(name), published(f"api/{name}")
        page.evaluate("(graph) => app.loadGraphData(graph)", graph)
        expect(page.get_by_text("Invalid workflow"), name).to_have_count(0)
        assert prompt(page) == twin, name
        page.evaluate(SAVE_AND_LOAD)
        assert prompt(page) == twin, name


def test_the_template_browser_shows_the_workflows_with_their_pictures(open_page: Callable[[str], Page], server: Server) -> None:
    assert set(NAMES) <= set(server.get("/workflow_templates")["lora-loom"])
    page = open_page(NAMES[0])
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text("lora-loom", exact=True).last.click()
    for name in NAMES:
        expect(page.get_by_text(name, exact=True).last).to_be_visible()
    loaded = "[...document.querySelectorAll('[role=dialog] img')].filter((image) => image.naturalWidth > 100).length"
    page.wait_for_function(f"{loaded} === {len(NAMES)}")


@pytest.mark.parametrize("open_page", ["Nodes 2.0"], indirect=True)
def test_a_small_learning_rate_is_shown_and_kept_as_it_is(open_page: Callable[[str], Page]) -> None:
    page = open_page("train_lora_sd15")
    field = page.locator("input[aria-label='learning_rate'], [aria-label='learning_rate'] input").first
    expect(field).to_have_value(re.compile(r"0\.0010*"))
    field.select_text()
    field.press_sequentially("0.00025")
    field.press("Tab")
    expect(field).to_have_value(re.compile(r"0\.000250*"))
    train = next(entry for entry in prompt(page).values() if entry["class_type"] == "LoomTrainLoRA")
    assert train["inputs"]["learning_rate"] == 0.00025


# What the canvas writes for a number.
DRAWN = """(value) => {
    const drawn = [];
    const context = document.createElement("canvas").getContext("2d");
    context.fillText = (text) => drawn.push(text);
    const widget = app.graph.nodes.find((node) => node.type === "LoomTrainLoRA").widgets.find((widget) => widget.name === "learning_rate");
    widget.value = value;
    widget.drawWidget(context, { width: 300, showText: true });
    return drawn;
}"""


@pytest.mark.parametrize("open_page", ["canvas"], indirect=True)
def test_the_canvas_draws_every_digit_of_a_number_and_no_idle_zeros(open_page: Callable[[str], Page]) -> None:
    page = open_page("train_lora_sd15")
    for value, shown in ((1e-4, "0.0001"), (1e-7, "0.0000001"), (0.0015, "0.0015"), (1, "1"), (10, "10")):
        assert page.evaluate(DRAWN, value) == ["learning_rate", shown]


SMALL_NUMBERS = [
    ("LoomTextEncoder", "learning_rate", "0.00005"),
    ("LoomOptimizer", "ema_decay", "0.9999"),
    ("LoomOptimizer", "warmup", "0.05"),
    ("LoomCaptionUse", "dropout", "0.15"),
    ("LoomObjective", "noise_offset", "0.05"),
    ("LoomNetwork", "conv_alpha", "0.5"),
    ("LoomFineTune", "learning_rate", "0.000002"),
    ("LoomTrainTextualInversion", "learning_rate", "0.0005"),
]


@pytest.mark.parametrize("open_page", ["Nodes 2.0"], indirect=True)
def test_small_numbers_are_shown_as_they_are(open_page: Callable[[str], Page]) -> None:
    page = open_page("train_lora_sd15")
    for node, name, value in SMALL_NUMBERS:
        field = page.locator(f"input[aria-label='{name}'], [aria-label='{name}'] input").first
        page.evaluate("app.graph.clear()")
        expect(field).not_to_be_attached()
        page.evaluate("(type) => app.graph.add(LiteGraph.createNode(type))", node)
        field.select_text()
        field.press_sequentially(value)
        field.press("Tab")
        expect(field, f"{node}.{name}").to_have_value(re.compile(re.escape(value) + "0*"))
