"""Whether a training fits into memory, reckoned from shapes before anything is loaded.

What is counted is there at every step, whatever kernels do: so the sum is less than what a step takes, and what is refused could not have run.
"""
from typing import Any

import psutil
import torch

from .families.protocol import Family
from .methods.protocol import Method
from .options import OptimizerName
from .spec import FineTuneSpec, TrainingSpec
from .typed import SpecError

_GIB = 2**30
_FP32 = 4
# Tensors of its size that an optimiser keeps for a parameter, in fp32; 8-bit ones keep two of a quarter of it, with their scales.
_COPIES: dict[OptimizerName, float] = {
    **{"adamw": 2, "radam": 2, "nadam": 2, "adamw_schedule_free": 2, "prodigy": 4, "adagrad": 1, "rmsprop": 1, "lion": 1, "came": 1},
    **{"adamw8bit": 0.51, "paged_adamw8bit": 0.51, "adafactor": 0, "sgd": 0},
}


def optimizer_bytes(spec: TrainingSpec, numbers: int) -> int:
    """What the spec's optimiser keeps for so many trained numbers; optimisers of factored moments keep next to nothing."""
    return int(_COPIES[spec.optimizer.name] * _FP32 * numbers)


def needed(spec: TrainingSpec, method: Method, family: Family, weights: torch.dtype, on_cpu: bool) -> dict[str, int]:
    """Bytes on the device that trains, by what they are for. `weights`: the number format of what stays as it is."""
    unet_format, text_format = method.formats(weights)
    unet: Any = family.empty_unet()
    numbers = method.trained_numbers()
    base = _numbers(unet) * (1 if spec.hardware.base_format == "fp8" else unet_format.itemsize)
    if method.trains_text:
        base += sum(map(_numbers, family.empty_text_encoders())) * text_format.itemsize
    averaged = spec.optimizer.ema_decay and (on_cpu or spec.optimizer.ema_device != "cpu")
    pictures = spec.batch_size * (2 if spec.prior and spec.prior.weight else 1)
    side = max(dataset.framing.resolution for dataset in spec.datasets) // family.latent_factor
    return {
        "the base": base,
        # Full fine-tuning trains the base's own numbers.
        "what is added to it": 0 if isinstance(spec, FineTuneSpec) else _FP32 * numbers,
        "gradients": _FP32 * numbers,
        f"the optimizer {spec.optimizer.name}": optimizer_bytes(spec, numbers),
        "the EMA": _FP32 * numbers if averaged else 0,
        f"{pictures} pictures a step": pictures * _kept(unet.config, side) * (_FP32 if weights == torch.float32 else 2),
    }


def check_memory(spec: TrainingSpec, method: Method, family: Family, weights: torch.dtype, device: torch.device) -> None:
    """Refuse a training that cannot fit. Raises SpecError with what it needs, what is free, and what would help."""
    on_cpu = device.type != "cuda"
    parts = needed(spec, method, family, weights, on_cpu)
    free = psutil.virtual_memory().available if on_cpu else torch.cuda.mem_get_info(device)[0]
    total = sum(parts.values()) * (spec.hardware.processes if on_cpu else 1)
    if total <= free:
        return
    told = ", ".join(f"{_gib(size)} for {what}" for what, size in sorted(parts.items(), key=lambda part: -part[1]) if size >= _GIB / 100)
    raise SpecError(
        f"this training needs more memory than there is: at least {_gib(total)} GiB, and {_gib(free)} GiB are free on "
        f"{'this machine' if on_cpu else 'the GPU'} ({told}). {_advice(spec, parts)}"
    )


def _advice(spec: TrainingSpec, parts: dict[str, int]) -> str:
    *_, pictures = parts.values()
    if 2 * pictures > sum(parts.values()):
        return "Lower batch_size or resolution, and raise gradient_accumulation_steps instead."
    helpful = ["close what else uses it", "precision fp16 or bf16"]
    if isinstance(spec, FineTuneSpec):
        helpful = ["the optimizer adafactor or adamw8bit", *(["ema_device cpu or no EMA"] if spec.optimizer.ema_decay else []), "a LoRA instead"]
    return f"What helps: {', '.join(helpful)}."


def _kept(config: Any, side: int) -> int:
    """Numbers that the UNet keeps of one picture for its way up, however it computes: what its skip connections carry. `side`: in latents."""
    found = config["block_out_channels"][0] * side**2
    widths = config["block_out_channels"]
    for level, width in enumerate(widths):
        found += config["layers_per_block"] * width * side**2
        if level < len(widths) - 1:
            side //= 2
            found += width * side**2
    return int(found)


def _numbers(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f}"
