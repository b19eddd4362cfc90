"""Drawing as core's KSampler does, for nodes that lay pictures out in a grid, and saving the grid with what it shows in its metadata."""
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.cli_args import args
from PIL import Image
from PIL.PngImagePlugin import PngInfo


@dataclass(frozen=True)
class Sampling:
    """Settings of a KSampler, and the size of a picture in pixels."""

    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    width: int
    height: int

    def told(self) -> str:
        """On one line."""
        return f"seed {self.seed}, {self.steps} steps, cfg {self.cfg:g}, {self.sampler}, {self.scheduler}, {self.width} x {self.height}"


def encoded(clip: Any, text: str) -> Any:
    """As core's CLIP Text Encode gives it."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def latent(model: Any, positive: Any, negative: Any, sampling: Sampling, bar: Any, done: int) -> torch.Tensor:
    """As core's Empty Latent Image and KSampler make it. `done`: steps of the progress `bar` before this picture."""
    empty = torch.zeros([1, 4, sampling.height // 8, sampling.width // 8], device=comfy.model_management.intermediate_device())
    empty = comfy.sample.fix_empty_latent_channels(model, empty)
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def told(step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
        preview = previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None
        bar.update_absolute(done + step + 1, preview=preview)

    comfy.model_management.throw_exception_if_processing_interrupted()
    return comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(empty, sampling.seed),
        sampling.steps,
        sampling.cfg,
        sampling.sampler,
        sampling.scheduler,
        positive,
        negative,
        empty,
        callback=told,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=sampling.seed,
    )


def decoded(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    """The picture (h, w, 3) in [0, 1]."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    image = vae.decode(latent)
    return image.reshape(-1, *image.shape[-3:])[0]  # a video model makes a film of one picture


def save_grid(grid: Image.Image, prefix: str, key: str, told: dict[str, Any], hidden: Any) -> dict[str, str]:
    """Write the grid beside ComfyUI's other pictures, with `told` as the metadata `key`; gives its name as the page asks for it."""
    folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory(), grid.width, grid.height)
    name = f"{stem}_{counter:05}_.png"
    metadata = None
    if not args.disable_metadata:
        metadata = PngInfo()
        entries = {key: told, **({"prompt": hidden.prompt} if hidden.prompt else {}), **(hidden.extra_pnginfo or {})}
        for entry, value in entries.items():
            metadata.add_text(entry, json.dumps(value))
    grid.save(Path(folder, name), pnginfo=metadata, compress_level=4)
    return {"filename": name, "subfolder": subfolder, "type": "output"}
