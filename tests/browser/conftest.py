"""A real page in a real Chromium on the real server."""
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loom_server import Server
from playwright.sync_api import Browser, Page, sync_playwright
from published import on_mini_base

_CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
# Nothing in the page or the browser may look for a network, and ComfyUI's canvas needs no GPU.
_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]


# Not for the whole session: Playwright's event loop lives as long as this, and other tests have their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if _CHROMIUM is None:
        pytest.fail("the browser tests need chromium: install your system's package of it")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=_CHROMIUM, args=_OPTIONS)
        yield running
        running.close()


@pytest.fixture(params=["canvas", "Nodes 2.0"])
def open_page(request: pytest.FixtureRequest, browser: Browser, server: Server, tmp_path: Path) -> Iterator[Callable[[str], Page]]:
    """Opens ComfyUI's page with a template, on the mini base, in one of its two renderers; fails the test if the pack's own code reports an error."""
    server.post("/settings/Comfy.TutorialCompleted", True)
    server.post("/settings/Comfy.VueNodes.Enabled", request.param == "Nodes 2.0")
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    context.route("**/workflow_templates/lora-loom/*.json", lambda route: route.fulfill(json=on_mini_base(route.fetch().json())))
    errors: list[str] = []

    def open_(template: str) -> Page:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(error.stack or str(error)))
        page.goto(f"{server.url}/?template={template}&source=lora-loom")
        page.wait_for_function("window.app?.graph?.nodes?.some((node) => node.type.startsWith('Loom'))", timeout=60_000)
        page.wait_for_timeout(500)
        return page

    yield open_
    for number, page in enumerate(context.pages):
        page.screenshot(path=tmp_path / f"page-{number}.png")
    context.close()
    server.post("/queue", {"clear": True})
    server.post("/interrupt", {})
    assert [error for error in errors if re.search(r"extensions/lora-loom", error)] == []
