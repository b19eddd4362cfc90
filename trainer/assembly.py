"""The models of a LoRA training: the base as the hardware options want it, with the adapter's layers in it."""
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from .data.texts import LiveTexts, Texts
from .families.protocol import Family
from .fp8 import store_in_fp8
from .methods import lora
from .methods.start import take_over
from .optim import build
from .spec import TrainLoRASpec
from .typed import SpecError

_REPEATED = ("BasicTransformerBlock", "ResnetBlock2D")
_PROGRAMS = 256


@dataclass(frozen=True)
class Models:
    """`unet` and `encoders` train (wrapped where several processes do); `adapted` are the same bare; `parameters` are the adapter's, those of the
    UNet first. `rates`: for each of the optimiser's groups, its learning rate over the UNet's.
    """

    unet: nn.Module
    encoders: Sequence[nn.Module]
    adapted: tuple[lora.Adapted, ...]
    parameters: list[nn.Parameter]
    rates: list[float]
    optimizer: AcceleratedOptimizer

    @property
    def bare_unet(self) -> nn.Module:
        """The UNet for what one process does alone."""
        return self.adapted[0].model

    @property
    def trained(self) -> list[nn.Module]:
        """All models that have layers of the adapter."""
        return [self.unet, *self.encoders]


def assemble(spec: TrainLoRASpec, family: Family, accelerator: Accelerator, weights: torch.dtype, texts: Texts) -> Models:
    """Load the UNet, add the adapter to it (and to the text encoders of `texts` where they are trained), and build the optimiser.

    `weights`: the number format of the frozen base. Raises SpecError as what it calls does.
    """
    unet: Any = family.load_unet(weights, accelerator.device)
    hardware = spec.hardware
    if hardware.channels_last:
        unet.to(memory_format=torch.channels_last)
    if hardware.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    parameters = lora.inject(unet, spec.network, spec.seed)
    if hardware.base_format == "fp8":
        store_in_fp8(unet)
    adapted = [lora.Adapted("lora_unet", unet)]
    groups: list[dict[str, Any]] = [{"params": parameters, "lr": spec.learning_rate}]
    parts = texts.parts if isinstance(texts, LiveTexts) and spec.text.learning_rate else []
    for number, (part, prefix) in enumerate(zip(parts, family.text_keys if parts else (), strict=True)):
        groups.append({"params": lora.inject_text(part.encoder, spec.network, spec.seed, number), "lr": spec.text.learning_rate})
        adapted.append(lora.Adapted(prefix, part.encoder))
    if spec.network.start_from:
        take_over(adapted, spec.network, Path(spec.network.start_from.path))
    if hardware.compile:
        compile_blocks(unet)
    optimizer = build(spec.optimizer, groups, spec.learning_rate)
    unet, *encoders, optimizer = accelerator.prepare(unet, *(part.encoder for part in parts), optimizer)
    if isinstance(texts, LiveTexts) and parts:
        texts.parts = [replace(part, encoder=encoder) for part, encoder in zip(parts, encoders, strict=True)]
    trained = [parameter for group in groups for parameter in group["params"]]
    rates = [group["lr"] / spec.learning_rate for group in groups]
    return Models(unet, encoders, tuple(adapted), trained, rates, optimizer)


def trained_numbers(spec: TrainLoRASpec, family: Family) -> int:
    """How many numbers the training will train, told from empty models. Raises SpecError as `assemble` does for the network."""
    parameters = lora.inject(family.empty_unet(), spec.network, spec.seed)
    if spec.text.learning_rate:
        for number, encoder in enumerate(family.empty_text_encoders()):
            parameters += lora.inject_text(encoder, spec.network, spec.seed, number)
    return sum(parameter.numel() for parameter in parameters)


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


def check_hardware(spec: TrainLoRASpec) -> None:
    """Raise SpecError where hardware options do not go with the network, or with this torch."""
    if spec.hardware.compile and not hasattr(torch.compiler, "set_stance"):
        raise SpecError(f"compile needs torch 2.6 or newer, and torch is {torch.__version__}: turn it off.")
    if spec.hardware.base_format == "fp8" and spec.network.decompose:
        raise SpecError("base_format fp8 does not work with decompose (DoRA computes with the base's weights): turn one of them off.")
