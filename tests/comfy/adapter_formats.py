"""Run in ComfyUI's folder: Apply Adapters on weights in every number format, whole and partly loaded, and on packed ones, as JSON.

    python adapter_formats.py FOLDER

The reference is float64 on the stored weights: unrounded for what a model predicts, and rounded as ComfyUI rounds for the weights. Beside it
ComfyUI's own chain of loaders.
"""
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from adapter_modes import CASES, WITHOUT_CHAIN, Model, relative, unet_state, write_adapters
from comfy.cli_args import args
from family_agreement import PLANS
from in_comfyui import import_pack
from tiny_checkpoints import TINY, write_checkpoint

from trainer.adapters.delta import delta
from trainer.adapters.reading import read_adapter
from trainer.adapters.stack import Row
from trainer.families import load_family
from trainer.families.detect import describe_checkpoint
from trainer.spec import Base

FORMATS = {"fp16": torch.float16, "fp8": torch.float8_e4m3fn}
# A CPU takes its time over convolutions in fp16.
SIDE = 8
CHOSEN = ("three loras, one negative", "of every kind")
COMPUTED_IN = "fp16, computed in fp16"

State = dict[str, torch.Tensor]


def bits(model: Model) -> State:
    """The weights as they lie in memory."""
    return {name: weight.detach().as_subclass(torch.Tensor).clone() for name, weight in model.patcher.model.named_parameters()}


def same(one: State, other: State) -> bool:
    def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flatten().view(torch.uint8)  # which a number alone cannot be taken for

    return one.keys() == other.keys() and all(torch.equal(as_bytes(one[name]), as_bytes(other[name])) for name in one)


def at_rest(model: Model) -> bool:
    """Whether no module has a hook, or a function on its weights, left in it."""
    modules = list(model.patcher.model.modules())
    if any(getattr(weight, "patches", ()) for weight in model.patcher.model.parameters()):
        return False
    functions = [getattr(module, "weight_function", ()) or getattr(module, "bias_function", ()) for module in modules]
    return not any(functions) and not any(module._forward_hooks for module in modules)


