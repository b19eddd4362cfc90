"""Which device and number format a run uses."""
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from .options import SaveFormat
from .spec import Precision
from .typed import SpecError

_STATUS = Path("/proc/self/status")
SAVE_FORMATS: dict[SaveFormat, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
"""Number formats of files."""


@dataclass(frozen=True)
class Formats:
    """`weights`: what the frozen parts are stored in. `name`: no, fp16 or bf16, as accelerate and kohya's metadata call it."""

    name: str
    weights: torch.dtype


def choose(precision: Precision, cuda: bool) -> Formats:
    """auto is fp16 on CUDA and fp32 elsewhere. Raises SpecError for fp16 without CUDA."""
    if precision == "auto":
        precision = "fp16" if cuda else "fp32"
    if precision == "fp16" and not cuda:
        raise SpecError("precision fp16 needs a CUDA device, and there is none: set precision to auto, bf16 or fp32.")
    return {
        "fp16": Formats("fp16", torch.float16),
        "bf16": Formats("bf16", torch.bfloat16),
        "fp32": Formats("no", torch.float32),
    }[precision]


def accelerator(formats: Formats) -> Accelerator:
    """Autocast, and for fp16 the GradScaler, come from here."""
    # Several processes wait for the first one while it encodes and draws, for which torch's own ten minutes are too short.
    return Accelerator(mixed_precision=formats.name, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))])


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has had at once: of the device's memory where it is a GPU, of the machine's otherwise; 0: not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.is_file():
        # What getrusage tells on Linux includes the process that started this one, as large as it was then.
        told = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        if "VmHWM" in told:
            return int(told["VmHWM"].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
