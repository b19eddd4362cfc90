"""What Linux tells of a running process. On other systems there is nothing to read, and every answer is None."""
import os
import threading
from pathlib import Path

_MIB = 2**20
CPU_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.0


def peak_mib(pid: int) -> float | None:
    """The most resident memory that the process has had (VmHWM), in MiB: files mapped into memory count, once they are touched."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / _MIB
    except OSError:
        pass
    return None  # a process that has ended keeps its number and loses its memory


def forget_peak() -> None:
    """Let this process's peak begin anew from what it holds now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def cpu_seconds(pid: int) -> float | None:
    """CPU time of all threads of the process so far, in whole ticks."""
    try:
        # The second field is the program's name in brackets, and may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) * CPU_TICK_SECONDS


class PeakWatch:
    """Reads the peak of a process again and again, since it is gone when the process ends."""

    def __init__(self, pid: int, seconds: float = 0.2) -> None:
        self.pid, self.peak = pid, peak_mib(pid)
        self._seconds = seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, name="peak memory", daemon=True)
        self._thread.start()

    def stop(self) -> float | None:
        """The peak, in MiB."""
        self._ended.set()
        self._thread.join()
        return self.peak

    def _read(self) -> None:
        while not self._ended.wait(self._seconds):
            # It only grows, so the last reading before the end is the one that counts.
            self.peak = peak_mib(self.pid) or self.peak
