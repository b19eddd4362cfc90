"""Build the mini base: a small, real, text-conditioned SD 1.x checkpoint in ComfyUI's single-file layout.

    python demo/mini_base/build.py OUT.safetensors [--blocks]

It exists so that tests and the demo can train and *see* something without downloading a model. One fp16 file of 487 MB, the same bytes on
every machine, with the three parts under the names that ComfyUI detects SD 1.5 by:

`model.diffusion_model.`         UNet, 36.7 M weights: 320 channels throughout, two levels, text attention (768 wide) at the lower level and
                                 in the middle. Latents [n, 4, 16, 16] for a picture of 128x128. Trained; kept here as int8 rows.
`cond_stage_model.transformer.`  CLIP-L text encoder, 12 layers of 768, 77 tokens out of 49408. Untrained: each weight is drawn from a
                                 generator seeded by its own name. The UNet was trained against exactly this encoder.
`first_stage_model.`             AutoencoderKL (128, 256, 512, 512 channels), wired by hand to average 8x8 blocks: a latent holds the R, G, B and
                                 luma of its block. The decoder's first channels hold a small trained network that draws the icon's shapes from
                                 those blocks; with `--blocks` it is left out, and images are the blocks themselves, as 16x16 pixel art.

Credit: UNet and decoder learned from Twemoji graphics, CC-BY 4.0, https://github.com/jdecked/twemoji. See README.md beside this file.
"""

import argparse
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]
Layers = Iterator[tuple[str, tuple[int, ...]]]  # name of a layer, shape of its weight; one number means a norm

STORED_UNET = Path(__file__).resolve().with_name("unet_int8.safetensors")
STORED_DECODER = Path(__file__).resolve().with_name("decoder.safetensors")


def build(out: Path, blocks: bool = False) -> None:
    """Write the checkpoint to `out`, whole or not at all. Its folder must exist. `blocks`: with the VAE whose decoder undoes its encoder."""
    if not out.parent.is_dir():
        raise FileNotFoundError(f"cannot write {out}: there is no folder {out.parent}")
    # Not named .safetensors, so that a ComfyUI looking at the folder meanwhile does not offer half a file.
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        save_file(checkpoint(blocks), temporary)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)  # safetensors leaves 0600, which a ComfyUI of another user cannot read
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def checkpoint(blocks: bool = False) -> State:
    """All tensors of the mini base, fp16, under their full names; `blocks` as in `build`."""
    parts = {
        "model.diffusion_model.": trained_unet(STORED_UNET),
        "cond_stage_model.transformer.": name_seeded_clip_l(),
        "first_stage_model.": block_average_vae() if blocks else icon_vae(STORED_DECODER),
    }
    return {prefix + name: tensor.half().contiguous() for prefix, part in parts.items() for name, tensor in part.items()}


# --- UNet -----------------------------------------------------------------------------------------------------------------------------


def trained_unet(stored: Path) -> State:
    """Undo the int8 storage: a row of a weight is its int8 values times one fp16 `<name>.scale`. Norms and biases are stored plainly."""
    tensors = load_file(stored)
    scales = {name.removesuffix(".scale"): tensors.pop(name) for name in list(tensors) if name.endswith(".scale")}
    for name, scale in scales.items():
        rows = tensors[name]
        tensors[name] = rows.float() * scale.float().view(-1, *[1] * (rows.dim() - 1))
    return tensors


# --- text encoder ---------------------------------------------------------------------------------------------------------------------


