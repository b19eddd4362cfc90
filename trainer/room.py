"""Whether a run fits on the disk, checked before it starts: a training that fails at its last write is the dearest kind."""
import shutil
from pathlib import Path

from .families.detect import UNetShape
from .options import Network
from .spec import TrainLoRASpec
from .typed import SpecError

_SPARE_BYTES = 64 * 2**20
_SAMPLE_BYTES_PER_PIXEL = 3


def lora_parameters(shape: UNetShape, network: Network) -> int:
    """About how many parameters the LoRA will have: rank times the sum of inputs and outputs of each layer it adapts."""
    per_rank = 0
    blocks = [(width, depth, shape.blocks_per_level * 2 + 1) for width, depth in zip(shape.widths, shape.depths, strict=True) if depth]
    blocks.append((shape.widths[-1], shape.middle_depth, 1))
    for width, depth, count in blocks:
        attention = 6 * 2 * width + 2 * (shape.context_width + width)
        other = (width + 8 * width) + (4 * width + width) if network.targets != "attention" else 0
        projections = 2 * 2 * width if network.targets != "attention" and depth else 0
        per_rank += count * (depth * (attention + other) + projections)
    matrices = {"lora": 1, "loha": 2, "lokr": 1}[network.kind]
    return per_rank * network.rank * matrices + _convolutions(shape, network)


def _convolutions(shape: UNetShape, network: Network) -> int:
    if network.targets != "transformer+conv":
        return 0
    # Two 3x3 convolutions a residual block; the way up takes the way down's channels along.
    resblocks = sum((1 + 2) * shape.blocks_per_level * width for width in shape.widths)
    return 2 * resblocks * (9 + 1) * (network.conv_rank or network.rank)


def check_disk(spec: TrainLoRASpec, run: Path, shape: UNetShape) -> None:
    """Refuse a run whose states, pictures and adapter do not fit. Raises SpecError with both sizes."""
    parameters = lora_parameters(shape, spec.network)
    # A state holds the weights, their average and AdamW's two moments in fp32; one more than are kept exist while one is being replaced.
    copies = 4 if spec.optimizer.ema_decay else 3
    states = (spec.checkpointing.keep_last + 1) * copies * 4 * parameters
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
