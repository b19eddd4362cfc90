"""What tests do in ComfyUI's page."""
from typing import Any

from playwright.sync_api import Page

SAVE_AND_LOAD = """async () => {
    const saved = JSON.parse(JSON.stringify(app.graph.serialize()));
    app.graph.clear();
    await app.loadGraphData(saved);
}"""
# ComfyUI looks for changes after keys and clicks.
NOTICE_CHANGES = "app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()"


def set_widget(page: Page, node_type: str, widget: str, value: Any) -> None:
    """Set a widget of the first node of a type, as its field would."""
    page.evaluate(
        """([type, name, value]) => {
            const node = app.graph.nodes.find((node) => node.type === type);
            const widget = node.widgets.find((widget) => widget.name === name);
            widget.value = value;
            widget.callback?.(value);
        }""",
        [node_type, widget, value],
    )
