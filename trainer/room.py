"""Whether a run fits on the disk, checked before it starts: a training that fails at its last write is the dearest kind."""
import shutil
from pathlib import Path

from .memory import optimizer_bytes
from .spec import TrainingSpec
from .typed import SpecError

_SPARE_BYTES = 64 * 2**20
_SAMPLE_BYTES_PER_PIXEL = 3


def check_disk(spec: TrainingSpec, run: Path, parameters: int, result_bytes: int) -> None:
    """Refuse a run of so many trained `parameters` whose states, pictures and results do not fit. Raises SpecError with both sizes."""
    # In fp32: the weights, their average, and what the optimiser keeps; one state more than are kept exists while one is being replaced, and
    # another is that of the best step.
    state = 4 * parameters * (1 + bool(spec.optimizer.ema_decay)) + optimizer_bytes(spec, parameters)
    best = spec.checkpointing.keep_best or spec.checkpointing.adapter == "best"
    states = (max(spec.checkpointing.keep_last, 1) + 1 + best) * state
    drawings = len(spec.sampling.prompts) * (2 + (spec.steps // spec.sampling.every_steps if spec.sampling.every_steps else 0))
    pictures = drawings * spec.sampling.width * spec.sampling.height * _SAMPLE_BYTES_PER_PIXEL
    # A result exists twice while it is being replaced.
    every = spec.checkpointing.adapter_every_steps
    results = (2 + (spec.steps // every if every else 0)) * result_bytes
    copies = result_bytes if any(result.kept for result in spec.results) else 0
    for folder, needed in ((run, states + pictures + copies), *((result.output.parent, results) for result in spec.results)):
        free = shutil.disk_usage(folder).free
        if free < needed + _SPARE_BYTES:
            raise SpecError(
                f"not enough disk space for this run: {_mib(needed + _SPARE_BYTES)} MiB are needed in {folder} and {_mib(free)} MiB are "
                "free. Make room, or lower keep_last, the number of sample pictures or the rank."
            )


def _mib(size: int) -> int:
    return -(-size // 2**20)
