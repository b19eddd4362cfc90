"""What the demo trains on, put where ComfyUI looks for it."""
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_base.build import build

sys.path.append(str(Path(__file__).resolve().parent.parent))

from trainer.data.sources import check_captions, scan_folder

HERE = Path(__file__).resolve().parent
WORDS = "at sunset"
# None of the four is trained in the style.
SUBJECTS = ("cool smiley", "red heart", "cat face", "japanese flag")
_SHOWN_PROMPTS = 6
_HELD_OUT = 8


@dataclass(frozen=True)
class Material:
    """What is trained on, with names as ComfyUI's combos have them.

    `held_out`: folders of images that are not trained, none where there are too few to spare. `prompts`: the rows of the grid; `words`: those
    of them that ask for the style, empty where there are none. `settings`: what else differs from the graph, by node class and input. `is_demo`:
    the project's own base and images, of which is known how long they take.
    """

    name: str
    checkpoint: str
    folder: str
    held_out: tuple[str, ...]
    prompts: tuple[str, ...]
    words: str
    settings: dict[str, dict[str, Any]]
    is_demo: bool


def place(home: Path, checkpoint: Path | None, images: Path | None, steps: int | None) -> Material:
    """Put checkpoint and images where ComfyUI looks for them. `steps`: None: the graph's.

    Raises ValueError or OSError that names what is wrong.
    """
    checkpoints, pictures = home / "models" / "checkpoints", home / "input"
    for needed in (checkpoints, home / "models" / "loras", pictures):
        needed.mkdir(parents=True, exist_ok=True)
    base = _mini_base(home) if checkpoint is None else _link_file(checkpoint.expanduser(), checkpoints)
    settings = {kind: dict(values) for kind, values in ({} if checkpoint is None else _FULL_SIZE).items()}
    if steps is not None:
        settings.setdefault("LoomTrainLoRA", {})["steps"] = steps
    if images is None:
        for folder in ("sunset", "sunset_heldout", "plain_heldout"):
            source = HERE / folder
            _fill(pictures / folder, {str(file.relative_to(source)): file.read_bytes() for file in source.rglob("*") if file.is_file()})
        held_out = ("input/sunset_heldout", "input/plain_heldout")
        prompts = tuple(f"{subject}, {WORDS}" for subject in SUBJECTS)
        return Material("sunset_style", base, "input/sunset", held_out, prompts, WORDS, settings, is_demo=checkpoint is None)
    name, held_out, prompts = _own(images.expanduser(), pictures)
    return Material(name, base, f"input/{name}", held_out, prompts, "", settings, is_demo=False)


_FULL_SIZE: dict[str, dict[str, Any]] = {
    "LoomResolution": {"resolution": 512, "buckets": True, "upscale": True},
    "LoomSampling": {"guidance_scale": 7.0},
    "LoomTrainLoRA": {"learning_rate": 1e-4},
    "LoomCompare": {"width": 512, "height": 512, "cfg": 7.0},
}


def _mini_base(home: Path) -> str:
    path, stamp = home / "models" / "checkpoints" / "mini_base.safetensors", home / "mini_base.sha256"
    # One that was built by another version of the project is another base; one that is built anew would be another to a training that goes on.
    parts = sorted(file for file in (HERE / "mini_base").iterdir() if file.suffix in (".py", ".safetensors"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in parts)).hexdigest()
    if not path.is_file() or not stamp.is_file() or stamp.read_text() != digest:
        print("Building the mini base (about 10 seconds)", flush=True)
        build(path)
        stamp.write_text(digest)
    return path.name


def _link_file(file: Path, folder: Path) -> str:
    if not file.is_file() or file.suffix != ".safetensors":
        raise ValueError(f"--checkpoint {file}: not a .safetensors file")
    target = folder / file.name
    if not target.exists() or _identity(target) != _identity(file):
        target.unlink(missing_ok=True)
        try:
            os.link(file.resolve(), target)
        except OSError:  # another disk; with its time, by which a training on it is found again
            shutil.copy2(file, target)
    return file.name


def _identity(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _own(images: Path, inputs: Path) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """(folder, held-out folders, prompts). One image in eight is held out where there are sixteen or more."""
    if not images.is_dir():
        raise ValueError(f"--images {images}: not a folder")
    root = images.resolve()
    # As the node reads it, so that what is wrong is told before anything is started.
    dataset = scan_folder(root, root.name)
    check_captions(dataset)
    found = dataset.images
    slug = re.sub(r"[^\w-]+", "_", root.name).encode()[:80].decode(errors="ignore")
    name = f"own_{slug}"  # it names the adapter as well
    held_out = found[::_HELD_OUT] if len(found) >= 2 * _HELD_OUT else ()
    for folder, chosen in ((name, [image for image in found if image not in held_out]), (f"{name}_heldout", held_out)):
        files: dict[str, bytes] = {}
        for image in chosen:
            file = Path(image.path).relative_to(root)
            files[str(file)] = Path(image.path).read_bytes()
            files[str(file.with_suffix(".txt"))] = (image.caption or "").encode()
        _fill(inputs / folder, files)
    prompts = tuple(dict.fromkeys(" ".join((image.caption or "").split()) for image in found))[:_SHOWN_PROMPTS]
    return name, (f"input/{name}_heldout",) if held_out else (), prompts


def _fill(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make `folder` hold just `files`, by their names in it; what is the same already is left alone, so that its time does not change."""
    for old in [file for file in folder.rglob("*") if file.is_file()]:
        if str(old.relative_to(folder)) not in files:
            old.unlink()
    for name, content in files.items():
        target = folder / name
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
