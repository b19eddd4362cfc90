"""Adapters out of adapters and checkpoints, in the real server on the mini base: what is made does what it was made of."""
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loom_server import Refused, Server, node
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_checkpoints import TINY, UNET, shapes
from torch import Tensor

from trainer.adapters.checkpoint_layers import Place, checkpoint_layers
from trainer.adapters.delta import delta
from trainer.adapters.files import read_header, write_safetensors
from trainer.adapters.made_metadata import made_by
from trainer.adapters.reading import Adapter, read_adapter
from trainer.adapters.soundness import payload_sha256
from trainer.families.detect import describe_checkpoint

BASE = "mini_base.safetensors"
STACK = [
    {"on": True, "name": "part_a.safetensors", "model": 0.5, "clip": 0.5},
    {"on": True, "name": "part_b.safetensors", "model": -0.8, "clip": 1.0},
]
OFF = {"on": False, "name": "part_dora.safetensors", "model": 1, "clip": 1}
MERGE = {"method": "concatenate", "rank": 0, "energy": 0.0, "density": 0.5, "drop_rate": 0.5, "seed": 0, "dare_variant": "linear"}
MERGE |= {"save_format": "fp32"}
EXTRACT = {"energy": 0.0, "conv_rank": 0, "others": False, "text_encoder": True, "save_format": "fp16"}


def random_layer(shape: tuple[int, ...], rank: int, alpha: float, seed: int) -> dict[str, Tensor]:
    """A change of about a quarter of the size of weights of that shape, that fp16 holds exactly."""
    numbers = torch.Generator().manual_seed(seed)
    kernel = [1] * (len(shape) - 2)
    fan_in = torch.Size(shape[1:]).numel()
    up = torch.randn(shape[0], rank, *kernel, generator=numbers) * 0.25
    down = torch.randn(rank, *shape[1:], generator=numbers) / (fan_in * rank) ** 0.5
    return {"lora_up.weight": up.half(), "lora_down.weight": down.half(), "alpha": torch.tensor(alpha)}


def write(path: Path, layers: dict[str, dict[str, Tensor]], metadata: dict[str, str]) -> None:
    write_safetensors(path, {f"{key}.{suffix}": tensor for key, layer in layers.items() for suffix, tensor in layer.items()}, metadata)


@pytest.fixture(scope="module")
def places(base_directory: Path) -> dict[str, Place]:
    """The mini base's layers."""
    path = base_directory / "models" / "checkpoints" / BASE
    return checkpoint_layers(describe_checkpoint(path), BASE)


@pytest.fixture(scope="module")
def loras(server: Server, places: dict[str, Place]) -> Iterator[Path]:
    """models/loras with the parts: LoRA, LoCon, DoRA, one for SDXL, and a stranger's file."""
    folder = server.base / "models" / "loras"
    adapted = [key for key, place in places.items() if place.adaptable and len(place.shape) > 1]
    attention = [key for key in adapted if "_mid_block_attentions_" in key and "_attn" in key]
    text = [key for key in adapted if key.startswith("lora_te_") and "_layers_3_" in key]
    convolutions = [key for key in adapted if key.endswith(("mid_block_resnets_0_conv1", "_conv_in"))]
    assert len(attention) == 8 and len(text) == 6 and len(convolutions) == 2
    of = {key: place.shape for key, place in places.items()}
    told = {"modelspec.trigger_phrase": "one food", "ss_tag_frequency": '{"food": {"red": 2}}', "ss_base_model_version": "sd_1.5"}
    write(folder / "part_a.safetensors", {key: random_layer(of[key], 8, 8.0, n) for n, key in enumerate((*attention, *text))}, told)
    told = {"modelspec.trigger_phrase": "two food", "ss_tag_frequency": '{"food": {"red": 1, "blue": 5}}', "ss_base_model_version": "sd_1.5"}
    write(folder / "part_b.safetensors", {key: random_layer(of[key], 3, 3.0, 100 + n) for n, key in enumerate((*attention[:4], *convolutions))}, told)
    stored = tensors_of(server.base / "models" / "checkpoints" / BASE, [places[key].name for key in attention])
    dora = {}
    for n, key in enumerate(attention):
        weight = stored[places[key].name].float()
        magnitude = weight.norm(dim=1, keepdim=True) * 1.1
        dora[key] = {**random_layer(of[key], 4, 4.0, 200 + n), "dora_scale": magnitude}
    write(folder / "part_dora.safetensors", dora, {})
    of_sdxl = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    write(folder / "part_xl.safetensors", {of_sdxl: random_layer((640, 2048), 2, 2.0, 1)}, {})
    save_file({"a": torch.zeros(1)}, str(folder / "strangers.safetensors"))
    one = {"lora_unet_conv_in": random_layer((320, 4, 3, 3), 1, 1.0, 0)}
    write(folder / "made_trained.safetensors", one, {"lora_loom.spec": '{"task": "train_lora"}'})
    write(folder / "made_own.safetensors", one, {"lora_loom.made_by": made_by("LoomMergeAdapters", {}, [])})
    write(folder / "made_saved.safetensors", one, {"lora_loom.spec": "{}", "lora_loom.made_by": made_by("LoomSaveAdapter", {}, [])})
    yield folder
    for pattern in ("part_*", "made_*", "strangers.*"):
        for path in folder.glob(pattern):
            path.unlink()


