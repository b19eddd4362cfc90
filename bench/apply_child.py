"""Run in ComfyUI's folder: one way to put ten LoRAs on a full-size model, timed, as JSON on the last line.

    python apply_child.py merged|live|core CHECKPOINT FOLDER-OF-LORAS
"""
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comfy.cli_args import args
from processes import forget_peak, peak_mib

RESOLUTION = 256
WEIGHT, CHANGED = 0.7, 0.35


def main(way: str, checkpoint: Path, folder: Path) -> None:
    # ComfyUI chooses its device and its dtypes when these are imported.
    args.cpu = True
    import comfy.model_management
    import comfy.sd
    import comfy.utils
    import folder_paths
    from in_comfyui import import_pack

    import_pack()
    folder_paths.add_model_folder_path("loras", str(folder))
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    state = comfy.utils.load_torch_file(str(checkpoint))
    model = comfy.sd.load_diffusion_model_state_dict(comfy.utils.state_dict_prefix_replace(state, {"model.diffusion_model.": ""}, filter_keys=True))
    del state
    numbers = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 4, RESOLUTION // 8, RESOLUTION // 8, generator=numbers), torch.randn(1, 77, 768, generator=numbers)
    sigma = model.model.model_sampling.sigma(torch.tensor([500.0]))

    def step(patcher: Any) -> None:
        with torch.inference_mode():
            patcher.model.apply_model(x, sigma, c_crossattn=text, transformer_options={"wrappers": patcher.wrappers})

    def ready(patcher: Any) -> Any:
        comfy.model_management.load_models_gpu([patcher])
        return patcher

    applied = _ways(way, model, names)
    ready(model)
    plain = [_timed(lambda: step(model)) for _ in range(4)][1:]
    forget_peak()
    began = time.perf_counter()
    patcher = ready(applied([WEIGHT] * len(names)))
    to_ready = time.perf_counter() - began
    step(patcher)
    to_first = time.perf_counter() - began
    steps = [_timed(lambda: step(patcher)) for _ in range(3)]
    began = time.perf_counter()
    patcher = ready(applied([WEIGHT] * (len(names) - 1) + [CHANGED]))
    change = time.perf_counter() - began
    change_step = _timed(lambda: step(patcher))
    print(json.dumps({
        "plain_step": statistics.median(plain), "to_ready": to_ready, "to_first_step": to_first, "step": statistics.median(steps), "change": change,
        "change_to_first_step": change + change_step, "peak_mib": peak_mib(os.getpid()),
    }))


def _ways(way: str, model: Any, names: list[str]) -> Callable[[list[float]], Any]:
    """From weights to a patcher, as the graph's nodes make it."""
    if way == "core":
        import nodes

        loaders = [nodes.LoraLoaderModelOnly() for _ in names]  # each keeps its file, as the nodes of a graph do

        def chain(weights: list[float]) -> Any:
            patcher = model
            for loader, name, weight in zip(loaders, names, weights, strict=True):
                (patcher,) = loader.load_lora_model_only(patcher, name, weight)
            return patcher

        return chain
    from lora_loom.nodes.apply import LoomApplyAdapters
    from lora_loom.trainer.adapters.stack import Row

    class Node(LoomApplyAdapters):
        hidden = type("Hidden", (), {"unique_id": "bench", "prompt": None})

    def stack(weights: list[float]) -> Any:
        rows = tuple(Row(name=name, model=weight) for name, weight in zip(names, weights, strict=True))
        return Node.execute(model, rows, way, 1.0).args[0]

    return stack


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
