"""Run in ComfyUI's folder: which weight ComfyUI applies each layer of an adapter to, as JSON on the last line.

    python names_in_comfyui.py FILE...

The answer has, for each file named FAMILY.ANYTHING.safetensors, `targets` (from the model's weight to the number that the layer's down factor
holds) and `unloaded` (the names that ComfyUI says it has not loaded).
"""
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from comfy.cli_args import args

UNETS = {
    "SD 1.x": {
        "num_res_blocks": [2] * 4,
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1] * 9 + [0] * 3,
    },
    "SDXL": {
        "num_res_blocks": [2] * 3,
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    },
}
TEXTS = {"SD 1.x": {"clip_l": 12}, "SDXL": {"clip_l": 12, "clip_g": 32}}


def main(files: list[Path]) -> None:
    args.cpu = True
    import comfy.lora
    import comfy.utils
    from safetensors.torch import load_file

    unloaded: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: unloaded.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    told: dict[str, Any] = {}
    for file in files:
        family = file.name[: -len(".safetensors")].rpartition(".")[0]
        weights = {f"diffusion_model.{ldm}": None for ldm in comfy.utils.unet_to_diffusers(UNETS[family]).values()}
        unet = SimpleNamespace(state_dict=lambda weights=weights: weights, model_config=SimpleNamespace(unet_config=UNETS[family]))
        texts = {
            f"{encoder}.transformer.text_model.encoder.layers.{layer}.{part}.weight": None
            for encoder, layers in TEXTS[family].items()
            for layer in range(layers)
            for part in comfy.lora.LORA_CLIP_MAP
        }
        keys = comfy.lora.model_lora_keys_unet(unet, {})
        keys = comfy.lora.model_lora_keys_clip(SimpleNamespace(state_dict=lambda texts=texts: texts), keys)
        unloaded.clear()
        patches = comfy.lora.load_lora(load_file(file), keys)
        told[file.name] = {"targets": {weight: patch.weights[1].item() for weight, patch in patches.items()}, "unloaded": list(unloaded)}
    print(json.dumps(told))


main([Path(name) for name in sys.argv[1:]])
