"""The VAE, from LDM's or diffusers' names."""
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor

from ..spec import Base
from ..typed import SpecError
from .detect import VAE
from .weights import filled, read_tensors


def load_vae(base: Base, scale: float, device: torch.device) -> AutoencoderKL:
    """The VAE that the base names, or the checkpoint's own; frozen, in fp32. Raises SpecError if there is none or it is not whole."""
    state = read_tensors(base.vae, "") if base.vae else read_tensors(base.checkpoint, VAE)
    state = {name.removeprefix(VAE): value for name, value in state.items()}
    if "decoder.conv_in.weight" not in state:
        raise SpecError(f"{base.name} holds no VAE: choose one in the vae input of LoomBaseModel.")
    diffusers_names = any(name.startswith("encoder.down_blocks.") for name in state)
    level, first = ("encoder.down_blocks.", "resnets.0.conv1.weight") if diffusers_names else ("encoder.down.", "block.0.conv1.weight")
    widths = tuple(state[f"{level}{i}.{first}"].shape[0] for i in range(_count(state, level)))
    config = {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": scale,
    }
    with init_empty_weights():
        vae = AutoencoderKL(**config)
    if not diffusers_names:
        state = convert_ldm_vae_checkpoint(state, config)
    return filled(vae, state, torch.float32, device, f"{base.name}: the VAE")


def encode_images(vae: AutoencoderKL, pixels: Tensor, scale: float) -> Tensor:
    """Scaled latents (n, 4, h/8, w/8) in fp32 of `pixels` (n, 3, h, w) in [-1, 1]: the mean of the VAE's distribution."""
    with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
        return vae.encode(pixels.to(vae.device, torch.float32)).latent_dist.mode() * scale


def decode_latents(vae: AutoencoderKL, latents: Tensor, scale: float) -> Tensor:
    """Pixels in [0, 1], (n, 3, h, w), of scaled latents."""
    with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
        pixels = vae.decode(latents.to(vae.device, torch.float32) / scale).sample
    return (pixels / 2 + 0.5).clamp(0, 1)


def _count(state: dict[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})
