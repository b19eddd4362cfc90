"""The UNet of SD 1.x, SD 2.x and SDXL, from LDM's names into diffusers' layout."""
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from .detect import UNET, UNetShape
from .weights import filled, read_tensors

_HEADS = 8


def unet_config(shape: UNetShape) -> dict[str, Any]:
    """diffusers' arguments for a UNet of this plan."""
    levels = range(len(shape.widths))
    depths = [depth or shape.middle_depth or 1 for depth in shape.depths]
    config = {
        "sample_size": 64,
        "in_channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "block_out_channels": shape.widths,
        "layers_per_block": shape.blocks_per_level,
        "down_block_types": tuple("CrossAttnDownBlock2D" if shape.depths[i] else "DownBlock2D" for i in levels),
        "up_block_types": tuple("CrossAttnUpBlock2D" if shape.depths[i] else "UpBlock2D" for i in reversed(levels)),
        "mid_block_type": _middle(shape),
        "transformer_layers_per_block": tuple(depths),
        "cross_attention_dim": shape.context_width,
        "use_linear_projection": shape.linear_projection,
        # The number of heads, in spite of its name.
        "attention_head_dim": tuple(max(width // shape.head_width, 1) if shape.head_width else _HEADS for width in shape.widths),
    }
    if shape.pooled_width:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": shape.pooled_width,
        }
    return config


def _middle(shape: UNetShape) -> str | None:
    if not shape.middle:
        return None
    return "UNetMidBlock2DCrossAttn" if shape.middle_depth else "UNetMidBlock2D"


def empty_unet(shape: UNetShape) -> UNet2DConditionModel:
    """The layers on the meta device: names and shapes without weights."""
    with init_empty_weights():
        return UNet2DConditionModel(**unet_config(shape))


def ldm_names(shape: UNetShape, names: Iterable[str]) -> dict[str, str]:
    """diffusers' names of the UNet's tensors, by their names in the file (both without a prefix)."""
    # The conversion only puts values under other names, whatever they are.
    state = {UNET + name: name for name in names}
    return {name: own for own, name in convert_ldm_unet_checkpoint(state, unet_config(shape)).items()}


def load_unet(path: str, shape: UNetShape, dtype: torch.dtype, device: torch.device, name: str) -> UNet2DConditionModel:
    """The UNet of the checkpoint `path`, frozen. Raises SpecError if weights are missing."""
    state = {UNET + key: value for key, value in read_tensors(path, UNET).items()}
    return filled(empty_unet(shape), convert_ldm_unet_checkpoint(state, unet_config(shape)), dtype, device, f"{name}: the UNet")