@pytest.fixture(scope="module")
def others(server: Server) -> Iterator[None]:
    """Checkpoints of other kinds than the mini base; of those, only the header is ever read."""
    folder = server.base / "models" / "checkpoints"
    first = UNET + "input_blocks.0.0.weight"
    plans = {"other_xl": shapes(TINY["SDXL"]), "other_size": shapes(TINY["SD 1.x"])}
    plans["other_inpainting"] = plans["other_size"] | {first: (320, 9, 3, 3)}
    for name, tensors in plans.items():
        header = {tensor: {"dtype": "F16", "shape": shape, "data_offsets": [i, i + 1]} for i, (tensor, shape) in enumerate(tensors.items())}
        raw = json.dumps(header).encode()
        (folder / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(len(tensors)))
    yield
    for name in plans:
        (folder / f"{name}.safetensors").unlink()


def tensors_of(path: Path, names: list[str]) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in names}


def extract(**settings: Any) -> dict[str, Any]:
    return node("LoomExtractAdapter", **({"base": BASE, "name": "x", "rank": 4, **EXTRACT} | settings))


def rows(*adapters: dict[str, Any]) -> dict[str, Any]:
    return node("LoomAdapterStack", rows=json.dumps(adapters))


def merge(name: str, adapters: str = "stack", **settings: Any) -> dict[str, Any]:
    return node("LoomMergeAdapters", adapters=[adapters, 0], name=name, **(MERGE | settings))


def resize(adapters: str = "stack", name: str = "x", **settings: Any) -> dict[str, Any]:
    given = {"rank": 4, "energy": 0.0, "frobenius": 0.0, "save_format": "fp16", **settings}
    return node("LoomResizeAdapter", adapters=[adapters, 0], name=name, **given)


def drawn(graph: dict[str, Any], name: str, model: list[Any], clip: list[Any]) -> None:
    """Add nodes that sample with the model and save the latent as `name`."""
    graph |= {
        f"{name} positive": node("CLIPTextEncode", clip=clip, text="smiley, grinning face"),
        f"{name} negative": node("CLIPTextEncode", clip=clip, text=""),
        f"{name} latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        f"{name} sampler": node(
            "KSampler", model=model, positive=[f"{name} positive", 0], negative=[f"{name} negative", 0], latent_image=[f"{name} latent", 0],
            seed=3, steps=3, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        f"{name} save": node("SaveLatent", samples=[f"{name} sampler", 0], filename_prefix=f"made/{name}"),
    }


def latent(server: Server, name: str) -> Tensor:
    (path,) = (server.base / "output" / "made").glob(f"{name}_*.latent")
    return load_file(path)["latent_tensor"]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def change(adapter: Adapter, key: str, base: Tensor | None = None) -> Tensor:
    return delta(adapter.layers[key], base=base, dtype=torch.float64)


