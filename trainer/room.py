"""Whether a run fits on the disk, checked before it starts: a training that fails at its last write is the dearest kind."""
import shutil
from pathlib import Path

from .spec import TrainLoRASpec
from .typed import SpecError

_SPARE_BYTES = 64 * 2**20
_SAMPLE_BYTES_PER_PIXEL = 3
_FILE_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
# Tensors of its size that the optimiser with the most of them, Prodigy, keeps for a parameter.
_OPTIMIZER_COPIES = 4


def check_disk(spec: TrainLoRASpec, run: Path, parameters: int) -> None:
    """Refuse a run of so many trained `parameters` whose states, pictures and adapter do not fit. Raises SpecError with both sizes."""
    # In fp32: the weights, their average, and what the optimiser keeps; one state more than are kept exists while one is being replaced, and
    # another is that of the best step.
    copies = 1 + bool(spec.optimizer.ema_decay) + _OPTIMIZER_COPIES
    best = spec.checkpointing.keep_best or spec.checkpointing.adapter == "best"
    states = (spec.checkpointing.keep_last + 1 + best) * copies * 4 * parameters
    drawings = len(spec.sampling.prompts) * (2 + (spec.steps // spec.sampling.every_steps if spec.sampling.every_steps else 0))
    pictures = drawings * spec.sampling.width * spec.sampling.height * _SAMPLE_BYTES_PER_PIXEL
    # An adapter exists twice while it is being replaced.
    every = spec.checkpointing.adapter_every_steps
    adapter = (2 + (spec.steps // every if every else 0)) * _FILE_BYTES[spec.network.save_format] * parameters
    for folder, needed in ((run, states + pictures + adapter), (Path(spec.output).parent, adapter)):
        free = shutil.disk_usage(folder).free
        if free < needed + _SPARE_BYTES:
            raise SpecError(
                f"not enough disk space for this run: {_mib(needed + _SPARE_BYTES)} MiB are needed in {folder} and {_mib(free)} MiB are "
                "free. Make room, or lower rank, keep_last or the number of sample pictures."
            )


def _mib(size: int) -> int:
    return -(-size // 2**20)
