"""The row editor of Adapter Stack in the page: what is done to rows, and the JSON that comes of it."""
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from comfy_page import NOTICE_CHANGES, SAVE_AND_LOAD
from loom_server import Server
from playwright.sync_api import Locator, Page, expect

FILES = (
    "loras/second.safetensors",
    "loras/style/night_sky.safetensors",
    "loras/style/day_sky.safetensors",
    "embeddings/bright.safetensors",
    "hypernetworks/deep.pt",
)

ROWS = """async () => {
    const stack = Object.values((await app.graphToPrompt()).output).find((entry) => entry.class_type === "LoomAdapterStack");
    return JSON.parse(stack.inputs.rows);
}"""
SET_ROWS = """(rows) => {
    const stack = app.graph.nodes.find((node) => node.type === "LoomAdapterStack");
    stack.widgets.find((widget) => widget.name === "rows").value = JSON.stringify(rows);
    app.extensionManager.workflow.activeWorkflow.changeTracker.checkState();
}"""
HISTORY = "app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
# The editor's own value: to put a prompt together gives the nodes another order, which is a change of the graph.
VALUE = """() => {
    const stack = app.graph.nodes.find((node) => node.type === "LoomAdapterStack");
    return JSON.parse(stack.widgets.find((widget) => widget.name === "rows").value);
}"""
# Until no node has changed its size for a while.
AT_REST = """async () => {
    const sizes = () => String(app.graph.nodes.map((node) => [...node.size]));
    for (let before = "", still = 0; still < 20; before = sizes()) {
        await new Promise(requestAnimationFrame);
        still = sizes() === before ? still + 1 : 0;
    }
}"""
ZOOM = """(scale) => {
    const stack = app.graph.nodes.find((node) => node.type === "LoomAdapterStack");
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [300 / scale - stack.pos[0], 250 / scale - stack.pos[1]];
    app.canvas.setDirty(true, true);
}"""
PASTE = """(input, text) => {
    const clipboardData = new DataTransfer();
    clipboardData.setData("text/plain", text);
    input.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module", autouse=True)
def adapter_files(server: Server) -> Iterator[None]:
    """Names to choose from; what is in the files does not matter here."""
    paths = [server.base / "models" / file for file in FILES]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    yield
    for path in paths:
        path.unlink()


def rows_of(page: Page) -> list[dict[str, Any]]:
    """The rows that the page would queue."""
    rows: list[dict[str, Any]] = page.evaluate(ROWS)
    return rows


def names(page: Page) -> list[str]:
    """Their names."""
    return [row["name"] for row in rows_of(page)]


def switches(page: Page) -> list[bool]:
    """Which are on."""
    return [row["on"] for row in rows_of(page)]


def shown(page: Page) -> Locator:
    """The rows in the node."""
    return page.locator(".lora-loom-rows .lora-loom-row")


def with_rows(open_page: Callable[[str], Page], *rows: dict[str, Any]) -> Page:
    """A page whose stack has these rows."""
    page = open_page("stack_adapters")
    page.evaluate(SET_ROWS, list(rows))
    expect(shown(page)).to_have_count(len(rows))
    return page


def row(name: str, **more: Any) -> dict[str, Any]:
    """A row as the editor writes it."""
    return {"on": True, "name": name, "model": 1, "clip": 1, **more}


def test_rows_are_edited_in_the_page_and_queued_as_json(open_page: Callable[[str], Page]) -> None:
    page = open_page("stack_adapters")
    rows = shown(page)
    expect(rows).to_have_count(1)
    page.locator(".lora-loom-add").click()
    expect(rows).to_have_count(2)
    new = rows.nth(1)
    new.locator(".lora-loom-name").fill("second.safetensors")
    new.locator(".lora-loom-name").press("Enter")
    expect(new.locator(".lora-loom-missing")).to_have_count(0)
    new.locator(".lora-loom-model").fill("0.25")
    new.locator(".lora-loom-model").press("Enter")
    new.locator(".lora-loom-move").first.click()
    first, second = rows_of(page)
    assert first == {"on": True, "name": "second.safetensors", "model": 0.25, "clip": 0.25}
    assert second["name"] == "my_lora.safetensors"
    rows.nth(0).locator(".lora-loom-clip").fill("0.5")
    rows.nth(0).locator(".lora-loom-model").press("Shift+ArrowUp")
    rows.nth(0).locator(".lora-loom-model").press("ArrowUp")
    first, _ = rows_of(page)
    assert (first["model"], first["clip"]) == (0.31, 0.5)
    rows.nth(1).locator(".lora-loom-remove").click()
    expect(rows).to_have_count(1)


def test_rows_are_dragged_duplicated_and_tried_alone(open_page: Callable[[str], Page]) -> None:
    page = with_rows(open_page, row("a"), row("b", on=False), row("c", blocks="MIDD"))
    page.evaluate(ZOOM, 0.6)
    page.wait_for_timeout(300)
    before = page.evaluate(HISTORY)
    handle, last = (shown(page).nth(index).locator(".lora-loom-handle").bounding_box() for index in (0, 2))
    assert handle and last
    page.mouse.move(handle["x"] + 3, handle["y"] + 5)
    page.mouse.down()
    page.mouse.move(handle["x"] + 6, last["y"], steps=3)
    page.mouse.move(handle["x"] + 6, last["y"] + last["height"] - 1)
    assert names(page) == ["a", "b", "c"]
    page.mouse.up()
    assert names(page) == ["b", "c", "a"]
    expect(shown(page).nth(2).locator(".lora-loom-handle")).to_be_focused()
    assert page.evaluate(HISTORY) == before + 1
    page.keyboard.press("Control+z")
    expect(shown(page).nth(0).locator(".lora-loom-name")).to_have_value("a")
    assert names(page) == ["a", "b", "c"]

    page.keyboard.press("Escape")
    shown(page).nth(2).locator(".lora-loom-handle").focus()
    page.keyboard.press("ArrowUp")
    assert names(page) == ["a", "c", "b"]
    shown(page).nth(1).locator(".lora-loom-duplicate").click()
    expect(shown(page).nth(2).locator(".lora-loom-duplicate")).to_be_focused()
    assert rows_of(page)[1] == rows_of(page)[2] == row("c", blocks="MIDD")
    page.keyboard.press("Tab")
    expect(shown(page).nth(2).locator(".lora-loom-remove")).to_be_focused()
    page.keyboard.press("Enter")
    expect(shown(page).nth(2).locator(".lora-loom-remove")).to_be_focused()

    assert switches(page) == [True, True, False]
    solo = shown(page).locator(".lora-loom-solo")
    solo.nth(2).click()
    assert switches(page) == [False, False, True]
    solo.nth(0).click()
    assert switches(page) == [True, False, False]
    expect(solo.nth(0)).to_have_attribute("aria-pressed", "true")
    solo.nth(0).click()
    assert switches(page) == [True, True, False]
    everything = page.locator(".lora-loom-all")
    expect(everything).to_have_attribute("aria-checked", "mixed")
    everything.click()
    assert switches(page) == [True, True, True]
    everything.click()
    assert switches(page) == [False, False, False]


def test_adapters_are_searched_and_pasted(open_page: Callable[[str], Page]) -> None:
    page = with_rows(open_page, row("gone.safetensors"))
    expect(shown(page).nth(0).locator(".lora-loom-missing")).to_have_attribute("title", "gone.safetensors is not in models/loras")
    page.locator(".lora-loom-add").click()
    field = shown(page).nth(1).locator(".lora-loom-name")
    choices = page.locator(".lora-loom-choice")
    expect(choices.filter(has_text="hypernetwork:deep.pt")).to_be_visible()
    field.press_sequentially("sky STYLE")
    expect(choices.filter(has_text="style/")).to_have_count(2)
    field.press("ArrowDown")
    field.press("Enter")
    expect(field).to_have_value("style/night_sky.safetensors")
    expect(choices.first).to_be_hidden()
    field.fill("bri")
    expect(choices.first).to_have_text("embedding:bright.safetensors")
    field.press("Escape")
    expect(field).to_have_value("style/night_sky.safetensors")
    field.fill("bri")
    choices.first.click()
    assert names(page) == ["gone.safetensors", "embedding:bright.safetensors"]
    expect(page.locator(".lora-loom-missing")).to_have_count(1)
    # A part of a name that is left without a choice was a search; what is found nowhere is a name.
    field.fill("sky")
    field.press("Tab")
    expect(field).to_have_value("embedding:bright")
    field.fill("soon.safetensors")
    field.press("Tab")
    assert names(page)[1] == "soon.safetensors"

    field.evaluate(PASTE, "a cat <lora:Night_Sky:0.8> in a hat <lora:second:0.5:0.6:lbw=OUTALL><lora:nowhere> <hypernet:deep:0.3>")
    assert rows_of(page)[2:] == [
        {"on": True, "name": "style/night_sky.safetensors", "model": 0.8, "clip": 0.8},
        {"on": True, "name": "second.safetensors", "model": 0.6, "clip": 0.5, "blocks": "OUTALL"},
        {"on": True, "name": "nowhere.safetensors", "model": 1, "clip": 1},
        {"on": True, "name": "hypernetwork:deep.pt", "model": 0.3, "clip": 0.3},
    ]
    expect(shown(page).nth(5).locator(".lora-loom-name")).to_be_focused()


def test_details_are_written_where_they_differ_and_kept(open_page: Callable[[str], Page]) -> None:
    rgthree = {"on": False, "lora": "style/day_sky.safetensors", "strength": 0.7, "strengthTwo": None}
    page = with_rows(open_page, row("second.safetensors"), rgthree, row("second.safetensors", colour="red"))
    expect(shown(page).nth(1).locator(".lora-loom-name")).to_have_value("day_sky · style/")
    expect(shown(page).nth(2)).to_contain_text('Unknown key "colour"')

    first = shown(page).nth(0)
    fold = first.locator(".lora-loom-fold")
    fold.click()
    blocks = first.locator(".lora-loom-blocks")
    blocks.fill("out")
    page.locator(".lora-loom-choice", has_text="OUTD").click()
    first.locator(".lora-loom-start").fill("20")
    first.locator(".lora-loom-end").fill("75")
    first.locator(".lora-loom-curve-choice").select_option("falling")
    details = {"blocks": "OUTD", "start": 0.2, "end": 0.75, "curve": "falling"}
    converted = {"on": False, "name": "style/day_sky.safetensors", "model": 0.7, "clip": 0.7}
    assert rows_of(page) == [row("second.safetensors", **details), converted, row("second.safetensors", colour="red")]

    fold.click()
    expect(first.locator(".lora-loom-details")).to_have_count(0)
    page.evaluate(SAVE_AND_LOAD)
    expect(shown(page)).to_have_count(3)
    assert rows_of(page) == [row("second.safetensors", **details), converted, row("second.safetensors", colour="red")]
    expect(first.locator(".lora-loom-fold")).to_have_attribute("aria-label", "Blocks and schedule of row 1; set: blocks, start, end, curve")
    first.locator(".lora-loom-fold").click()
    expect(blocks).to_have_value("OUTD")
    expect(first.locator(".lora-loom-end")).to_have_value("75")
    first.locator(".lora-loom-end").fill("10")
    expect(first).to_contain_text("The start has to be below the end.")
    first.locator(".lora-loom-start").fill("0")
    first.locator(".lora-loom-end").fill("100")
    first.locator(".lora-loom-curve-choice").select_option("constant")
    blocks.fill("")
    blocks.press("Enter")
    shown(page).nth(2).locator(".lora-loom-remove-key").click()
    assert rows_of(page) == [row("second.safetensors"), converted, row("second.safetensors")]


def test_what_was_on_before_a_row_was_tried_alone_survives_loading_and_undo(open_page: Callable[[str], Page]) -> None:
    page = with_rows(open_page, row("a"), row("b", on=False), row("c"))
    solo = shown(page).locator(".lora-loom-solo")
    solo.nth(2).click()
    assert switches(page) == [False, False, True]
    page.evaluate(SAVE_AND_LOAD)
    expect(solo.nth(2)).to_have_attribute("aria-pressed", "true")
    shown(page).nth(0).locator(".lora-loom-down").click()
    assert names(page) == ["b", "a", "c"]
    page.keyboard.press("Control+z")
    expect(shown(page).nth(0).locator(".lora-loom-name")).to_have_value("a")
    expect(solo.nth(2)).to_have_attribute("aria-pressed", "true")
    solo.nth(2).click()
    assert switches(page) == [True, False, True]
    page.evaluate(SAVE_AND_LOAD)
    expect(solo.nth(2)).to_have_attribute("aria-pressed", "false")


@pytest.mark.parametrize("control", ["lora-loom-duplicate", "lora-loom-remove", "lora-loom-on", "lora-loom-solo", "lora-loom-down"])
def test_one_change_of_rows_is_one_step_for_undo(open_page: Callable[[str], Page], control: str) -> None:
    page = with_rows(open_page, *(row(f"row {number}") for number in range(6)))
    page.evaluate(AT_REST)
    page.evaluate(NOTICE_CHANGES)
    before, steps = page.evaluate(VALUE), page.evaluate(HISTORY)
    shown(page).nth(0).locator(f".{control}").click()
    page.wait_for_function(f"{HISTORY} > {steps}")
    assert page.evaluate(VALUE) != before
    page.evaluate(AT_REST)
    page.evaluate(NOTICE_CHANGES)
    assert page.evaluate(HISTORY) == steps + 1
    page.keyboard.press("Control+z")
    page.wait_for_function(f"{HISTORY} === {steps}")
    page.evaluate(AT_REST)
    page.evaluate(NOTICE_CHANGES)
    assert page.evaluate(VALUE) == before
    assert page.evaluate(HISTORY) == steps


def test_the_arrow_keys_choose_among_what_is_found_only(open_page: Callable[[str], Page]) -> None:
    page = with_rows(open_page, row(""))
    field = shown(page).nth(0).locator(".lora-loom-name")
    choices = page.locator(".lora-loom-choice")
    field.click()
    expect(choices.filter(has_text="hypernetwork:deep.pt")).to_be_visible()
    field.press_sequentially("night")
    expect(choices).to_have_text(["style/night_sky.safetensors"])
    field.press("ArrowDown")
    field.press("Enter")
    assert names(page) == ["style/night_sky.safetensors"]
    # A whole name is no search, and what is found nowhere can be chosen as it is.
    field.fill("sky.safetensors")
    field.press("Tab")
    assert names(page) == ["sky.safetensors"]
    field.fill("nowhere")
    field.press("Enter")
    assert names(page) == ["nowhere"]


def test_the_editor_is_explained_in_words_for_its_user(open_page: Callable[[str], Page], server: Server) -> None:
    page = with_rows(open_page, row("a"))
    tooltip = server.get("/object_info/LoomAdapterStack")["LoomAdapterStack"]["input"]["required"]["rows"][1]["tooltip"]
    assert "JSON" not in tooltip
    if page.evaluate("app.ui.settings.getSettingValue('Comfy.VueNodes.Enabled')"):
        page.locator(".lora-loom-rows").hover(position={"x": 5, "y": 5})
        expect(page.locator(".p-tooltip")).to_have_text(tooltip)
