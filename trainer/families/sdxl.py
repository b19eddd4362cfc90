"""SDXL (https://arxiv.org/abs/2307.01952): two text encoders, and pooled text and sizes beside the timestep."""
import torch
from torch import Tensor, nn

from ..options import PredictionKind, TextOptions
from ..spec import Base
from .clip import encode, layers_to_keep, load_text_part
from .detect import Checkpoint
from .protocol import Conditioning, TextPart
from .stable_diffusion import StableDiffusion

_OWN_SKIP = 2


class StableDiffusionXL(StableDiffusion):
    """Predicts epsilon, or v where the file holds a tensor named v_pred (and ztsnr: on a schedule that ends in pure noise)."""

    name = "SDXL"
    text_keys: tuple[str, ...] = ("lora_te1_text_model", "lora_te2_text_model")
    embedding_keys: tuple[str, ...] = ("clip_l", "clip_g")
    latent_scale = 0.13025
    uses_sizes = True

    def __init__(self, base: Base, checkpoint: Checkpoint, text: TextOptions) -> None:
        v = checkpoint.header.has("v_pred")
        super().__init__(base, checkpoint, text, "v" if v else "epsilon", zero_terminal_snr=v and checkpoint.header.has("ztsnr"))

    def load_text_parts(self, dtype: torch.dtype, device: torch.device) -> list[TextPart]:
        """CLIP-L's and bigG's text models, in this order."""
        skip = self.text.clip_skip or _OWN_SKIP
        parts = []
        for shape, projected in zip(self.checkpoint.texts, (False, True), strict=True):
            layers_to_keep(self.base, shape, skip)
            part = load_text_part(self.base, shape, self.tokenizer, dtype, device, layer=-skip, projected=projected)
            parts.append(part)
        return parts

    def encode_text(self, parts: list[TextPart], captions: list[str]) -> Conditioning:
        """Embeddings, (len(captions), tokens, 2048), and pooled, (len(captions), 1280), as ComfyUI's CLIPTextEncode gives: both penultimate
        layers without the final norm, and bigG's projection of the end token.
        """
        (clip_l, _), (big_g, pooled) = (encode(part, captions, self.text) for part in parts)
        return Conditioning(torch.cat([clip_l, big_g], dim=-1), pooled)

    def markers(self, prediction: PredictionKind, zero_terminal_snr: bool) -> dict[str, bool]:
        """v_pred and ztsnr, which ComfyUI looks for."""
        on_such_a_schedule = zero_terminal_snr or not self.alphas_cumprod[-1]
        return {"v_pred": prediction == "v", "ztsnr": prediction == "v" and bool(on_such_a_schedule)}

    def predict(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's prediction, same shape as `noisy`. `conditioning` needs pooled and sizes."""
        added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.sizes}
        return unet(noisy, timesteps, encoder_hidden_states=conditioning.hidden, added_cond_kwargs=added, return_dict=False)[0]