def stacked(loras: Path) -> dict[str, Tensor]:
    """The exact sum of STACK."""
    total: dict[str, Tensor] = {}
    for row in STACK:
        adapter = read_adapter(loras / row["name"])
        for key in adapter.layers:
            weight = row["clip"] if key.startswith("lora_te_") else row["model"]
            total[key] = total.get(key, torch.tensor(0.0, dtype=torch.float64)) + weight * change(adapter, key)
    return total


def worst(adapter: Adapter, wanted: dict[str, Tensor]) -> float:
    """The largest error of a layer, relative to the layer."""
    assert set(adapter.layers) == set(wanted)
    return max(relative(change(adapter, key), exact) for key, exact in wanted.items())


@pytest.fixture(scope="module")
def made(server: Server, loras: Path) -> dict[str, Any]:
    """The first prompt's outputs: the stack merged exactly and to a rank, baked, and pictures of the stack and of the exact merge."""
    graph: dict[str, Any] = {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=BASE),
        "stack": rows(*STACK, OFF),
        "exact": merge("made_exact"),
        "svd": merge("made_svd", method="svd", rank=11),
        "low": merge("made_low", method="svd", rank=4, save_format="fp16"),
        "ties": merge("made_ties", method="ties", rank=8, density=0.3),
        "applied": node("LoomApplyAdapters", model=["checkpoint", 0], clip=["checkpoint", 1], adapters=["stack", 0], mode="merged", strength=1.0),
        "one": node("LoomApplyAdapters", model=["checkpoint", 0], clip=["checkpoint", 1], adapters=["exact", 0], mode="merged", strength=1.0),
        "bake": node("LoomBakeCheckpoint", checkpoint=BASE, adapters=["stack", 0], name="made_baked", dtype="as the file"),
    }
    drawn(graph, "plain", ["checkpoint", 0], ["checkpoint", 1])
    drawn(graph, "stack", ["applied", 0], ["applied", 1])
    drawn(graph, "merged", ["one", 0], ["one", 1])
    return server.run(graph)


def test_a_merged_file_is_the_weighted_sum_of_its_parts(made: dict[str, Any], loras: Path) -> None:
    wanted = stacked(loras)
    assert worst(read_adapter(loras / "made_exact.safetensors"), wanted) < 1e-6
    assert worst(read_adapter(loras / "made_svd.safetensors"), wanted) < 1e-6
    ranks = {layer["lora_down.weight"].shape[0] for layer in read_adapter(loras / "made_exact.safetensors").layers.values()}
    assert ranks == {8, 11, 3}


def test_the_report_tells_the_error_that_there_is(made: dict[str, Any], loras: Path) -> None:
    wanted, found = stacked(loras), read_adapter(loras / "made_low.safetensors")
    error = sum(float((change(found, key) - exact).norm()) ** 2 for key, exact in wanted.items())
    norm = sum(float(exact.norm()) ** 2 for exact in wanted.values())
    assert f"error against the exact sum: {(error / norm) ** 0.5 * 100:.3g} %" in made["low"]["text"][0]
    assert "BASE: 6 layers" in made["low"]["text"][0]
    assert "M00: " in made["low"]["text"][0]
    assert made["ties"]["text"][0].startswith("ties of 2 adapters: 16 layers, rank 8")


def test_the_merged_adapter_draws_what_the_stack_draws(made: dict[str, Any], server: Server) -> None:
    plain, stack, merged = (latent(server, name) for name in ("plain", "stack", "merged"))
    assert relative(plain, stack) > 0.05, "too weak to show anything"
    assert relative(merged, stack) < 1e-3


def test_the_file_says_how_it_was_made(made: dict[str, Any], loras: Path) -> None:
    metadata = read_header(loras / "made_low.safetensors").metadata
    told = json.loads(metadata["lora_loom.made_by"])
    assert told["node"] == "LoomMergeAdapters"
    assert told["settings"] == {"method": "svd", "rank": 4, "save_format": "fp16"}
    assert [(file["name"], file["model"]) for file in told["files"]] == [("part_a.safetensors", 0.5), ("part_b.safetensors", -0.8)]
    assert metadata["ss_base_model_version"] == "sd_1.5"
    assert metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "4")
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "3", "conv_alpha": "3"}
    assert read_header(loras / "made_exact.safetensors").metadata["ss_network_dim"] == "Dynamic"
    assert metadata["modelspec.trigger_phrase"] == "one food, two food"
    assert json.loads(metadata["ss_tag_frequency"]) == {"food": {"blue": 5, "red": 3}}
    assert metadata["modelspec.hash_sha256"] == "0x" + payload_sha256(loras / "made_low.safetensors")


