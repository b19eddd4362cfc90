"""Which layers of a UNet or a text encoder are adapted, and with which rank and alpha.

Names are diffusers' (`down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`). Only shapes are looked at, so a model on the meta
device is enough to find out whether a request can be carried out.
"""
import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ..options import Network, Targets
from ..typed import SpecError

ADAPTER = "default"
"""What peft calls the adapter in its layers."""

_ATTENTION = r"to_[qkv]|to_out\.0"
_FEED_FORWARD = r"ff\.net\.0\.proj|ff\.net\.2"
_TRANSFORMER = rf".*\.(?:{_ATTENTION}|{_FEED_FORWARD}|proj_in|proj_out)"
_CONVOLUTIONS = r".*\.(?:resnets\.\d+\.conv[12]|(?:down|up)samplers\.\d+\.conv)"
_PRESETS: dict[Targets, str] = {
    "attention": rf".*\.(?:{_ATTENTION})",
    "attention+ff": rf".*\.(?:{_ATTENTION}|{_FEED_FORWARD})",
    "transformer": _TRANSFORMER,
    "transformer+conv": rf"{_TRANSFORMER}|{_CONVOLUTIONS}",
}
_TEXT_ATTENTION = r".*\.self_attn\.(?:[qkv]_proj|out_proj)"
_TEXT_MLP = r".*\.mlp\.fc[12]"
_EXAMPLES = 3


@dataclass(frozen=True)
class Size:
    """How big a layer's adapter is. `alpha` / `rank` is the scale of what is added (`alpha` / sqrt(`rank`) under rsLoRA)."""

    rank: int
    alpha: float


def plan(unet: nn.Module, network: Network) -> dict[str, Size]:
    """The adapted layers by name, in the model's order.

    A rank that differs from `network.rank` (of a block or of the convolutions) keeps alpha / rank, so that one learning rate suits all
    layers; `network.conv_alpha` overrides that for the convolutions. 3x3 convolutions are added to every preset by `network.conv_rank`.
    Raises SpecError where a pattern, a prefix or all together leave nothing to train.
    """
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    chosen = {name: module for name, module in layers.items() if _is_chosen(name, module, network)}
    if not chosen:
        asked = f"The pattern {network.pattern!r}" if network.pattern else f"The targets {network.targets!r}"
        raise SpecError(f"{asked} match no layer of the UNet. A pattern has to match a whole name, as in {_some(layers)}.")
    ranks = {prefix.rstrip("."): rank for prefix, rank in network.block_ranks}
    for prefix in ranks:
        if not any(_is_in(name, prefix) for name in chosen):
            raise SpecError(f"block_ranks: no adapted layer is in {prefix!r}. Some that are adapted: {_some(chosen)}.")
    sizes = {name: _size(name, module, network, ranks) for name, module in chosen.items()}
    adapted = {name: size for name, size in sizes.items() if size.rank}
    if not adapted:
        raise SpecError("block_ranks leaves out every layer: give at least one block a rank above 0.")
    return adapted


def plan_text(encoder: nn.Module, network: Network) -> dict[str, Size]:
    """The adapted layers of a text encoder: its attention, and its MLP too unless the targets are attention alone. All have the common rank."""
    pattern = _TEXT_ATTENTION if network.targets == "attention" else f"{_TEXT_ATTENTION}|{_TEXT_MLP}"
    size = Size(network.rank, network.alpha)
    return {name: size for name, module in encoder.named_modules() if isinstance(module, nn.Linear) and re.fullmatch(pattern, name)}


def _is_chosen(name: str, module: nn.Module, network: Network) -> bool:
    if network.pattern:
        return re.fullmatch(network.pattern, name) is not None
    if network.conv_rank and re.fullmatch(_CONVOLUTIONS, name):
        return True
    if network.targets == "all linear":
        return isinstance(module, nn.Linear)
    return re.fullmatch(_PRESETS[network.targets], name) is not None


def _size(name: str, module: nn.Module, network: Network, ranks: dict[str, int]) -> Size:
    rank, alpha = network.rank, network.alpha
    if network.conv_rank and isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
        rank, alpha = network.conv_rank, network.alpha * network.conv_rank / network.rank
        alpha = network.conv_alpha or alpha
    prefixes = [prefix for prefix in ranks if _is_in(name, prefix)]
    if not prefixes:
        return Size(rank, alpha)
    block_rank = ranks[max(prefixes, key=len)]
    return Size(block_rank, alpha * block_rank / rank)


def _is_in(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _some(names: Iterable[str]) -> str:
    known = list(names)
    return ", ".join(known[:: max(1, len(known) // _EXAMPLES)][:_EXAMPLES])
