"""Stable Diffusion 2.x: OpenCLIP ViT-H's penultimate layer behind the final norm; epsilon or v."""
import torch

from ..options import PredictionKind
from ..spec import Base
from .clip import load_text_part, run
from .detect import UNET, Checkpoint
from .protocol import Conditioning, TextPart
from .stable_diffusion import StableDiffusion
from .weights import read_tensor

# Nothing in a header tells the v models (768 px) from the epsilon models (512 px). This bias is spread wider in the v models; the same
# tensor and bound as in ComfyUI's comfy/supported_models.py, so that both always take a checkpoint for the same thing.
_TELLTALE = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_V_SPREAD = 0.09
_PENULTIMATE_LAYERS = 23


class StableDiffusion2(StableDiffusion):
    """Predicts epsilon or v, told from one of the UNet's weights."""

    name = "SD 2.x"

    def __init__(self, base: Base, checkpoint: Checkpoint) -> None:
        super().__init__(base, checkpoint, _prediction(base, checkpoint))

    def load_text_parts(self, dtype: torch.dtype, device: torch.device) -> list[TextPart]:
        """ViT-H's text model without its last layer, which SD 2.x does not use."""
        shape = self.checkpoint.texts[0]
        # Checkpoints that were converted back from diffusers have lost the last layer already.
        layers = shape.layers if shape.layers == _PENULTIMATE_LAYERS else max(shape.layers - 1, 1)
        return [load_text_part(self.base, shape, dtype, device, layers=layers)]

    def encode_text(self, parts: list[TextPart], captions: list[str]) -> Conditioning:
        """Embeddings, (len(captions), 77, 1024), as ComfyUI's CLIPTextEncode gives for plain text up to 75 tokens."""
        return Conditioning(run(parts[0], captions).last_hidden_state)


def _prediction(base: Base, checkpoint: Checkpoint) -> PredictionKind:
    if not checkpoint.header.has(_TELLTALE):
        return "epsilon"
    return "v" if float(read_tensor(base.checkpoint, _TELLTALE).float().std(unbiased=False)) > _V_SPREAD else "epsilon"
