"""What lies in a dataset's folder: which subfolders are trained and how often, and which files are images, captions, masks, or nothing that is read.

Subfolders are named as in kohya's trainer: `N_name`, and each image there counts N times a pass.
"""
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from ..messages import shown, system_reason
from .image_formats import is_image_name

METADATA = ("metadata.jsonl", "metadata.csv")
SIDECAR_SUFFIXES = (".txt", ".caption")
MASK_ENDING = "-masklabel"
# What OneTrainer keeps beside an image, by how the file's name ends before its suffix.
_COMPANIONS = (MASK_ENDING, "-condlabel")
# More is taken for a year, or the number of a camera's folder.
MOST_REPEATS = 100
# In a project's folder of kohya's trainer the images are in `img/N_name`, beside folders for the class, logs and models.
_PROJECT = "img/"
_REPEATS = re.compile(r"(\d{1,4})_(.+)")

Use = Literal["trained", "repeats 0", "not numbered"]


@dataclass(frozen=True)
class Folder:
    """A dataset's folder or one below it. `label` is its way from there with a slash at its end, empty for the folder itself.

    `repeats` and `class_name` come from its name, or from that of the folder above it. `files`: names, sorted, without hidden ones.
    """

    path: Path
    label: str
    files: tuple[str, ...]
    repeats: int = 1
    class_name: str = ""
    use: Use = "trained"

    @cached_property
    def images(self) -> tuple[str, ...]:
        """The files that are images to train on."""
        return tuple(name for name in self.files if is_image_name(name) and not _is_companion(name))

    @cached_property
    def companions(self) -> tuple[str, ...]:
        """The files that are images and belong to another: masks (`MASK_ENDING`) and what conditions it."""
        return tuple(name for name in self.files if is_image_name(name) and _is_companion(name))

    @cached_property
    def sidecars(self) -> tuple[str, ...]:
        """The files that may hold the caption of one image."""
        return tuple(name for name in self.files if name.lower().endswith(SIDECAR_SUFFIXES))

    @cached_property
    def metadata(self) -> tuple[str, ...]:
        """The files that hold captions of many images."""
        return tuple(name for name in self.files if name in METADATA)


@dataclass
class Layout:
    """The folders of a dataset, the top one first, and what was found odd: `large`, by label the numbers that are not taken for repeats, and
    `unreadable` (what, why).
    """

    folders: list[Folder] = field(default_factory=list)
    large: dict[str, int] = field(default_factory=dict)
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    @property
    def trained(self) -> list[Folder]:
        """Those whose images are trained."""
        return [folder for folder in self.folders if folder.use == "trained"]


def look(folder: Path, *, recursive: bool = False, large_repeats: bool = False, without: Path | None = None) -> Layout:
    """Everything in `folder` and below it; what is in the folder `without` is not looked at.

    `recursive`: subfolders without a number are trained as well, as often as the folder that they are in. `large_repeats`: a number beyond
    `MOST_REPEATS` means repeats too. Raises OSError if `folder` itself cannot be read.
    """
    layout = Layout()
    by_label: dict[str, Folder] = {}
    for path, label, files in _walk(folder, layout.unreadable, without):
        above = by_label[label[:-1].rpartition("/")[0] + "/" * (label.count("/") > 1)] if label else None
        named = _REPEATS.fullmatch(path.name)
        repeats, class_name, use = (above.repeats, above.class_name, above.use) if above else (1, "", "trained")
        in_project = above is not None and above.label == _PROJECT and not by_label[""].images
        counts = use == "trained" and (above is None or recursive or not above.label)
        if named and (counts or (in_project and use == "not numbered")):
            repeats, class_name = int(named[1]), named[2].strip()
            use = "trained" if repeats else "repeats 0"
            if repeats > MOST_REPEATS and not large_repeats:
                layout.large[label] = repeats
                repeats = 1
        elif use == "trained" and above and not recursive:
            use = "not numbered"
        by_label[label] = Folder(path, label, files, repeats, class_name, use)
    layout.folders = list(by_label.values())
    return layout


def _walk(folder: Path, unreadable: list[tuple[str, str]], without: Path | None = None) -> Iterator[tuple[Path, str, tuple[str, ...]]]:
    """(path, label, names of files) of `folder` and all folders below it, each once however links go; hidden ones are skipped."""
    seen, hidden = {_identity(folder)}, _identity(without) if without and without.is_dir() else None
    waiting = [(folder, "")]
    while waiting:
        path, label = waiting.pop()
        try:
            with os.scandir(path) as listing:
                entries = sorted((entry for entry in listing if not entry.name.startswith(".")), key=lambda entry: entry.name)
        except OSError as error:
            if not label:
                raise
            unreadable.append((label, system_reason(error)))
            continue
        files, below = [], []
        for entry in entries:
            try:
                if entry.is_dir():
                    identity = _identity(path / entry.name)
                    if identity in seen:
                        unreadable.append((label + entry.name, "a link to a folder that is looked at already"))
                    elif identity != hidden:
                        seen.add(identity)
                        below.append((path / entry.name, f"{label}{entry.name}/"))
                elif entry.is_file():
                    files.append(entry.name)
                elif entry.is_symlink() or is_image_name(entry.name):
                    unreadable.append((label + entry.name, "a link that leads nowhere" if entry.is_symlink() else "no file but a device or a pipe"))
            except OSError as error:
                unreadable.append((label + entry.name, system_reason(error)))
        yield path, label, tuple(files)
        waiting += reversed(below)


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def file_label(label: str, name: str) -> str:
    """How a message names a file or folder."""
    return shown(label + name)


def _is_companion(name: str) -> bool:
    return name.rpartition(".")[0].lower().endswith(_COMPANIONS)
