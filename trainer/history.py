"""A run as its `events.jsonl` tells it: what a page that comes late, the loss plot and a resumed run need to know."""
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from .events import Data, Event, Failed, Finished, Phase, Progress, Sample, Started, Validation, parse_event

EVENTS_FILE = "events.jsonl"
"""Its name in a run's folder."""


@dataclass
class History:
    """`losses` by step; the last attempt counts where a run was continued from an earlier step."""

    losses: dict[int, float] = field(default_factory=dict)
    validation: dict[int, float] = field(default_factory=dict)
    validation_by_dataset: dict[str, dict[int, float]] = field(default_factory=dict)
    """By name and step; empty where the held-out pictures are of one dataset."""
    samples: list[Sample] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    """Everything but progress, in order, since the first start; of the counts of one phase in a row only the first and the last."""
    progress: Progress | None = None
    data: Data | None = None
    end: Finished | Failed | None = None

    def add(self, event: Event) -> None:
        """Take one more event."""
        if isinstance(event, Progress):
            first = event.step - len(event.losses) + 1
            self.losses.update({first + i: loss for i, loss in enumerate(event.losses)})
            self.progress = event
            return
        if isinstance(event, Started):
            self._go_back_to(event.resumed_from)
        elif isinstance(event, Data):
            self.data = event
        elif isinstance(event, Sample):
            self.samples.append(event)
        elif isinstance(event, Validation):
            self.validation[event.step] = event.loss
            for name, loss in event.by_dataset.items():
                self.validation_by_dataset.setdefault(name, {})[event.step] = loss
        elif isinstance(event, Finished | Failed):
            self.end = event
        elif isinstance(event, Phase) and _counts_on(self.events[-2:], event):
            self.events.pop()
        self.events.append(event)

    def _go_back_to(self, step: int) -> None:
        self.end = None
        self.progress = None
        self.losses = _until(step, self.losses)
        self.validation = _until(step, self.validation)
        self.validation_by_dataset = {name: _until(step, losses) for name, losses in self.validation_by_dataset.items()}
        self.samples = [sample for sample in self.samples if sample.step <= step]
        if step == 0:
            self.events.clear()

    def seconds_per_step(self) -> float | None:
        """Of the last process that trained, without its loading and drawing; None if none has taken a step."""
        return 1 / self.progress.steps_per_second if self.progress and self.progress.steps_per_second else None

    def curve(self, points: int = 1000) -> list[tuple[int, float]]:
        """(step, loss) pairs in order, thinned evenly to at most `points`."""
        losses = dict(self.losses)  # another thread may be adding to them
        steps = sorted(losses)
        stride = max(1, -(-len(steps) // points))
        return [(step, losses[step]) for step in steps[::stride]]


def _until(step: int, losses: dict[int, float]) -> dict[int, float]:
    return {at: loss for at, loss in losses.items() if at <= step}


def _counts_on(before: list[Event], event: Phase) -> bool:
    """Whether the two events before are of this phase's count too."""
    same = [known for known in before if isinstance(known, Phase) and (known.name, known.total) == (event.name, event.total)]
    return len(same) == 2


def read_events(path: Path) -> Iterator[Event]:
    """The events of a file. A last line that was cut off by a crash is passed over."""
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                try:
                    yield parse_event(line)
                except ValidationError:
                    continue


def is_cut_off(path: Path) -> bool:
    """Whether an events file ends in the middle of a line, as after a crash: the next event has to begin one of its own."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def history(events: Iterable[Event]) -> History:
    """All of `events` in one."""
    result = History()
    for event in events:
        result.add(event)
    return result
