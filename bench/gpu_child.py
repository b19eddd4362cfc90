"""One model in one precision on the card, in every way that fits into its time; gpu.py starts it and reads a JSON line for each.

    python bench/gpu_child.py "SD 1.5" bf16 SECONDS [--tiny]
"""
import argparse
import gc
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainer.assembly import compile_blocks
from trainer.families.protocol import Conditioning
from trainer.families.sd1 import StableDiffusion1
from trainer.families.sdxl import StableDiffusionXL
from trainer.loop import Loop
from trainer.methods import lora
from trainer.noise import draw
from trainer.objective import add_noise, denoising_loss
from trainer.optim import build
from trainer.options import Network, Objective, OptimizerOptions
from trainer.precision import accelerator, choose

_RANK, _LEARNING_RATE, _TOKENS, _TIMESTEPS = 16, 1e-4, 77, 1000
_BATCHES, _TINY_BATCHES = (1, 4, 8, 0), (1, 0)  # 0: the largest that fits
_LARGEST_ON_CPU = 2
_WAYS = ((False, ""), (False, "blocks"), (True, ""), (False, "whole"), (True, "blocks"))  # (checkpointing, compile), the more telling first
_WARM_UP, _FEWEST, _MOST, _SECONDS = 3, 3, 30, 3.0
_GIB = 2**30
_SPARE = 0.96  # of the card, for the largest batch: the allocator's slack


@dataclass(frozen=True)
class Model:
    """What is trained. `tflops`: of an image's forward and backward pass with LoRA on attention, without and with gradient checkpointing."""

    family: Any
    config: dict[str, Any]
    resolution: int
    tflops: tuple[float, float]
    pooled: int = 0
    first_guess_seconds: float = 60.0
    """How long a compilation is taken to last until one has been seen."""


_SDXL_LEVELS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 2816, "addition_time_embed_dim": 256,
}
_SIZES = {"addition_embed_type": "text_time", "use_linear_projection": True}
_TINY_LEVELS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (32, 64), "layers_per_block": 1, "attention_head_dim": 4, "cross_attention_dim": 32,
}
MODELS = {
    "SD 1.5": Model(StableDiffusion1, {"cross_attention_dim": 768, "attention_head_dim": 8}, 512, (1.72, 2.32)),
    "SDXL": Model(StableDiffusionXL, _SIZES | _SDXL_LEVELS, 1024, (14.19, 19.34), pooled=1280, first_guess_seconds=120.0),
}
TINY = {
    "SD 1.5": Model(StableDiffusion1, _TINY_LEVELS, 64, (0.0, 0.0), first_guess_seconds=1.0),
    "SDXL": Model(
        StableDiffusionXL,
        _SIZES | _TINY_LEVELS | {"projection_class_embeddings_input_dim": 80, "addition_time_embed_dim": 8},
        64, (0.0, 0.0), pooled=32, first_guess_seconds=1.0,
    ),
}


