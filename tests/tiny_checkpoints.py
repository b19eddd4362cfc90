"""Small checkpoints of every family, as single files under LDM's names, with seeded random weights.

The shapes are written down here by themselves, from https://github.com/CompVis/stable-diffusion and https://github.com/mlfoundations/open_clip, so
that a mistake in the trainer's own reading of them cannot hide.
"""
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

Shapes = dict[str, tuple[int, ...]]
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_L, OPEN_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
XL_CLIP_L, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
TELLTALE = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
TOKENS, VOCABULARY = 77, 49408


@dataclass(frozen=True)
class TextPlan:
    """A text encoder; `prefix` says by whose names."""

    prefix: str
    width: int
    layers: int
    hidden: int
    projection: bool = False


@dataclass(frozen=True)
class Plan:
    """A checkpoint. One entry a level in `widths` and `depths` (transformers in a block)."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    blocks: int
    middle_depth: int
    context: int
    linear: bool
    texts: tuple[TextPlan, ...]
    pooled: int = 0
    wide_bias: bool = False


TINY = {
    "SD 1.x": Plan((320, 64), (1, 1), 1, 1, 768, False, (TextPlan(CLIP_L, 768, 2, 256),)),
    "SD 2.x": Plan((320, 64), (1, 1), 1, 1, 1024, True, (TextPlan(OPEN_CLIP, 1024, 3, 256),)),
    "SD 2.x v": Plan((320, 64, 64, 64), (1, 0, 0, 0), 2, 1, 1024, True, (TextPlan(OPEN_CLIP, 1024, 3, 256),), wide_bias=True),
    "SDXL": Plan(
        (320, 64, 64), (0, 1, 2), 1, 2, 2048, True, (TextPlan(XL_CLIP_L, 768, 2, 256), TextPlan(XL_OPEN_CLIP, 1280, 2, 256, True)), 2816
    ),
}


def tiny_checkpoint(path: Path, family: str, *, seed: int = 0) -> None:
    """Write a checkpoint of `family`, one of the names in TINY: 80 to 140 MB, most of it the text encoders' vocabulary."""
    # In 8 bits, as some published checkpoints are: 49408 tokens are needed for the tokenizer's own numbers to fit.
    write_checkpoint(path, TINY[family], seed=seed, vocabulary=torch.float8_e4m3fn)


def write_checkpoint(path: Path, plan: Plan, *, seed: int = 0, vocabulary: torch.dtype = torch.float16) -> None:
    """Write the checkpoint that `plan` describes, in fp16; `vocabulary`: the dtype of the tables of tokens."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(2**22, generator=generator).half()
    tensors = {name: _weight(name, shape, pool, generator, vocabulary) for name, shape in shapes(plan).items()}
    if plan.wide_bias:
        tensors[TELLTALE] = tensors[TELLTALE] * 50
    save_file(tensors, str(path))


def _weight(name: str, shape: tuple[int, ...], pool: torch.Tensor, generator: torch.Generator, vocabulary: torch.dtype) -> torch.Tensor:
    size = torch.Size(shape).numel()
    start = int(torch.randint(pool.numel(), (1,), generator=generator))
    # Drawing hundreds of millions of numbers takes longer than any test: every tensor is cut from the same ones, at a place of its own.
    numbers = torch.cat([pool[start:], pool.repeat(size // pool.numel() + 1)])[:size].reshape(shape)
    if name.endswith("token_embedding.weight"):
        return (numbers * 0.02).to(vocabulary)
    if len(shape) == 1:
        is_scale = name.endswith(".weight")
        return numbers * 0.02 + (1 if is_scale else 0)
    if "position" in name:
        return numbers * 0.01
    fan_in = size // shape[0]
    return numbers * (0.7 / fan_in**0.5)


def shapes(plan: Plan) -> Shapes:
    """Every tensor's shape."""
    found: Shapes = dict(_unet(plan))
    for text in plan.texts:
        found |= dict(_open_clip(text) if text.prefix.endswith(".model.") else _clip(text))
    return found | {VAE + name: shape for name, shape in _vae()}


