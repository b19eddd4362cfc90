"""The models of a training: the base as the hardware options want it, with what the method trains in it."""
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from .data.texts import LiveTexts, Texts
from .families.protocol import Family
from .fp8 import store_in_fp8
from .methods.protocol import Method
from .optim import build
from .spec import TrainingSpec, TrainLoRASpec
from .typed import SpecError

_REPEATED = ("BasicTransformerBlock", "ResnetBlock2D")
_PROGRAMS = 256


@dataclass(frozen=True)
class Models:
    """`unet` and `encoders` are what a step runs, wrapped as accelerate wants them; `bare_unet` is the UNet for what one process does alone.
    `prepared`: those of them that train. `parameters`: what trains, and `rates` the learning rate of each of the optimiser's groups.
    """

    unet: nn.Module
    bare_unet: nn.Module
    encoders: Sequence[nn.Module]
    prepared: Sequence[nn.Module]
    parameters: list[nn.Parameter]
    rates: list[float]
    optimizer: AcceleratedOptimizer

    def train(self, on: bool) -> None:
        """Put all models into training mode, or out of it."""
        for model in (self.unet, *self.encoders):
            model.train(on)


def assemble(spec: TrainingSpec, method: Method, family: Family, accelerator: Accelerator, weights: torch.dtype, texts: Texts) -> Models:
    """Load the UNet, make what `method` trains trainable in it and in the text encoders of `texts`, and build the optimiser.

    `weights`: the number format of what stays as it is. Raises SpecError as what it calls does.
    """
    unet_format, _ = method.formats(weights)
    unet: Any = family.load_unet(unet_format, accelerator.device)
    hardware = spec.hardware
    if hardware.channels_last:
        unet.to(memory_format=torch.channels_last)
    if hardware.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    live = texts if isinstance(texts, LiveTexts) and method.trains_text else None
    parts, groups = method.set_up(unet, live.parts if live else [])
    if hardware.base_format == "fp8":
        store_in_fp8(unet)
    if hardware.compile:
        compile_blocks(unet)
    optimizer = build(spec.optimizer, [{"params": group.parameters, "lr": group.learning_rate} for group in groups], groups[0].learning_rate)
    # What does not train gets autocast alone: there is nothing in it that processes would have to agree on.
    wrapped = [
        accelerator.prepare(model) if trains else accelerator.prepare_model(model, evaluation_mode=True)
        for model, trains in [(unet, method.trains_unet), *((part.encoder, _trains(part.encoder)) for part in parts)]
    ]
    trained = [one for one in wrapped if _trains(one)]
    if live:
        live.parts = [replace(part, encoder=encoder) for part, encoder in zip(parts, wrapped[1:], strict=True)]
    parameters = [parameter for group in groups for parameter in group.parameters]
    rates = [group.learning_rate for group in groups]
    return Models(wrapped[0], unet, wrapped[1:], trained, parameters, rates, accelerator.prepare(optimizer))


def _trains(model: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in model.parameters())


def compile_blocks(unet: nn.Module, **options: Any) -> None:
    """Compile the blocks that the UNet repeats, where nearly all of its time goes: those of one shape share what was compiled once, so that it
    takes a fraction of compiling the whole (https://huggingface.co/docs/diffusers/optimization/fp16#regional-compilation).

    `options`: of torch.compile.
    """
    # A block of each width, and each bucket, is another program of one piece of code; past the limit torch falls back in silence.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _PROGRAMS)
    for module in unet.modules():
        if type(module).__name__ in _REPEATED:
            module.compile(**options)


def check_hardware(spec: TrainingSpec) -> None:
    """Raise SpecError where hardware options do not go with the method, or with this torch."""
    if spec.hardware.compile and not hasattr(torch.compiler, "set_stance"):
        raise SpecError(f"compile needs torch 2.6 or newer, and torch is {torch.__version__}: turn it off.")
    if spec.hardware.base_format == "fp8" and isinstance(spec, TrainLoRASpec) and spec.network.decompose:
        raise SpecError("base_format fp8 does not work with decompose (DoRA computes with the base's weights): turn one of them off.")
