"""Stable Diffusion 2.x: OpenCLIP ViT-H's penultimate layer behind the final norm; epsilon or v."""
import torch

from ..options import PredictionKind, TextOptions
from ..spec import Base
from .clip import encode, layers_to_keep, load_text_part
from .detect import UNET, Checkpoint
from .protocol import Conditioning, TextPart
from .stable_diffusion import StableDiffusion
from .weights import read_tensor

# Nothing in a header tells the v models (768 px) from the epsilon models (512 px). This bias is spread wider in the v models; the same
# tensor and bound as in ComfyUI's comfy/supported_models.py, so that both always take a checkpoint for the same thing.
_TELLTALE = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_V_SPREAD = 0.09
_PENULTIMATE_LAYERS = 23
_OWN_SKIP = 2


class StableDiffusion2(StableDiffusion):
    """Predicts epsilon or v, told from one of the UNet's weights."""

    name = "SD 2.x"
    text_keys: tuple[str, ...] = ("lora_te_text_model",)
    embedding_keys: tuple[str, ...] = ("clip_h",)

    def __init__(self, base: Base, checkpoint: Checkpoint, text: TextOptions) -> None:
        super().__init__(base, checkpoint, text, _prediction(base, checkpoint))

    def load_text_parts(self, dtype: torch.dtype, device: torch.device) -> list[TextPart]:
        """ViT-H's text model without the layers that do not count, which is its last one by the base's own way."""
        shape = self.checkpoint.texts[0]
        # Checkpoints that were converted back from diffusers have lost the last layer already.
        lost = shape.layers == _PENULTIMATE_LAYERS
        skip = self.text.clip_skip or min(_OWN_SKIP, shape.layers)
        layers = layers_to_keep(self.base, shape, max(skip - lost, 1))
        return [load_text_part(self.base, shape, self.tokenizer, dtype, device, layers=layers)]

    def encode_text(self, parts: list[TextPart], captions: list[str]) -> Conditioning:
        """Embeddings, (len(captions), tokens, 1024), as ComfyUI's CLIPTextEncode gives."""
        return Conditioning(encode(parts[0], captions, self.text)[0])


def _prediction(base: Base, checkpoint: Checkpoint) -> PredictionKind:
    if not checkpoint.header.has(_TELLTALE):
        return "epsilon"
    return "v" if float(read_tensor(base.checkpoint, _TELLTALE).float().std(unbiased=False)) > _V_SPREAD else "epsilon"
