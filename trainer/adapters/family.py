"""Which family of models an adapter was made for, from the names and shapes of its layers."""
import re
from collections.abc import Iterable, Mapping

from .layers import Layer, Shapes, layer_size

STABLE_DIFFUSION = frozenset({"SD 1.x", "SD 2.x", "SDXL"})
"""The families whose layers have kohya's names as their canonical keys."""

READS_TEXT = ("attn2_to_k", "attn2_to_v")
"""How keys of layers end that read the text encoders' output."""

_BY_CONTEXT = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "SDXL refiner"}
_BY_TEXT_WIDTH = {768: "SD 1.x", 1024: "SD 2.x"}
# Read in this order: Hunyuan Video has all that Flux has.
_BY_NAME = (
    (re.compile(r"individual_token_refiner|double_blocks_19_|single_blocks_3[89]_"), "Hunyuan Video"),
    (re.compile(r"(?:^|_)(?:double_blocks|single_blocks|single_transformer_blocks)_\d"), "Flux"),
    (re.compile(r"(?:^|_)joint_blocks_\d"), "SD3"),
    (re.compile(r"(?:^|_)transformer_blocks_\d+_(?:img|txt)_(?:mlp|mod)_"), "Qwen Image"),
    (re.compile(r"(?:diffusion_model|lora_unet_?|transformer)_blocks_\d+_(?:self|cross)_attn_(?:[qkv]|output)_proj"), "Cosmos"),
    (re.compile(r"(?:diffusion_model|lora_unet_?|transformer)_blocks_\d+_(?:self|cross)_attn_(?:[qkvo]|[kv]_img)$"), "Wan"),
    (re.compile(r"^lora_prior_(?:unet|te)_"), "Stable Cascade"),
)
# Of models whose layers are called as Flux's are.
_BY_STREAM_WIDTH = {6144: "FLUX.2", 3584: "Hunyuan Image"}
_TRANSFORMER = re.compile(r"^(?:lora_|lycoris_)?(?:transformer_)?transformer_blocks_\d+_attn_to_[qkv]$")
_TRANSFORMER_WIDTHS = {1536: "SD3", 2432: "SD3"}
_DEEP = re.compile(r"^lora_unet_(?:down|mid|up|input|middle|output)_block.*transformer_blocks_[1-9]")
_SHALLOW = re.compile(r"^lora_unet_(?:down_blocks_0_attentions|up_blocks_3_|input_blocks_1_1_)")
# What tools write into ss_base_model_version and modelspec.architecture, without punctuation.
_BY_METADATA = (
    (re.compile(r"^(?:sdxl|stablediffusionxl|pony|illustrious|noobai)"), "SDXL"),
    (re.compile(r"^(?:sdv?1|stablediffusionv1)"), "SD 1.x"),
    (re.compile(r"^(?:sdv?2|stablediffusionv2)"), "SD 2.x"),
    (re.compile(r"^flux"), "Flux"),
    (re.compile(r"^(?:sd3|stablediffusion3)"), "SD3"),
)


def family_of(layers: Mapping[str, Shapes], metadata: Mapping[str, str]) -> str | None:
    """The family; None where nothing tells. `layers`: shapes without a `layer_problem`, by their keys.

    Widths of cross-attention inputs count first, then what else is in one family only; the file's metadata, which anyone can write, last.
    """
    names = {key: key.replace(".", "_") for key in layers}
    for pattern, family in _BY_NAME:
        if any(pattern.search(name) for name in names.values()):
            widths = _inputs(layers, layers) & _BY_STREAM_WIDTH.keys() if family in ("Flux", "Hunyuan Video") else set()
            return _BY_STREAM_WIDTH[widths.pop()] if len(widths) == 1 else family
    widths = _inputs(layers, (key for key, name in names.items() if _TRANSFORMER.match(name)))
    if widths & _TRANSFORMER_WIDTHS.keys():
        return _TRANSFORMER_WIDTHS[(widths & _TRANSFORMER_WIDTHS.keys()).pop()]
    context = _inputs(layers, (key for key in layers if key.endswith(READS_TEXT)))
    if len(context) == 1:
        family = _BY_CONTEXT.get(next(iter(context)), "")
        if family:
            return family
    return _by_structure(layers) or _by_metadata(metadata)


def text_widths(layers: Mapping[str, Layer]) -> frozenset[int]:
    """How wide the texts are that an adapter's layers read: shapes, which unlike names tell models apart for certain. Empty: none reads any."""
    shapes = {key: {suffix: tuple(tensor.shape) for suffix, tensor in layer.items()} for key, layer in layers.items() if key.endswith(READS_TEXT)}
    return frozenset(_inputs(shapes, shapes))


def _inputs(layers: Mapping[str, Shapes], keys: Iterable[str]) -> set[int]:
    return {width for key in keys if (width := layer_size(layers[key])[1])}


def _by_structure(layers: Mapping[str, Shapes]) -> str | None:
    if any(key.startswith("lora_te2_text_model_") or _DEEP.match(key) for key in layers):
        return "SDXL"
    # kohya's SDXL files say lora_te1 for the encoder that has SD 1.x's width.
    text = _inputs(layers, (key for key in layers if re.match(r"lora_te_.*_(?:[qkv]_proj|out_proj|fc1)$", key)))
    if len(text) == 1 and (family := _BY_TEXT_WIDTH.get(next(iter(text)))):
        return family
    if any(_SHALLOW.match(key) for key in layers):
        # SD 1.x projects into its transformers by 1x1 convolutions, SD 2.x by matrices.
        kernels = {len(shapes["lora_down.weight"]) for key, shapes in layers.items() if key.endswith("_proj_in") and "lora_down.weight" in shapes}
        return {4: "SD 1.x", 2: "SD 2.x"}.get(kernels.pop()) if len(kernels) == 1 else None
    return None


def _by_metadata(metadata: Mapping[str, str]) -> str | None:
    for name in ("ss_base_model_version", "modelspec.architecture"):
        said = re.sub(r"[^a-z0-9]", "", metadata.get(name, "")[:100].lower())
        for pattern, family in _BY_METADATA:
            if pattern.match(said):
                return family
    return None
