"""What folders hold, read once: a folder that has not changed since it was read is not read again.

The time of a folder changes when a name in it comes or goes, so one `stat` tells whether what is known of it still holds. What cannot be read is
left out, and the log says so once: one bad folder or link never hides what lies beside it.
"""
import logging
import os
import time
from dataclasses import dataclass

from .messages import listed, shown, system_reason

# File systems tell times in steps of up to 2 s (FAT): of a folder that changed just before it was read, a later change could carry the same time.
_SETTLED_NS = 3_000_000_000
# Links that lead nowhere may lead somewhere once a disk is mounted. Where there are many, they lead to the same disk.
_MOST_DANGLING = 100

_log = logging.getLogger("lora_loom")
_said: set[str] = set()


def say_once(message: str) -> None:
    """Warn in the log, once for each message: lists are read again and again."""
    if message not in _said:
        _said.add(message)
        _log.warning("LoRA Loom: %s", message)


def readable(path: str | os.PathLike[str]) -> str:
    """A path as a log can hold it, whatever its bytes are."""
    return shown(os.fsencode(path).decode("utf-8", "backslashreplace"), 300)


@dataclass(frozen=True)
class Contents:
    """What a folder holds."""

    identity: tuple[int, int]
    """The same for two ways to one folder."""
    has_files: bool
    """Whether there is a file with one of the endings that are looked for."""
    folders: tuple[str, ...]
    """Names of the subfolders in order, links to folders among them."""
    links: frozenset[str]
    """Those of `folders` that are links."""


@dataclass(frozen=True)
class _Known:
    """A folder as it was read. `times`: of its last change; `dangling`: links in it that led nowhere."""

    folder: Contents
    times: tuple[int, int]
    settled: bool
    dangling: tuple[str, ...]


class FolderMemory:
    """Reads folders and remembers them, whatever way leads there. `endings`: of the files to look for, in lower case."""

    def __init__(self, endings: tuple[str, ...] = ()) -> None:
        self._endings = endings
        self._known: dict[tuple[int, int], _Known] = {}
        self._used: dict[tuple[int, int], _Known] = {}

    def read(self, path: str) -> Contents | None:
        """What is in the folder; None where it is not there or cannot be read."""
        try:
            stat = os.stat(path)
            identity, times = (stat.st_dev, stat.st_ino), (stat.st_mtime_ns, stat.st_ctime_ns)
            known = self._used.get(identity) or self._known.get(identity)
            if known is None or not known.settled or known.times != times or _leads_somewhere(path, known):
                known = self._scan(path, identity, times)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            say_once(f"{readable(path)} cannot be read ({system_reason(error)}) and is left out of the lists.")
            return None
        self._used[identity] = known
        return known.folder

    def forget_unread(self) -> None:
        """Forget the folders that have not been read since the last call: they are gone, or nothing leads there any more."""
        self._known, self._used = self._used, {}

    def _scan(self, path: str, identity: tuple[int, int], times: tuple[int, int]) -> _Known:
        settled = time.time_ns() - max(times) > _SETTLED_NS
        has_files = False
        folders: list[str] = []
        links: list[str] = []
        dangling: list[str] = []
        odd: list[str] = []
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    if entry.is_dir():
                        folders.append(entry.name)
                        links += [entry.name] if entry.is_symlink() else []
                    elif entry.is_file():
                        has_files = has_files or entry.name.lower().endswith(self._endings)
                    elif entry.is_symlink():
                        dangling.append(entry.name)
                except OSError as error:
                    odd.append(f"{readable(entry.name)} ({system_reason(error)})")
                    dangling.append(entry.name)
        if odd:
            say_once(f"in {readable(path)} some names cannot be followed and are left out of the lists: {listed(sorted(odd))}.")
        folder = Contents(identity, has_files, tuple(sorted(folders)), frozenset(links))
        return _Known(folder, times, settled, tuple(dangling[:_MOST_DANGLING]))


def _leads_somewhere(path: str, known: _Known) -> bool:
    return any(os.path.exists(os.path.join(path, name)) for name in known.dangling)
