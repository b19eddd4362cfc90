"""Runs as their folders tell of them: what there is to say of each in a list, without reading it whole."""
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from .adapters.files import write_bytes
from .events import Event, Failed, Finished, Progress, Started, parse_event
from .folder_memory import FolderMemory, readable, say_once
from .history import EVENTS_FILE
from .messages import explain, system_reason
from .spec import RUN_ID_PATTERN, SPEC_FILE
from .typed import Model

ABOUT = "run.json"
# A finished run's last line is its end; before it one event a step, of a few hundred bytes.
_WINDOW_BYTES = 65_536
_SPEC_LINES = 1000

State = Literal["running", "stopping", "finished", "stopped", "failed", "interrupted"]
"""`interrupted`: its process ended without a word, because it was killed or the computer went down. It goes on when it is queued again."""


class About(Model):
    """`run.json`: who asked for a run, which is no part of what it does. `started`: its last start, Unix time in seconds.

    `node`: the id in the graph of the node that asked last. `client`, `prompt`, `workflow`: ids of the client that queued that graph, of the queued
    graph, and of the workflow that it came from; empty where they are not known. `state`: how it ended for the server that ran it, where its events
    may not say.
    """

    node: str = ""
    name: str
    task: str
    client: str = ""
    prompt: str = ""
    workflow: str = ""
    started: float
    state: State | None = None

    def write(self, folder: Path) -> None:
        """Keep it in the run's folder. Where it cannot be written, the log says so; the run itself needs it for nothing."""
        try:
            if not folder.is_dir():
                return  # removed by its owner, and not to come back
            write_bytes(folder / ABOUT, self.model_dump_json(indent=2).encode(), durable=False)
        except OSError as error:
            say_once(f"{readable(folder / ABOUT)} cannot be written ({system_reason(error)}), so a later page may not find the run's node.")


class Summary(Model):
    """A run in a list. `step` of `total`: steps taken; `started`, `node`, `client`, `prompt`, `workflow`: as `About` has them."""

    id: str
    node: str
    name: str
    task: str
    state: State
    step: int
    total: int
    started: float
    client: str
    prompt: str
    workflow: str


@dataclass
class _Told:
    """What events have told so far; None: nothing. `first`: when the first one came; `over`: whether an end has come after the last start."""

    task: str = ""
    state: State | None = None
    over: bool | None = None
    step: int | None = None
    total: int | None = None
    first: float | None = None

    def take_backwards(self, event: Event) -> None:
        """Take an event that is older than all that were taken before it."""
        if self.over is None and isinstance(event, Finished | Failed):
            self.over = True
            self.state = "failed" if isinstance(event, Failed) else "stopped" if event.stopped else "finished"
        # A run that was told to leave at once says 0.
        self.step = self.step or getattr(event, "step", None)
        if isinstance(event, Started):
            self.over = bool(self.over)
            self.step = self.step or event.resumed_from
            self.total = event.total_steps
        elif isinstance(event, Progress):
            self.total = self.total or event.total


class PastRuns:
    """Lists runs. One that has not been written to since it was read is not read again."""

    def __init__(self) -> None:
        self._folders = FolderMemory()
        self._known: dict[Path, tuple[object, Summary | None]] = {}

    def newest(self, root: Path, most: int) -> tuple[list[Summary], int]:
        """Of the `most` runs that were last written to those that can be read, the one first that started last; and how many runs there are."""
        there = self._folders.read(str(root))
        self._folders.forget_unread()
        runs = [root / name for name in (there.folders if there else ()) if RUN_ID_PATTERN.fullmatch(name)]
        stamps = {run: (_stamp(run / EVENTS_FILE), _stamp(run / ABOUT)) for run in runs}
        latest = sorted(runs, key=lambda run: max(stamps[run]), reverse=True)[:most]
        known = {run: self._known.get(run, (None, None)) for run in latest}
        known = {run: (stamp, summary) if stamp == stamps[run] else (stamps[run], read_summary(run)) for run, (stamp, summary) in known.items()}
        self._known = known
        found = [summary for _, summary in known.values() if summary]
        return sorted(found, key=lambda summary: summary.started, reverse=True), len(runs)


def _stamp(file: Path) -> tuple[int, int]:
    """Time and size of a file; zeros where there is none, or it cannot be told."""
    try:
        stat = file.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


def read_summary(folder: Path) -> Summary | None:
    """A run that no process of this server works on. None where the folder holds none, or one that cannot be read, which the log tells."""
    try:
        about = _about(folder)
        told = _told(folder / EVENTS_FILE)
        if told.first is None and not (folder / SPEC_FILE).is_file():
            return None
        task = about.task if about else told.task
        return Summary(
            id=folder.name,
            node=about.node if about else "",
            name=about.name if about else _name(folder, task),
            task=task,
            state=told.state or (about.state if about else None) or "interrupted",
            step=told.step or 0,
            total=told.total or 0,
            started=about.started if about else told.first or folder.stat().st_mtime,
            client=about.client if about else "",
            prompt=about.prompt if about else "",
            workflow=about.workflow if about else "",
        )
    except OSError as error:
        say_once(f"the run {readable(folder)} cannot be read ({system_reason(error)}) and is left out of the list of runs.")
        return None


def _about(folder: Path) -> About | None:
    try:
        return About.model_validate_json((folder / ABOUT).read_bytes())
    except FileNotFoundError:
        return None  # a run of an earlier version
    except ValidationError as error:
        say_once(f"{readable(folder / ABOUT)} is not as it was written ({explain(error)}): the run is listed without its node.")
        return None


def _told(events: Path) -> _Told:
    """What the ends of the file tell."""
    told = _Told()
    try:
        with events.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - _WINDOW_BYTES)
            file.seek(start)
            lines = file.read().split(b"\n")
            # The first line of a window begins somewhere before it.
            for event in _parsed(reversed(lines[1:] if start else lines)):
                told.take_backwards(event)
                if isinstance(event, Started) or (told.over is not None and told.step and told.total):
                    break
            file.seek(0)
            for event in _parsed(file.read(_WINDOW_BYTES).split(b"\n")):
                told.first = told.first or event.time
                if isinstance(event, Started):
                    told.task, told.total = event.task, told.total or event.total_steps
                    break
    except FileNotFoundError:
        pass
    return told


def _parsed(lines: Iterable[bytes]) -> Iterator[Event]:
    for line in lines:
        try:
            yield parse_event(line)
        except ValidationError:
            continue  # cut off by a kill, or none of ours


def _name(folder: Path, task: str) -> str:
    """What a run of an earlier version was called, from the first lines of its spec, which may have as many as its dataset has images."""
    start = b'    "name": ' if task == "caption" else b'  "name": '
    try:
        with (folder / SPEC_FILE).open("rb") as file:
            found = next((line[len(start) :] for line in islice(file, _SPEC_LINES) if line.startswith(start)), b"")
        return str(json.loads(found.strip().rstrip(b",")))
    except (OSError, ValueError):
        return folder.name.rpartition("-")[0]
