"""The runs that this server knows of: what its routes and its pages are told of each."""
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..trainer.events import Event, Finished, Stop
from ..trainer.history import History, history, read_events
from ..trainer.spec import CaptionSpec, TrainingSpec, run_id
from .asked import keep_workflow
from .paths import runs_root

State = Literal["running", "stopping", "finished", "stopped", "failed"]


@dataclass
class Run:
    """One run of this server: what the routes tell of it. `workflow`: the id of the one whose `node` asked for it, empty where none did."""

    id: str
    node: str
    name: str
    task: str
    folder: Path
    history: History
    state: State = "running"
    step: int = 0
    total: int = 0
    started: float = field(default_factory=time.time)
    workflow: str = ""
    process: "subprocess.Popen[bytes] | None" = None

    def summary(self) -> dict[str, Any]:
        """The JSON of `GET /lora_loom/runs`."""
        shown = ("id", "node", "name", "task", "state", "step", "total", "started", "workflow")
        return {key: getattr(self, key) for key in shown}

    def stop(self, save: Literal["adapter", "state", "nothing"]) -> None:
        """Ask the trainer to end after its current step."""
        self.state = "stopping"
        if self.process is not None and self.process.stdin is not None:
            try:
                self.process.stdin.write(Stop(save=save).model_dump_json().encode() + b"\n")
                self.process.stdin.flush()
            except (OSError, ValueError):
                pass  # It has just left by itself. Windows calls a broken pipe an invalid argument.

    def message(self, event: Event) -> dict[str, Any]:
        """What every page is told of an event of this run."""
        told = {key: getattr(self, key) for key in ("node", "name", "task", "started", "workflow")}
        return {"run": self.id, **told, "event": event.model_dump(mode="json")}


RUNS: dict[str, Run] = {}


def announce(run: Run) -> None:
    """Let the routes tell of a run that was just asked for."""
    run.workflow = keep_workflow(run.folder)
    RUNS[run.id] = run


def finished_history(folder: Path) -> History | None:
    """The history of a run that finished here earlier, in this server or one before it; None if it has not."""
    told = history(read_events(folder / "events.jsonl"))
    return told if isinstance(told.end, Finished) and not told.end.stopped else None


def remember(spec: TrainingSpec | CaptionSpec, node: str, name: str, told: History) -> None:
    """Let the routes tell of a run that was found finished, so that a page shows it on the node that asked for it."""
    run = Run(run_id(spec), node, name, spec.task, runs_root() / run_id(spec), told, state="finished")
    if isinstance(told.end, Finished):
        run.step = run.total = told.end.step
    announce(run)
