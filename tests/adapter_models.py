"""Models and networks that tests of adapter files make files from: real modules, small, and the full UNets without weights."""
import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from trainer.families.detect import UNetShape
from trainer.families.unet import unet_config
from trainer.options import Network

SHAPES = {
    "SD 1.x": UNetShape(4, 4, (320, 640, 1280, 1280), (1, 1, 1, 0), 2, 768, True, 1, False, None, 0),
    "SDXL": UNetShape(4, 4, (320, 640, 1280), (0, 2, 10), 2, 2048, True, 10, True, 64, 2816),
}
NETWORKS = {
    "LoRA": Network(rank=4, alpha=3.0, targets="attention"),
    "LoCon": Network(rank=4, alpha=3.0, targets="transformer+conv", conv_rank=2, conv_alpha=5.0),
    "DoRA": Network(rank=4, alpha=3.0, decompose=True),
    "LoHa": Network(rank=4, alpha=3.0, kind="loha", targets="transformer+conv"),
    "LoKr": Network(rank=1, alpha=3.0, kind="lokr", targets="transformer+conv", lokr_factor=2),
}
"""One for each kind of file that training makes, by what the kind is called."""


def tiny_unet() -> UNet2DConditionModel:
    """diffusers' layout with two levels; always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        )
    return unet.requires_grad_(False).eval()


def tiny_text() -> CLIPTextModel:
    """CLIP's text encoder with two layers; always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = CLIPTextConfig(
            vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=8
        )
        return CLIPTextModel(config).requires_grad_(False).eval()


def randomise(parameters: list[nn.Parameter]) -> None:
    """Move every parameter away from where it starts, always in the same way."""
    numbers = torch.Generator().manual_seed(2)
    for parameter in parameters:
        parameter.data = parameter.data + torch.randn(parameter.shape, generator=numbers) * 0.2


def layer_names(shape: UNetShape) -> list[str]:
    """diffusers' names of all linear and convolution layers of a UNet."""
    with init_empty_weights():
        unet = UNet2DConditionModel(**unet_config(shape))
    return [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