def name_seeded_clip_l() -> State:
    """CLIP-L whose weights depend on nothing but their names.

    It understands nothing, but it gives every prompt an embedding of its own, and the UNet was trained on those. Queries, keys and values
    keep their input's scale; what goes back into the stream shrinks with the number of layers, so that the sum does not grow with depth.
    """
    width, hidden, depth = 768, 3072, 12
    keep, whisper = width**-0.5, 0.02 * (2 * depth) ** -0.5
    weights: dict[str, tuple[tuple[int, int], float]] = {  # layer: (shape, standard deviation)
        "self_attn.q_proj": ((width, width), keep),
        "self_attn.k_proj": ((width, width), keep),
        "self_attn.v_proj": ((width, width), keep),
        "self_attn.out_proj": ((width, width), whisper),
        "mlp.fc1": ((hidden, width), 0.02),
        "mlp.fc2": ((width, hidden), whisper),
    }
    state = {
        name: normal_from_name(name, shape, deviation)
        for name, shape, deviation in (
            ("text_model.embeddings.token_embedding.weight", (49408, width), 0.05),
            ("text_model.embeddings.position_embedding.weight", (77, width), 0.02),
        )
    }
    norms = ["text_model.final_layer_norm"]
    for number in range(depth):
        block = f"text_model.encoder.layers.{number}"
        norms += [f"{block}.layer_norm1", f"{block}.layer_norm2"]
        for layer, (shape, deviation) in weights.items():
            name = f"{block}.{layer}.weight"
            state[name] = normal_from_name(name, shape, deviation)
            state[f"{block}.{layer}.bias"] = torch.zeros(shape[0])
    for norm in norms:
        state[f"{norm}.weight"], state[f"{norm}.bias"] = torch.ones(width), torch.zeros(width)
    return state


