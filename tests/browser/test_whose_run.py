"""Whose run a training node shows: that of its own workflow, at the settings that it has now, and how far that is."""
import time
from collections.abc import Callable
from typing import Any

import pytest
from comfy_page import NOTICE_CHANGES, set_widget
from loom_server import Server, training_graph
from playwright.sync_api import Page, expect

ON_CANVAS = pytest.mark.parametrize("open_page", ["canvas"], indirect=True)

NODE = "String(app.graph.nodes.find((node) => node.type === 'LoomTrainLoRA').id)"
# Keeps what the widget says, in order, each time it says something else.
RECORD = """() => {
    window.said = [];
    const shown = (name) => {
        const element = document.querySelector(`.lora-loom-${name}`);
        return element?.checkVisibility() ? element.textContent : "";
    };
    const look = () => {
        const now = [shown("phase-name"), shown("elapsed"), shown("step")];
        if (String(window.said.at(-1)) !== String(now)) window.said.push(now);
    };
    setInterval(look, 20);
}"""


def short(page: Page, name: str, **settings: Any) -> None:
    """Make the template's training one of seconds."""
    for widget, value in {"name": name, "steps": 2, "batch_size": 1, **settings}.items():
        set_widget(page, "LoomTrainLoRA", widget, value)
    set_widget(page, "LoomDatasetFromFolder", "folder", "input/few")
    set_widget(page, "LoomSampling", "draw", False)
    page.evaluate("app.graph.nodes.filter((node) => node.type === 'SaveImage').forEach((node) => app.graph.remove(node))")
    page.evaluate(NOTICE_CHANGES)


def seconds(text: str) -> int:
    """1:05 elapsed -> 65"""
    minutes, rest = text.split()[0].split(":")
    return 60 * int(minutes) + int(rest)


@ON_CANVAS
def test_a_run_belongs_to_the_workflow_and_the_settings_that_asked_for_it(open_page: Callable[[str], Page], server: Server) -> None:
    page = open_page("train_lora_sd15")
    widget = page.locator(".lora-loom-run")
    short(page, "whose")
    # Another client trains under this node's number and name, which is taken then.
    graph = training_graph("whose", steps=1)
    graph[page.evaluate(NODE)] = graph.pop("train")
    server.run(graph)
    page.reload()
    expect(widget).to_have_attribute("data-state", "idle", timeout=60_000)
    expect(page.locator(".lora-loom-phase-name")).to_have_text("Not run yet")

    page.get_by_test_id("queue-button").click()
    expect(widget).to_have_attribute("data-state", "finished", timeout=120_000)
    expect(page.locator(".lora-loom-phase-detail")).to_have_text("saved as whose-2.safetensors")
    set_widget(page, "LoomTrainLoRA", "learning_rate", 0.002)
    page.evaluate(NOTICE_CHANGES)
    expect(widget).to_have_attribute("data-state", "changed")
    expect(page.locator(".lora-loom-phase")).to_have_text("Settings changed since the last run (finished, saved as whose-2.safetensors)")
    set_widget(page, "LoomTrainLoRA", "learning_rate", 0.001)
    page.evaluate(NOTICE_CHANGES)
    expect(widget).to_have_attribute("data-state", "finished")
    # Of a node that leads to it, too.
    set_widget(page, "LoomDatasetFromFolder", "repeats", 2)
    page.evaluate(NOTICE_CHANGES)
    expect(widget).to_have_attribute("data-state", "changed")
    set_widget(page, "LoomDatasetFromFolder", "repeats", 1)
    page.evaluate(NOTICE_CHANGES)
    expect(widget).to_have_attribute("data-state", "finished")

    page.reload()
    expect(widget).to_have_attribute("data-state", "finished", timeout=60_000)
    fresh = open_page("train_lora_sd15")
    set_widget(fresh, "LoomTrainLoRA", "name", "whose")
    fresh.evaluate(NOTICE_CHANGES)
    fresh.wait_for_timeout(500)
    expect(fresh.locator(".lora-loom-run")).to_have_attribute("data-state", "idle")


@ON_CANVAS
def test_a_run_that_was_stopped_goes_on_and_can_be_stopped_again(open_page: Callable[[str], Page]) -> None:
    page = open_page("train_lora_sd15")
    widget, stop = page.locator(".lora-loom-run"), page.locator(".lora-loom-stop")
    short(page, "stopped_twice", steps=5000)
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("Number(document.querySelector('.lora-loom-curve').dataset.points) >= 2", timeout=90_000)
    stop.click()
    expect(widget).to_have_attribute("data-state", "stopped", timeout=60_000)
    page.evaluate(RECORD)
    page.get_by_test_id("queue-button").click()
    expect(page.locator(".lora-loom-phase-name")).to_have_text("Training", timeout=90_000)
    expect(stop).to_be_enabled()
    expect(stop).to_have_text("Stop (save)")
    stop.click()
    expect(widget).to_have_attribute("data-state", "stopped", timeout=60_000)
    said = page.evaluate("window.said")
    phases = [phase for phase, _, _ in said]
    again = next(index for index, phase in enumerate(phases) if phase in ("Queued", "Starting"))
    assert "Stopped" not in phases[again:-1]
    elapsed = [seconds(text) for _, text, _ in said[again:] if text]
    assert elapsed == sorted(elapsed)
    assert elapsed[0] <= 10


