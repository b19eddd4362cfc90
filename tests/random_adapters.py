"""LoRA files of random weights for a real checkpoint, without a training, and what else ComfyUI's model folders hold."""
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from trainer.families.detect import describe_checkpoint
from trainer.families.unet import empty_unet

_TEXT_LAYERS = [f"encoder_layers_{layer}_self_attn_{part}_proj" for layer in range(12) for part in "qkv"]


def write_lora(path: Path, checkpoint: Path, *, rank: int = 4, strength: float = 0.1, seed: int = 0, text: bool = False) -> None:
    """A LoRA on all matrices of the transformers of an SD checkpoint, in kohya's names and fp16; with `text` on CLIP-L's attention too."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {
        f"lora_unet_{name.replace('.', '_')}": (module.out_features, module.in_features)
        for name, module in empty_unet(describe_checkpoint(checkpoint).unet).named_modules()
        if isinstance(module, nn.Linear) and ".transformer_blocks." in name
    }
    if text:
        sizes |= {f"lora_te_text_model_{name}": (768, 768) for name in _TEXT_LAYERS}
    tensors = {}
    for key, (out, inputs) in sizes.items():
        tensors[f"{key}.lora_up.weight"] = (torch.randn(out, rank, generator=generator) * strength).half()
        tensors[f"{key}.lora_down.weight"] = (torch.randn(rank, inputs, generator=generator) * strength).half()
        tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    save_file(tensors, path)


def write_embedding(path: Path, width: int) -> None:
    """Two vectors for the text encoder of this width."""
    save_file({"emb_params": torch.randn(2, width, generator=torch.Generator().manual_seed(0))}, path)


def write_hypernetwork(path: Path) -> None:
    """Linear networks for CLIP-L's width, as A1111 pickles them."""
    generator = torch.Generator().manual_seed(0)

    def state() -> dict[str, torch.Tensor]:
        return {
            "linear.0.weight": torch.randn(768, 768, generator=generator) * 0.05,
            "linear.0.bias": torch.zeros(768),
            "linear.1.weight": torch.randn(768, 768, generator=generator) * 0.05,
            "linear.1.bias": torch.zeros(768),
        }

    torch.save({768: (state(), state()), "activation_func": "linear", "is_layer_norm": False, "use_dropout": False}, path)
