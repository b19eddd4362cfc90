"""Which family a checkpoint belongs to, from its header alone. Agrees with ComfyUI's own detection where both know a family."""
from dataclasses import dataclass
from pathlib import Path

from ..adapters.files import FileError, Header, read_header

UNET = "model.diffusion_model."
VAE = "first_stage_model."
SIZE_WIDTH = 6 * 256
"""SDXL's six sizes as sinusoids (https://arxiv.org/abs/2307.01952, section 2.2)."""

_CLIP_L = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")
_OPEN_CLIP_H = ("cond_stage_model.model.", "conditioner.embedders.0.model.")
_SDXL_CLIP_L = ("conditioner.embedders.0.transformer.text_model.",)
_OPEN_CLIP_G = ("conditioner.embedders.1.model.",)


class FamilyError(ValueError):
    """The checkpoint cannot be trained on. The message names the family that it is."""


@dataclass(frozen=True)
class UNetShape:
    """The UNet's plan, read from tensor shapes, so that distilled variants load as well.

    One entry a level in `widths` (channels) and `depths` (transformers in each block, 0: none). `middle`: whether there is a middle block;
    `middle_depth`: transformers in it. `head_width`: channels of an attention head, None where each layer has 8 heads. `pooled_width`: of
    the pooled text and sizes that are added to the timestep's embedding, 0: none.
    """

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    blocks_per_level: int
    context_width: int
    middle: bool
    middle_depth: int
    linear_projection: bool
    head_width: int | None
    pooled_width: int


@dataclass(frozen=True)
class TextShape:
    """A text encoder's plan. `open_clip`: named and built as OpenCLIP does, otherwise as CLIP-L in transformers."""

    prefix: str
    open_clip: bool
    layers: int
    width: int
    hidden: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be trained on, as its header describes it. `texts`: SDXL has two text encoders, CLIP-L first."""

    family: str
    unet: UNetShape
    texts: tuple[TextShape, ...]
    has_vae: bool
    header: Header


@dataclass(frozen=True)
class _Plan:
    """What a family's checkpoints have in common: `texts` are the prefixes and the name of each text encoder."""

    linear_projection: bool
    head_width: int | None
    pooled: bool
    texts: tuple[tuple[tuple[str, ...], str], ...]


_PLANS = {
    "SD 1.x": _Plan(False, None, False, ((_CLIP_L, "CLIP-L"),)),
    "SD 2.x": _Plan(True, 64, False, ((_OPEN_CLIP_H, "OpenCLIP ViT-H"),)),
    "SDXL": _Plan(True, 64, True, ((_SDXL_CLIP_L, "CLIP-L"), (_OPEN_CLIP_G, "OpenCLIP ViT-bigG"))),
}
_BY_CONTEXT = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}
_UNKNOWN = "a UNet of a family that LoRA Loom does not know"
# Each: a tensor that only this family has, and the name people know it by. Told apart for the sake of the error's wording.
_FOREIGN = (
    ("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight", "Stable Diffusion 3"),
    ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "Flux"),
    ("double_blocks.0.img_attn.qkv.weight", "Flux (diffusion model alone)"),
    ("transformer_blocks.0.attn.norm_added_q.weight", "Qwen Image or another diffusion transformer"),
    ("model.diffusion_model.time_stack.0.norm1.weight", "Stable Video Diffusion"),
    ("model.diffusion_model.input_blocks.1.1.time_stack.0.attn1.to_q.weight", "Stable Video Diffusion"),
    ("edm_mean", "Playground 2.5, an SDXL trained on another noise schedule"),
    ("edm_vpred.sigma_max", "an SDXL trained on another noise schedule (EDM)"),
    ("text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder alone"),
    ("decoder.conv_in.weight", "a VAE alone"),
    ("down_blocks.0.resnets.0.conv1.weight", "a diffusers UNet alone"),
    ("input_blocks.0.0.weight", "a UNet alone"),
)


def describe_checkpoint(path: Path) -> Checkpoint:
    """Read the header of `path` and say what it is.

    Raises:
        FileError: the file cannot be read as safetensors.
        FamilyError: it is not a checkpoint, one that is not whole, or one of a family that cannot be trained.
    """
    header = read_header(path)
    name = path.name
    family = _family(header)
    if family not in _PLANS:
        raise FamilyError(f"{name} is {family}. LoRA Loom trains on SD 1.x, SD 2.x and SDXL checkpoints: choose one of those.")
    plan = _PLANS[family]
    try:
        unet = _unet_shape(header, name, plan)
    except KeyError as error:
        raise FamilyError(f"{name} is not a whole checkpoint: the tensor {error.args[0]} is missing. Download it again.") from error
    if unet.in_channels != 4:
        kind = {9: f"an {family} inpainting checkpoint", 8: "an InstructPix2Pix checkpoint"}.get(
            unet.in_channels, f"an {family} variant with {unet.in_channels} input channels"
        )
        raise FamilyError(f"{name} is {kind}; LoRA Loom trains on plain text-to-image {family} checkpoints: choose the one it was made from.")
    return Checkpoint(family, unet, _text_shapes(header, name, plan, unet), header.has(VAE + "encoder.conv_in.weight"), header)


