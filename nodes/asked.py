"""Which workflow asked for a run: a page shows the run on a node of that workflow, and says when its settings are no longer those.

ComfyUI's page gives every workflow an id, which saving, reloading and undoing keep; a template that is loaded afresh gets another. What is
queued from a page carries the workflow along. It is kept in the run's folder, so that it is known in the next server as well.
"""
import contextlib
import json
import os
from pathlib import Path
from typing import Any

from server import PromptServer

_FILE = "workflow.json"


def keep_workflow(folder: Path) -> str:
    """Keep the workflow that is executed now in a run's folder; gives its id.

    What came through the API without a workflow leaves the one from before. Empty where there has been none.
    """
    running, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile()
    for _, _, _, extra, *_ in running:
        workflow = (extra.get("extra_pnginfo") or {}).get("workflow")
        if isinstance(workflow, dict):
            # The run goes on without: only what a page says of it later depends on the file.
            with contextlib.suppress(OSError):
                temporary = folder / f".{_FILE}.tmp"
                temporary.write_text(json.dumps(workflow), encoding="utf-8")
                os.replace(temporary, folder / _FILE)
            return _id(workflow)
    return _id(read_workflow(folder))


def read_workflow(folder: Path) -> dict[str, Any] | None:
    """The workflow that last asked for the run in `folder`; None where none is known."""
    try:
        workflow = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return workflow if isinstance(workflow, dict) else None


def _id(workflow: dict[str, Any] | None) -> str:
    return str(workflow.get("id") or "") if workflow else ""
