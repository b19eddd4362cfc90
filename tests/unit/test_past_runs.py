"""Runs as their folders tell of them: which there are, how they ended, and that a broken one hides no other."""
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.events import Checkpoint, Event, Failed, Finished, Phase, Progress, Started, Warned
from trainer.past_runs import About, PastRuns, Summary, read_summary


def started(task: str = "train_lora", total: int = 30, resumed_from: int = 0) -> Started:
    return Started(time=1000.0, run="r", pid=1, task=task, total_steps=total, resumed_from=resumed_from)


def progress(step: int) -> Progress:
    return Progress(step=step, total=30, losses=(0.5,), learning_rate=1e-3, elapsed_seconds=1.0, steps_per_second=1.0)


def make(root: Path, number: int, *events: Event, about: dict[str, Any] | None = None, spec: str | None = '{\n  "name": "A Bun",\n}') -> Path:
    folder = root / f"bun-{number:012x}"
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text("".join(event.model_dump_json() + "\n" for event in events))
    if spec is not None:
        (folder / "spec.json").write_text(spec)
    if about is not None:
        About(**{"node": "7", "name": "bun", "task": "train_lora", "started": 5.0 + number, **about}).write(folder)
    return folder


def summary(folder: Path) -> Summary:
    found = read_summary(folder)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("events", "state", "step"),
    [
        ([started(), progress(30), Finished(step=30, adapter="bun.safetensors")], "finished", 30),
        ([started(), progress(12), Finished(step=12, stopped=True)], "stopped", 12),
        ([started(), progress(12), Finished(stopped=True)], "stopped", 12),
        ([started(), progress(3), Failed(message="disk full")], "failed", 3),
        ([started(), progress(3), Checkpoint(step=3, folder="state/step-00000003")], "interrupted", 3),
        ([started(), progress(12), Finished(step=12, stopped=True), started(resumed_from=12)], "interrupted", 12),
        ([started(), progress(12), Finished(step=12, stopped=True), started(resumed_from=12), progress(30), Finished(step=30)], "finished", 30),
        ([Phase(name="loading")], "interrupted", 0),
    ],
)
def test_how_a_run_ended_is_told_from_the_end_of_its_events(tmp_path: Path, events: list[Event], state: str, step: int) -> None:
    told = summary(make(tmp_path, 1, *events, about={}))
    assert (told.state, told.step) == (state, step)
    assert told.total == (30 if len(events) > 1 else 0)


