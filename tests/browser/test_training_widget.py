"""The training node's widget, as somebody sees it who loads the template and presses Run."""
import re
from collections.abc import Callable

import pytest
from comfy_page import set_widget
from loom_server import Server, training_graph
from playwright.sync_api import Page, Route, expect


def points(page: Page) -> int:
    return int(page.locator(".lora-loom-curve").get_attribute("data-points") or 0)


def test_the_widget_follows_a_run_survives_a_reload_and_stops_it(
    open_page: Callable[[str], Page], server: Server, request: pytest.FixtureRequest
) -> None:
    name = f"seen_in_{request.node.callspec.params['open_page'].replace(' ', '_')}"
    page = open_page("train_lora_sd15")
    widget = page.locator(".lora-loom-run")
    expect(widget).to_have_attribute("data-state", "idle")
    set_widget(page, "LoomTrainLoRA", "name", name)
    set_widget(page, "LoomTrainLoRA", "steps", 2000)
    set_widget(page, "LoomTrainLoRA", "batch_size", 1)
    set_widget(page, "LoomSampling", "every_steps", 10)
    page.get_by_test_id("queue-button").click()

    expect(page.locator(".lora-loom-step")).to_have_text(re.compile(r"Step \d+ of 2000"), timeout=90_000)
    expect(widget).to_have_attribute("data-state", "running")
    page.wait_for_function("Number(document.querySelector('.lora-loom-curve').dataset.points) >= 10", timeout=240_000)
    for part, shows in {
        ".lora-loom-loss": r"\d",
        ".lora-loom-learning-rate": r"1e-3",
        ".lora-loom-elapsed": r"elapsed",
        ".lora-loom-remaining": r"left|remaining",
        ".lora-loom-rate": r"step",
    }.items():
        expect(page.locator(part)).to_have_text(re.compile(shows))
    expect(page.locator(".lora-loom-sample")).to_have_js_property("naturalWidth", 128, timeout=60_000)

    seen = points(page)
    page.reload()
    expect(page.locator(".lora-loom-run")).to_have_attribute("data-state", "running", timeout=60_000)
    page.wait_for_function(f"Number(document.querySelector('.lora-loom-curve')?.dataset.points) >= {seen}", timeout=60_000)

    page.locator(".lora-loom-stop").click()
    expect(page.locator(".lora-loom-run")).to_have_attribute("data-state", "stopped", timeout=60_000)
    assert (server.base / "models" / "loras" / f"{name}.safetensors").is_file()


@pytest.mark.parametrize("open_page", ["canvas"], indirect=True)
def test_a_training_that_is_found_while_the_list_of_runs_is_read_is_shown(open_page: Callable[[str], Page], server: Server) -> None:
    page = open_page("train_lora_sd15")
    node = page.evaluate("String(app.graph.nodes.find((node) => node.type === 'LoomTrainLoRA').id)")
    # Asked for by no page, so that this one does not follow it while it runs.
    graph = training_graph("found_meanwhile", steps=1)
    graph[node] = graph.pop("train")
    run = server.run(graph)[node]["lora_loom"][0]["run"]
    held: list[Route] = []

    def answered(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/lora_loom/runs", answered)
    executed = """([node, run]) => app.api.dispatchEvent(new CustomEvent("executed", {
        detail: { node, display_node: node, output: { lora_loom: [{ run }] } },
    }))"""
    with page.expect_request("**/lora_loom/runs"):
        page.evaluate(executed, [node, run])
    page.evaluate(executed, [node, run])
    held[0].fulfill(json={"runs": []})  # as the server answered before the second node was done
    expect(page.locator(".lora-loom-run")).to_have_attribute("data-state", "finished")
