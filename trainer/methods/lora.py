"""LoRA (https://arxiv.org/abs/2106.09685) on the UNet, through peft's own layers, saved under kohya's names."""
from collections.abc import Iterator
from typing import Protocol

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..data.order import generator
from ..families.sd import TARGETS
from ..spec import Network

_ADAPTER = "default"


class NamesLayers(Protocol):
    """The part of a family that a LoRA file needs."""

    def lora_name(self, module: str) -> str:
        """The file's name for a module."""
        ...


def inject(model: nn.Module, network: Network, seed: int) -> list[nn.Parameter]:
    """Add LoRA layers to the frozen `model` in place; gives the new parameters, fp32 whatever the model is.

    Up matrices start at zero, down matrices are drawn from `seed`, so the model computes what it did before. fp32 is what GradScaler
    needs ("Attempting to unscale FP16 gradients") and what small updates need under bf16.
    """
    config = LoraConfig(r=network.rank, lora_alpha=network.alpha, target_modules=list(TARGETS[network.targets]))
    with torch.random.fork_rng():
        # peft draws the down matrices from the global generator.
        torch.manual_seed(generator(seed, "init").initial_seed())
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def _layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def parameters_by_name(model: nn.Module) -> dict[str, Tensor]:
    """The trainable tensors by module name, as they are: what a state holds. Writing into them changes the model."""
    return {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapter_tensors(model: nn.Module, network: Network, names: NamesLayers, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """The LoRA file's tensors: `<layer>.lora_down.weight` (rank, in[, 1, 1]), `.lora_up.weight` (out, rank[, 1, 1]) and `.alpha` ()."""
    tensors: dict[str, Tensor] = {}
    for module, layer in _layers(model):
        key = names.lora_name(module)
        tensors[f"{key}.lora_down.weight"] = layer.lora_A[_ADAPTER].weight.detach().to("cpu", dtype)
        tensors[f"{key}.lora_up.weight"] = layer.lora_B[_ADAPTER].weight.detach().to("cpu", dtype)
        tensors[f"{key}.alpha"] = torch.tensor(network.alpha, dtype=dtype)
    return tensors