@ON_CANVAS
def test_a_failure_that_says_what_is_wrong_is_told_once(open_page: Callable[[str], Page]) -> None:
    page = open_page("train_lora_sd15")
    short(page, "no_number", steps=500, learning_rate=10, alpha=4096)
    page.get_by_test_id("queue-button").click()
    expect(page.locator(".lora-loom-run")).to_have_attribute("data-state", "failed", timeout=120_000)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("was not a number 10 times in a row")
    text = dialog.inner_text()
    assert text.count("was not a number 10 times in a row") == 1
    assert "Traceback" not in text
    assert "log.txt" not in text


@ON_CANVAS
def test_the_template_trains_without_a_warning(open_page: Callable[[str], Page]) -> None:
    page = open_page("train_lora_sd15")
    short(page, "no_warning")
    page.get_by_test_id("queue-button").click()
    expect(page.locator(".lora-loom-run")).to_have_attribute("data-state", "finished", timeout=120_000)
    expect(page.locator(".lora-loom-warning").filter(visible=True)).to_have_count(0)


def history(page: Page, events: list[dict[str, Any]], ago: float) -> None:
    """Let the server tell of a run of the page's training node, which began `ago` seconds ago; events have their seconds since then."""
    started = time.time() - ago
    told = [{**event, "time": started + event["time"]} for event in events]
    run = {"id": "0" * 16, "node": page.evaluate(NODE), "name": "food", "task": "train_lora", "state": "running", "step": 0, "total": 100}
    run |= {"started": started, "workflow": page.evaluate("app.graph.id")}
    page.unroute_all()
    page.route("**/lora_loom/runs", lambda route: route.fulfill(json={"runs": [run]}))
    page.route("**/lora_loom/runs/*", lambda route: route.fulfill(json={"run": run, "events": told, "curve": [], "workflow": None}))
    page.evaluate("app.api.dispatchEvent(new CustomEvent('reconnected'))")


@ON_CANVAS
def test_what_is_left_is_that_of_the_training_and_skipped_steps_have_their_reason(open_page: Callable[[str], Page]) -> None:
    page = open_page("train_lora_sd15")
    remaining, elapsed = page.locator(".lora-loom-remaining"), page.locator(".lora-loom-elapsed")
    began = {"event": "started", "time": 20, "run": "0" * 16, "pid": 1, "task": "train_lora", "total_steps": 100, "precision": "fp32"}
    encoding = [
        {"event": "phase", "time": 30, "name": "encoding pictures", "done": 0, "total": 1000, "detail": ""},
        {"event": "phase", "time": 40, "name": "encoding pictures", "done": 10, "total": 1000, "detail": ""},
    ]
    history(page, [began, *encoding], ago=45)
    expect(remaining).to_contain_text("encoding pictures: 16:")
    # The process was begun 20 seconds before it could say so.
    expect(elapsed).to_contain_text("0:4")

    progress = {"event": "progress", "time": 60, "step": 40, "total": 100, "losses": [0.1], "learning_rate": 1e-4, "elapsed_seconds": 40}
    progress |= {"steps_per_second": 0.01, "skipped_steps": 3}
    drawing = [
        {"event": "phase", "time": 61, "name": "drawing samples", "done": 0, "total": 4, "detail": ""},
        {"event": "phase", "time": 65, "name": "drawing samples", "done": 1, "total": 4, "detail": ""},
    ]
    history(page, [began, *encoding, progress, *drawing], ago=70)
    # Sixty steps at a hundred seconds each; none is taken while pictures are drawn.
    expect(remaining).to_have_text("1:40:00 left")
    expect(page.locator(".lora-loom-skipped")).to_have_text("3 steps skipped: the loss or its gradient was not a number")
    history(page, [{**began, "precision": "fp16"}, progress], ago=70)
    expect(page.locator(".lora-loom-skipped")).to_have_text("3 steps skipped: fp16 overflow")


@ON_CANVAS
def test_the_validation_loss_of_each_dataset_is_said_beside_the_mean(open_page: Callable[[str], Page]) -> None:
    page = open_page("train_lora_sd15")
    said = page.locator(".lora-loom-validation")
    began = {"event": "started", "time": 1, "run": "0" * 16, "pid": 1, "task": "train_lora", "total_steps": 100}
    first = {"event": "validation", "time": 2, "step": 0, "loss": 0.5}
    history(page, [began, first], ago=5)
    expect(said).to_have_text("Validation loss 0.5 at step 0")
    history(page, [began, first, {**first, "time": 3, "step": 40, "loss": 0.25, "by_dataset": {"style": 0.2, "plain ones": 0.31}}], ago=5)
    expect(said).to_have_text("Validation loss 0.25 at step 40: 0.2 on style, 0.31 on plain ones")
    expect(said).to_have_attribute("title", "0: 0.5\n40: 0.25 (0.2 on style, 0.31 on plain ones)")
