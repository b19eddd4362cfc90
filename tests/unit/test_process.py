"""The trainer as a process: what it says and how it exits when it cannot start."""
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from trainer.events import Failed, parse_event
from trainer.history import history, read_events

PACK = Path(__file__).resolve().parents[2]


def run(folder: Path, python: str = sys.executable) -> tuple[int, list[bytes], str]:
    """Exit code, the lines of stdout, stderr. Its stdin stays open: the end of stdin means that ComfyUI is gone."""
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            [python, "-m", "trainer", "run", str(folder)], cwd=PACK, stdin=reading, capture_output=True, timeout=120, check=False
        )
    finally:
        os.close(reading)
        os.close(writing)
    return done.returncode, done.stdout.splitlines(), done.stderr.decode()


def only_failure(lines: list[bytes]) -> str:
    assert len(lines) == 1
    event = parse_event(lines[0])
    assert isinstance(event, Failed)
    return event.message


def train_spec(**changes: Any) -> str:
    image = {"path": "/a.png", "sha256": "aa", "caption": "a"}
    base = {"name": "sd", "checkpoint": "/none/sd.safetensors", "family": "SD 1.x", "tokenizer": "/c", "header_sha256": "", "size": 1, "mtime_ns": 1}
    spec = {"task": "train_lora", "name": "a", "output": "/a", "base": base, "datasets": [{"name": "d", "images": [image]}], "steps": 1}
    return json.dumps(spec | changes)


def test_a_missing_spec(tmp_path: Path) -> None:
    code, lines, _ = run(tmp_path)
    assert code == 2
    message = only_failure(lines)
    assert str(tmp_path / "spec.json") in message
    assert "No such file" in message
    assert (tmp_path / "events.jsonl").read_bytes().splitlines() == lines


def test_an_unknown_key(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(train_spec(learning_rte=1))
    code, lines, _ = run(tmp_path)
    assert code == 2
    assert "learning_rte: Extra inputs are not permitted" in only_failure(lines)


def test_a_base_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(train_spec())
    code, lines, _ = run(tmp_path)
    assert code == 2
    assert "sd.safetensors cannot be read" in only_failure(lines[-1:])


def test_a_start_after_a_crash_is_not_lost_in_the_line_that_the_crash_cut_off(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"time":1,"event":"progress","step":1,"to')
    code, lines, _ = run(tmp_path)
    assert code == 2
    end = history(read_events(tmp_path / "events.jsonl")).end
    assert end == parse_event(lines[-1])


def test_the_end_of_stdin_stops_the_run_at_once(tmp_path: Path) -> None:
    # The checkpoint is a fifo: reading it waits for a writer that never comes, as a library call may that takes minutes.
    if not hasattr(os, "mkfifo"):
        pytest.skip("no fifo here")
    os.mkfifo(tmp_path / "sd.safetensors")
    spec = json.loads(train_spec())
    spec["base"]["checkpoint"] = str(tmp_path / "sd.safetensors")
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "run", str(tmp_path)], cwd=PACK, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 3
    assert json.loads(done.stdout.splitlines()[-1])["stopped"] is True


@pytest.mark.parametrize("arguments", [[], ["run"], ["train", "x"], ["run", "a", "b"]])
def test_a_command_line_that_is_not_understood(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "trainer", *arguments], cwd=PACK, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: python -m trainer run <run folder>" in done.stderr


def test_a_python_without_the_packages_says_which_and_how_to_get_them(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False, system_site_packages=False)
    python = str(tmp_path / "bare" / ("Scripts" if os.name == "nt" else "bin") / "python")
    code, lines, _ = run(tmp_path, python)
    assert code == 2
    message = only_failure(lines)
    for package in ("torch", "pydantic", "safetensors", "pillow", "numpy", "accelerate", "diffusers", "peft", "transformers"):
        assert package in message.split(" missing from ")[0].split(", ")
    assert f'"{python}" -m pip install -r "{PACK / "requirements.txt"}"' in message