def _family(header: Header) -> str:
    if any(name.endswith((".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".hada_w1_a", ".lokr_w1")) for name in header.tensors):
        return "a LoRA, not a checkpoint"
    for name, family in _FOREIGN:
        if name in header.tensors:
            return family
    if UNET + "input_blocks.0.0.weight" not in header.tensors:
        return "not a Stable Diffusion checkpoint (no model.diffusion_model.input_blocks in it)"
    contexts = {e.shape[1] for n, e in header.tensors.items() if n.startswith(UNET) and n.endswith("attn2.to_k.weight")}
    if contexts == {1280}:
        return "the SDXL refiner, which draws no pictures by itself"
    if header.shape(UNET + "input_blocks.0.0.weight")[0] != 320 or len(contexts) != 1:
        return _UNKNOWN
    family = _BY_CONTEXT.get(contexts.pop(), _UNKNOWN)
    pooled = header.has(UNET + "label_emb.0.0.weight")
    if family == "SD 2.x" and pooled:
        return "SD 2.1 unCLIP, which is conditioned on pictures"
    linear = {len(e.shape) == 2 for n, e in header.tensors.items() if n.startswith(UNET) and n.endswith("1.proj_in.weight")}
    return family if family in _PLANS and linear <= {_PLANS[family].linear_projection} and pooled == _PLANS[family].pooled else _UNKNOWN


def _unet_shape(header: Header, name: str, plan: _Plan) -> UNetShape:
    """Raises FamilyError for a plan that diffusers cannot build, KeyError with the name of a tensor that is missing."""
    base = header.shape(UNET + "input_blocks.0.0.weight")
    widths: list[int] = []
    levels: list[list[int]] = [[]]
    index, width = 1, base[0]
    while True:
        block = f"{UNET}input_blocks.{index}."
        if header.has(block + "0.op.weight"):
            widths.append(width)
            levels.append([])
        elif header.has(block + "0.in_layers.0.weight"):
            width = header.shape(block + "0.out_layers.3.weight")[0]
            levels[-1].append(_depth(header, block + "1."))
        else:
            break
        index += 1
    widths.append(width)
    blocks = len(levels[0])
    up = [_depth(header, f"{UNET}output_blocks.{i}.1.") for i in range(index) if header.has(f"{UNET}output_blocks.{i}.0.in_layers.0.weight")]
    mirrored = [level[0] for level in reversed(levels) for _ in range(blocks + 1)] if blocks and all(levels) else []
    middle, middle_depth = header.has(UNET + "middle_block.0.in_layers.0.weight"), _depth(header, UNET + "middle_block.1.")
    uneven = any(len(level) != blocks or len(set(level)) != 1 for level in levels) or bool(up and up != mirrored)
    if uneven or (middle_depth and levels[-1][0] and levels[-1][0] != middle_depth):
        raise FamilyError(
            f"{name} has a UNet whose blocks differ within a level (transformers on the way down {levels}, in the middle {middle_depth}, on the "
            f"way up {up}), as distilled models such as SSD-1B have: LoRA Loom cannot build it. Choose the checkpoint it was distilled from."
        )
    return UNetShape(
        in_channels=base[1],
        out_channels=header.shape(UNET + "out.2.weight")[0],
        widths=tuple(widths),
        depths=tuple(level[0] for level in levels),
        blocks_per_level=blocks,
        context_width=next(e.shape[1] for n, e in header.tensors.items() if n.startswith(UNET) and n.endswith("attn2.to_k.weight")),
        middle=middle,
        middle_depth=middle_depth,
        linear_projection=plan.linear_projection,
        head_width=plan.head_width,
        pooled_width=header.shape(UNET + "label_emb.0.0.weight")[1] if plan.pooled else 0,
    )


def _depth(header: Header, prefix: str) -> int:
    depth = 0
    while header.has(f"{prefix}transformer_blocks.{depth}.attn2.to_k.weight"):
        depth += 1
    return depth


def _text_shapes(header: Header, name: str, plan: _Plan, unet: UNetShape) -> tuple[TextShape, ...]:
    shapes = []
    for prefixes, label in plan.texts:
        found = next((shape for prefix in prefixes if (shape := _text_shape(header, prefix)) is not None), None)
        if found is None:
            raise FamilyError(f"{name} holds no {label} text encoder ({prefixes[0]}*): choose a complete checkpoint.")
        shapes.append(found)
    width = sum(shape.width for shape in shapes)
    pooled = shapes[-1].width + SIZE_WIDTH if plan.pooled else 0
    if width != unet.context_width or pooled != unet.pooled_width:
        raise FamilyError(
            f"{name} has text encoders that do not fit its UNet (they give {width} numbers a token, the UNet takes {unet.context_width}): choose "
            "a complete checkpoint."
        )
    return tuple(shapes)


def _text_shape(header: Header, prefix: str) -> TextShape | None:
    open_clip = prefix.endswith(".model.")
    token = prefix + ("token_embedding.weight" if open_clip else "embeddings.token_embedding.weight")
    first = prefix + ("transformer.resblocks.{}.mlp.c_fc.weight" if open_clip else "encoder.layers.{}.mlp.fc1.weight")
    layers = 0
    while header.has(first.format(layers)):
        layers += 1
    if not layers or token not in header.tensors:
        return None
    return TextShape(prefix, open_clip, layers, header.shape(token)[1], header.shape(first.format(0))[0])


def check_vae(path: Path) -> None:
    """Check that `path` is a VAE that these families can use: 4 latent channels, LDM or diffusers names.

    Raises:
        FileError: unreadable, or something else; the message says what.
    """
    header = read_header(path)
    for prefix in ("", VAE):
        weight = header.tensors.get(prefix + "decoder.conv_in.weight")
        if weight is not None and header.has(prefix + "encoder.conv_in.weight"):
            if weight.shape[1] != 4:
                raise FileError(f"{path.name} is a VAE with {weight.shape[1]} latent channels; SD 1.x, SD 2.x and SDXL need one with 4.")
            return
    raise FileError(f"{path.name} is not a VAE (no encoder.conv_in and decoder.conv_in in it): choose a VAE file.")
