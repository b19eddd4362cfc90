"""CLIP text encoders: CLIP-L under transformers' names, ViT-H and bigG under OpenCLIP's (https://github.com/mlfoundations/open_clip)."""
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..spec import Base
from .detect import TextShape
from .protocol import TextPart
from .weights import filled, read_tensors

TOKENS = 77
_START, _END = 49406, 49407
_OPEN_CLIP_PADDING = 0
_HEAD_WIDTH = 64
_NAMES = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_LAYER_NAMES = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj"}


def load_text_part(
    base: Base, shape: TextShape, dtype: torch.dtype, device: torch.device, *, layers: int | None = None, projected: bool = False
) -> TextPart:
    """A text encoder of the checkpoint, frozen, with its tokenizer from the local folder that the spec names.

    `layers`: how many of them to keep, all by default. `projected`: with the projection of its pooled output, as
    CLIPTextModelWithProjection. Raises SpecError if weights are missing.
    """
    tokenizer = CLIPTokenizer.from_pretrained(base.tokenizer, local_files_only=True, model_max_length=TOKENS)
    state = read_tensors(base.checkpoint, shape.prefix)
    if shape.open_clip:
        state = from_open_clip(state)
    config = CLIPTextConfig(
        vocab_size=state["embeddings.token_embedding.weight"].shape[0],
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        projection_dim=shape.width,
        num_hidden_layers=layers or shape.layers,
        num_attention_heads=max(shape.width // _HEAD_WIDTH, 1),
        max_position_embeddings=TOKENS,
        hidden_act="gelu" if shape.open_clip else "quick_gelu",
        bos_token_id=_START,
        eos_token_id=_END,
        pad_token_id=_OPEN_CLIP_PADDING if shape.open_clip else _END,
    )
    with init_empty_weights():
        encoder = CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)
    # transformers 5 dropped the text_model. level from CLIPTextModel's own names, 4 has it: follow the installed one.
    if any(name.startswith("text_model.") for name in encoder.state_dict()):
        state = {name if name.startswith("text_projection.") else f"text_model.{name}": value for name, value in state.items()}
    what = f"{base.name}: the text encoder {shape.prefix}*"
    return TextPart(filled(encoder, state, dtype, device, what), tokenizer)


def from_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names as transformers' (without the text_model. level). Views, no copies."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _NAMES:
            found[_NAMES[name]] = tensor
        elif name == "text_projection":
            found["text_projection.weight"] = tensor.T.contiguous()
        elif name == "text_projection.weight":
            found[name] = tensor
        elif name.startswith("transformer.resblocks."):
            number, rest = name.removeprefix("transformer.resblocks.").split(".", 1)
            layer = f"encoder.layers.{number}."
            if rest.startswith("attn.in_proj_"):
                kind = rest.removeprefix("attn.in_proj_")
                for part, value in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{layer}self_attn.{part}_proj.{kind}"] = value
            else:
                module, kind = rest.rsplit(".", 1)
                found[f"{layer}{_LAYER_NAMES.get(module, module)}.{kind}"] = tensor
    return found


def run(part: TextPart, captions: list[str], *, layers: bool = False) -> Any:
    """transformers' output for `captions`, each cut or padded to 77 tokens; with `layers` also every layer's output.

    The encoder says what it is padded with: OpenCLIP pads with token 0, CLIP-L with the end token. Given to the tokenizer as a pad token, 0
    would also swallow the exclamation marks of a caption.
    """
    ids = part.tokenizer(captions, truncation=True, max_length=TOKENS).input_ids
    encoder: Any = part.encoder
    padding = encoder.config.pad_token_id
    padded = torch.tensor([row + [padding] * (TOKENS - len(row)) for row in ids], device=encoder.device)
    return encoder(padded, output_hidden_states=layers)


def too_long(part: TextPart, caption: str) -> bool:
    """Whether the caption has more than 75 tokens."""
    return len(part.tokenizer(caption, truncation=False).input_ids) > TOKENS
