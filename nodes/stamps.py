"""Whether the files that a node's last result stands on are still the same.

ComfyUI remembers a node's outputs by its inputs. Files are not among them, and `fingerprint_inputs` is not shown what comes by a link.
"""
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .paths import PathError

Stamp = tuple[int, int] | None
"""Size and time of a file; None: it is not there."""

# By node and name: how often its files have turned out to be others, and what they are to be compared with. See `redone`.
_REDO: Counter[tuple[str, str]] = Counter()
_MOST = 1000  # a graph has hundreds of nodes at most, and a server sees any number of graphs
_LEFT: dict[tuple[str, str], tuple[Callable[[], object], object]] = {}


def stamp(path: Path) -> Stamp:
    """What changes when the file does."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def named_stamp(find: Callable[[str], Path], name: Any) -> Stamp:
    """The same for a file that a graph names. None where the name comes by a link, or leads nowhere, which `execute` says."""
    try:
        return stamp(find(name)) if isinstance(name, str) else None
    except (PathError, OSError):
        return None


def remember(node: str, name: str, state: Callable[[], object]) -> None:
    """What `redone` compares with: what `state` gives now and will give then. `name`: of a file that `node` made, or the node's id."""
    _LEFT.pop((node, name), None)
    _LEFT[node, name] = (state, state())
    for old in list(_LEFT)[:-_MOST]:
        del _LEFT[old]


def redone(node: str, name: str | None) -> int:
    """For `fingerprint_inputs`: a number that changes when what was remembered under this name has changed.

    A name that is not told (None, as one that comes by a link) stands for all of the node's.
    """
    for key in [(node, name)] if name is not None else [key for key in _LEFT if key[0] == node]:
        left = _LEFT.get(key)
        if left and left[0]() != left[1]:
            _REDO[key] += 1
            del _LEFT[key]
    return _REDO[node, name] if name is not None else sum(count for key, count in _REDO.items() if key[0] == node)
