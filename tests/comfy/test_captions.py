"""Captioning in the real server: where captions go, and how they come back."""
from pathlib import Path
from typing import Any

import pytest
from loom_server import Server, node
from PIL import Image
from tiny_blip import make_tiny_blip


@pytest.fixture(scope="module", autouse=True)
def captioner(server: Server) -> None:
    make_tiny_blip(server.base / "models" / "captioners" / "tiny")


def colors(server: Server, name: str) -> Path:
    folder = server.base / "input" / name
    folder.mkdir()
    for color in ("red", "blue"):
        Image.new("RGB", (64, 64), color).save(folder / f"{color}.png")
    return folder


def captioning(folder: Path, mode: str, **settings: Any) -> dict[str, Any]:
    return {
        "dataset": node("LoomDatasetFromFolder", folder=f"input/{folder.name}", repeats=1, trigger_word="", missing_captions="refuse"),
        "caption": node("LoomCaptionDataset", dataset=["dataset", 0], **{"captioner": "tiny", "mode": mode, "trigger_word": "", **settings}),
    }


def test_captions_are_written_beside_the_images_that_have_none(server: Server) -> None:
    folder = colors(server, "colors")
    (folder / "blue.txt").write_text("my own words\n")
    outputs = server.run(captioning(folder, "missing only", trigger_word="sks"))
    assert (folder / "red.txt").read_text() == "sks, a red picture\n"
    assert (folder / "blue.txt").read_text() == "my own words\n"
    assert sorted(outputs["caption"]["text"]) == ["my own words", "sks, a red picture"]


def test_all_images_can_be_undone(server: Server) -> None:
    folder = colors(server, "undone")
    (folder / "blue.txt").write_text("my own words\n")
    assert sorted(server.run(captioning(folder, "all images"))["caption"]["text"]) == ["a blue picture", "a red picture"]
    # The model is not needed for it.
    undone = server.run(captioning(folder, "undo", captioner="gone"))["caption"]
    assert undone["lora_loom"][0]["undone"] == 2
    assert sorted(undone["text"]) == ["", "my own words"]
    assert (folder / "blue.txt").read_text() == "my own words\n"
    assert not (folder / "red.txt").exists()


def test_a_dataset_with_metadata_can_be_read_after_captioning(server: Server) -> None:
    folder = colors(server, "with_metadata")
    (folder / "metadata.jsonl").write_text('{"file_name": "red.png", "text": "one"}\n{"file_name": "blue.png", "text": "two"}\n')
    server.run(captioning(folder, "all images"))
    assert sorted(server.run(captioning(folder, "missing only"))["caption"]["text"]) == ["a blue picture", "a red picture"]
    assert not list(folder.glob("*.txt"))
