"""The demo as README gives it, with fewer steps: a style is learned, and kept to its words."""
import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from loom_server import PACK, comfyui
from PIL import Image

pytestmark = pytest.mark.timeout(1200)  # the first test waits for the whole demo
STEPS = 80


def demo(home: Path, out: Path) -> str:
    """What the command says."""
    command = [sys.executable, PACK / "demo" / "run.py", "--comfyui", comfyui(), "--home", home, "--out", out, "--steps", str(STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def said(home: Path, out: Path) -> str:
    return demo(home, out)


@pytest.fixture(scope="module")
def report(said: str, out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def test_the_command_names_each_stage_and_warns_of_nothing(said: str) -> None:
    stages = ["Building the mini base (about", "Starting ComfyUI (about", f"Training a LoRA, {STEPS} steps (about", "Drawing the grid (about"]
    places = [said.index(stage) for stage in stages]
    assert places == sorted(places)
    assert "warning" not in said
    assert f"{STEPS}/{STEPS}" in said


def test_the_report_says_what_was_done(out: Path, report: dict[str, Any]) -> None:
    keys = "lora base run steps first_loss last_loss seconds_per_step held_out_loss color_distance images"
    assert list(report) == keys.split()
    assert report["steps"] == STEPS
    assert len(report["images"]) == 16  # and nothing else was drawn
    for file in (report["lora"], "grid.png", "loss.png", *report["images"].values()):
        assert (out / file).is_file()
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 4 * 224 and grid.height > 4 * 224


def test_the_style_is_learned_on_images_that_were_not_trained(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    style, plain = report["held_out_loss"]["sunset_heldout"], report["held_out_loss"]["plain_heldout"]
    with capsys.disabled():
        print(f"\n{STEPS} steps: {report['held_out_loss']}, {report['color_distance']}")
    assert style["after"] < 0.9 * style["before"]
    assert plain["after"] < 1.2 * plain["before"]  # at the full number of steps it does not rise


def test_the_colors_change_with_the_words_and_stay_without_them(report: dict[str, Any]) -> None:
    moved = report["color_distance"]
    assert moved["with_words"] > 2 * moved["without_words"]


def test_a_second_call_finds_the_training(said: str, report: dict[str, Any], home: Path, out: Path) -> None:
    lora = (out / report["lora"]).read_bytes()
    again = demo(home, out)
    assert "trained already" in again
    assert "Training a LoRA" not in again
    assert "Building" not in again
    told = json.loads((out / "report.json").read_text())
    assert (told["lora"], told["held_out_loss"]) == (report["lora"], report["held_out_loss"])
    assert (out / report["lora"]).read_bytes() == lora


def test_the_page_gets_the_graph(said: str, home: Path, out: Path) -> None:
    command = [sys.executable, PACK / "demo" / "run.py", "--comfyui", comfyui(), "--home", home, "--out", out, "--serve"]
    # A browser that ends at once: none is to open here.
    serving = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "BROWSER": "true"})
    try:
        assert serving.stdout
        page = next(line.split()[-1] for line in serving.stdout if line.startswith("ComfyUI is at "))
        address = urllib.parse.urlsplit(page)
        asked = urllib.parse.parse_qs(address.query)
        (template,), (source,) = asked["template"], asked["source"]
        with urllib.request.urlopen(f"http://{address.netloc}/api/workflow_templates/{source}/{template}.json", timeout=30) as answer:
            graph = json.load(answer)
        assert {"LoomTrainLoRA", "LoomCompare", "MarkdownNote"} <= {node["type"] for node in graph["nodes"]}
    finally:
        serving.terminate()
        serving.wait(100)
    assert serving.returncode == 130
