"""CLIP text encoders: CLIP-L under transformers' names, ViT-H and bigG under OpenCLIP's (https://github.com/mlfoundations/open_clip)."""
import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..options import TextOptions
from ..spec import Base
from ..typed import SpecError
from .detect import TextShape
from .open_clip import pieces
from .protocol import TextPart
from .tokens import TOKENS, chunks
from .weights import filled, read_tensors

_START, _END = 49406, 49407
_VOCABULARY = 49408
_OPEN_CLIP_PADDING = 0
_HEAD_WIDTH = 64


def load_text_part(
    base: Base,
    shape: TextShape,
    tokenizer: Any,
    dtype: torch.dtype,
    device: torch.device,
    *,
    layers: int | None = None,
    layer: int | None = None,
    projected: bool = False,
) -> TextPart:
    """A text encoder of the checkpoint, frozen.

    `layers`: how many of them to keep, all by default. `layer`: as in TextPart. `projected`: with the projection of its pooled output, as
    CLIPTextModelWithProjection. Raises SpecError if weights are missing.
    """
    state = read_tensors(base.checkpoint, shape.prefix)
    if shape.open_clip:
        state = from_open_clip(state)
    encoder = empty_encoder(shape, state["embeddings.token_embedding.weight"].shape[0], layers, projected)
    # transformers 5 dropped the text_model. level from CLIPTextModel's own names, 4 has it: follow the installed one.
    if any(name.startswith("text_model.") for name in encoder.state_dict()):
        state = {name if name.startswith("text_projection.") else f"text_model.{name}": value for name, value in state.items()}
    what = f"{base.name}: the text encoder {shape.prefix}*"
    return TextPart(filled(encoder, state, dtype, device, what), tokenizer, encoder.config.pad_token_id, layer)


def empty_encoder(shape: TextShape, vocabulary: int = _VOCABULARY, layers: int | None = None, projected: bool = False) -> Any:
    """The text encoder's layers on the meta device: names and shapes without weights. `vocabulary`: tokens; the rest as in `load_text_part`."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
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
        return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def load_tokenizer(base: Base) -> Any:
    """CLIP's tokenizer, from the local folder that the spec names."""
    return CLIPTokenizer.from_pretrained(base.tokenizer, local_files_only=True, model_max_length=TOKENS)


def layers_to_keep(base: Base, shape: TextShape, clip_skip: int) -> int:
    """How many layers are left where the last `clip_skip` - 1 do not count. Raises SpecError if none is."""
    left = shape.layers - clip_skip + 1
    if left < 1:
        raise SpecError(f"clip_skip is {clip_skip}, and a text encoder of {base.name} has {shape.layers} layers: set it to {shape.layers} or less.")
    return left


def from_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's tensors under transformers' names (without the text_model. level), without those that it has no place for. Views but for the
    projection, no copies.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for piece in pieces(name):
            number, count = piece.part
            own = tensor.chunk(count)[number]
            found[piece.name] = own.T.contiguous() if piece.transposed else own
    return found


def open_clip_tensor(name: str, state: Mapping[str, Tensor]) -> Tensor:
    """The tensor that OpenCLIP calls `name`, out of transformers' names: the inverse of `from_open_clip`. Raises KeyError where it is not there."""
    parts = [state[piece.name].T if piece.transposed else state[piece.name] for piece in pieces(name)]
    if not parts:
        raise KeyError(name)
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def encode(part: TextPart, captions: list[str], options: TextOptions) -> tuple[Tensor, Tensor | None]:
    """Embeddings (n, 77 * chunks, width) of `captions`, and (n, width) pooled where the encoder projects; as ComfyUI's CLIPTextEncode gives.

    All have as many chunks as the longest: the others end in empty ones. The pooled text is the first chunk's. Emphasis moves a token's embedding
    away from that of an empty caption at the same place, by its weight.
    """
    reading: Any = {"emphasis": options.emphasis, "most": options.chunks, "words": part.words}
    rows = [chunks(part.tokenizer, caption, part.padding, **reading) for caption in captions]
    for caption, row in zip(captions, rows, strict=True):
        if not all(math.isfinite(weight) for chunk in row for weight in chunk.weights):
            raise SpecError(f"a weight in the caption {caption[:80]!r} is not a finite number: write it like (word:1.2).")
    longest = max(map(len, rows))
    empty = chunks(part.tokenizer, "", part.padding)
    flat = [chunk for row in rows for chunk in [*row, *empty * (longest - len(row))]]
    emphasised = any(weight != 1 for chunk in flat for weight in chunk.weights)
    device = next(part.encoder.parameters()).device
    ids = torch.tensor([chunk.ids for chunk in [*flat, *(empty if emphasised else [])]], device=device)
    output: Any = part.encoder(ids, output_hidden_states=part.layer is not None)
    hidden: Tensor = output.last_hidden_state if part.layer is None else output.hidden_states[part.layer]
    if emphasised:
        weights = torch.tensor([chunk.weights for chunk in flat]).to(hidden).unsqueeze(-1)
        hidden = hidden[-1:] + (hidden[:-1] - hidden[-1:]) * weights
    pooled: Tensor | None = getattr(output, "text_embeds", None)
    if pooled is not None:
        pooled = pooled[: len(flat)].unflatten(0, (len(rows), longest))[:, 0]
    return hidden.unflatten(0, (len(rows), longest)).flatten(1, 2), pooled
