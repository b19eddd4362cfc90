"""What a LoRA file says of itself, in the words that other tools read.

`ss_*` keys are kohya's (LoRA-Manager, rgthree, A1111/Forge read them); `modelspec.*` is https://github.com/Stability-AI/ModelSpec. There is
no date in it: the same training gives the same file, byte for byte.
"""
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as safetensors_bytes

from ..spec import TrainLoRASpec, without_folders
from .network_metadata import metadata_of

# LoRA-Manager matches these and not kohya's own "sd_v1".
_BASE_VERSIONS = {"SD 1.x": "sd_1.5", "SD 2.x": "sd-v2-1", "SDXL": "sdxl"}
_ARCHITECTURES = {
    "SD 1.x": "stable-diffusion-v1/lora",
    "SD 2.x": "stable-diffusion-v2-512/lora",
    "SD 2.x v": "stable-diffusion-v2-768-v/lora",
    "SDXL": "stable-diffusion-xl-v1-base/lora",
}


def lora_metadata(spec: TrainLoRASpec, tensors: Mapping[str, torch.Tensor], steps: int, mixed_precision: str, prediction: str) -> dict[str, str]:
    """The header's metadata for a finished LoRA.

    `steps`: those taken; `mixed_precision`: as kohya writes it (no, fp16, bf16); `prediction`: epsilon or v.
    """
    dataset = spec.dataset
    tags: Counter[str] = Counter()
    for image in dataset.images:
        tags.update(tag.strip() for tag in dataset.training_caption(image).split(",") if tag.strip())
    side = dataset.resolution
    visits = sum(image.repeats for image in dataset.images)
    metadata = {
        "ss_base_model_version": _BASE_VERSIONS[spec.base.family],
        "ss_sd_model_name": Path(spec.base.checkpoint).name,
        "ss_output_name": spec.name,
        **metadata_of(spec.network),
        "ss_steps": str(steps),
        "ss_max_train_steps": str(spec.steps),
        "ss_batch_size_per_device": str(spec.batch_size),
        "ss_learning_rate": str(spec.learning_rate),
        "ss_unet_lr": str(spec.learning_rate),
        "ss_lr_scheduler": spec.optimizer.schedule,
        "ss_lr_warmup_steps": str(spec.optimizer.warmup),
        "ss_optimizer": spec.optimizer.name,
        "ss_gradient_accumulation_steps": str(spec.optimizer.gradient_accumulation_steps),
        "ss_max_grad_norm": str(spec.optimizer.max_grad_norm),
        "ss_min_snr_gamma": str(spec.objective.min_snr_gamma) if spec.objective.weighting == "min_snr" else "None",
        "ss_noise_offset": str(spec.objective.noise_offset) if spec.objective.noise_offset else "None",
        "ss_zero_terminal_snr": str(spec.objective.zero_terminal_snr),
        "ss_mixed_precision": mixed_precision,
        "ss_seed": str(spec.seed),
        "ss_clip_skip": "None",
        "ss_resolution": f"({side}, {side})",
        "ss_num_train_images": str(visits),
        "ss_tag_frequency": json.dumps({dataset.name: dict(tags)}, ensure_ascii=False),
        "ss_datasets": json.dumps([{"name": dataset.name, "num_train_images": visits, "resolution": [side, side]}], ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _ARCHITECTURES.get(f"{spec.base.family} {prediction}", _ARCHITECTURES[spec.base.family]),
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": spec.name,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": prediction,
        "modelspec.hash_sha256": "0x" + tensors_sha256(tensors),
        "lora_loom.spec": json.dumps(without_folders(spec), sort_keys=True, ensure_ascii=False),
    }
    if dataset.trigger_word:
        metadata["modelspec.trigger_phrase"] = dataset.trigger_word
    return metadata


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over everything behind the header, as ModelSpec defines a model's hash: metadata can change without it."""
    data = safetensors_bytes({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