def _layer(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield name + ".weight", shape
    yield name + ".bias", shape[:1]


def _unet(plan: Plan) -> Iterator[tuple[str, tuple[int, ...]]]:
    base, time = plan.widths[0], plan.widths[0] * 4
    yield from _layer(UNET + "time_embed.0", time, base)
    yield from _layer(UNET + "time_embed.2", time, time)
    if plan.pooled:
        yield from _layer(UNET + "label_emb.0.0", time, plan.pooled)
        yield from _layer(UNET + "label_emb.0.2", time, time)
    yield from _layer(UNET + "input_blocks.0.0", base, 4, 3, 3)
    skips, width, index = [base], base, 1
    for level, (wanted, depth) in enumerate(zip(plan.widths, plan.depths, strict=True)):
        for _ in range(plan.blocks):
            block = f"{UNET}input_blocks.{index}."
            yield from _residual(block + "0.", width, wanted, time)
            yield from _transformers(block + "1.", wanted, depth, plan)
            width = wanted
            skips.append(width)
            index += 1
        if level < len(plan.widths) - 1:
            yield from _layer(f"{UNET}input_blocks.{index}.0.op", width, width, 3, 3)
            skips.append(width)
            index += 1
    yield from _residual(UNET + "middle_block.0.", width, width, time)
    if plan.middle_depth:
        yield from _transformers(UNET + "middle_block.1.", width, plan.middle_depth, plan)
        yield from _residual(UNET + "middle_block.2.", width, width, time)
    index = 0
    for level in reversed(range(len(plan.widths))):
        for number in range(plan.blocks + 1):
            block = f"{UNET}output_blocks.{index}."
            yield from _residual(block + "0.", width + skips.pop(), plan.widths[level], time)
            width = plan.widths[level]
            yield from _transformers(block + "1.", width, plan.depths[level], plan)
            if level and number == plan.blocks:
                yield from _layer(f"{block}{2 if plan.depths[level] else 1}.conv", width, width, 3, 3)
            index += 1
    yield from _layer(UNET + "out.0", base)
    yield from _layer(UNET + "out.2", 4, base, 3, 3)


def _residual(prefix: str, inputs: int, outputs: int, time: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _layer(prefix + "in_layers.0", inputs)
    yield from _layer(prefix + "in_layers.2", outputs, inputs, 3, 3)
    yield from _layer(prefix + "emb_layers.1", outputs, time)
    yield from _layer(prefix + "out_layers.0", outputs)
    yield from _layer(prefix + "out_layers.3", outputs, outputs, 3, 3)
    if inputs != outputs:
        yield from _layer(prefix + "skip_connection", outputs, inputs, 1, 1)


def _transformers(prefix: str, width: int, depth: int, plan: Plan) -> Iterator[tuple[str, tuple[int, ...]]]:
    if not depth:
        return
    square = (width, width) if plan.linear else (width, width, 1, 1)
    yield from _layer(prefix + "norm", width)
    yield from _layer(prefix + "proj_in", *square)
    yield from _layer(prefix + "proj_out", *square)
    for number in range(depth):
        block = f"{prefix}transformer_blocks.{number}."
        for norm in ("norm1", "norm2", "norm3"):
            yield from _layer(block + norm, width)
        for attention, context in (("attn1", width), ("attn2", plan.context)):
            yield f"{block}{attention}.to_q.weight", (width, width)
            yield f"{block}{attention}.to_k.weight", (width, context)
            yield f"{block}{attention}.to_v.weight", (width, context)
            yield from _layer(f"{block}{attention}.to_out.0", width, width)
        yield from _layer(block + "ff.net.0.proj", width * 8, width)
        yield from _layer(block + "ff.net.2", width, width * 4)


def _clip(text: TextPlan) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield text.prefix + "embeddings.token_embedding.weight", (VOCABULARY, text.width)
    yield text.prefix + "embeddings.position_embedding.weight", (TOKENS, text.width)
    yield from _layer(text.prefix + "final_layer_norm", text.width)
    for number in range(text.layers):
        layer = f"{text.prefix}encoder.layers.{number}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _layer(f"{layer}self_attn.{part}", text.width, text.width)
        yield from _layer(layer + "layer_norm1", text.width)
        yield from _layer(layer + "layer_norm2", text.width)
        yield from _layer(layer + "mlp.fc1", text.hidden, text.width)
        yield from _layer(layer + "mlp.fc2", text.width, text.hidden)


def _open_clip(text: TextPlan) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield text.prefix + "token_embedding.weight", (VOCABULARY, text.width)
    yield text.prefix + "positional_embedding", (TOKENS, text.width)
    yield from _layer(text.prefix + "ln_final", text.width)
    if text.projection:
        yield text.prefix + "text_projection", (text.width, text.width)
    for number in range(text.layers):
        layer = f"{text.prefix}transformer.resblocks.{number}."
        yield layer + "attn.in_proj_weight", (text.width * 3, text.width)
        yield layer + "attn.in_proj_bias", (text.width * 3,)
        yield from _layer(layer + "attn.out_proj", text.width, text.width)
        yield from _layer(layer + "ln_1", text.width)
        yield from _layer(layer + "ln_2", text.width)
        yield from _layer(layer + "mlp.c_fc", text.hidden, text.width)
        yield from _layer(layer + "mlp.c_proj", text.width, text.hidden)


def _vae(width: int = 32, levels: int = 4) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _layer("encoder.conv_in", width, 3, 3, 3)
    yield from _layer("decoder.conv_in", width, 4, 3, 3)
    for side, way, blocks, scaling in (("encoder", "down", 2, "downsample"), ("decoder", "up", 3, "upsample")):
        for level in range(levels):
            for block in range(blocks):
                yield from _vae_block(f"{side}.{way}.{level}.block.{block}.", width)
            if level != (levels - 1 if way == "down" else 0):
                yield from _layer(f"{side}.{way}.{level}.{scaling}.conv", width, width, 3, 3)
        yield from _vae_block(f"{side}.mid.block_1.", width)
        yield from _layer(f"{side}.mid.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            yield from _layer(f"{side}.mid.attn_1.{part}", width, width, 1, 1)
        yield from _vae_block(f"{side}.mid.block_2.", width)
        yield from _layer(f"{side}.norm_out", width)
    yield from _layer("encoder.conv_out", 8, width, 3, 3)
    yield from _layer("decoder.conv_out", 3, width, 3, 3)
    yield from _layer("quant_conv", 8, 8, 1, 1)
    yield from _layer("post_quant_conv", 4, 4, 1, 1)


def _vae_block(prefix: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for number in (1, 2):
        yield from _layer(f"{prefix}norm{number}", width)
        yield from _layer(f"{prefix}conv{number}", width, width, 3, 3)
