"""Run in ComfyUI's folder: how many layers of an adapter fit ComfyUI's own models of many families, as JSON on the last line.

    python other_families_in_comfyui.py FOLDER

The models are ComfyUI's classes at their real sizes, without weights. Each gets an adapter on all of its linear layers, in ComfyUI's names and in
kohya's, and some get one in the names of the programs that train them. The last entries are of adapters for another model.
"""
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from comfy.cli_args import args
from in_comfyui import import_pack
from safetensors.torch import save_file
from torch import nn

from trainer.adapters.reading import read_adapter

FLUX = {
    **{"image_model": "flux", "in_channels": 16, "out_channels": 16, "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24},
    **{"depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10_000, "patch_size": 2, "qkv_bias": True},
    **{"vec_in_dim": 768, "guidance_embed": True},
}
CHROMA = {
    **{name: value for name, value in FLUX.items() if name not in ("vec_in_dim", "guidance_embed")},
    **{"image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 3072, "hidden_dim": 5120, "n_layers": 5},
}
FLUX2 = FLUX | {
    **{"image_model": "flux2", "axes_dim": [32] * 4, "num_heads": 48, "mlp_ratio": 3.0, "theta": 2000, "in_channels": 128, "out_channels": 128},
    **{"global_modulation": True, "vec_in_dim": None, "mlp_silu_act": True, "qkv_bias": False, "ops_bias": False, "default_ref_method": "index"},
    **{"ref_index_scale": 10.0, "patch_size": 1, "hidden_size": 6144, "context_in_dim": 15_360, "depth": 8, "depth_single_blocks": 48},
}
HUNYUAN = FLUX | {
    **{"image_model": "hunyuan_video", "patch_size": [1, 2, 2], "theta": 256, "depth": 20, "depth_single_blocks": 40, "meanflow": False},
    **{"byt5": False, "use_cond_type_embedding": False, "vision_in_dim": None},
}
HUNYUAN_IMAGE = HUNYUAN | {
    **{"patch_size": [1, 1], "axes_dim": [64, 64], "vec_in_dim": None, "in_channels": 64, "out_channels": 64, "hidden_size": 3584, "num_heads": 28},
    **{"context_in_dim": 3584, "guidance_embed": False},
}
COSMOS = {
    **{"image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16},
    **{"patch_spatial": 2, "patch_temporal": 1, "model_channels": 2048, "concat_padding_mask": True, "crossattn_emb_channels": 1024},
    **{"pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop", "use_adaln_lora": True, "adaln_lora_dim": 256},
    **{"num_blocks": 28, "num_heads": 16, "extra_per_block_abs_pos_emb": False},
}
PIXART = {
    **{"image_model": "pixart_sigma", "num_heads": 16, "patch_size": 2, "hidden_size": 1152, "in_channels": 4, "depth": 28, "model_max_length": 300},
    **{"input_size": 128, "pe_interpolation": 2, "micro_condition": False},
}
ACE = {
    **{"audio_model": "ace", "attention_head_dim": 128, "in_channels": 8, "inner_dim": 2560, "max_height": 16, "max_position": 32_768},
    **{"max_width": 32_768, "mlp_ratio": 2.5, "num_attention_heads": 20, "num_layers": 24, "out_channels": 8, "patch_size": [16, 1]},
    **{"rope_theta": 1_000_000.0, "speaker_embedding_dim": 512, "text_embedding_dim": 768, "ssl_encoder_depths": [8, 8]},
    **{"ssl_latent_dims": [1024, 768], "ssl_names": ["mert", "m-hubert"], "lyric_encoder_vocab_size": 6693, "lyric_hidden_size": 1024},
}
UNET = {
    **{"image_size": 32, "in_channels": 8, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4]},
    **{"transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1},
    **{"use_spatial_transformer": True, "legacy": False, "context_dim": 1024, "use_linear_in_transformer": True, "adm_in_channels": 768},
    **{"num_classes": "sequential", "use_temporal_attention": True, "use_temporal_resblock": True, "extra_ff_mix_layer": True},
    **{"merge_strategy": "learned_with_images", "merge_factor": 0.0, "video_kernel_size": [3, 1, 1]},
    **{"num_heads": -1, "num_head_channels": 64},
}
MODELS = {
    **{"Flux": FLUX, "Chroma": CHROMA, "Flux2": FLUX2, "HunyuanVideo": HUNYUAN, "HunyuanImage21": HUNYUAN_IMAGE, "CosmosT2IPredict2": COSMOS},
    **{"PixArtSigma": PIXART, "ACEStep": ACE, "SVD_img2vid": UNET},
}
# One layer as the programs that train it call it.
OWN_NAMES = {
    "PixArtSigma": ("base_model.model.transformer_blocks.0.attn1.to_q", 1152, 1152),
    "ACEStep": ("transformer_blocks.0.attn.to_q", 2560, 2560),
    "SVD_img2vid": ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 320, 1024),
    "CosmosT2IPredict2": ("lora_unet_blocks_0_cross_attn_k_proj", 2048, 1024),
    "HunyuanVideo": ("transformer.double_blocks.0.img_attn_qkv", 9216, 3072),
    "Flux": ("transformer.single_transformer_blocks.0.attn.to_q", 3072, 3072),
    "Flux2": ("diffusion_model.double_blocks.0.img_attn.qkv", 18_432, 6144),
}
FOR_ANOTHER = {"Flux's on Flux2": ("Flux", "Flux2"), "Flux's on Chroma": ("Flux", "Chroma"), "PixArtSigma's on Flux": ("PixArtSigma", "Flux")}


def pair(name: str, out: int, inputs: int) -> dict[str, torch.Tensor]:
    return {f"{name}.lora_up.weight": torch.zeros(out, 1).half(), f"{name}.lora_down.weight": torch.zeros(1, inputs).half()}


def main(folder: Path) -> None:
    args.cpu = True
    import comfy.supported_models

    import_pack()
    from lora_loom.nodes.matching import MatchError, Weights

    meta = torch.device("meta")
    models: dict[str, Any] = {}
    told: dict[str, Any] = {}

    def matched(model: Any, file: Path) -> dict[str, Any]:
        adapter = read_adapter(file)
        try:
            found = Weights.of(SimpleNamespace(model=model), None).match(file.name, adapter)
        except MatchError as error:
            return {"error": str(error)}
        return {
            "family": adapter.family,
            "layers": len(adapter.layers),
            "found": found.count,
            "not understood": len(adapter.not_understood),
            "left out": found.left_out("model"),
        }

    for name, unet_config in MODELS.items():
        config = getattr(comfy.supported_models, name)({**unet_config})
        config.set_inference_dtype(torch.float16, None)
        models[name] = config.get_model({}, device=meta)
        linear = [
            (module_name, module)
            for module_name, module in models[name].diffusion_model.named_modules()
            if isinstance(module, nn.Linear) and "blocks" in module_name
        ]
        for scheme, prefix, between in (("ComfyUI's names", "diffusion_model.", "."), ("kohya's names", "lora_unet_", "_")):
            file = folder / f"{name} {scheme}.safetensors"
            tensors: dict[str, torch.Tensor] = {}
            for module_name, module in linear:
                tensors |= pair(prefix + module_name.replace(".", between), module.out_features, module.in_features)
            save_file(tensors, file)
            told[file.stem] = matched(models[name], file)
        if name in OWN_NAMES:
            file = folder / f"{name} its own names.safetensors"
            save_file(pair(*OWN_NAMES[name]), file)
            told[file.stem] = matched(models[name], file)
    for case, (adapter, model) in FOR_ANOTHER.items():
        told[case] = matched(models[model], folder / f"{adapter} ComfyUI's names.safetensors")
    print(json.dumps(told))


main(Path(sys.argv[1]))
