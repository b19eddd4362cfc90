"""Which folders can be trained on: those with images, in them or in their `N_name` subfolders."""
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..folders import Folder, readable, say_once
from .sources import is_counted

_DEPTH = 4

Read = Callable[[str], Folder | None]
"""What a folder holds, as `Folders.read`."""


def image_folders(label: str, root: str, read: Read, inside: Sequence[str]) -> Iterator[str]:
    """The folders with images up to four levels below `root`, as `LABEL/NAME/NAME`, in order.

    A link that leads out of all the real paths `inside` is followed no further: what it leads to is listed if it holds images itself, so that
    whoever chooses it is told what to do. A link that leads back to a folder that it lies in is left out.
    """
    top = read(root)
    if top is not None:
        yield from _below(label, root, top, _DEPTH, (top.identity,), read, inside)


def _below(
    label: str, path: str, folder: Folder, depth: int, above: tuple[tuple[int, int], ...], read: Read, inside: Sequence[str]
) -> Iterator[str]:
    for own_name in folder.folders:
        child_path, name = os.path.join(path, own_name), f"{label}/{own_name}"
        child = None if own_name.startswith(".") else read(child_path)
        if child is None:
            continue
        if child.identity in above:
            say_once(f"{readable(child_path)} leads back to a folder that it lies in, and is left out of the lists.")
            continue
        if child.has_files or _has_counted(child_path, child, read):
            yield name
        if own_name in folder.links and not is_inside(child_path, inside):
            say_once(leads_out(name, child_path))
        elif depth > 1:
            yield from _below(name, child_path, child, depth - 1, (*above, child.identity), read, inside)


def _has_counted(path: str, folder: Folder, read: Read) -> bool:
    return any((child := read(os.path.join(path, name))) is not None and child.has_files for name in folder.folders if is_counted(name))


def is_inside(path: str, inside: Sequence[str]) -> bool:
    """Whether the real path of `path` is one of the real paths `inside`, or lies in it."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(root) for root in inside)


def leads_out(name: str, path: str) -> str:
    """What is said of a link that leads out of all folders that are read: how to make it one of them."""
    target = readable(os.path.realpath(path))
    line = f"lora_loom: {{datasets: {json.dumps(target, ensure_ascii=False)}}}"
    return (
        f"folder {readable(name)!r} is a link that leads out of {name.partition('/')[0]}/, to {target}. To allow that folder, register it: put the "
        f"line {line} into extra_model_paths.yaml in ComfyUI's folder, and restart ComfyUI."
    )
