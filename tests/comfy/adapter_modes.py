"""Run in ComfyUI's folder: what Apply Adapters does to a real model in both modes, against ComfyUI's own chain of loaders and float64, as JSON.

    python adapter_modes.py FAMILY FOLDER
"""
import gc
import json
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from comfy.cli_args import args
from family_agreement import PLANS
from in_comfyui import import_pack
from tiny_checkpoints import TINY, UNET, write_checkpoint

from trainer.adapters.delta import delta
from trainer.adapters.files import write_safetensors
from trainer.adapters.reading import read_adapter
from trainer.adapters.stack import Row
from trainer.data.order import generator
from trainer.families import load_family
from trainer.families.detect import describe_checkpoint
from trainer.methods import lora
from trainer.options import Network
from trainer.spec import Base

CONVOLUTIONS = {"targets": "transformer+conv", "conv_rank": 4}
NETWORKS = {
    "first": Network(rank=8, alpha=4.0),
    "second": Network(rank=3, alpha=3.0, **CONVOLUTIONS),
    "third": Network(rank=1, alpha=1.0, targets="all linear"),
    "dora": Network(rank=4, alpha=4.0, decompose=True, **CONVOLUTIONS),
    "loha": Network(rank=4, alpha=4.0, kind="loha"),
    "full loha": Network(rank=24, alpha=24.0, kind="loha", **CONVOLUTIONS),
    "lokr": Network(rank=4, alpha=4.0, kind="lokr", **CONVOLUTIONS),
}
# LoHa's and LoKr's changes are products of more factors, so it takes more to be seen; the one of full rank sums more of them.
STRENGTHS = {"loha": 0.3, "lokr": 0.2, "full loha": 0.15}
CASES = {
    "one lora": [("first", 1.0)],
    "three loras, one negative": [("first", 0.8), ("second", -0.5), ("third", 1.7)],
    "dora": [("dora", 1.0)],
    "half a dora": [("dora", 0.5)],
    "loha": [("loha", 0.7)],
    "loha of full rank": [("full loha", 0.7)],
    "lokr": [("lokr", 0.7)],
    "of every kind": [("first", 0.8), ("dora", 0.6), ("loha", 0.7), ("lokr", -0.4), ("second", 0.3)],
}
# ComfyUI's chain is another computation there: its DoRA is reckoned from the weight that the loaders before it have changed.
WITHOUT_CHAIN = {"of every kind"}
# One family shows the kinds, the other that its layers are found.
OF_FAMILY = {"SD 1.x": set(CASES), "SDXL": {"three loras, one negative", "dora"}}
REVERSED = {"three loras, one negative", "of every kind"}


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def write_adapters(family: Any, folder: Path) -> None:
    for name, network in NETWORKS.items():
        unet = family.load_unet(torch.float32, torch.device("cpu"))
        adapted = [lora.Adapted("lora_unet", unet)]
        parameters = lora.inject(unet, network, seed=0)
        if name == "first":
            for number, (part, prefix) in enumerate(zip(family.load_text_parts(torch.float32, torch.device("cpu")), family.text_keys, strict=True)):
                parameters += lora.inject_text(part.encoder, network, 0, number)
                adapted.append(lora.Adapted(prefix, part.encoder))
        for number, parameter in enumerate(parameters):
            noise = torch.randn(parameter.shape, generator=generator(0, name, number)) * STRENGTHS.get(name, 0.1)
            parameter.data = (parameter.data + noise).half().float()
        write_safetensors(folder / f"{name}.safetensors", lora.adapter_tensors(adapted, network), {})


