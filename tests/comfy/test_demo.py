"""The demo as README gives it: what the base has never seen appears, and what it could draw stays."""
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loom_server import PACK, comfyui
from PIL import Image

pytestmark = pytest.mark.timeout(1500)  # the first test waits for the whole demo
SIDE = 16  # the mini base's pictures are 16x16 blocks


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home, out = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("out")
    done = subprocess.run(
        [sys.executable, PACK / "demo" / "run.py", "--comfyui", comfyui(), "--home", home, "--out", out],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def blocks(path: Path) -> np.ndarray:
    """(16, 16, 3) in [0, 1], on white."""
    with Image.open(path) as file:
        picture = file.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return np.asarray(flat.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32) / 255


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square over blocks and channels."""
    return float(np.sqrt(((one - other) ** 2).mean()))


def training_picture(caption: str) -> Path | None:
    captions = {file.read_text().strip(): file.with_suffix(".png") for file in (PACK / "demo" / "food").glob("*.txt")}
    return captions.get(caption)


def test_the_report_says_what_was_done(out: Path, report: dict[str, Any]) -> None:
    keys = "lora base steps first_loss last_loss validation_before validation_after seconds_per_step images run"
    assert list(report) == keys.split()
    assert report["last_loss"] < report["first_loss"]
    for file in (report["lora"], "grid.png", "loss.png", *report["images"].values()):
        assert (out / file).is_file()


def colour(picture: np.ndarray) -> np.ndarray:
    """Mean colour of what is not background."""
    return picture[picture.min(axis=-1) < 0.85].mean(axis=0)


def test_prompts_of_food_move_toward_the_training_pictures(
    out: Path, report: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shape, paint = [], []
    for prompt in {name.split(" @ ")[0] for name in report["images"]}:
        if target := training_picture(prompt):
            wanted = blocks(target)
            drawn = [blocks(out / report["images"][f"{prompt} @ {weight}"]) for weight in ("0", "0.5", "1")]
            shape.append([distance(picture, wanted) for picture in drawn])
            paint.append([distance(colour(picture), colour(wanted)) for picture in drawn])
    assert len(shape) >= 3
    shapes, paints = np.mean(shape, axis=0), np.mean(paint, axis=0)
    with capsys.disabled():
        print(f"\ndistance to the training pictures at weights 0, 0.5, 1: by block {shapes.round(3)}, of the mean colour {paints.round(3)}")
    assert shapes[2] < shapes[1] < shapes[0]
    assert paints[2] < 0.75 * paints[0]


def test_smileys_stay_recognisable(out: Path, report: dict[str, Any]) -> None:
    prompts = sorted({name.split(" @ ")[0] for name in report["images"]})
    plain, adapted = ({p: blocks(out / report["images"][f"{p} @ {weight}"]) for p in prompts} for weight in ("0", "1"))
    smileys = [prompt for prompt in prompts if prompt.startswith("smiley")]
    assert smileys
    for smiley in smileys:
        # Of all that the base draws without the adapter, the smiley with it is nearest to the smiley.
        nearest = min(prompts, key=lambda prompt: distance(adapted[smiley], plain[prompt]))
        assert nearest in smileys
