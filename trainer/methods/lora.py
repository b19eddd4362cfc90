"""Adapters on the UNet and the text encoders through peft's own layers, saved under the names that kohya and LyCORIS gave them and ComfyUI reads.

LoRA (https://arxiv.org/abs/2106.09685), rsLoRA (https://arxiv.org/abs/2312.03732), DoRA (https://arxiv.org/abs/2402.09353),
LoHa (https://arxiv.org/abs/2108.06098), LoKr (https://arxiv.org/abs/2309.14859).
"""
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.tuners.loha import LoHaLayer
from peft.tuners.lokr import LoKrLayer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..adapters.files import write_safetensors
from ..adapters.metadata import HASH, tensors_sha256
from ..data.order import generator
from ..families.protocol import Family, TextPart
from ..options import Network
from ..precision import SAVE_FORMATS
from ..spec import TrainLoRASpec
from .protocol import Group
from .start import Start, start_of, take_over
from .targets import ADAPTER, Size, plan, plan_text
from .words import Words


class LoRA:
    """See `protocol.Method`; with a new word of its own where the spec has one (pivotal tuning, https://arxiv.org/abs/2106.05744)."""

    trains_unet = True

    def __init__(self, spec: TrainLoRASpec, family: Family) -> None:
        self._spec, self._family = spec, family
        self._adapts_text = spec.text.learning_rate > 0
        self._words = Words(spec.word, family, spec.seed) if spec.word else None
        self.trains_text = self._adapts_text or self._words is not None
        self.drops_out = trained_with_dropout(spec.network)
        self.warnings: tuple[str, ...] = ()
        self._adapted: list[Adapted] = []

    def trained_numbers(self) -> int:
        """See `Method`. Raises SpecError as `plan`, `start_of` and `Words.check` do."""
        if self._words:
            self._words.check()
        adapted, numbers = self._empty_network()
        self._start_of(dict(keyed_layers(adapted)))
        return numbers + (self._words.numbers() if self._words else 0)

    def _empty_network(self) -> tuple[list["Adapted"], int]:
        """The network in models without weights, and how many numbers it has."""
        network, seed = self._spec.network, self._spec.seed
        adapted = [Adapted("lora_unet", self._family.empty_unet())]
        parameters = inject(adapted[0].model, network, seed)
        encoders = self._family.empty_text_encoders() if self._adapts_text else []
        for number, (encoder, prefix) in enumerate(zip(encoders, self._family.text_keys, strict=False)):
            parameters += inject_text(encoder, network, seed, number)
            adapted.append(Adapted(prefix, encoder))
        return adapted, sum(parameter.numel() for parameter in parameters)

    def result_bytes(self) -> int:
        """See `Method`."""
        numbers = self._empty_network()[1]
        return SAVE_FORMATS[self._spec.network.save_format].itemsize * numbers + (4 * self._words.numbers() if self._words else 0)

    def formats(self, weights: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
        """See `Method`."""
        return weights, weights

    def set_up(self, unet: nn.Module, parts: list[TextPart]) -> tuple[list[TextPart], list[Group]]:
        """See `Method`. Raises SpecError as `start_of` does."""
        spec = self._spec
        groups = [Group(inject(unet, spec.network, spec.seed), spec.learning_rate)]
        self._adapted = [Adapted("lora_unet", unet)]
        if self._adapts_text:
            for number, (part, prefix) in enumerate(zip(parts, self._family.text_keys, strict=True)):
                groups.append(Group(inject_text(part.encoder, spec.network, spec.seed, number), spec.text.learning_rate))
                self._adapted.append(Adapted(prefix, part.encoder))
        layers = dict(keyed_layers(self._adapted))
        if start := self._start_of(layers):
            take_over(layers, spec.network, start)
            self.warnings = start.warnings
        if spec.word and self._words:
            # After the network: its layers are told by what trains in the model.
            parts, vectors = self._words.add(parts)
            groups.append(Group(vectors, spec.word.learning_rate))
        return parts, groups

    def _start_of(self, layers: Mapping[str, Any]) -> Start | None:
        network = self._spec.network
        return start_of(layers, network, Path(network.start_from.path), self._spec.base.family) if network.start_from else None

    def tensors(self) -> dict[str, Tensor]:
        """See `Method`."""
        words = {f"word.{name}": vectors for name, vectors in self._words.tensors().items()} if self._words else {}
        return parameters_by_name(self._adapted) | words

    def write(self, result: str, path: Path, metadata: Mapping[str, str]) -> str:
        """See `Method`: the adapter, or the embedding."""
        if result == "embedding":
            assert self._words is not None
            return self._words.write(path, metadata)
        tensors = adapter_tensors(self._adapted, self._spec.network, dtype=SAVE_FORMATS[self._spec.network.save_format])
        return write_safetensors(path, tensors, {**metadata, HASH: "0x" + tensors_sha256(tensors)})


def inject(unet: nn.Module, network: Network, seed: int) -> list[nn.Parameter]:
    """Add the adapter's layers to the frozen `unet` in place; gives the new parameters, fp32 whatever the model is.

    One factor of each layer starts at zero and the others are drawn from `seed`, so the model computes what it did before. fp32 is what
    GradScaler needs ("Attempting to unscale FP16 gradients") and what small updates need under bf16. Raises SpecError as `plan` does.
    """
    return _inject(unet, plan(unet, network), network, generator(seed, "init"))


def inject_text(encoder: nn.Module, network: Network, seed: int, number: int) -> list[nn.Parameter]:
    """The same for text encoder `number` of a base."""
    return _inject(encoder, plan_text(encoder, network), network, generator(seed, "init text", number))


def _inject(model: nn.Module, sizes: dict[str, Size], network: Network, chance: torch.Generator) -> list[nn.Parameter]:
    config = _config(network, sizes)
    with torch.random.fork_rng():
        # peft draws from the global generator.
        torch.manual_seed(chance.initial_seed())
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    # New layers come in training mode, where they draw from the global generator, even in a model that is not.
    model.train(model.training)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    for _, layer in _layers(model):
        if network.decompose:
            # peft takes the norm in the model's precision but divides by one taken in the layer's: in fp32 the two start equal.
            magnitude = layer.lora_magnitude_vector[ADAPTER]
            weight = layer.get_base_layer().weight.detach().float()
            magnitude.weight.data = magnitude.get_weight_norm(weight, torch.zeros_like(weight), 1.0)
    return parameters


@dataclass(frozen=True)
class Adapted:
    """A model with the adapter's layers in it, and how its keys begin in the adapter's file (lora_unet, lora_te_text_model, ...)."""

    prefix: str
    model: nn.Module

    def key(self, module: str) -> str:
        """The file's key for a module of the model. transformers 4 calls the text model's parts text_model.*, 5 does not."""
        return f"{self.prefix}_{module.removeprefix('text_model.').replace('.', '_')}"


def parameters_by_name(adapted: Iterable[Adapted]) -> dict[str, Tensor]:
    """The trainable tensors by model and module, as they are: what a state holds. Writing into them changes the models."""
    return {
        f"{one.prefix}.{name}": parameter.data
        for one in adapted
        for name, parameter in one.model.named_parameters()
        if parameter.requires_grad and f".{ADAPTER}" in name
    }


def trained_with_dropout(network: Network) -> bool:
    """Whether a step draws from torch's global generator and the model has to be in training mode."""
    return max(network.dropout, network.rank_dropout, network.module_dropout) > 0


def adapter_tensors(adapted: Iterable[Adapted], network: Network, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """The file's tensors, `<prefix>_<module with _>.<tensor>`, on the CPU: factors in `dtype`, `.alpha` () and `.dora_scale` in fp32.

    A reader multiplies by alpha / rank, so alpha also carries rsLoRA's sqrt(rank). fp32 keeps both exact: a rounded `dora_scale` would
    change the base's weights by as much as a training does.
    """
    tensors: dict[str, Tensor] = {}
    for key, layer in keyed_layers(adapted):
        scale = layer.scaling[ADAPTER]
        factors = _FACTORS[network.kind](layer, scale)
        tensors |= {f"{key}.{name}": factor.detach().to("cpu", dtype).contiguous() for name, factor in factors.items()}
        tensors[f"{key}.alpha"] = torch.tensor(scale * layer.r[ADAPTER], dtype=torch.float32)
        if network.decompose:
            tensors[f"{key}.dora_scale"] = _dora_scale(layer, scale).to("cpu", torch.float32).contiguous()
    return tensors


def _config(network: Network, sizes: dict[str, Size]) -> LoraConfig | LoHaConfig | LoKrConfig:
    groups: dict[Size, list[str]] = {}
    for name, size in sizes.items():
        groups.setdefault(size, []).append(re.escape(name))
    # One expression for all names of a size: peft tries each of its patterns on each module.
    patterns = {size: "|".join(names) for size, names in groups.items()}
    common: dict[str, Any] = {
        "r": network.rank,
        "target_modules": "|".join(patterns.values()),
        "rank_pattern": {pattern: size.rank for size, pattern in patterns.items()},
        "alpha_pattern": {pattern: size.alpha for size, pattern in patterns.items()},
    }
    if network.kind == "lora":
        return LoraConfig(
            **common,
            lora_alpha=network.alpha,
            lora_dropout=network.dropout,
            use_rslora=network.rank_stabilized,
            use_dora=network.decompose,
        )
    common |= {"alpha": network.alpha, "rank_dropout": network.rank_dropout, "module_dropout": network.module_dropout}
    if network.kind == "loha":
        return LoHaConfig(**common)
    return LoKrConfig(**common, init_weights="lycoris", decompose_factor=network.lokr_factor or -1)


def keyed_layers(adapted: Iterable[Adapted]) -> Iterator[tuple[str, Any]]:
    """peft's layers with their keys in the file."""
    for one in adapted:
        for module, layer in _layers(one.model):
            yield one.key(module), layer


def _layers(unet: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in unet.named_modules():
        if isinstance(module, LoraLayer | LoHaLayer | LoKrLayer):
            yield name, module


def _lora_factors(layer: Any, scale: float) -> dict[str, Tensor]:
    return {"lora_down.weight": layer.lora_A[ADAPTER].weight, "lora_up.weight": layer.lora_B[ADAPTER].weight}


def _loha_factors(layer: Any, scale: float) -> dict[str, Tensor]:
    return {name: getattr(layer, name)[ADAPTER] for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}


def _lokr_factors(layer: Any, scale: float) -> dict[str, Tensor]:
    names = ("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
    factors = {name: getattr(layer, name)[ADAPTER] for name in names if ADAPTER in getattr(layer, name)}
    if "lokr_w2" in factors:
        # Two full factors have no rank to divide alpha by, and readers ignore alpha.
        factors["lokr_w1"] = factors["lokr_w1"] * scale
    return factors


_FACTORS = {"lora": _lora_factors, "loha": _loha_factors, "lokr": _lokr_factors}


def _dora_scale(layer: Any, scale: float) -> Tensor:
    """(out, 1[, 1, 1]): the factor that DoRA gives each row of W + delta, times the norm of that row of W.

    The paper and LyCORIS divide a stored magnitude by the norm of W + delta; ComfyUI divides it by the norm of W (seen in 0.3.75,
    comfy/weight_adapter/base.py, weight_decompose). Stored this way, what ComfyUI computes is what was trained.
    """
    weight = layer.get_base_layer().weight.detach().float()
    rows = (-1, *[1] * (weight.dim() - 1))
    up, down = layer.lora_B[ADAPTER].weight.detach(), layer.lora_A[ADAPTER].weight.detach()
    delta = scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    magnitude = layer.lora_magnitude_vector[ADAPTER].weight.detach().reshape(rows)
    base_norm, adapted_norm = (part.flatten(1).norm(dim=1).reshape(rows) for part in (weight, weight + delta))
    return magnitude / adapted_norm * base_norm
