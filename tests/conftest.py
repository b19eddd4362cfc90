"""The real thing, once a session: a ComfyUI server with the pack, the mini base and the pictures of food."""
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from loom_server import PACK, Server, comfyui
from mini_base.build import build


@pytest.fixture(scope="session")
def base_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/, input/ and output/ as a user's, with the mini base built from the file that the project carries."""
    base = tmp_path_factory.mktemp("comfyui")
    for folder in ("models/checkpoints", "models/loras", "models/captioners", "input", "output"):
        (base / folder).mkdir(parents=True)
    build(base / "models" / "checkpoints" / "mini_base.safetensors")
    for name in ("food", "food_heldout"):
        shutil.copytree(PACK / "tests" / name, base / "input" / name)
    # A few of them, for tests that are not about what is learned.
    (base / "input" / "few").mkdir()
    for stem in ("lemon", "red_apple", "banana"):
        for suffix in (".png", ".txt"):
            shutil.copy(PACK / "tests" / "food" / f"{stem}{suffix}", base / "input" / "few")
    return base


@pytest.fixture(scope="session")
def server(base_directory: Path) -> Iterator[Server]:
    """Started, and stopped at the end."""
    running = Server(comfyui(), base_directory).start()
    yield running
    running.stop()
