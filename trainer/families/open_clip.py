"""OpenCLIP's names of a text encoder's tensors (https://github.com/mlfoundations/open_clip) as transformers' CLIPTextModel has them."""
from dataclasses import dataclass

_RESIDUAL = "transformer.resblocks."
_NAMES = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
    "text_projection.weight": "text_projection.weight",
}
_LAYER_NAMES = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj"}


@dataclass(frozen=True)
class Piece:
    """One of transformers' tensors in one of OpenCLIP's.

    `name`: without the text_model. level. `part`: which of how many equal parts along the first axis it is. `transposed`: whether OpenCLIP has
    the matrix the other way round.
    """

    name: str
    part: tuple[int, int] = (0, 1)
    transposed: bool = False


def pieces(name: str) -> tuple[Piece, ...]:
    """What OpenCLIP's tensor `name` holds; nothing for one that transformers has no place for (logit_scale, a mask)."""
    if name == "text_projection":
        return (Piece("text_projection.weight", transposed=True),)
    if name in _NAMES:
        return (Piece(_NAMES[name]),)
    if not name.startswith(_RESIDUAL):
        return ()
    number, _, rest = name.removeprefix(_RESIDUAL).partition(".")
    layer = f"encoder.layers.{number}."
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return tuple(Piece(f"{layer}self_attn.{part}_proj.{kind}", (index, 3)) for index, part in enumerate("qkv"))
    module, _, kind = rest.rpartition(".")
    return (Piece(f"{layer}{_LAYER_NAMES.get(module, module)}.{kind}"),)
