"""How long a process that has been asked to leave is waited for: as long as what it saves moves on the disk."""
import glob
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path


class Patience:
    """It is over `seconds` after the start, or after the last look at which `written` gave something else than before.

    `written`: how much is on the disk, see `bytes_of`. `more`: seconds in which nothing need move at first, such as those of a step under way.
    """

    def __init__(self, written: Callable[[], int], seconds: float, more: float = 0.0) -> None:
        self._written, self._seconds = written, seconds
        self._seen = written()
        self._until = time.monotonic() + seconds + more

    def is_over(self) -> bool:
        """Whether it has come to its end now."""
        if time.monotonic() < self._until:
            return False
        seen, self._seen = self._seen, self._written()
        self._until = time.monotonic() + self._seconds
        return self._seen == seen


def seconds_of_step(steps_per_second: float) -> float:
    """How long a step that has begun may take, by those before it; none where there were none."""
    return 2 / steps_per_second if steps_per_second else 0.0


def bytes_of(run: Path, outputs: Iterable[Path]) -> int:
    """How large everything is that a run saves: its states, and its results while they are being written (see `adapters.files.replacing`)."""
    unfinished = [path for folder, name in [(run, ""), *((output.parent, output.stem) for output in outputs)] for path in _unfinished(folder, name)]
    return sum(map(_size, [*(run / "state").rglob("*"), *unfinished]))


def _unfinished(folder: Path, name: str) -> Iterable[Path]:
    return folder.glob(f".{glob.escape(name)}*.tmp")


def _size(path: Path) -> int:
    with suppress(OSError):  # renamed or removed since it was listed
        return path.stat().st_size
    return 0
