"""Stable Diffusion 1.x: CLIP-L's last layer behind its final norm."""
import torch

from ..spec import Base
from .clip import load_text_part, run
from .detect import Checkpoint
from .protocol import Conditioning, TextPart
from .stable_diffusion import StableDiffusion


class StableDiffusion1(StableDiffusion):
    """Predicts epsilon."""

    name = "SD 1.x"

    def __init__(self, base: Base, checkpoint: Checkpoint) -> None:
        super().__init__(base, checkpoint)

    def load_text_parts(self, dtype: torch.dtype, device: torch.device) -> list[TextPart]:
        """CLIP-L's text model."""
        return [load_text_part(self.base, self.checkpoint.texts[0], dtype, device)]

    def encode_text(self, parts: list[TextPart], captions: list[str]) -> Conditioning:
        """Embeddings, (len(captions), 77, 768), as ComfyUI's CLIPTextEncode gives for plain text up to 75 tokens."""
        return Conditioning(run(parts[0], captions).last_hidden_state)
