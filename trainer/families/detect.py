"""Which family a checkpoint belongs to, from its header alone. Agrees with ComfyUI's own detection where both know a family."""
from dataclasses import dataclass
from pathlib import Path

from ..adapters.files import FileError, Header, read_header

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP_L = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")


class FamilyError(ValueError):
    """The checkpoint cannot be trained on. The message names the family that it is."""


@dataclass(frozen=True)
class UNetShape:
    """The UNet's plan, read from tensor shapes, so that distilled variants load as well.

    One entry a level in `widths` (channels) and `attention` (whether the level has transformers); `middle`: whether there is a
    middle block.
    """

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    blocks_per_level: int
    context_width: int
    middle: bool


@dataclass(frozen=True)
class ClipShape:
    """The text encoder's plan."""

    prefix: str
    layers: int
    width: int
    hidden: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be trained on, as its header describes it."""

    family: str
    unet: UNetShape
    text: ClipShape
    has_vae: bool
    header: Header


# Each: a tensor that only this family has, and the name people know it by. Told apart for the sake of the error's wording.
_FOREIGN = (
    ("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight", "Stable Diffusion 3"),
    ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "Flux"),
    ("double_blocks.0.img_attn.qkv.weight", "Flux (diffusion model alone)"),
    ("transformer_blocks.0.attn.norm_added_q.weight", "Qwen Image or another diffusion transformer"),
    ("conditioner.embedders.1.model.ln_final.weight", "SDXL"),
    ("model.diffusion_model.label_emb.0.0.weight", "SDXL or another UNet with pooled conditioning"),
    ("model.diffusion_model.time_stack.0.norm1.weight", "Stable Video Diffusion"),
    ("text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder alone"),
    ("decoder.conv_in.weight", "a VAE alone"),
    ("down_blocks.0.resnets.0.conv1.weight", "a diffusers UNet alone"),
    ("input_blocks.0.0.weight", "a UNet alone"),
)


def describe_checkpoint(path: Path) -> Checkpoint:
    """Read the header of `path` and say what it is.

    Raises:
        FileError: the file cannot be read as safetensors.
        FamilyError: it is not a checkpoint, or one of a family that cannot be trained yet.
    """
    header = read_header(path)
    name = path.name
    family = _family(header)
    if family != "SD 1.x":
        raise FamilyError(f"{name} is {family}. LoRA Loom trains on SD 1.x checkpoints so far: choose one of those.")
    try:
        unet = unet_shape(header, name)
    except KeyError as error:
        raise FamilyError(f"{name} is not a whole checkpoint: the tensor {error.args[0]} is missing. Download it again.") from error
    if unet.in_channels != 4:
        kind = {9: "an SD 1.x inpainting checkpoint", 8: "an InstructPix2Pix checkpoint"}.get(
            unet.in_channels, f"an SD 1.x variant with {unet.in_channels} input channels"
        )
        raise FamilyError(f"{name} is {kind}; LoRA Loom trains on plain text-to-image SD 1.x checkpoints: choose the one it was made from.")
    text = _clip_shape(header)
    if text is None:
        raise FamilyError(f"{name} holds no CLIP-L text encoder (cond_stage_model.*): choose a complete checkpoint.")
    return Checkpoint(family, unet, text, header.has(VAE + "encoder.conv_in.weight"), header)


def _family(header: Header) -> str:
    if any(name.endswith((".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".hada_w1_a", ".lokr_w1")) for name in header.tensors):
        return "a LoRA, not a checkpoint"
    for name, family in _FOREIGN:
        if name in header.tensors:
            return family
    if UNET + "input_blocks.0.0.weight" not in header.tensors:
        return "not a Stable Diffusion checkpoint (no model.diffusion_model.input_blocks in it)"
    context = {e.shape[1] for n, e in header.tensors.items() if n.startswith(UNET) and n.endswith("attn2.to_k.weight")}
    if header.shape(UNET + "input_blocks.0.0.weight")[0] != 320 or len(context) != 1:
        return "a UNet of a family that LoRA Loom does not know"
    return {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "SDXL refiner"}.get(
        context.pop(), "a UNet of a family that LoRA Loom does not know"
    )


def unet_shape(header: Header, name: str) -> UNetShape:
    """The UNet's plan from the shapes under `model.diffusion_model.`. Raises FamilyError for a plan that diffusers cannot build."""
    base = header.shape(UNET + "input_blocks.0.0.weight")
    widths: list[int] = []
    attention: list[list[bool]] = []
    index, width = 1, base[0]
    attention.append([])
    while True:
        block = f"{UNET}input_blocks.{index}."
        if header.has(block + "0.op.weight"):
            widths.append(width)
            attention.append([])
        elif header.has(block + "0.in_layers.0.weight"):
            width = header.shape(block + "0.out_layers.3.weight")[0]
            attention[-1].append(header.has(block + "1.transformer_blocks.0.attn2.to_k.weight"))
        else:
            break
        index += 1
    widths.append(width)
    per_level = {len(level) for level in attention}
    uneven = any(len(set(level)) > 1 for level in attention)
    if len(per_level) != 1 or uneven or 0 in per_level:
        raise FamilyError(f"{name} has a UNet whose levels differ in their blocks ({attention}): no trainer library can build it.")
    if any(n.startswith(f"{UNET}input_blocks.") and ".1.transformer_blocks.1." in n for n in header.tensors):
        raise FamilyError(f"{name} has more than one transformer in a block, which SD 1.x has not: it is another family.")
    context = next(e.shape[1] for n, e in header.tensors.items() if n.startswith(UNET) and n.endswith("attn2.to_k.weight"))
    return UNetShape(
        in_channels=base[1],
        out_channels=header.shape(UNET + "out.2.weight")[0],
        widths=tuple(widths),
        attention=tuple(level[0] for level in attention),
        blocks_per_level=per_level.pop(),
        context_width=context,
        middle=header.has(UNET + "middle_block.0.in_layers.0.weight"),
    )


def _clip_shape(header: Header) -> ClipShape | None:
    for prefix in CLIP_L:
        token = prefix + "embeddings.token_embedding.weight"
        if token in header.tensors:
            layers = 0
            while header.has(f"{prefix}encoder.layers.{layers}.mlp.fc1.weight"):
                layers += 1
            if layers:
                return ClipShape(prefix, layers, header.shape(token)[1], header.shape(f"{prefix}encoder.layers.0.mlp.fc1.weight")[0])
    return None


def check_vae(path: Path) -> None:
    """Check that `path` is a VAE that SD 1.x can use: 4 latent channels, LDM or diffusers names.

    Raises:
        FileError: unreadable, or something else; the message says what.
    """
    header = read_header(path)
    for prefix in ("", VAE):
        weight = header.tensors.get(prefix + "decoder.conv_in.weight")
        if weight is not None and header.has(prefix + "encoder.conv_in.weight"):
            if weight.shape[1] != 4:
                raise FileError(f"{path.name} is a VAE with {weight.shape[1]} latent channels; SD 1.x needs one with 4.")
            return
    raise FileError(f"{path.name} is not a VAE (no encoder.conv_in and decoder.conv_in in it): choose a VAE file.")