def unet_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint's UNet, as core's loader for UNets takes them."""
    import comfy.utils

    return comfy.utils.state_dict_prefix_replace(comfy.utils.load_torch_file(str(checkpoint)), {UNET: ""}, filter_keys=True)


class Model:
    """A UNet that core has loaded with `options`, and what a patcher of it predicts of latents of `side`."""

    def __init__(self, state: dict[str, torch.Tensor], side: int = 16, **options: Any) -> None:
        import comfy.sd

        self.patcher = comfy.sd.load_diffusion_model_state_dict(dict(state), model_options=options)
        self.x = torch.randn(1, 4, side, side, generator=generator(0, "x")) * 5
        width = self.patcher.model.model_config.unet_config["context_dim"]
        self.text = torch.randn(1, 77, width, generator=generator(0, "text"))
        self.extra = {"y": torch.randn(1, 2816, generator=generator(0, "y"))} if width == 2048 else {}

    def sigma(self, timestep: float) -> torch.Tensor:
        return self.patcher.model.model_sampling.sigma(torch.tensor([timestep]))

    def predicts(self, patcher: Any, timestep: float = 500.0, room: int = 0, **more: Any) -> torch.Tensor:
        """`room`: bytes that the device has for the weights, where it has not enough; the others stay where they are and are cast when used.

        `more`: what the model gets beside text and time.
        """
        patcher.patch_model(device_to=torch.device("cpu"), lowvram_model_memory=room)
        try:
            with torch.inference_mode():
                sigma = self.sigma(timestep)
                options = {**patcher.model_options["transformer_options"], "wrappers": patcher.wrappers}
                out = patcher.model.apply_model(self.x, sigma, c_crossattn=self.text, transformer_options=options, **self.extra, **more)
            return (self.x - out) / sigma
        finally:
            patcher.unpatch_model(device_to=torch.device("cpu"))

    def weights(self, patcher: Any) -> dict[str, torch.Tensor]:
        patcher.patch_model(device_to=torch.device("cpu"))
        try:
            return {name: weight.clone() for name, weight in patcher.model.state_dict().items()}
        finally:
            patcher.unpatch_model(device_to=torch.device("cpu"))


def copied(control: dict[str, list[torch.Tensor]]) -> dict[str, list[torch.Tensor]]:
    """A model takes what it uses out of the lists."""
    return {place: list(tensors) for place, tensors in control.items()}


def used_once(checkpoint: Path, apply: Callable[[Any], Any]) -> "weakref.ref[Any]":
    """A model that was used with adapters and that nobody needs any more."""
    model = Model(unet_state(checkpoint))
    model.predicts(apply(model.patcher))
    return weakref.ref(model.patcher.model)


def main(name: str, folder: Path) -> None:
    # ComfyUI chooses its device and its dtypes when these are imported.
    args.cpu = True
    args.fp32_unet = True
    import comfy.lora
    import comfy.sd
    import comfy.utils
    import folder_paths

    import_pack()
    from lora_loom.nodes.apply import LoomApplyAdapters
    from lora_loom.nodes.matching import Weights

    checkpoint, loras = folder / "tiny.safetensors", folder / "loras"
    loras.mkdir()
    # ComfyUI takes only widths that real checkpoints have; the text encoders are as small as they can be.
    write_checkpoint(checkpoint, replace(PLANS[name], texts=TINY[name].texts))
    described = describe_checkpoint(checkpoint)
    tokenizer = str(Path(comfy.__path__[0], "sd1_tokenizer"))
    base = Base(name="tiny", checkpoint=str(checkpoint), family=name, tokenizer=tokenizer, header_sha256=described.header.sha256, size=0, mtime_ns=0)
    write_adapters(load_family(base), loras)
    folder_paths.add_model_folder_path("loras", str(loras))
    model = Model(unet_state(checkpoint))
    original = model.weights(model.patcher.clone())
    plain = model.predicts(model.patcher.clone())
    targets = Weights.of(model.patcher, None).model_targets

    class Node(LoomApplyAdapters):
        hidden = type("Hidden", (), {"unique_id": "test", "prompt": None})

    def applied(rows: list[Row], mode: str, strength: float = 1.0, to: Any = None, clip: Any = None) -> Any:
        return Node.execute(to or model.patcher, tuple(rows), mode, strength, clip).args

    def rows(case: list[tuple[str, float]], **more: Any) -> list[Row]:
        return [Row(name=f"{adapter}.safetensors", model=weight, clip=weight, **more) for adapter, weight in case]

    def reference(case: list[tuple[str, float]]) -> Any:
        """The weights of float64, rounded once."""
        sums: dict[str, torch.Tensor] = {}
        for adapter, weight in case:
            for key, layer in read_adapter(loras / f"{adapter}.safetensors").layers.items():
                if key in targets:
                    target = targets[key]
                    start = original[target].double()
                    sums[target] = sums.get(target, torch.zeros_like(start)) + weight * delta(layer, base=start, dtype=torch.float64)
        patcher = model.patcher.clone()
        patcher.add_patches({target: ("set", ((original[target].double() + change).float(),)) for target, change in sums.items()})
        return patcher, list(sums)

    def chain(case: list[tuple[str, float]]) -> Any:
        patcher = model.patcher
        for adapter, weight in case:
            tensors = comfy.utils.load_torch_file(str(loras / f"{adapter}.safetensors"))
            tensors = {key: tensor for key, tensor in tensors.items() if key.startswith("lora_unet_")}
            patcher, _ = comfy.sd.load_lora_for_models(patcher, None, tensors, weight, 0.0)
        return patcher

    told: dict[str, Any] = {"cases": {}}
    for case in [case for case in CASES if case in OF_FAMILY[name]]:
        adapters = CASES[case]
        exact, changed = reference(adapters)
        wanted, wanted_weights = model.predicts(exact), model.weights(exact)
        merged, _, report = applied(rows(adapters), "merged")
        live, _, live_report = applied(rows(adapters), "live")
        found = model.weights(merged)
        told["cases"][case] = {
            "changes": relative(plain, wanted),
            "merged weights": max(relative(found[key], wanted_weights[key]) for key in changed),
            "merged": relative(model.predicts(merged), wanted),
            "live": relative(model.predicts(live), wanted),
            "live patches": len(live.patches) + (live.patches_uuid != model.patcher.patches_uuid),
            "report": report,
            "live report": live_report,
        }
        if case not in WITHOUT_CHAIN:
            told["cases"][case]["core"] = relative(model.predicts(chain(adapters)), wanted)
        if case in REVERSED:
            for mode, forwards in (("merged", merged), ("live", live)):
                backwards = applied(rows(adapters)[::-1], mode)[0]
                told["cases"][case][f"the order changes {mode}"] = not torch.equal(model.predicts(backwards), model.predicts(forwards))
    if name != "SD 1.x":
        print(json.dumps(told))
        return
    mixed = CASES["three loras, one negative"]

    # Nothing stays behind.
    left = model.weights(model.patcher.clone())
    told["restored"] = all(torch.equal(left[key], original[key]) for key in original) and torch.equal(model.predicts(model.patcher.clone()), plain)

    # Two nodes in a row, ours and core's around each other.
    both = reference(mixed)[0]
    for mode in ("merged", "live"):
        once = applied(rows(mixed[:1]), mode)[0]
        told[f"two {mode} nodes"] = relative(model.predicts(applied(rows(mixed[1:]), mode, to=once)[0]), model.predicts(both))
        tensors = comfy.utils.load_torch_file(str(loras / "second.safetensors"))
        after, _ = comfy.sd.load_lora_for_models(applied(rows([mixed[0], mixed[2]]), mode)[0], None, tensors, mixed[1][1], 0.0)
        told[f"core's after {mode}"] = relative(model.predicts(after), model.predicts(both))
        before = applied(rows([mixed[0], mixed[2]]), mode, to=chain([mixed[1]]))[0]
        told[f"core's before {mode}"] = relative(model.predicts(before), model.predicts(both))

    # A ControlNet's outputs, and a patch that adds to attention as IP-Adapters do, before and after ours.
    control = {"middle": [torch.randn(1, 320, 8, 8, generator=generator(0, "control"))]}

    def with_image(patcher: Any) -> Any:
        patcher = patcher.clone()
        patcher.set_model_attn2_output_patch(lambda out, extra: out * 1.5)
        return patcher

    wanted = model.predicts(with_image(both), control=copied(control))
    told["without them"] = relative(model.predicts(both), wanted)
    for mode in ("merged", "live"):
        orders = {"before": applied(rows(mixed), mode, to=with_image(model.patcher))[0], "after": with_image(applied(rows(mixed), mode)[0])}
        for order, patcher in orders.items():
            told[f"with an image {order} {mode} and a control"] = relative(model.predicts(patcher, control=copied(control)), wanted)
    twice = applied(rows([("dora", 0.6)]), "live", to=applied(rows([("first", 0.8)]), "live")[0])[0]
    told["a dora after a lora, live"] = relative(model.predicts(twice), model.predicts(reference([("first", 0.8), ("dora", 0.6)])[0]))

    # What a changed weight takes over from the run before is what it would make itself; other weights beneath a DoRA are not the same.
    first = model.predicts(applied(rows([("dora", 0.6), ("second", 0.2)]), "live")[0])
    again = applied(rows([("dora", 0.3), ("second", -0.4)]), "live")[0]
    told["changed weights"] = relative(model.predicts(again), model.predicts(reference([("dora", 0.3), ("second", -0.4)])[0]))
    told["changed weights change"] = relative(first, model.predicts(again))
    other = applied(rows([("dora", 0.3), ("second", -0.4)]), "live", to=chain([("third", 1.0)]))[0]
    merged = applied(rows([("dora", 0.3), ("second", -0.4)]), "merged", to=chain([("third", 1.0)]))[0]
    told["on changed weights"] = relative(model.predicts(other), model.predicts(merged))

    # A loader behind a DoRA that gets another weight changes the weights beneath it.
    under = applied(rows([("dora", 0.6)]), "live")[0]
    tensors = comfy.utils.load_torch_file(str(loras / "third.safetensors"))
    for weight in (0.5, 1.0):
        later, _ = comfy.sd.load_lora_for_models(under, None, tensors, weight, 0.0)
        fresh = applied(rows([("dora", 0.6)]), "live", to=chain([("third", weight)]))[0]
        told[f"core's {weight} after a dora"] = relative(model.predicts(later), model.predicts(fresh))

    # Schedules: nothing before the start, all of it after, and half in the middle of a rising one.
    late = applied(rows(mixed, start=0.5), "live")[0]
    whole = applied(rows(mixed), "live")[0]
    told["scheduled"] = {
        "before": torch.equal(model.predicts(late, 900.0), model.predicts(model.patcher.clone(), 900.0)),
        "after": torch.equal(model.predicts(late, 100.0), model.predicts(whole, 100.0)),
        "rising": relative(
            model.predicts(applied(rows(mixed, curve="rising"), "live")[0], 499.5), model.predicts(applied(rows(mixed), "live", 0.5)[0], 499.5)
        ),
    }
    told["strength 0"] = torch.equal(model.predicts(applied(rows(mixed), "live", 0.0)[0]), plain)

    # Blocks.
    middle = model.weights(applied(rows([("second", 1.0)], blocks="NONE"), "merged")[0])
    told["no blocks"] = all(torch.equal(middle[key], original[key]) for key in original)
    outs = model.weights(applied(rows([("second", 1.0)], blocks="OUTALL"), "merged")[0])
    told["blocks of OUTALL"] = sorted({key.split(".")[1] for key in original if not torch.equal(outs[key], original[key])})

    # What ComfyUI is told that live mode needs.
    (factors,) = applied(rows([("first", 1.0), ("dora", 1.0)]), "live")[0].get_nested_additional_models()
    files = (loras / "first.safetensors", loras / "dora.safetensors")
    layers = [layer for file in files for key, layer in read_adapter(file).layers.items() if key in targets]
    told["counted"] = factors.model_size() / sum(4 * layer[f"lora_{side}.weight"].numel() for layer in layers for side in ("up", "down"))

    # Nothing of ours keeps a model in memory.
    gone = used_once(checkpoint, lambda patcher: applied(rows([("dora", 0.6), ("second", 0.2)]), "live", to=patcher)[0])
    gc.collect()
    told["freed"] = gone() is None
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
