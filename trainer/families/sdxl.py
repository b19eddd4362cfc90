"""SDXL (https://arxiv.org/abs/2307.01952): two text encoders, and pooled text and sizes beside the timestep."""
import torch
from torch import Tensor, nn

from ..spec import Base
from .clip import load_text_part, run
from .detect import Checkpoint
from .protocol import Conditioning, TextPart
from .stable_diffusion import StableDiffusion

_PENULTIMATE = -2


class StableDiffusionXL(StableDiffusion):
    """Predicts epsilon, or v where the file holds a tensor named v_pred (and ztsnr: on a schedule that ends in pure noise)."""

    name = "SDXL"
    latent_scale = 0.13025
    uses_sizes = True

    def __init__(self, base: Base, checkpoint: Checkpoint) -> None:
        v = checkpoint.header.has("v_pred")
        super().__init__(base, checkpoint, "v" if v else "epsilon", zero_terminal_snr=v and checkpoint.header.has("ztsnr"))

    def load_text_parts(self, dtype: torch.dtype, device: torch.device) -> list[TextPart]:
        """CLIP-L's and bigG's text models, in this order."""
        clip_l, big_g = self.checkpoint.texts
        return [
            load_text_part(self.base, clip_l, dtype, device),
            load_text_part(self.base, big_g, dtype, device, projected=True),
        ]

    def encode_text(self, parts: list[TextPart], captions: list[str]) -> Conditioning:
        """Embeddings, (len(captions), 77, 2048), and pooled, (len(captions), 1280), as ComfyUI's CLIPTextEncode gives for plain text up to 75
        tokens: both penultimate layers without the final norm, and bigG's projection of the end token.
        """
        clip_l, big_g = (run(part, captions, layers=True) for part in parts)
        hidden = torch.cat([clip_l.hidden_states[_PENULTIMATE], big_g.hidden_states[_PENULTIMATE]], dim=-1)
        return Conditioning(hidden, big_g.text_embeds)

    def predict(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's prediction, same shape as `noisy`. `conditioning` needs pooled and sizes."""
        added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.sizes}
        return unet(noisy, timesteps, encoder_hidden_states=conditioning.hidden, added_cond_kwargs=added, return_dict=False)[0]
