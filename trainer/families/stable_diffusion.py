"""What SD 1.x, SD 2.x and SDXL share (https://arxiv.org/abs/2112.10752): a UNet on latents of a VAE, and a noise schedule.

Nothing is fetched: the configs are built from the header (`detect.UNetShape`), so distilled variants load too, and the tokenizer's vocabulary
is a local folder. Parts are loaded one at a time, so that the text encoders and the VAE can go before the UNet comes.
"""
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn

from ..options import PredictionKind, TextOptions
from ..spec import Base
from . import clip
from .detect import VAE, Checkpoint
from .protocol import Conditioning
from .tokens import Words, too_long
from .unet import empty_unet, load_unet
from .vae import decode_latents, encode_images, load_vae
from .weights import weights_digest
from .whole import formats_of, write_checkpoint

LATENT_FACTOR = 8
TIMESTEPS = 1000
_PREDICTION_TYPES: dict[PredictionKind, str] = {"epsilon": "epsilon", "v": "v_prediction"}
_READING = {"clip_skip", "max_tokens", "emphasis"}


class StableDiffusion:
    """All but the text encoders, which every family has its own way with."""

    name: str
    text_keys: tuple[str, ...]
    embedding_keys: tuple[str, ...]
    timesteps = TIMESTEPS
    latent_channels = 4
    latent_factor = LATENT_FACTOR
    latent_scale = 0.18215
    uses_sizes = False

    def __init__(
        self, base: Base, checkpoint: Checkpoint, text: TextOptions, prediction: PredictionKind = "epsilon", zero_terminal_snr: bool = False
    ) -> None:
        self.base = base
        self.checkpoint = checkpoint
        self.text = text
        self.prediction = prediction
        self._schedule: dict[str, Any] = {
            "num_train_timesteps": TIMESTEPS,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "rescale_betas_zero_snr": zero_terminal_snr,
        }
        self.alphas_cumprod: Tensor = DDPMScheduler(**self._schedule).alphas_cumprod

    def empty_unet(self) -> UNet2DConditionModel:
        """The UNet's layers on the meta device: names and shapes without weights."""
        return empty_unet(self.checkpoint.unet)

    def empty_text_encoders(self) -> list[nn.Module]:
        """The text encoders' layers on the meta device."""
        return [clip.empty_encoder(shape) for shape in self.checkpoint.texts]

    def load_unet(self, dtype: torch.dtype, device: torch.device) -> UNet2DConditionModel:
        """The UNet, frozen."""
        return load_unet(self.base.checkpoint, self.checkpoint.unet, dtype, device, self.base.name)

    def checkpoint_bytes(self, dtype: torch.dtype) -> int:
        """The size of what `write_checkpoint` writes, without its header."""
        return sum(math.prod(shape) * stored.itemsize for stored, shape in formats_of(self.checkpoint, dtype).values())

    def write_checkpoint(
        self,
        path: Path,
        unet: nn.Module,
        encoders: Sequence[nn.Module],
        dtype: torch.dtype,
        metadata: Mapping[str, str],
        prediction: PredictionKind,
        zero_terminal_snr: bool,
    ) -> str:
        """Write the base's file with the weights of `unet` and `encoders` in it; see `Family`."""
        markers = self.markers(prediction, zero_terminal_snr)
        return write_checkpoint(Path(self.base.checkpoint), self.checkpoint, path, unet, encoders, dtype, metadata, markers)

    def markers(self, prediction: PredictionKind, zero_terminal_snr: bool) -> dict[str, bool]:
        """Names of empty tensors by which a file of this family tells what its model predicts, and whether they are to be there."""
        return {}

    def load_vae(self, device: torch.device) -> AutoencoderKL:
        """The VAE, frozen, in fp32: in fp16 it makes NaN of some pictures."""
        return load_vae(self.base, self.latent_scale, device)

    @cached_property
    def tokenizer(self) -> Any:
        """CLIP's, which all text encoders of these families share."""
        return clip.load_tokenizer(self.base)

    def too_long(self, caption: str, words: Words) -> bool:
        """Whether the end of the caption would be cut off, where `words` are no text but tokens of their own."""
        return too_long(self.tokenizer, caption, emphasis=self.text.emphasis, most=self.text.chunks, words=words)

    def vae_digest(self) -> str:
        """Changes when the VAE does: what encoded pictures depend on."""
        return weights_digest(self.base.vae, ("",)) if self.base.vae else weights_digest(self.base.checkpoint, (VAE,))

    def text_digest(self) -> str:
        """Changes when the text encoders do, or how captions are read: what encoded captions depend on."""
        weights = weights_digest(self.base.checkpoint, tuple(shape.prefix for shape in self.checkpoint.texts))
        return f"{weights} {self.text.model_dump_json(include=_READING)}"

    def encode_images(self, vae: AutoencoderKL, pixels: Tensor) -> Tensor:
        """Scaled latents, (n, 4, h/8, w/8) in fp32, of `pixels` (n, 3, h, w) in [-1, 1]: the mean of the VAE's distribution."""
        return encode_images(vae, pixels, self.latent_scale)

    def decode_latents(self, vae: AutoencoderKL, latents: Tensor) -> Tensor:
        """Pixels in [0, 1], (n, 3, h, w), of scaled latents."""
        return decode_latents(vae, latents, self.latent_scale)

    def predict(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's prediction, same shape as `noisy`."""
        return unet(noisy, timesteps, encoder_hidden_states=conditioning.hidden, return_dict=False)[0]

    def sampler(self, steps: int, device: torch.device, prediction: PredictionKind, zero_terminal_snr: bool) -> EulerDiscreteScheduler:
        """Euler set to `steps`, for a model that gives `prediction`; on the base's schedule, or that ending in pure noise."""
        schedule = {**self._schedule, "rescale_betas_zero_snr": zero_terminal_snr or self._schedule["rescale_betas_zero_snr"]}
        scheduler = EulerDiscreteScheduler(**schedule, prediction_type=_PREDICTION_TYPES[prediction], timestep_spacing="trailing")
        scheduler.set_timesteps(steps, device=device)
        return scheduler
