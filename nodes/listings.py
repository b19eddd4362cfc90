"""Lists of what lies in folders, read by threads: whoever asks gets what is known, and waits no longer than ComfyUI's event loop may.

ComfyUI asks for the choices of every list again and again, on its event loop: at each reload of the page, and several times for each node of a
graph that is queued.
"""
import logging
import threading
import time
from collections.abc import Callable, Iterator

from ..trainer.folder_memory import readable, say_once

_WAIT_SECONDS = 0.03
# A list that has been read stands for so many times as long as reading it took, so that a loop that asks on and on hardly ever waits.
_STANDS = 20
_STANDS_SECONDS = 2.0
# A network disk that is gone may never answer.
_PATIENCE_SECONDS = 5.0

Look = Callable[[str], bool]
"""To be called before each folder that is looked into: whether to do so."""

_log = logging.getLogger("lora_loom")
_ALL: list["Listing"] = []


class _Superseded(Exception):
    """Another thread has taken over."""


class _Reading:
    """One reading of a list. `place`: the folder that is looked into, since `since`."""

    def __init__(self) -> None:
        self.started = self.since = time.monotonic()
        self.place = ""
        self.found: list[str] = []
        self.done = threading.Event()


class Listing:
    """The names that `read` gives. A folder that does not answer is left out of the list until it does."""

    def __init__(self, read: Callable[[Look], Iterator[str]]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._names: list[str] | None = None
        self._reading: _Reading | None = None
        self._stands_until = 0.0
        self._took = 0.0
        self._silent: set[str] = set()
        _ALL.append(self)

    def names(self) -> list[str]:
        """The names as they are now; where reading them takes longer than may be waited for, as they were read before.

        Before they have been read for the first time: those found so far.
        """
        # All at once, so that one waiting is for all of them.
        for listing in _ALL:
            listing._refresh()
        reading = self._reading
        if reading is not None and self._took < _WAIT_SECONDS:
            reading.done.wait(max(0.0, reading.started + _WAIT_SECONDS - time.monotonic()))
        with self._lock:
            found = self._reading.found if self._names is None and self._reading else self._names
            return list(found or ())

    def _refresh(self) -> None:
        """Start reading if it is time to."""
        with self._lock:
            now = time.monotonic()
            if self._reading is None:
                if now < self._stands_until:
                    return
            elif now - self._reading.since < _PATIENCE_SECONDS:
                return
            else:
                place = self._reading.place
                self._silent.add(place)
                say_once(f"{readable(place)} has not answered for {_PATIENCE_SECONDS:.0f} s and is left out of the lists until it does.")
            self._reading = _Reading()
            threading.Thread(target=self._run, args=(self._reading,), name="lora loom lists", daemon=True).start()

    def _run(self, reading: _Reading) -> None:
        try:
            for name in self._read(lambda path: self._look(reading, path)):
                reading.found.append(name)
        except _Superseded:
            pass
        except Exception:
            _log.exception("LoRA Loom: a list could not be read to its end")
        with self._lock:
            now = time.monotonic()
            if self._reading is reading:
                self._names, self._reading = reading.found, None
                self._took = now - reading.started
                self._stands_until = now + min(_STANDS * self._took, _STANDS_SECONDS)
            else:
                self._silent.discard(reading.place)  # It has answered after all.
        reading.done.set()

    def _look(self, reading: _Reading, path: str) -> bool:
        if self._reading is not reading:
            raise _Superseded
        if path in self._silent:
            return False
        reading.place, reading.since = path, time.monotonic()
        return True