def test_the_same_merge_is_the_same_file_and_a_lost_one_is_made_again(made: dict[str, Any], server: Server, loras: Path) -> None:
    path = loras / "made_low.safetensors"
    first = path.read_bytes()
    path.unlink()
    server.run({"stack": rows(*STACK, OFF), "low": merge("made_low", method="svd", rank=4, save_format="fp16")})
    assert path.read_bytes() == first


def test_the_baked_checkpoint_draws_what_apply_adapters_draws_and_extracting_gives_the_adapter_back(
    made: dict[str, Any], server: Server, loras: Path, places: dict[str, Place]
) -> None:
    checkpoints = server.base / "models" / "checkpoints"
    graph: dict[str, Any] = {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name="made_baked.safetensors"),
        "extract": extract(tuned="made_baked.safetensors", name="made_extract", rank=11, conv_rank=3),
    }
    drawn(graph, "baked", ["checkpoint", 0], ["checkpoint", 1])
    outputs = server.run(graph)
    assert relative(latent(server, "baked"), latent(server, "stack")) < 0.01
    assert "part_a.safetensors: model 0.5, text encoder 0.5, 14 of 14 layers" in made["bake"]["text"][0]

    # fp16 weights hold a change of a quarter of their size to some 2e-3.
    wanted = stacked(loras)
    assert worst(read_adapter(loras / "made_extract.safetensors"), wanted) < 5e-3
    assert "BASE: 6 layers" in outputs["extract"]["text"][0]
    changed = {places[key].name for key in wanted}
    before, after = load_file(checkpoints / BASE), load_file(checkpoints / "made_baked.safetensors")
    assert before.keys() == after.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} == changed
    del before, after
    (checkpoints / "made_baked.safetensors").unlink()


def test_a_dora_needs_its_base(server: Server, loras: Path, places: dict[str, Place]) -> None:
    graph = {"stack": rows({"name": "part_dora.safetensors", "model": 0.5, "clip": 0.5}), "merge": merge("made_dora", method="svd", rank=320)}
    assert "connect the base model that it was made for to the input model" in server.fail(graph)
    # A model that has just drawn with another adapter holds that adapter's patches; the base's own weights count.
    checkpoint = {"checkpoint": node("CheckpointLoaderSimple", ckpt_name=BASE)}
    patched = checkpoint | {"other": rows({"name": "part_a.safetensors"})}
    patched["applied"] = node("LoomApplyAdapters", model=["checkpoint", 0], adapters=["other", 0], mode="merged", strength=1.0)
    drawn(patched, "patched", ["applied", 0], ["checkpoint", 1])
    server.run(patched)
    graph |= checkpoint
    graph["merge"]["inputs"]["model"] = ["checkpoint", 0]
    server.run(graph)
    found, dora = read_adapter(loras / "made_dora.safetensors"), read_adapter(loras / "part_dora.safetensors")
    stored = tensors_of(server.base / "models" / "checkpoints" / BASE, [places[key].name for key in dora.layers])
    assert worst(found, {key: 0.5 * change(dora, key, stored[places[key].name].double()) for key in dora.layers}) < 1e-5