class Subject:
    """A UNet with random weights and a LoRA on it, wired as a training wires them; `steps(n, batch)` trains."""

    def __init__(self, model: Model, precision: Any, checkpointing: bool, compiled: str) -> None:
        formats = choose(precision, torch.cuda.is_available())
        self.model = model
        self.accelerator = accelerator(formats)
        self.device = self.accelerator.device
        # Only its way of asking the UNet is wanted, which needs no checkpoint.
        self.family = model.family.__new__(model.family)
        torch.manual_seed(0)
        torch.set_default_dtype(formats.weights)
        try:
            with self.device:
                unet = UNet2DConditionModel(**model.config)
        finally:
            torch.set_default_dtype(torch.float32)
        unet.requires_grad_(False)
        unet.train(checkpointing)
        self.parameters = lora.inject(unet, Network(rank=_RANK, alpha=_RANK, targets="attention"), seed=0)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        _compile(unet, compiled, "inductor" if self.device.type == "cuda" else "aot_eager")
        self.unet, self.optimizer = self.accelerator.prepare(unet, build(OptimizerOptions(), self.parameters, _LEARNING_RATE))
        schedule = DDPMScheduler(num_train_timesteps=_TIMESTEPS, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        self.alphas = schedule.alphas_cumprod.to(self.device)

    def steps(self, number: int, batch: int) -> float:
        """Seconds a batch, of `number` steps in one go through the trainer's loop."""
        side, generator = self.model.resolution // 8, torch.Generator().manual_seed(0)
        latents = torch.randn(batch, 4, side, side, generator=generator)
        hidden = torch.randn(batch, _TOKENS, self.model.config["cross_attention_dim"], generator=generator)
        text = Conditioning(hidden)
        if self.model.pooled:
            sizes = torch.tensor([[self.model.resolution, self.model.resolution, 0, 0, self.model.resolution, self.model.resolution]] * batch)
            text = Conditioning(hidden, torch.randn(batch, self.model.pooled, generator=generator), sizes)

        def loss_of(_: int) -> Tensor:
            drawn = draw(Objective(), tuple(latents.shape), _TIMESTEPS, generator)
            clean, noise, timesteps = (self._moved(tensor) for tensor in (latents, drawn.noise, drawn.timesteps))
            noisy = add_noise(clean, noise, self.alphas, timesteps)
            prediction = self.family.predict(self.unet, noisy, timesteps, text.map(self._moved))
            return denoising_loss(prediction, noise, Objective(), self.alphas, timesteps, "epsilon")

        loop = Loop(
            models=[self.unet],
            loss_of=loss_of,
            names_of=lambda number: ["random numbers"],
            parameters=self.parameters,
            rates=[_LEARNING_RATE],
            optimizer=self.optimizer,
            accelerator=self.accelerator,
            factor=lambda step: 1.0,
            emit=lambda event: None,
            should_stop=lambda: False,
            due=lambda step: False,
            after_step=lambda step: None,
            total=number,
            max_grad_norm=1.0,
        )
        self._wait()
        started = time.perf_counter()
        loop.run()
        self._wait()
        # fp16 leaves out a step whose gradients overflow, after all of its work.
        return (time.perf_counter() - started) / loop.position.draws

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _compile(unet: UNet2DConditionModel, way: str, backend: str) -> None:
    if not way:
        return
    torch._dynamo.config.accumulated_recompile_limit = 1024
    # Each batch gets kernels of its own size, as it has in a training of its own.
    if way == "whole":
        unet.compile(backend=backend, dynamic=False)
    else:
        compile_blocks(unet, backend=backend, dynamic=False)


def measure(subject: Subject, batch: int) -> dict[str, Any]:
    """One row's numbers. Raises torch.OutOfMemoryError."""
    cuda = subject.device.type == "cuda"
    _free()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    first = subject.steps(1, batch)
    rough = subject.steps(_WARM_UP, batch)
    seconds = subject.steps(min(_MOST, max(_FEWEST, int(_SECONDS / rough))), batch)
    flops = subject.model.tflops[subject.unet.is_gradient_checkpointing]
    return {
        "batch": batch,
        "seconds": seconds,
        "images_per_second": batch / seconds,
        "first_step_seconds": first,
        "tflops": flops * batch / seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / _GIB if cuda else None,
        "reserved_gib": torch.cuda.max_memory_reserved() / _GIB if cuda else None,
    }


def largest_batch(peaks: dict[int, float], room: float) -> int:
    """The batch that should fill `room`, from two or more measured peaks: memory grows by the same amount with each image. 0: not known."""
    if len(peaks) < 2:
        return 0
    few, many = min(peaks), max(peaks)
    per_image = (peaks[many] - peaks[few]) / (many - few)
    return few + int((room - peaks[few]) / per_image) if per_image > 0 else 0


class Budget:
    """Tells whether there is time for another row: a row takes as long as the longest before it, a compilation like the one before it."""

    def __init__(self, seconds: float, compile_seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self._compile_seconds = compile_seconds
        self._row_seconds = 2.0

    def reason_to_skip(self, compiled: str) -> str:
        """Empty if there is time."""
        left = self._ends - time.monotonic()
        needed = self._row_seconds + (self._compile_seconds if compiled else 0)
        return f"{max(left, 0):.0f} s left, and it takes about {needed:.0f} s" if needed > left else ""

    def spent(self, compiled: str, seconds: float) -> None:
        """A row took that long."""
        if compiled:
            self._compile_seconds = seconds
        else:
            self._row_seconds = max(self._row_seconds, seconds)


def main() -> int:
    """Exit code 0; what went wrong is in the rows."""
    parser = argparse.ArgumentParser(description="One model in one precision; bench/gpu.py starts it.")
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("precision", choices=["fp16", "bf16", "fp32"])
    parser.add_argument("seconds", type=float)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    model = (TINY if arguments.tiny else MODELS)[arguments.model]
    budget = Budget(arguments.seconds, model.first_guess_seconds)
    for checkpointing, compiled in _WAYS:
        batches = _TINY_BATCHES if arguments.tiny else _BATCHES
        _rows(model, arguments.precision, batches, checkpointing, compiled, budget)
        torch._dynamo.reset()  # it keeps what it compiled, and the weights with it
        _free()
    return 0


def _rows(model: Model, precision: str, batches: tuple[int, ...], checkpointing: bool, compiled: str, budget: Budget) -> None:
    subject: Subject | None = None
    peaks: dict[int, float] = {}
    for batch in batches:
        way = {"batch": batch, "checkpointing": checkpointing, "compile": compiled}
        reason = budget.reason_to_skip(compiled)
        if reason:
            _tell({**way, "skipped": reason})
            continue
        began = time.monotonic()
        subject = subject or Subject(model, precision, checkpointing, compiled)
        row = _largest(subject, peaks, compiled) if batch == 0 else _tried(subject, batch, compiled)
        _tell({**way, **row})
        if row.get("peak_gib"):
            peaks[batch] = row["reserved_gib"]
        budget.spent(compiled, time.monotonic() - began)


def _largest(subject: Subject, peaks: dict[int, float], compiled: str) -> dict[str, Any]:
    """The row of the largest batch that fits: a guess from the smaller ones, and less where it was too bold."""
    if subject.device.type != "cuda":
        return _tried(subject, _LARGEST_ON_CPU, compiled)
    _free()
    room = (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) / _GIB * _SPARE
    guess = largest_batch(peaks, room)
    row: dict[str, Any] = {"skipped": "two smaller batches are needed to guess it"}
    while guess > max(peaks, default=1):
        row = _tried(subject, guess, compiled)
        if "seconds" in row:
            break
        guess = int(guess * 0.9)
    return row


def _tried(subject: Subject, batch: int, compiled: str) -> dict[str, Any]:
    """The row, or in words why there is none."""
    try:
        return measure(subject, batch)
    except torch.OutOfMemoryError:
        told = "out of memory"
    except Exception as error:
        if not compiled:
            raise  # a compiler's failure is one row's; any other would be every row's
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    # Here, since the exception keeps the tensors of the step that failed.
    subject.optimizer.zero_grad(set_to_none=True)
    _free()
    return {"batch": batch, "failed": told}


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tell(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
