"""Bad input gets a clear error on the node before any training."""
import json
import re
from pathlib import Path

import pytest
import torch
from loom_server import Refused, Server, training_graph
from PIL import Image
from safetensors.torch import save_file


def folder_with(server: Server, name: str, pictures: dict[str, str | None]) -> Path:
    folder = server.base / "input" / name
    folder.mkdir(exist_ok=True)
    for picture, caption in pictures.items():
        Image.new("RGB", (64, 64), "red").save(folder / picture)
        if caption is not None:
            (folder / picture).with_suffix(".txt").write_text(caption)
    return folder


def test_broken_pictures_are_all_named(server: Server) -> None:
    folder = folder_with(server, "broken", {"good.png": "a picture"})
    (folder / "half.png").write_bytes((folder / "good.png").read_bytes()[:60])
    (folder / "text.jpg").write_text("not a picture")
    message = server.fail(training_graph("x", folder="input/broken"))
    assert "half.png" in message
    assert "text.jpg" in message
    assert "good.png" not in message


def test_a_picture_without_a_caption_is_named(server: Server) -> None:
    folder_with(server, "uncaptioned", {"a.png": "a picture", "b.png": None})
    message = server.fail(training_graph("x", folder="input/uncaptioned"))
    assert "1 of 2 pictures have no caption: b.png" in message


def test_no_pictures(server: Server) -> None:
    (server.base / "input" / "empty").mkdir()
    assert "no pictures" in server.fail(training_graph("x", folder="input/empty"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("input/../../etc", "contains '..'"),
        ("/etc", "absolute path"),
        ("input/way_out", "leads out of input/"),
        ("input/nowhere", "does not exist"),
        ("food", "does not start with input/ or datasets/"),
    ],
)
def test_a_folder_that_is_none_of_ours_is_refused_when_it_is_queued(server: Server, name: str, says: str) -> None:
    link = server.base / "input" / "way_out"
    if not link.is_symlink():
        link.symlink_to("/etc", target_is_directory=True)
    with pytest.raises(Refused) as refused:
        server.queue(training_graph("x", folder=name))
    assert says in str(refused.value)


def test_another_family_is_named(server: Server) -> None:
    tensors = {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": torch.zeros(8, 8)}
    save_file(tensors, server.base / "models" / "checkpoints" / "flux.safetensors")
    message = server.fail(training_graph("x", checkpoint="flux.safetensors"))
    assert "flux.safetensors is Flux. LoRA Loom trains on SD 1.x, SD 2.x and SDXL checkpoints" in message


def test_a_web_page_saved_as_a_checkpoint_is_named(server: Server) -> None:
    (server.base / "models" / "checkpoints" / "page.safetensors").write_text("<!doctype html><title>Sign in</title>")
    message = server.fail(training_graph("x", checkpoint="page.safetensors"))
    assert "page.safetensors" in message
    assert "web page" in message


def test_a_run_that_does_not_fit_on_the_disk_is_refused_before_it_starts(server: Server) -> None:
    # A million steps, each with a thousand pictures: more than any disk has.
    graph = training_graph("huge", steps=1_000_000, draw=True)
    graph["sampling"]["inputs"].update(prompts="\n".join(f"number {number}" for number in range(1000)), every_steps=1)
    message = server.fail(graph)
    assert "not enough disk space" in message
    assert re.search(r"\d+ MiB are needed in .+ and \d+ MiB are free", message)


def test_a_missing_dependency_is_named_with_its_command(server: Server, tmp_path: Path) -> None:
    import subprocess
    import sys

    from loom_server import comfyui

    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    for folder in ("models/loras", "output"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("models/checkpoints", "input"):
        (tmp_path / folder).symlink_to(server.base / folder, target_is_directory=True)
    other = Server(comfyui(), tmp_path).start(LORA_LOOM_PYTHON=str(bare / "bin" / "python"))
    try:
        message = other.fail(training_graph("x"))
    finally:
        other.stop()
    assert "peft" in message
    assert "-m pip install -r" in message
    assert len(json.dumps(message)) < 1000