def test_resizing_to_the_rank_that_is_there_changes_nothing_and_weights_are_folded(server: Server, loras: Path) -> None:
    one, half = ({"name": "part_a.safetensors", "model": weight, "clip": 1.0} for weight in (1.0, 0.5))
    outputs = server.run(
        {
            "one": rows(one),
            "half": rows(half),
            "same": resize("one", "made_same", rank=8),
            "halved": resize("half", "made_halved", rank=8),
            "small": resize("one", "made_small"),
        }
    )
    part = read_adapter(loras / "part_a.safetensors")
    exact = {key: change(part, key) for key in part.layers}
    same, original = (load_file(loras / f"{name}.safetensors") for name in ("made_same", "part_a"))
    assert same.keys() == original.keys() and all(torch.equal(same[name], original[name]) for name in same)
    folded = {key: value * (1 if key.startswith("lora_te_") else 0.5) for key, value in exact.items()}
    # Halves of fp16's smallest numbers lose their last bit.
    assert worst(read_adapter(loras / "made_halved.safetensors"), folded) < 1e-6
    small = read_adapter(loras / "made_small.safetensors")
    error = sum(float((change(small, key) - exact[key]).norm()) ** 2 for key in exact) / sum(float(value.norm()) ** 2 for value in exact.values())
    assert f"error against the exact sum: {error**0.5 * 100:.3g} %" in outputs["small"]["text"][0]
    assert outputs["small"]["text"][0].startswith("resize: 14 layers, rank 4")


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        (merge("x", method="svd"), "needs a rank or an energy"),
        (merge("x", method="concatenate", rank=8, seed=1), "does not use rank (to 0) and seed (to 0)"),
        (merge("../x"), "is not a plain file name"),
        (merge("strangers"), "was not made by LoRA Loom"),
        (merge("made_trained"), "models/loras/made_trained.safetensors exists and is a training's adapter: choose another name"),
        (merge("made_saved"), "models/loras/made_saved.safetensors exists and was made by LoomSaveAdapter: choose another name"),
        (resize(name="made_own"), "was made by LoomMergeAdapters"),
        (merge("x", method="average"), "method: there is no 'average': choose one of concatenate, svd,"),
        (merge("x", method="dare", dare_variant="mean"), "dare_variant: there is no 'mean': choose one of linear, ties."),
        (merge("x", save_format="fp8"), "save_format: there is no 'fp8': choose one of fp16, bf16, fp32."),
        (resize(rank=0), "how much to keep"),
        (resize(save_format="fp8"), "choose one of fp16, bf16, fp32."),
        (node("LoomBakeCheckpoint", checkpoint=BASE, adapters=["stack", 0], name="x", dtype="fp8"), "choose one of as the file, fp16, bf16, fp32."),
        (extract(tuned=BASE), "there is no difference"),
        (extract(tuned=BASE, rank=0), "how much to keep"),
        (extract(tuned="no.safetensors"), "not in ComfyUI's checkpoints"),
        (extract(tuned="other_xl.safetensors"), "other_xl.safetensors is SDXL and mini_base.safetensors is SD 1.x"),
        (extract(tuned="other_size.safetensors"), "are built differently"),
        (extract(tuned="other_inpainting.safetensors"), "inpainting checkpoint"),
        (node("LoomBakeCheckpoint", checkpoint=BASE, adapters=["stack", 0], name="mini_base", dtype="fp16"), "was not made by LoRA Loom"),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_queued(server: Server, loras: Path, others: None, graph: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused) as refused:
        server.queue({"stack": rows(STACK[0]), "made": graph})
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("adapters", "made", "says"),
    [
        ([STACK[0], {"name": "part_xl.safetensors"}], merge("x"), "part_a.safetensors was made for SD 1.x and part_xl.safetensors for SDXL"),
        ([{**STACK[0], "start": 0.5}], merge("x"), "row 1 (part_a.safetensors) has a schedule"),
        ([{**STACK[0], "on": False}], merge("x"), "no row of the stack is on"),
        (STACK, resize(), "2 rows"),
        ([{"name": "made_own.safetensors"}], merge("made_own"), "is one of the files that this is made of"),
        (
            [{"name": "part_xl.safetensors"}],
            node("LoomBakeCheckpoint", checkpoint=BASE, adapters=["stack", 0], name="x", dtype="fp16"),
            "it looks like an adapter for SDXL, and the model is SD 1.x",
        ),
    ],
)
def test_a_stack_that_cannot_become_one_file_is_refused(
    server: Server, loras: Path, adapters: list[dict[str, Any]], made: dict[str, Any], says: str
) -> None:
    assert says in server.fail({"stack": rows(*adapters), "made": made})
    assert not (loras / "x.safetensors").exists()
