"""The paths of layers in the UNets and text encoders of SD 1.x, SD 2.x and SDXL, in diffusers' words and in LDM's, and from one to the other.

A path is a tuple of words: `("down_blocks", "0", "attentions", "1", "proj_in")`. kohya writes paths with `_` between the words, which is
ambiguous by itself: only the known words say where one ends. LDM's layout: https://github.com/CompVis/latent-diffusion (openaimodel.py).
"""
import re

Path = tuple[str, ...]

LDM_ROOTS = frozenset({"input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"})
DIFFUSERS_ROOTS = frozenset(
    {"down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "conv_norm_out", "time_embedding", "add_embedding", "class_embedding"}
)
TEXT_ROOTS = frozenset({"text_model", "text_projection"})
_ROOTS = LDM_ROOTS | DIFFUSERS_ROOTS | TEXT_ROOTS

_RESNET = {
    ("in_layers", "0"): "norm1",
    ("in_layers", "2"): "conv1",
    ("emb_layers", "1"): "time_emb_proj",
    ("out_layers", "0"): "norm2",
    ("out_layers", "3"): "conv2",
    ("skip_connection",): "conv_shortcut",
}
_RESNET_BACK = {name: path for path, name in _RESNET.items()}
_OUTSIDE = {
    ("input_blocks", "0", "0"): ("conv_in",),
    ("time_embed", "0"): ("time_embedding", "linear_1"),
    ("time_embed", "2"): ("time_embedding", "linear_2"),
    ("label_emb", "0", "0"): ("add_embedding", "linear_1"),
    ("label_emb", "0", "2"): ("add_embedding", "linear_2"),
    ("out", "0"): ("conv_norm_out",),
    ("out", "2"): ("conv_out",),
}
_OUTSIDE_BACK = {path: ldm for ldm, path in _OUTSIDE.items()} | {
    ("class_embedding", f"linear_{number}"): ("label_emb", "0", str(2 * number - 2)) for number in (1, 2)
}
_MIDDLE: dict[str, Path] = {"0": ("resnets", "0"), "1": ("attentions", "0"), "2": ("resnets", "1")}
_MIDDLE_BACK = {path: number for number, path in _MIDDLE.items()}

_WORDS = _ROOTS | {
    *("attentions", "resnets", "downsamplers", "upsamplers", "transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out"),
    *("ff", "net", "proj", "proj_in", "proj_out", "norm", "norm1", "norm2", "norm3", "conv", "conv1", "conv2", "conv_shortcut"),
    *("time_emb_proj", "linear_1", "linear_2", "in_layers", "out_layers", "emb_layers", "skip_connection", "op"),
    *("encoder", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "mlp", "fc1", "fc2"),
    *("layer_norm1", "layer_norm2", "final_layer_norm", "embeddings", "token_embedding", "position_embedding"),
}
_WORD = re.compile(rf"({'|'.join(sorted(_WORDS, key=len, reverse=True))}|[0-9]{{1,3}})(?:_|$)")
_NUMBER = re.compile(r"[0-9]{1,3}")
_LEVELS = {"SDXL": 3}
_BLOCKS = 3  # LDM's blocks a level: two residual blocks and a down-sampling; in the way up three residual blocks.


def path_of(text: str, separator: str = "_") -> Path | None:
    """The words of `text`; None if it is not a path in a UNet or text encoder of these families."""
    if separator != "_":
        parts = tuple(text.split(separator))
        known = all(part in _WORDS or _NUMBER.fullmatch(part) for part in parts)
        return parts if known and parts[0] in _ROOTS else None
    words: list[str] = []
    position = 0
    while position < len(text):
        found = _WORD.match(text, position)
        if not found:
            return None
        words.append(found[1])
        position = found.end()
    return tuple(words) if words and words[0] in _ROOTS and not text.endswith("_") else None


def is_usual_layout(path: Path) -> bool:
    """Whether an LDM path fits UNets with two residual blocks a level: there every third input block is a down-sampling and nothing else is."""
    if len(path) < 4 or path[0] != "input_blocks" or not path[1].isdigit() or not 0 < int(path[1]) < 4 * _BLOCKS:
        return True
    return (int(path[1]) % _BLOCKS == 0) == (path[3] == "op")


def to_diffusers(path: Path, family: str | None = None) -> Path | None:
    """diffusers' path for an LDM path of a UNet with two residual blocks a level; None if there is no such layer."""
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    levels = _LEVELS.get(family or "", 4)
    if path[0] == "middle_block" and len(path) > 2 and path[1] in _MIDDLE:
        middle = _MIDDLE[path[1]]
        inside = _inside(middle[0], path[2:])
        return ("mid_block", *middle, *inside) if inside else None
    if path[0] not in ("input_blocks", "output_blocks") or len(path) < 4 or not (path[1].isdigit() and path[2].isdigit()):
        return None
    block, inner, rest = int(path[1]), path[2], path[3:]
    if path[0] == "input_blocks":
        if not 0 < block < levels * _BLOCKS:
            return None
        level, number = divmod(block - 1, _BLOCKS)
        if number == _BLOCKS - 1:
            return ("down_blocks", str(level), "downsamplers", "0", "conv") if (inner, rest) == ("0", ("op",)) else None
        side = "down_blocks"
    else:
        if block >= levels * _BLOCKS:
            return None
        level, number = divmod(block, _BLOCKS)
        side = "up_blocks"
        if inner in ("1", "2") and rest == ("conv",):
            return ("up_blocks", str(level), "upsamplers", "0", "conv")
    if inner not in ("0", "1"):
        return None
    group = "resnets" if inner == "0" else "attentions"
    found = _inside(group, rest)
    return (side, str(level), group, str(number), *found) if found else None


def _inside(group: str, rest: Path) -> Path | None:
    if group == "attentions":
        return rest
    return (_RESNET[rest],) if rest in _RESNET else None


def to_ldm(path: Path, family: str) -> Path | None:
    """LDM's path for diffusers' path in a UNet of `family` (SD 1.x, SD 2.x, SDXL); None if there is no such layer."""
    if path in _OUTSIDE_BACK:
        return _OUTSIDE_BACK[path]
    levels = _LEVELS.get(family, 4)
    if path[0] == "mid_block" and path[1:3] in _MIDDLE_BACK:
        rest = _outside(path[1], path[3:])
        return ("middle_block", _MIDDLE_BACK[path[1:3]], *rest) if rest else None
    if path[0] not in ("down_blocks", "up_blocks") or len(path) < 5 or not (path[1].isdigit() and path[3].isdigit()):
        return None
    level, group, number = int(path[1]), path[2], int(path[3])
    if level >= levels or number >= _BLOCKS:
        return None
    if group == "downsamplers":
        return ("input_blocks", str((level + 1) * _BLOCKS), "0", "op") if level < levels - 1 and number == 0 else None
    if group == "upsamplers":
        # The up-sampling comes last in its block, after the transformer where there is one: everywhere but in SD's deepest level.
        inner = "1" if levels == 4 and level == 0 else "2"
        return ("output_blocks", str(level * _BLOCKS + 2), inner, "conv") if level < levels - 1 and number == 0 else None
    rest = _outside(group, path[4:])
    if rest is None or (path[0] == "down_blocks" and number == _BLOCKS - 1):
        return None
    inner = "0" if group == "resnets" else "1"
    if path[0] == "down_blocks":
        return ("input_blocks", str(1 + level * _BLOCKS + number), inner, *rest)
    return ("output_blocks", str(level * _BLOCKS + number), inner, *rest)


def _outside(group: str, rest: Path) -> Path | None:
    if group == "attentions":
        return rest or None
    return _RESNET_BACK.get(rest[0]) if group == "resnets" and len(rest) == 1 else None
