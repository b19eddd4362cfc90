"""Stable Diffusion 1.x (https://arxiv.org/abs/2112.10752): loading a single file offline, encoding, predicting, naming, sampling.

The UNet's plan comes from the header (`detect.UNetShape`), so distilled variants load too. Nothing is fetched: the configs are built
here, the tokenizer's vocabulary is a local folder.
"""
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..options import Prediction
from ..spec import Base
from ..typed import SpecError
from .detect import UNET, VAE, Checkpoint, describe_checkpoint
from .protocol import Conditioning, TextPart

LATENT_SCALE = 0.18215
LATENT_FACTOR = 8
TOKENS = 77
TIMESTEPS = 1000
NOISE_SCHEDULE = {
    "num_train_timesteps": TIMESTEPS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}


class StableDiffusion1:
    """The family's side of a run. Parts are loaded one at a time, so that the text encoder and the VAE can go before the UNet comes."""

    name = "SD 1.x"
    timesteps = TIMESTEPS
    latent_channels = 4
    latent_factor = LATENT_FACTOR
    prediction: Prediction = "epsilon"
    uses_sizes = False

    def __init__(self, base: Base) -> None:
        self.base = base
        self.checkpoint: Checkpoint = describe_checkpoint(Path(base.checkpoint))
        self.alphas_cumprod = DDPMScheduler(**NOISE_SCHEDULE).alphas_cumprod

    # Loading

    def empty_unet(self) -> UNet2DConditionModel:
        """The UNet's layers on the meta device: names and shapes without weights."""
        with init_empty_weights():
            return UNet2DConditionModel(**self._unet_config())

    def load_unet(self, dtype: torch.dtype, device: torch.device) -> UNet2DConditionModel:
        """The UNet, frozen."""
        state = convert_ldm_unet_checkpoint(self._tensors(self.base.checkpoint, UNET, keep_prefix=True), self._unet_config())
        return self._filled(self.empty_unet(), state, dtype, device, "UNet")

    def _unet_config(self) -> dict[str, Any]:
        shape = self.checkpoint.unet
        levels = range(len(shape.widths))
        down = tuple("CrossAttnDownBlock2D" if shape.attention[i] else "DownBlock2D" for i in levels)
        up = tuple("CrossAttnUpBlock2D" if shape.attention[i] else "UpBlock2D" for i in reversed(levels))
        return {
            "sample_size": 64,
            "in_channels": shape.in_channels,
            "out_channels": shape.out_channels,
            "block_out_channels": shape.widths,
            "layers_per_block": shape.blocks_per_level,
            "down_block_types": down,
            "up_block_types": up,
            "mid_block_type": "UNetMidBlock2DCrossAttn" if shape.middle else None,
            "cross_attention_dim": shape.context_width,
            "attention_head_dim": 8,
        }

    def load_vae(self, device: torch.device) -> AutoencoderKL:
        """The VAE, frozen, in fp32: in fp16 it makes NaN of some pictures."""
        source, prefix = (self.base.vae, "") if self.base.vae else (self.base.checkpoint, VAE)
        state = self._tensors(source, prefix, keep_prefix=False)
        if any(name.startswith(VAE) for name in state):
            state = {name.removeprefix(VAE): value for name, value in state.items()}
        if "decoder.conv_in.weight" not in state:
            raise SpecError(f"{self.base.name} holds no VAE: choose one in the vae input of LoomBaseModel.")
        diffusers_names = any(name.startswith("encoder.down_blocks.") for name in state)
        if diffusers_names:
            firsts = [state[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"] for i in range(_count(state, "encoder.down_blocks."))]
        else:
            firsts = [state[f"encoder.down.{i}.block.0.conv1.weight"] for i in range(_count(state, "encoder.down."))]
        config = {
            "block_out_channels": tuple(weight.shape[0] for weight in firsts),
            "down_block_types": ("DownEncoderBlock2D",) * len(firsts),
            "up_block_types": ("UpDecoderBlock2D",) * len(firsts),
            "layers_per_block": 2,
            "latent_channels": 4,
            "scaling_factor": LATENT_SCALE,
        }
        with init_empty_weights():
            vae = AutoencoderKL(**config)
        if not diffusers_names:
            state = convert_ldm_vae_checkpoint(state, config)
        return self._filled(vae, state, torch.float32, device, "VAE")

    def load_text_parts(self, dtype: torch.dtype, device: torch.device) -> list[TextPart]:
        """CLIP-L's text model, frozen, with its tokenizer from the local folder that the spec names."""
        tokenizer = CLIPTokenizer.from_pretrained(self.base.tokenizer, local_files_only=True, model_max_length=TOKENS)
        return [TextPart(self._text_encoder(dtype, device), tokenizer)]

    def _text_encoder(self, dtype: torch.dtype, device: torch.device) -> CLIPTextModel:
        shape = self.checkpoint.text
        with init_empty_weights():
            encoder = CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=self.checkpoint.header.shape(shape.prefix + "embeddings.token_embedding.weight")[0],
                    hidden_size=shape.width,
                    intermediate_size=shape.hidden,
                    num_hidden_layers=shape.layers,
                    num_attention_heads=shape.width // 64,
                    max_position_embeddings=TOKENS,
                    hidden_act="quick_gelu",
                    bos_token_id=49406,
                    eos_token_id=49407,
                )
            )
        state = self._tensors(self.base.checkpoint, shape.prefix, keep_prefix=False)
        # transformers 5 dropped the text_model. level from the model's own names, 4 has it: follow the installed one.
        if any(name.startswith("text_model.") for name in encoder.state_dict()):
            state = {f"text_model.{name}": value for name, value in state.items()}
        return self._filled(encoder, state, dtype, device, "text encoder")

    def _tensors(self, path: str, prefix: str, *, keep_prefix: bool) -> dict[str, Tensor]:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dict
            return {name if keep_prefix else name.removeprefix(prefix): file.get_tensor(name) for name in names}

    def _filled(self, model: Any, state: dict[str, Tensor], dtype: torch.dtype, device: torch.device, part: str) -> Any:
        wanted = model.state_dict().keys()
        missing = [name for name in wanted if name not in state]
        if missing:
            raise SpecError(f"{self.base.name}: {len(missing)} tensors of the {part} are missing, the first is {missing[0]}.")
        # assign: the file's tensors become the weights, so there is no second copy in memory.
        model.load_state_dict({name: state[name] for name in wanted}, strict=True, assign=True)
        return model.requires_grad_(False).eval().to(device=device, dtype=dtype)

    # Encoding

    def encode_text(self, parts: list[TextPart], captions: list[str]) -> Conditioning:
        """Text embeddings, (len(captions), 77, width), as ComfyUI's CLIPTextEncode gives for plain text up to 75 tokens."""
        (part,) = parts
        ids = part.tokenizer(captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").input_ids
        return Conditioning(part.encoder(ids.to(part.encoder.device)).last_hidden_state)

    def too_long(self, parts: list[TextPart], caption: str) -> bool:
        """Whether the end of the caption would be cut off."""
        return any(len(part.tokenizer(caption, truncation=False).input_ids) > TOKENS for part in parts)

    def encode_images(self, vae: AutoencoderKL, pixels: Tensor) -> Tensor:
        """Scaled latents, (n, 4, h/8, w/8), of `pixels` (n, 3, h, w) in [-1, 1]: the mean of the VAE's distribution."""
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            return vae.encode(pixels.to(vae.device, torch.float32)).latent_dist.mode() * LATENT_SCALE

    def decode_latents(self, vae: AutoencoderKL, latents: Tensor) -> Tensor:
        """Pixels in [0, 1], (n, 3, h, w), of scaled latents."""
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            pixels = vae.decode(latents.to(vae.device, torch.float32) / LATENT_SCALE).sample
        return (pixels / 2 + 0.5).clamp(0, 1)

    # Training

    def predict(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's prediction, same shape as `noisy`."""
        return unet(noisy, timesteps, encoder_hidden_states=conditioning.hidden, return_dict=False)[0]

    # Sampling

    def sampler(self, steps: int, device: torch.device) -> EulerDiscreteScheduler:
        """Euler with the base's schedule, set to `steps`."""
        scheduler = EulerDiscreteScheduler(**NOISE_SCHEDULE, timestep_spacing="trailing")
        scheduler.set_timesteps(steps, device=device)
        return scheduler


def _count(state: dict[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})
