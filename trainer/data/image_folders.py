"""Which folders a dataset can be made of: those with images, in them or anywhere below."""
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..folder_memory import Contents, readable, say_once

_LISTED_LEVELS = 4
# Python's own limit for functions that call themselves is not far beyond.
_DEEPEST = 100

Read = Callable[[str], Contents | None]
"""What a folder holds, as `FolderMemory.read`."""

_Identity = tuple[int, int]


def image_folders(label: str, root: str, read: Read, inside: Sequence[str]) -> Iterator[str]:
    """The folders with images up to four levels below `root`, as `LABEL/NAME/NAME`, in order.

    A link that leads out of all the real paths `inside` is looked into no further than whoever chooses it has to be told what to do. A link that
    leads back to a folder that it lies in is left out.
    """
    top = read(root)
    if top is not None:
        yield from _Walk(read, inside).below(label, root, top, (top.identity,))


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


class _Walk:
    """One walk through all that lies below a root."""

    def __init__(self, read: Read, inside: Sequence[str]) -> None:
        self._read = read
        self._inside = inside
        self._known: dict[_Identity, bool] = {}

    def below(self, label: str, path: str, contents: Contents, above: tuple[_Identity, ...]) -> Iterator[str]:
        """The folders with images below one that is called `label`. `above`: it and those that it lies in."""
        for own_name, child_path, child in self._children(path, contents):
            name = f"{label}/{own_name}"
            if child.identity in above:
                say_once(f"{readable(child_path)} leads back to a folder that it lies in, and is left out of the lists.")
                continue
            leads_away = self._leads_away(own_name, child_path, contents)
            if self._has_images_near(child_path, child) if leads_away else self._has_images(child_path, child, len(above)):
                yield name
            if leads_away:
                say_once(leads_out(name, child_path))
            elif len(above) < _LISTED_LEVELS:
                yield from self.below(name, child_path, child, (*above, child.identity))

    def _children(self, path: str, contents: Contents) -> Iterator[tuple[str, str, Contents]]:
        """Name, path and contents of the subfolders that can be read; hidden ones are passed over."""
        for name in contents.folders:
            child_path = os.path.join(path, name)
            child = None if name.startswith(".") else self._read(child_path)
            if child is not None:
                yield name, child_path, child

    def _leads_away(self, name: str, path: str, holder: Contents) -> bool:
        return name in holder.links and not is_inside(path, self._inside)

    def _has_images(self, path: str, contents: Contents, level: int) -> bool:
        """Whether there are images in it or anywhere below."""
        if contents.identity not in self._known:
            self._known[contents.identity] = False  # for a link below it that leads back
            self._known[contents.identity] = contents.has_files or (
                level < _DEEPEST
                and any(
                    self._has_images_near(child_path, child) if self._leads_away(name, child_path, contents)
                    else self._has_images(child_path, child, level + 1)
                    for name, child_path, child in self._children(path, contents)
                )
            )
        return self._known[contents.identity]

    def _has_images_near(self, path: str, contents: Contents) -> bool:
        """Whether there are images in it or in one of its subfolders."""
        return contents.has_files or any(child.has_files for _, _, child in self._children(path, contents))
