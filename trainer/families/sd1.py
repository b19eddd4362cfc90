"""Stable Diffusion 1.x: CLIP-L's last layer behind its final norm."""
import torch

from ..options import TextOptions
from ..spec import Base
from .clip import encode, layers_to_keep, load_text_part
from .detect import Checkpoint
from .protocol import Conditioning, TextPart
from .stable_diffusion import StableDiffusion


class StableDiffusion1(StableDiffusion):
    """Predicts epsilon."""

    name = "SD 1.x"
    text_keys: tuple[str, ...] = ("lora_te_text_model",)
    embedding_keys: tuple[str, ...] = ("clip_l",)

    def __init__(self, base: Base, checkpoint: Checkpoint, text: TextOptions) -> None:
        super().__init__(base, checkpoint, text)

    def load_text_parts(self, dtype: torch.dtype, device: torch.device) -> list[TextPart]:
        """CLIP-L's text model, without the layers that do not count."""
        shape = self.checkpoint.texts[0]
        layers = layers_to_keep(self.base, shape, self.text.clip_skip or 1)
        return [load_text_part(self.base, shape, self.tokenizer, dtype, device, layers=layers)]

    def encode_text(self, parts: list[TextPart], captions: list[str]) -> Conditioning:
        """Embeddings, (len(captions), tokens, 768), as ComfyUI's CLIPTextEncode gives."""
        return Conditioning(encode(parts[0], captions, self.text)[0])