def normal_from_name(name: str, shape: tuple[int, int], deviation: float) -> torch.Tensor:
    """Normal fp16 noise seeded by the crc32 of `name`. NumPy's RandomState because its stream is frozen, on every platform, for good."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy((noise * deviation).astype(np.float16))


# --- VAE ------------------------------------------------------------------------------------------------------------------------------

GAIN = 7.0  # latent = GAIN * block mean of pixels in [-1, 1]; after SD's factor 0.18215 the data's standard deviation is near 0.75
CARRIER = 8.0  # far above any signal, so that it alone sets the variance that group norm divides by
SILU_SHIFT = 8.0  # SiLU(x) is x to within 0.01 here and around
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def block_average_vae() -> State:
    """AutoencoderKL as a linear codec: pixels to 8x8 block means of R, G, B and luma, and R, G, B back to pixels.

    Residual blocks and attention have zero weights, so they pass their input on. What is left on the way that is not linear is a group norm
    and a SiLU before each half's last convolution. Both are tamed by sending each signal s as a quad of channels (s, -s, +c, -c), with c
    the carrier, one quad to a norm group. Its mean is zero and c sets its variance, so the norm divides by a constant, which its weight
    undoes; its bias lifts s and -s to where SiLU is straight; half their difference is s again.
    """
    state: State = {}
    for layer, shape in vae_layers():
        state[f"{layer}.weight"] = torch.ones(shape) if len(shape) == 1 else torch.zeros(shape)
        state[f"{layer}.bias"] = torch.zeros(shape[0])

    def pass_on(layer: str, channels: int) -> None:
        weight = state[f"{layer}.weight"]
        middle = weight.shape[-1] // 2
        weight[:channels, :channels, middle, middle] = torch.eye(channels)

    def to_quads(layer: str, mix: torch.Tensor) -> None:
        """Signal n becomes channels 4n to 4n + 3; `mix` is [signals, input channels]."""
        weight, bias, end = state[f"{layer}.weight"], state[f"{layer}.bias"], 4 * len(mix)
        weight[0:end:4, :, 1, 1], weight[1:end:4, :, 1, 1] = mix, -mix
        bias[2:end:4], bias[3:end:4] = CARRIER, -CARRIER

    def from_quads(half: str, signals: int, group: int, gain: float) -> None:
        """Read each signal off its quad, the first four of `group` channels, through the half's last norm and convolution."""
        state[f"{half}.norm_out.weight"].fill_((2 * CARRIER**2 / group) ** 0.5)
        state[f"{half}.norm_out.bias"].fill_(SILU_SHIFT)
        for signal in range(signals):
            state[f"{half}.conv_out.weight"][signal, group * signal : group * signal + 2, 1, 1] = torch.tensor([gain / 2, -gain / 2])

    to_quads("encoder.conv_in", torch.cat([torch.eye(3), torch.tensor([LUMA])]))
    pass_on("encoder.down.1.block.0.nin_shortcut", 16)
    channel = torch.arange(16)  # at 512 channels a norm group is 16 wide, so the quads move apart
    state["encoder.down.2.block.0.nin_shortcut.weight"][channel // 4 * 16 + channel % 4, channel, 0, 0] = 1.0
    for level in range(3):  # stride 2, padded on the right and below: the upper left 2x2 of the kernel is the block
        every = torch.arange(64)
        state[f"encoder.down.{level}.downsample.conv.weight"][every, every, :2, :2] = 0.25
    from_quads("encoder", signals=4, group=16, gain=GAIN)
    state["encoder.conv_out.bias"][4:] = -30.0  # log variance: encoding the same picture twice gives the same latent
    pass_on("quant_conv", 8)

    pass_on("post_quant_conv", 4)
    to_quads("decoder.conv_in", torch.eye(3, 4) / GAIN)  # luma is redundant; it is there to fill SD's fourth latent channel
    for level in (3, 2, 1):
        pass_on(f"decoder.up.{level}.upsample.conv", 16)
    for level in (1, 0):
        pass_on(f"decoder.up.{level}.block.0.nin_shortcut", 16)
    from_quads("decoder", signals=3, group=4, gain=1.0)
    return state


def icon_vae(stored: Path) -> State:
    """The same encoder, with a decoder that was trained to draw icons from what it gives.

    The network is slim (1.9 M weights; 96, 64 and 32 channels where SD's decoder has 512, 256 and 128) and lies in the first channels of each
    layer, which are whole norm groups in both. All other channels are zero.
    """
    state = block_average_vae()
    for name, tensor in load_file(stored).items():
        state[f"decoder.{name}"][tuple(slice(length) for length in tensor.shape)] = tensor.float()
    return state


def vae_layers() -> Layers:
    """Every layer of SD's AutoencoderKL in LDM's names; widths 128, 256, 512, 512 from the finest level to the coarsest."""
    widths, latent = (128, 256, 512, 512), 4

    yield "encoder.conv_in", (widths[0], 3, 3, 3)
    for level, (before, width) in enumerate(zip((widths[0], *widths[:-1]), widths, strict=True)):
        yield from residual(f"encoder.down.{level}.block.0", before, width)
        yield from residual(f"encoder.down.{level}.block.1", width, width)
        if level < 3:
            yield f"encoder.down.{level}.downsample.conv", (width, width, 3, 3)
    yield "encoder.conv_out", (2 * latent, widths[-1], 3, 3)  # mean and log variance
    yield "quant_conv", (2 * latent, 2 * latent, 1, 1)

    yield "post_quant_conv", (latent, latent, 1, 1)
    yield "decoder.conv_in", (widths[-1], latent, 3, 3)
    for level, (width, before) in enumerate(zip(widths, (*widths[1:], widths[-1]), strict=True)):
        yield from residual(f"decoder.up.{level}.block.0", before, width)
        yield from residual(f"decoder.up.{level}.block.1", width, width)
        yield from residual(f"decoder.up.{level}.block.2", width, width)
        if level > 0:
            yield f"decoder.up.{level}.upsample.conv", (width, width, 3, 3)
    yield "decoder.conv_out", (3, widths[0], 3, 3)

    for half, last in (("encoder", widths[-1]), ("decoder", widths[0])):
        yield from residual(f"{half}.mid.block_1", widths[-1], widths[-1])
        yield f"{half}.mid.attn_1.norm", (widths[-1],)
        for projection in ("q", "k", "v", "proj_out"):
            yield f"{half}.mid.attn_1.{projection}", (widths[-1], widths[-1], 1, 1)
        yield from residual(f"{half}.mid.block_2", widths[-1], widths[-1])
        yield f"{half}.norm_out", (last,)


def residual(block: str, before: int, after: int) -> Layers:
    yield f"{block}.norm1", (before,)
    yield f"{block}.conv1", (after, before, 3, 3)
    yield f"{block}.norm2", (after,)
    yield f"{block}.conv2", (after, after, 3, 3)
    if before != after:
        yield f"{block}.nin_shortcut", (after, before, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the mini base: a small SD 1.x checkpoint for tests and the demo (487 MB).")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors", help="e.g. ComfyUI/models/checkpoints/mini_base.safetensors")
    parser.add_argument("--blocks", action="store_true", help="images as 16x16 blocks, which encode to the same latents again")
    arguments = parser.parse_args()
    build(arguments.out, arguments.blocks)


if __name__ == "__main__":
    main()
