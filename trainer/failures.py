"""What a user is told of a run that broke: what happened, what is kept of it, and what to do."""
import errno
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from .adapters.files import DISK_FULL
from .checkpoint import newest_step
from .messages import shown, system_reason

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file is larger than its file system, or a limit of this user, allows",
}
_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed", "unable to mmap", "cannot allocate memory")
_SIGNALLED = 128  # a shell's exit code for a signal is this and its number
_MIB = 2**20


def explained(error: BaseException, doing: str, run: Path, task: str) -> str | None:
    """The message for a run in the folder `run` that has no memory or no room on the disk left; None for other errors. `doing`: when it broke."""
    for cause in _causes(error):
        if is_out_of_memory(cause):
            return f"out of memory while {doing} ({_first_line(cause)}). {_memory_advice(task)} {kept(run, task)}"
        if isinstance(cause, OSError) and cause.errno in DISK_FULL:
            return f"{disk_full(cause, run)} It was {doing}. {kept(run, task)}"
    return None


def disk_full(error: OSError, folder: Path) -> str:
    """What is told of an error whose number is one of DISK_FULL. `folder`: where it was, if the error does not say."""
    path = Path(error.filename) if isinstance(error.filename, str) else folder
    place = next((parent for parent in (path, *path.parents) if parent.is_dir()), folder)
    reason = _FULL.get(error.errno or 0, system_reason(error))
    return f"{reason}: {path} could not be written, and {shutil.disk_usage(place).free // _MIB:,} MiB are free in {place}. Make room there."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine had no memory left. torch tells it with several classes and, of the machine's, in words alone."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY_WORDS)


def ended_by(code: int, run: Path, task: str) -> str:
    """What is told of a trainer process that ended with `code` and without a word."""
    name = _signal_of(code)
    if name is None:
        return f"the trainer process ended without a word (exit code {code}). {kept(run, task)}"
    if name == "SIGKILL":
        return f"the system stopped the trainer process (SIGKILL), most often for lack of memory. {_memory_advice(task)} {kept(run, task)}"
    if name in ("SIGTERM", "SIGINT", "SIGHUP"):
        return f"the trainer process was stopped from outside ({name}). {kept(run, task)}"
    return f"the trainer process crashed ({name}), most often by a fault of a driver or library, or of memory. {kept(run, task)}"


def kept(run: Path, task: str) -> str:
    """What is left of a run that broke, and whether it can be resumed."""
    if task == "caption":
        return "The captions that are written stay: queue it again for the others."
    step = newest_step(run)
    if step is None:
        return "It had saved no state yet: queue it again, and it starts anew."
    return (
        f"Its state of step {step} is kept: queue it again, and it resumes from there. With other settings, choose that state as continue_from in "
        "Checkpointing Options."
    )


def _memory_advice(task: str) -> str:
    if task == "caption":
        return "Close what else uses the memory."
    return "Lower batch_size or resolution, switch on gradient_checkpointing in Hardware Options, or close what else uses the memory."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return shown((str(error).strip().splitlines() or [type(error).__name__])[0], 200)


def _signal_of(code: int) -> str | None:
    number = -code if code < 0 else code - _SIGNALLED
    try:
        return signal.Signals(number).name
    except ValueError:
        return None
