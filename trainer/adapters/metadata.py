"""What a trained file says of itself, in the words that other tools read.

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

from ..dataset import Dataset
from ..spec import METADATA_KEY, TextualInversionSpec, TrainingSpec, TrainLoRASpec, without_folders
from .network_metadata import metadata_of

# LoRA-Manager matches these and not kohya's own "sd_v1".
BASE_VERSIONS = {"SD 1.x": "sd_1.5", "SD 2.x": "sd-v2-1", "SDXL": "sdxl"}
ARCHITECTURES = {
    "SD 1.x": "stable-diffusion-v1/lora",
    "SD 2.x": "stable-diffusion-v2-512/lora",
    "SD 2.x v": "stable-diffusion-v2-768-v/lora",
    "SDXL": "stable-diffusion-xl-v1-base/lora",
}
HASH = "modelspec.hash_sha256"
KOHYA_HASH = "sshs_model_hash"
"""The entries that name the sha256 of a file's tensors; only HASH is written by a training."""


def training_metadata(spec: TrainingSpec, result: str, steps: int, mixed_precision: str, prediction: str) -> dict[str, str]:
    """The header's metadata for one of the spec's results, by its name.

    `steps`: those taken; `mixed_precision`: as kohya writes it (no, fp16, bf16); `prediction`: epsilon or v.
    """
    tags = {dataset.name: _tag_frequency(dataset) for dataset in spec.datasets}
    visits = [sum(image.repeats for image in dataset.images) for dataset in spec.datasets]
    framing, use = spec.datasets[0].framing, spec.datasets[0].caption_use
    side = framing.resolution
    metadata = {
        "ss_base_model_version": BASE_VERSIONS[spec.base.family],
        "ss_sd_model_name": Path(spec.base.checkpoint).name,
        "ss_output_name": Path(spec.output).stem,
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
        "ss_clip_skip": str(spec.text.clip_skip) if spec.text.clip_skip else "None",
        "ss_max_token_length": str(spec.text.max_tokens),
        "ss_enable_bucket": str(framing.buckets),
        "ss_bucket_no_upscale": str(not framing.upscale),
        "ss_random_crop": str(framing.crop == "random"),
        "ss_flip_aug": str(framing.flip),
        "ss_shuffle_caption": str(use.shuffle),
        "ss_keep_tokens": str(use.keep_tokens),
        "ss_caption_dropout_rate": str(use.dropout),
        "ss_caption_tag_dropout_rate": str(use.tag_dropout),
        "ss_prior_loss_weight": str(spec.prior.weight) if spec.prior else "1.0",
        "ss_num_reg_images": str(sum(len(dataset.images) for dataset in spec.class_images)),
        "ss_resolution": f"({side}, {side})",
        "ss_num_train_images": str(sum(visits)),
        "ss_tag_frequency": json.dumps(tags, ensure_ascii=False),
        "ss_datasets": json.dumps([_dataset(dataset, count) for dataset, count in zip(spec.datasets, visits, strict=True)], ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _architecture(spec.base.family, result, prediction),
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": Path(spec.output).stem,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": prediction,
        METADATA_KEY: json.dumps(without_folders(spec), sort_keys=True, ensure_ascii=False),
    }
    if isinstance(spec, TrainLoRASpec) and result == "adapter":
        metadata |= metadata_of(spec.network)
    # The placeholder is for captions; prompts call an embedding by its file's name.
    new = spec.word.placeholder if isinstance(spec, TrainLoRASpec | TextualInversionSpec) and spec.word else None
    words = [dataset.trigger_word for dataset in spec.datasets if dataset.trigger_word != new]
    words += [f"embedding:{file.output.stem}" for file in spec.results if file.name == "embedding"]
    trigger_words = dict.fromkeys(filter(None, words))
    if trigger_words:
        metadata["modelspec.trigger_phrase"] = ", ".join(trigger_words)
    return metadata


def _architecture(family: str, result: str, prediction: str) -> str:
    """As ModelSpec calls it (https://github.com/Stability-AI/ModelSpec)."""
    lora = ARCHITECTURES.get(f"{family} {prediction}", ARCHITECTURES[family])
    return {"adapter": lora, "checkpoint": lora.removesuffix("/lora")}.get(result, lora.removesuffix("lora") + "textual-inversion")


def _tag_frequency(dataset: Dataset) -> dict[str, int]:
    tags: Counter[str] = Counter()
    for image in dataset.images:
        for caption in dataset.captions(image):
            tags.update(tag.strip() for tag in caption.split(",") if tag.strip())
    return dict(tags)


def _dataset(dataset: Dataset, visits: int) -> dict[str, object]:
    side = dataset.framing.resolution
    return {"name": dataset.name, "num_train_images": visits, "resolution": [side, side]}


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over everything behind the header, as ModelSpec defines a model's hash: metadata can change without it."""
    data = safetensors_bytes({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
