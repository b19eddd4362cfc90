"""What the demo trains on, put where ComfyUI looks for it."""
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from mini_base.build import build

HERE = Path(__file__).resolve().parent
# Of the training set; and last a smiley that is not in it, which the base could draw before and still should.
PROMPTS = ("red apple, red food", "purple aubergine, purple food", "yellow lemon, yellow food", "orange carrot, orange food", "smiley, winking face")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_SHOWN_PROMPTS = 6
_HELD_OUT = 8


@dataclass(frozen=True)
class Material:
    """What is trained on, with names as ComfyUI's combos have them. `held_out` is empty where there are too few pictures to spare."""

    checkpoint: str
    folder: str
    held_out: str
    prompts: tuple[str, ...]
    resolution: int
    learning_rate: float | None
    cfg: float | None


def place(home: Path, checkpoint: Path | None, images: Path | None) -> Material:
    """Put checkpoint and pictures where ComfyUI looks for them. Raises ValueError or OSError that names what is wrong."""
    checkpoints, pictures = home / "models" / "checkpoints", home / "input"
    for needed in (checkpoints, home / "models" / "loras", pictures):
        needed.mkdir(parents=True, exist_ok=True)
    if checkpoint is None:
        name = "mini_base.safetensors"
        if not (checkpoints / name).is_file():
            print("building the mini base (10 s)")
            build(checkpoints / name)
    else:
        name = _link_file(checkpoint.expanduser(), checkpoints)
    if images is None:
        folder, held_out, prompts = "food", "food_heldout", PROMPTS
        for chosen in (folder, held_out):
            source = HERE / chosen
            _copy({str(file.relative_to(source)): file for file in source.rglob("*") if file.is_file()}, pictures / chosen)
    else:
        folder, held_out, prompts = _neededown(images.expanduser(), pictures)
    mini = checkpoint is None
    return Material(
        checkpoint=name,
        folder=f"input/{folder}",
        held_out=f"input/{held_out}" if held_out else "",
        prompts=prompts,
        resolution=128 if mini else 512,
        learning_rate=None if mini else 1e-4,
        cfg=None if mini else 7.0,
    )


def _link_file(file: Path, folder: Path) -> str:
    if not file.is_file() or file.suffix != ".safetensors":
        raise ValueError(f"--checkpoint {file}: not a .safetensors file")
    target = folder / file.name
    if not target.exists() or _identity(target) != _identity(file):
        target.unlink(missing_ok=True)
        try:
            os.link(file, target)
        except OSError:  # another disk; with its time, by which a training on it is found again
            shutil.copy2(file, target)
    return file.name


def _identity(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _neededown(images: Path, inputs: Path) -> tuple[str, str, tuple[str, ...]]:
    """(folder, held-out folder or "", prompts). One picture in eight is held out where there are sixteen or more."""
    if not images.is_dir():
        raise ValueError(f"--images {images}: not a folder")
    pictures = sorted(file for file in images.iterdir() if file.suffix.lower() in PICTURES)
    if not pictures:
        raise ValueError(f"--images {images}: no pictures in it ({', '.join(PICTURES)})")
    name = "own_" + re.sub(r"[^\w-]+", "_", images.resolve().name)[:80]  # it names the adapter as well
    held_out = pictures[::_HELD_OUT] if len(pictures) >= 2 * _HELD_OUT else []
    for chosen, folder in ((set(pictures) - set(held_out), name), (held_out, f"{name}_heldout")):
        _copy({file.name: file for picture in chosen for file in _with_caption(picture)}, inputs / folder)
    captions = [file.read_text(encoding="utf-8").strip() for picture in pictures for file in _with_caption(picture)[1:]]
    prompts = tuple(dict.fromkeys(captions))[:_SHOWN_PROMPTS]
    if not prompts:
        raise ValueError(f"--images {images}: no captions: write a .txt beside each picture")
    return name, f"{name}_heldout" if held_out else "", prompts


def _with_caption(picture: Path) -> list[Path]:
    return [picture, *(picture.with_suffix(suffix) for suffix in (".txt", ".caption") if picture.with_suffix(suffix).is_file())]


def _copy(files: dict[str, Path], folder: Path) -> None:
    """Make `folder` hold just `files`, by their names in it; what is the same already is left alone, so that its time does not change."""
    for old in [file for file in folder.rglob("*") if file.is_file()]:
        if str(old.relative_to(folder)) not in files:
            old.unlink()
    for name, file in files.items():
        target = folder / name
        if not target.is_file() or target.read_bytes() != file.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
