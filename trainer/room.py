"""Whether a run fits on the disk, checked before it starts: a training that fails at its last write is the dearest kind."""
import shutil
from pathlib import Path

from .families.detect import UNetShape
from .spec import Network, SpecError, TrainLoRASpec

_SPARE_BYTES = 64 * 2**20
_SAMPLE_BYTES_PER_PIXEL = 3


def lora_parameters(shape: UNetShape, network: Network) -> int:
    """About how many parameters the LoRA will have: rank times the sum of inputs and outputs of each layer it adapts."""
    per_rank = 0
    blocks = [(width, shape.blocks_per_level * 2 + 1) for width, attends in zip(shape.widths, shape.attention, strict=True) if attends]
    if shape.middle:
        blocks.append((shape.widths[-1], 1))
    for width, count in blocks:
        attention = 6 * 2 * width + 2 * (shape.context_width + width)
        other = (width + 8 * width) + (4 * width + width) + 2 * 2 * width if network.targets == "transformer" else 0
        per_rank += count * (attention + other)
    return per_rank * network.rank


def check_disk(spec: TrainLoRASpec, run: Path, shape: UNetShape) -> None:
    """Refuse a run whose states, pictures and adapter do not fit. Raises SpecError with both sizes."""
    parameters = lora_parameters(shape, spec.network)
    # A state holds the weights and AdamW's two moments in fp32; three states exist while one is being replaced.
    states = 3 * 3 * 4 * parameters
    drawings = len(spec.sampling.prompts) * (1 + (spec.steps // spec.sampling.every_steps if spec.sampling.every_steps else 0))
    pictures = drawings * spec.sampling.width * spec.sampling.height * _SAMPLE_BYTES_PER_PIXEL
    adapter = 2 * 2 * parameters
    for folder, needed in ((run, states + pictures), (Path(spec.output).parent, adapter)):
        free = shutil.disk_usage(folder).free
        if free < needed + _SPARE_BYTES:
            raise SpecError(
                f"not enough disk space for this run: {_mib(needed + _SPARE_BYTES)} MiB are needed in {folder} and {_mib(free)} MiB are "
                "free. Make room, or lower rank."
            )


def _mib(size: int) -> int:
    return -(-size // 2**20)
