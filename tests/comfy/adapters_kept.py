"""Run in ComfyUI's folder: what stays in memory of adapters that prompts used one after another, as JSON on the last line.

    python adapters_kept.py FOLDER

Each prompt has nodes of its own, as graphs in other tabs have; ComfyUI itself keeps no result of a prompt before the last.
"""
import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from adapter_modes import Model, unet_state
from comfy.cli_args import args
from family_agreement import PLANS
from in_comfyui import import_pack
from random_adapters import write_lora
from tiny_checkpoints import TINY, write_checkpoint

PROMPTS = 50


def resident_bytes() -> int:
    """What the process holds of the machine's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main(folder: Path) -> None:
    args.cpu = True
    import folder_paths

    import_pack()
    from lora_loom.nodes.adapters import LoomAdapterStack
    from lora_loom.nodes.apply import LoomApplyAdapters
    from lora_loom.nodes.live import LiveStack
    from lora_loom.trainer.adapters.reading import Adapter

    checkpoint, loras = folder / "tiny.safetensors", folder / "loras"
    loras.mkdir()
    write_checkpoint(checkpoint, replace(PLANS["SD 1.x"], texts=TINY["SD 1.x"].texts))
    for number in range(PROMPTS):
        write_lora(loras / f"{number}.safetensors", checkpoint, rank=32, seed=number)
    folder_paths.add_model_folder_path("loras", str(loras))
    model = Model(unet_state(checkpoint))

    def run(mode: str, number: int) -> None:
        stack_id, apply_id = f"{2 * number}", f"{2 * number + 1}"
        prompt = {stack_id: {}, apply_id: {}}

        class Stack(LoomAdapterStack):
            hidden = type("Hidden", (), {"unique_id": stack_id, "prompt": prompt})

        class Apply(LoomApplyAdapters):
            hidden = type("Hidden", (), {"unique_id": apply_id, "prompt": prompt})

        rows = json.dumps([{"name": str(number)}])
        model.predicts(Apply.execute(model.patcher, Stack.execute(rows).args[0], mode, 1.0, None).args[0])

    def held() -> dict[str, int]:
        gc.collect()
        found = gc.get_objects()
        return {
            "adapters": sum(isinstance(one, Adapter) for one in found),
            "live stacks": sum(isinstance(one, LiveStack) for one in found),
            "tensor bytes": sum(one.numel() * one.element_size() for one in found if type(one) in (torch.Tensor, torch.nn.Parameter)),
            "resident bytes": resident_bytes(),
        }

    told: dict[str, Any] = {"adapter bytes": (loras / "0.safetensors").stat().st_size}
    with torch.inference_mode():
        for mode in ("merged", "live"):
            told[mode] = {}
            for number in range(PROMPTS):
                run(mode, number)
                if number in (0, PROMPTS - 1):
                    told[mode][number] = held()
    print(json.dumps(told))


main(Path(sys.argv[1]))