def main(folder: Path) -> None:
    # ComfyUI chooses its device when these are imported.
    args.cpu = True
    import comfy.sd
    import comfy.utils
    import folder_paths
    import packed_weights

    import_pack()
    from lora_loom.nodes.apply import LoomApplyAdapters
    from lora_loom.nodes.matching import Weights

    checkpoint, loras = folder / "tiny.safetensors", folder / "loras"
    loras.mkdir()
    write_checkpoint(checkpoint, replace(PLANS["SD 1.x"], texts=TINY["SD 1.x"].texts))
    described = describe_checkpoint(checkpoint)
    tokenizer = str(Path(comfy.__path__[0], "sd1_tokenizer"))
    sha256 = described.header.sha256
    base = Base(name="tiny", checkpoint=str(checkpoint), family="SD 1.x", tokenizer=tokenizer, header_sha256=sha256, size=0, mtime_ns=0)
    write_adapters(load_family(base), loras)
    folder_paths.add_model_folder_path("loras", str(loras))
    adapters = {path.stem: read_adapter(path).layers for path in loras.glob("*.safetensors")}

    class Node(LoomApplyAdapters):
        hidden = type("Hidden", (), {"unique_id": "test", "prompt": None})

    def applied(patcher: Any, case: str, mode: str) -> Any:
        rows = [Row(name=f"{adapter}.safetensors", model=weight, clip=weight) for adapter, weight in CASES[case]]
        return Node.execute(patcher, tuple(rows), mode, 1.0, None).args[0]

    def chain(patcher: Any, case: str) -> Any:
        for adapter, weight in CASES[case]:
            tensors = comfy.utils.load_torch_file(str(loras / f"{adapter}.safetensors"))
            tensors = {key: tensor for key, tensor in tensors.items() if key.startswith("lora_unet_")}
            patcher, _ = comfy.sd.load_lora_for_models(patcher, None, tensors, weight, 0.0)
        return patcher

    def wanted_weights(exact: Model, case: str) -> State:
        """In float64, rounded to fp32, which is finer than any of the formats."""
        sums: dict[str, torch.Tensor] = {}
        targets, weights = Weights.of(exact.patcher, None).model_targets, exact.patcher.model.state_dict()
        for adapter, weight in CASES[case]:
            for key, layer in adapters[adapter].items():
                if key in targets:
                    start = weights[targets[key]].double()
                    total = sums.get(targets[key], torch.zeros_like(start))
                    sums[targets[key]] = total + weight * delta(layer, base=start, dtype=torch.float64)
        return {target: (weights[target].double() + change).float() for target, change in sums.items()}

    def replaced(patcher: Any, weights: State) -> Any:
        patcher = patcher.clone()
        patcher.add_patches({target: ("set", (weight,)) for target, weight in weights.items()})
        return patcher

    def measured(model: Model, exact: Model, prepare: Callable[[Any], Any] = lambda patcher: patcher) -> dict[str, Any]:
        original = bits(model)
        half = model.patcher.model_size() // 2
        start = prepare(model.patcher)
        found: dict[str, Any] = {"cases": {}, "restored": True}
        for case in CHOSEN:
            wanted = wanted_weights(exact, case)
            prediction = exact.predicts(replaced(exact.patcher, wanted))
            errors = {"changes": relative(exact.predicts(exact.patcher), prediction)}
            patchers = {"merged": applied(start, case, "merged"), "live": applied(start, case, "live")}
            for name, patcher in (patchers if case in WITHOUT_CHAIN else patchers | {"core": chain(start, case)}).items():
                errors[name] = relative(model.predicts(patcher), prediction)
                errors[f"{name}, partly"] = relative(model.predicts(patcher, room=half), prediction)
                found["restored"] &= same(bits(model), original) and at_rest(model)
            found["cases"][case] = errors
        later = chain(applied(start, "dora", "live"), "three loras, one negative")
        before = applied(chain(start, "three loras, one negative"), "dora", "live")
        found["core's after a live dora, partly"] = relative(model.predicts(later, room=half), model.predicts(before, room=half))
        found["restored"] &= same(bits(model), original) and at_rest(model)
        return found

    def rounding(model: Model, exact: Model) -> dict[str, Any]:
        """How merged weights lie in memory, and what the format takes of the best that it could hold."""
        original, wanted = bits(model), wanted_weights(exact, CHOSEN[-1])
        best = replaced(model.patcher, wanted)
        ours, rounded = model.weights(applied(model.patcher, CHOSEN[-1], "merged")), model.weights(best)
        return {
            "merged weights": max(relative(ours[name].float(), rounded[name].float()) for name in wanted),
            "rounded once": relative(model.predicts(best), exact.predicts(replaced(exact.patcher, wanted))),
            "live touches": not same(model.weights(applied(model.patcher, CHOSEN[-1], "live")), model.weights(model.patcher.clone())),
            "restored": same(bits(model), original),
        }

    stored = unet_state(checkpoint)
    told: dict[str, Any] = {}

    def in_fp16(patcher: Any) -> Any:
        patcher = patcher.clone()
        patcher.set_model_compute_dtype(torch.float16)
        return patcher

    with torch.inference_mode():  # as ComfyUI runs its nodes
        for name, dtype in FORMATS.items():
            state = {key: tensor.to(dtype) for key, tensor in stored.items()}
            exact = Model({key: tensor.float() for key, tensor in state.items()}, SIDE, dtype=torch.float32)
            model = Model(state, SIDE, dtype=dtype)
            told[name] = measured(model, exact) | {"rounding": rounding(model, exact)}
            if name == "fp16":
                told[COMPUTED_IN] = measured(model, exact, in_fp16)
        packed = Model(stored, SIDE, dtype=torch.float32, custom_operations=packed_weights.Operations)
        packed.patcher = packed_weights.Patcher(packed.patcher.model, packed.patcher.load_device, packed.patcher.offload_device)
        unpacked = {name: packed_weights.unpack(weight) if isinstance(weight, packed_weights.Packed) else weight.float()
                    for name, weight in packed.patcher.model.diffusion_model.named_parameters()}
        told["packed"] = measured(packed, Model(unpacked, SIDE, dtype=torch.float32))
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
