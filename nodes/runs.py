"""The runs that this server knows of: what its routes and its pages are told of each."""
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..trainer.events import Event, Finished, Stop
from ..trainer.history import EVENTS_FILE, History, history, read_events
from ..trainer.past_runs import About, PastRuns, State, Summary, read_summary
from ..trainer.spec import CaptionSpec, TrainingSpec, run_id
from .asked import keep_workflow
from .paths import run_folder, runs_root

ACTIVE: tuple[State, ...] = ("running", "stopping")


@dataclass
class Run:
    """One run of this server. `client` and `prompt`: ids of who queued the graph that is being executed, and of that graph; `workflow`: the id of the
    one whose `node` asked for it, empty where none did.
    """

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
    client: str = field(default_factory=lambda: PromptServer.instance.client_id or "")
    prompt: str = field(default_factory=lambda: _prompt())
    workflow: str = ""
    process: "subprocess.Popen[bytes] | None" = None

    def summary(self) -> Summary:
        """What a list tells of it."""
        return Summary(**{name: getattr(self, name) for name in Summary.model_fields})

    def about(self) -> About:
        """What its folder keeps beside what the trainer writes there."""
        return About(**{name: getattr(self, name) for name in About.model_fields})

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
        told = {key: getattr(self, key) for key in ("node", "name", "task", "started", "client", "prompt", "workflow")}
        return {"run": self.id, **told, "event": event.model_dump(mode="json")}


RUNS: dict[str, Run] = {}
"""Those that are being worked on, and the last one that has ended, by id. All others are read from their folders."""
_PAST = PastRuns()


def _prompt() -> str:
    context = get_executing_context()
    return context.prompt_id if context else ""


def announce(run: Run) -> None:
    """Let the routes tell of a run that was just asked for, in this server and in later ones."""
    for ended in [known for known in RUNS.values() if known.state not in ACTIVE]:
        # Of a process that was killed only this server knows that it failed.
        ended.about().write(ended.folder)
        del RUNS[ended.id]
    run.workflow = keep_workflow(run.folder)
    RUNS[run.id] = run
    run.about().model_copy(update={"state": None}).write(run.folder)


def listed_runs(most: int) -> tuple[list[Summary], int]:
    """At most `most` runs, the one first that started last, and how many there are. Reads files: not for the event loop."""
    here = {run.id: run.summary() for run in list(RUNS.values())}
    past, total = _PAST.newest(runs_root(), most)
    found = [*here.values(), *(summary for summary in past if summary.id not in here)]
    return sorted(found, key=lambda summary: summary.started, reverse=True)[:most], total


def find_run(id: str) -> Run | Summary | None:
    """A run of this server, or what the folder of another one tells; None if there is none. Reads files. Raises PathError."""
    return RUNS.get(id) or read_summary(run_folder(id))


def history_of(found: Run | Summary) -> History:
    """All that a run has told. Reads files."""
    return found.history if isinstance(found, Run) else history(read_events(run_folder(found.id) / EVENTS_FILE))


def finished_history(folder: Path) -> History | None:
    """The history of a run that finished here earlier, in this server or one before it; None if it has not."""
    told = history(read_events(folder / EVENTS_FILE))
    return told if isinstance(told.end, Finished) and not told.end.stopped else None


def remember(spec: TrainingSpec | CaptionSpec, node: str, name: str, told: History) -> None:
    """Let the routes tell of a run that was found finished, so that a page shows it on the node that asked for it."""
    run = Run(run_id(spec), node, name, spec.task, runs_root() / run_id(spec), told, state="finished")
    if isinstance(told.end, Finished):
        run.step = run.total = told.end.step
    announce(run)