def test_a_run_of_which_nothing_was_told_is_interrupted(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    (folder / "events.jsonl").unlink()
    told = summary(folder)
    assert (told.state, told.name, told.step, told.total) == ("interrupted", "A Bun", 0, 0)


def test_a_long_run_is_told_as_a_short_one(tmp_path: Path) -> None:
    long = summary(make(tmp_path, 1, started(total=5000), *map(progress, range(1, 5001)), Finished(step=5000), about={}))
    assert (long.state, long.step, long.started) == ("finished", 5000, 6.0)
    interrupted = summary(make(tmp_path, 2, started(), *[Warned(message="x" * 1000)] * 100, about={}))
    assert (interrupted.state, interrupted.total) == ("interrupted", 30)


def test_who_asked_for_a_run_is_told_to_a_later_server(tmp_path: Path) -> None:
    told = summary(make(tmp_path, 1, started(), about={"client": "a-page", "prompt": "a-prompt"}))
    assert (told.node, told.name, told.client, told.prompt, told.started) == ("7", "bun", "a-page", "a-prompt", 6.0)


def test_what_only_its_server_knew_is_told(tmp_path: Path) -> None:
    assert summary(make(tmp_path, 1, started(), progress(3), about={"state": "failed"})).state == "failed"
    assert summary(make(tmp_path, 2, started(), Finished(step=30), about={"state": "failed"})).state == "finished", "the trainer knows better"


@pytest.mark.parametrize("task", ["train_lora", "caption"])
def test_a_run_of_an_earlier_version_has_its_name_from_its_spec(tmp_path: Path, task: str) -> None:
    spec = {"version": 1, "task": task, "base": {"name": "base"}, "name": "A Bun"}
    if task == "caption":
        spec = {"version": 1, "task": task, "captioner": "/x", "dataset": {"name": "A Bun", "images": [{"path": "/a.png", "name": "wrong"}]}}
    told = summary(make(tmp_path, 1, started(task), Finished(), spec=json.dumps(spec, indent=2)))
    assert (told.name, told.task, told.node, told.started) == ("A Bun", task, "", 1000.0)


def break_spec(folder: Path) -> None:
    (folder / "spec.json").write_bytes(b"\xff{")


def cut_events(folder: Path) -> None:
    whole = (folder / "events.jsonl").read_bytes()
    (folder / "events.jsonl").write_bytes(b"\x00\xff\n" + whole[:-20])


def break_about(folder: Path) -> None:
    (folder / "run.json").write_text('{"node": 1')


@pytest.mark.parametrize(("broken", "state"), [(break_spec, "finished"), (cut_events, "interrupted"), (break_about, "finished")])
def test_of_a_run_with_a_broken_file_the_rest_is_told(tmp_path: Path, broken: Any, state: str) -> None:
    folder = make(tmp_path, 1, started(), progress(29), Finished(step=30), about={})
    broken(folder)
    assert summary(folder).state == state


def lock(folder: Path) -> None:
    (folder / "events.jsonl").unlink()
    (folder / "events.jsonl").mkdir()


def loop(folder: Path) -> None:
    (folder / "run.json").unlink()
    (folder / "run.json").symlink_to("run.json")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
@pytest.mark.parametrize("broken", [lock, loop])
def test_a_run_that_cannot_be_read_hides_no_other_and_is_told_once(tmp_path: Path, broken: Any, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        make(tmp_path, number, started(), Finished(step=30), about={})
    broken(tmp_path / f"bun-{1:012x}")
    (tmp_path / "notes.txt").touch()
    (tmp_path / f"file-{7:012x}").touch()
    (tmp_path / f"empty-{8:012x}").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for _ in range(2):
        found, _ = PastRuns().newest(tmp_path, 10)
        assert [run.id for run in found] == [f"bun-{2:012x}", f"bun-{0:012x}"]
    assert len([message for message in caplog.messages if f"bun-{1:012x} cannot be read" in message]) == 1


def test_of_many_runs_the_newest_are_listed_and_none_is_read_twice(tmp_path: Path) -> None:
    for number in range(12):
        folder = make(tmp_path, number, started(), Finished(step=30), about={})
        os.utime(folder / "events.jsonl", (number + 100, number + 100))
        os.utime(folder / "run.json", (number + 100, number + 100))
    past = PastRuns()
    opened: list[str] = []
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
    found, total = past.newest(tmp_path, 5)
    assert ([int(run.id[4:], 16) for run in found], total) == ([11, 10, 9, 8, 7], 12)
    assert {Path(name).parent.name for name in opened if str(tmp_path) in name} == {run.id for run in found}
    opened.clear()
    assert past.newest(tmp_path, 5) == (found, total)
    assert [name for name in opened if str(tmp_path) in name] == []
    with (tmp_path / found[3].id / "events.jsonl").open("a") as file:
        file.write(Failed(message="x").model_dump_json() + "\n")
    assert {run.id: run.state for run in past.newest(tmp_path, 5)[0]}[found[3].id] == "failed"


def test_no_folder_of_runs_is_no_runs(tmp_path: Path) -> None:
    assert PastRuns().newest(tmp_path / "not_there", 5) == ([], 0)


def test_the_folder_of_a_removed_run_does_not_come_back(tmp_path: Path) -> None:
    About(name="bun", task="train_lora", started=1.0).write(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
