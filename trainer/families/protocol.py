"""What a family is to the rest of the trainer. The loop and the methods know no family by name."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..options import PredictionKind, TextOptions
from .tokens import Words


@dataclass(frozen=True)
class Conditioning:
    """Text (and for SDXL size) that a prediction depends on; batched along the first dimension.

    `hidden` (n, tokens, width), 77 tokens or a multiple. `pooled` (n, width) and `sizes` (n, 6: original height, width,
    crop top, left, target height, width in pixels) only for families that use them.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None

    def rows(self, index: Tensor) -> "Conditioning":
        """The rows `index` (m,), in that order."""
        return Conditioning(
            self.hidden[index],
            None if self.pooled is None else self.pooled[index],
            None if self.sizes is None else self.sizes[index],
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """`change` on every tensor."""
        return Conditioning(
            change(self.hidden),
            None if self.pooled is None else change(self.pooled),
            None if self.sizes is None else change(self.sizes),
        )


@dataclass(frozen=True)
class TextPart:
    """A text encoder with its tokenizer. `padding`: the token that fills a chunk. `layer`: which of its hidden states is used; None: the last
    one, behind the final norm. `words`: words that are no text but tokens of their own.
    """

    encoder: nn.Module
    tokenizer: Any
    padding: int
    layer: int | None = None
    words: Words = field(default_factory=dict)

    def unused(self) -> list[nn.Module]:
        """What of the encoder has no part in what is read: the layers behind `layer`, unless the pooled text comes from the last one."""
        encoder: Any = self.encoder
        if self.layer is None or hasattr(encoder, "text_projection"):
            return []
        text = getattr(encoder, "text_model", encoder)
        return [*text.encoder.layers[self.layer + 1 :], text.final_layer_norm] if self.layer < -1 else [text.final_layer_norm]


class Family(Protocol):
    """One family of checkpoints, loaded from a single file, part by part, so that not all of them are in memory at once."""

    name: str
    timesteps: int
    latent_channels: int
    latent_factor: int
    """Pixels to a latent, along a side."""
    prediction: PredictionKind
    """What the base gives."""
    uses_sizes: bool
    text_keys: tuple[str, ...]
    """How a LoRA file's keys for each text encoder begin."""
    embedding_keys: tuple[str, ...]
    """What an embedding's file calls the vectors for each text encoder."""
    text: TextOptions
    """How captions are read."""
    alphas_cumprod: Tensor
    """(timesteps,) in fp32 on the CPU: the noise schedule that the base was trained with."""

    @property
    def tokenizer(self) -> Any:
        """transformers', which all text encoders share."""
        ...

    def empty_unet(self) -> nn.Module:
        """The UNet's layers on the meta device: names and shapes without weights."""
        ...

    def empty_text_encoders(self) -> list[nn.Module]:
        """The text encoders' layers on the meta device, all of them: a training may leave out the last ones."""
        ...

    def load_unet(self, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The UNet, frozen, in diffusers' layout."""
        ...

    def checkpoint_bytes(self, dtype: torch.dtype) -> int:
        """The size of what `write_checkpoint` writes, without its header."""
        ...

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
        """Write the base's file with the weights of `unet` and `encoders` (none: the base's own) in it; gives the sha256 of its bytes.

        UNet, text encoders and VAE are stored in `dtype`; what else is there stays as it is, so unchanged weights give back a file of that format
        to the bit. `prediction` and `zero_terminal_snr`: what the model has been trained for, which the file tells where its family has a way to.
        Raises FileError for broken numbers, or such as `dtype` cannot hold.
        """
        ...

    def load_vae(self, device: torch.device) -> nn.Module:
        """The VAE, frozen, in fp32: in fp16 it makes NaN of some pictures."""
        ...

    def load_text_parts(self, dtype: torch.dtype, device: torch.device) -> list[TextPart]:
        """The text encoders, frozen."""
        ...

    def encode_text(self, parts: list[TextPart], captions: list[str]) -> Conditioning:
        """Embeddings as ComfyUI's CLIPTextEncode gives them, without sizes. Differentiable: the caller says no_grad where it means it."""
        ...

    def too_long(self, caption: str, words: Words) -> bool:
        """Whether the end of the caption would be cut off, where `words` are no text but tokens of their own."""
        ...

    def vae_digest(self) -> str:
        """Changes when the VAE does: what encoded pictures depend on."""
        ...

    def text_digest(self) -> str:
        """Changes when the text encoders do, or how captions are read: what encoded captions depend on."""
        ...

    def encode_images(self, vae: nn.Module, pixels: Tensor) -> Tensor:
        """Scaled latents (n, channels, h, w) in fp32 of `pixels` (n, 3, H, W) in [-1, 1]: the mean of the VAE's distribution."""
        ...

    def decode_latents(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Pixels in [0, 1], (n, 3, H, W), of scaled latents."""
        ...

    def predict(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's prediction, same shape as `noisy`."""
        ...

    def sampler(self, steps: int, device: torch.device, prediction: PredictionKind, zero_terminal_snr: bool) -> Any:
        """A diffusers scheduler set to `steps`, for a model that gives `prediction`; on the base's schedule, or that ending in pure noise."""
        ...
