"""Looking at adapters, saving them in other clothes and comparing them, in the real server."""
import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loom_server import Refused, Server, drawing_graph, node
from PIL import Image

from trainer.adapters.files import read_header, write_safetensors
from trainer.adapters.reading import read_adapter
from trainer.data.order import generator

PROMPTS = ("red apple, red food", "smiley, grinning face")
WORDS, LEFT = "grinning face", "smiley"
UNET = "lora_unet_{}_attentions_0_transformer_blocks_0_{}"
TEXT = "lora_te_text_model_encoder_layers_{}_self_attn_v_proj"
STEPS = 3

Graph = dict[str, Any]
Pixels = np.ndarray


def write(path: Path, *parts: str) -> None:
    """A LoRA of the mini base's layers, strong enough to be seen; alpha / rank is a power of two, so folding it changes no bit."""
    sizes = {UNET.format(block, layer): 320 for block in ("down_blocks_1", "mid_block", "up_blocks_0") for layer in ("attn1_to_v", "attn2_to_out_0")}
    sizes |= {TEXT.format(number): 768 for number in range(12)}
    tensors = {}
    for key, width in sizes.items():
        if not key.startswith(parts):
            continue
        for name, shape in (("up", (width, 4)), ("down", (4, width))):
            tensors[f"{key}.lora_{name}.weight"] = (torch.randn(shape, generator=generator(0, path.stem, key, name)) * 0.15).half()
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    write_safetensors(path, tensors, {"ss_base_model_version": "sd_1.5", "ss_steps": "77", "lora_adapter_metadata": "{}"})


def compare(adapters: str, prompt: str, kind: str = "weights", weights: str = "0, 1", **more: Any) -> Graph:
    settings = {"width": 128, "height": 128, "seed": 3, "steps": STEPS, "cfg": 3.0, "sampler": "euler", "scheduler": "normal", **more}
    of = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "vae": ["checkpoint", 2], "adapters": [adapters, 0]}
    return node("LoomCompare", **of, prompt=prompt, negative="", compare=kind, weights=weights, **settings)


def drawing(prefix: str, model: list[Any], clip: list[Any], prompt: str) -> Graph:
    """The pieces of a picture, under names of their own."""
    graph = drawing_graph(model, clip, prompt, f"compare_{prefix}", STEPS)
    del graph["checkpoint"]
    text = json.dumps(graph)
    for name in graph:
        text = text.replace(f'["{name}", 0]', f'["{prefix} {name}", 0]')
    return {f"{prefix} {name}": entry for name, entry in json.loads(text).items()}


@pytest.fixture(scope="module")
def loras(server: Server) -> Path:
    folder = server.base / "models" / "loras"
    write(folder / "looks.safetensors", "lora_")
    write(folder / "unet_only.safetensors", "lora_unet")
    write(folder / "trained-step00000500.safetensors", "lora_unet")
    write(folder / "trained.safetensors", "lora_unet")
    return folder


@pytest.fixture(scope="module")
def outputs(server: Server, loras: Path) -> dict[str, Any]:
    """One prompt with everything in it."""
    rows = [{"on": True, "name": "looks.safetensors", "model": 1, "clip": 1}, {"on": False, "name": "unet_only.safetensors"}]
    both = [rows[0], {"on": True, "name": "unet_only.safetensors", "model": 0.5, "clip": 0.5}]
    return server.run(
        {
            "checkpoint": node("CheckpointLoaderSimple", ckpt_name="mini_base.safetensors"),
            "stack": node("LoomAdapterStack", rows=json.dumps(rows)),
            "both": node("LoomAdapterStack", rows=json.dumps(both)),
            "apply": node("LoomApplyAdapters", model=["checkpoint", 0], clip=["checkpoint", 1], adapters=["stack", 0], mode="live", strength=1.0),
            "compare": compare("stack", "\n".join(PROMPTS)),
            "cells": node("SaveImage", images=["compare", 1], filename_prefix="cells"),
            "each": compare("both", PROMPTS[0], "adapters x weights", "1, 0, 0.5"),
            "each cells": node("SaveImage", images=["each", 1], filename_prefix="each"),
            "alone": compare("both", PROMPTS[0], "adapters"),
            "alone cells": node("SaveImage", images=["alone", 1], filename_prefix="alone"),
            "without": compare("stack", "\n".join(PROMPTS), weights="1", without=WORDS),
            "without cells": node("SaveImage", images=["without", 1], filename_prefix="without"),
            "trained": node("LoomAdapterStack", rows=json.dumps([{"name": "trained.safetensors"}])),
            "by step": compare("trained", PROMPTS[0], "steps"),
            "by step cells": node("SaveImage", images=["by step", 1], filename_prefix="by_step"),
            "inspect": node("LoomInspectAdapter", adapter="looks.safetensors"),
            "inspect last": node("LoomInspectAdapter", adapters=["both", 0]),
            "diffusers": node(
                "LoomSaveAdapter", adapters=["stack", 0], name="looks_diffusers", naming="diffusers", save_format="as the file", metadata="{}"
            ),
            "kohya": node(
                "LoomSaveAdapter", adapters=["stack", 0], name="looks_kohya", naming="kohya", save_format="fp32", metadata='{"ss_steps": null}'
            ),
            **drawing("plain", ["checkpoint", 0], ["checkpoint", 1], PROMPTS[0]),
            **drawing("adapted", ["apply", 0], ["apply", 1], PROMPTS[0]),
            **drawing("left", ["apply", 0], ["apply", 1], LEFT),
        }
    )


def pixels(server: Server, saved: dict[str, str]) -> Pixels:
    with Image.open(server.file(saved)) as picture:
        return np.asarray(picture.convert("RGB"))


def told_by(server: Server, output: dict[str, Any]) -> dict[str, Any]:
    """The settings in the metadata of a grid."""
    with Image.open(server.file(output["images"][0])) as picture:
        told: dict[str, Any] = json.loads(picture.info["lora_loom.compare"])
    return told


def holds(grid: Pixels, cell: Pixels) -> bool:
    """Whether a picture is somewhere in a grid, to the bit."""
    height, width, _ = cell.shape
    corners = np.argwhere((grid == cell[0, 0]).all(axis=2))
    return any(np.array_equal(grid[y : y + height, x : x + width], cell) for y, x in corners)


def test_cells_are_the_pictures_of_the_plain_nodes_to_the_bit(server: Server, outputs: dict[str, Any]) -> None:
    cells = [pixels(server, saved) for saved in outputs["cells"]["images"]]
    plain, adapted = (pixels(server, outputs[f"{name} save"]["images"][0]) for name in ("plain", "adapted"))
    assert len(cells) == 4
    assert np.array_equal(cells[0], plain)
    assert np.array_equal(cells[1], adapted)
    assert np.abs(plain.astype(int) - adapted).mean() > 2
    assert not np.array_equal(cells[2], plain) and not np.array_equal(cells[2], cells[3])


def test_the_other_tables_have_the_same_pictures_in_their_places(server: Server, outputs: dict[str, Any]) -> None:
    base, whole = (pixels(server, saved) for saved in outputs["cells"]["images"][:2])
    each = [pixels(server, saved) for saved in outputs["each cells"]["images"]]
    alone = [pixels(server, saved) for saved in outputs["alone cells"]["images"]]
    assert len(each) == 6 and len(alone) == 3
    assert [np.array_equal(cell, base) for cell in each] == [False, True, False, False, True, False]
    assert np.array_equal(each[0], whole)
    assert [np.array_equal(cell, base) for cell in alone] == [True, False, False]
    assert np.array_equal(alone[1], whole) and np.array_equal(alone[2], each[3])


def test_the_steps_of_a_training_are_side_by_side(server: Server, outputs: dict[str, Any]) -> None:
    base = pixels(server, outputs["cells"]["images"][0])
    cells = [pixels(server, saved) for saved in outputs["by step cells"]["images"]]
    assert len(cells) == 3 and np.array_equal(cells[0], base) and not np.array_equal(cells[1], cells[2])
    assert told_by(server, outputs["by step"])["columns"] == ["no adapter", "step 500", "the end"]


def test_a_column_without_words_is_the_last_one_with_what_is_left_of_the_prompts(server: Server, outputs: dict[str, Any]) -> None:
    _, first, _, second = (pixels(server, saved) for saved in outputs["cells"]["images"])
    left = pixels(server, outputs["left save"]["images"][0])
    assert not np.array_equal(left, second)
    cells = [pixels(server, saved) for saved in outputs["without cells"]["images"]]
    assert len(cells) == 4
    # What does not hold the words is what it was.
    assert all(np.array_equal(cell, picture) for cell, picture in zip(cells, (first, first, second, left), strict=True))
    told = told_by(server, outputs["without"])
    assert (told["columns"], told["without"]) == (["weight 1", f'weight 1, without "{WORDS}"'], [WORDS])
    assert told["rows"] == told["prompts"] == list(PROMPTS)
    assert told_by(server, outputs["compare"])["without"] is None


@pytest.mark.parametrize(("kind", "last"), [("adapters", "unet_only 0.5"), ("adapters x weights", "weight 0.5"), ("steps", "the end")])
def test_every_kind_of_table_has_a_column_without_words(server: Server, loras: Path, kind: str, last: str) -> None:
    rows = [{"name": "looks.safetensors"}, {"name": "trained.safetensors" if kind == "steps" else "unet_only.safetensors", "model": 0.5, "clip": 0.5}]
    graph = wrong(rows, kind=kind, weights="1, 0.5")
    graph["compare"]["inputs"] |= {"prompt": PROMPTS[1], "without": WORDS}
    graph["left"] = {**graph["compare"], "inputs": {**graph["compare"]["inputs"], "prompt": LEFT, "without": ""}}
    for name in ("compare", "left"):
        graph[f"{name} cells"] = node("SaveImage", images=[name, 1], filename_prefix="kinds")
    done = server.run(graph)
    columns = told_by(server, done["compare"])["columns"]
    assert columns[-2:] == [last, f'{last}, without "{WORDS}"']
    cells, left = ([pixels(server, saved) for saved in done[f"{name} cells"]["images"]] for name in ("compare", "left"))
    ends, left_ends = cells[len(columns) - 1 :: len(columns)], left[len(columns) - 2 :: len(columns) - 1]
    assert len(ends) == len(left_ends) == (2 if kind == "adapters x weights" else 1)
    assert all(np.array_equal(end, picture) for end, picture in zip(ends, left_ends, strict=True))
    assert not np.array_equal(cells[-1], cells[-2])


def test_only_what_is_shown_is_drawn(server: Server, loras: Path) -> None:
    graph = wrong(weights="0, 1", without=WORDS)
    graph["compare"]["inputs"]["prompt"] = "\n".join(PROMPTS)

    async def told() -> list[dict[str, Any]]:
        return [message async for message in server.follow(graph)]

    bar = [message["data"] for message in asyncio.run(told()) if message["type"] == "progress" and message["data"]["node"] == "compare"]
    # Each of two prompts with each of two weights, and the second prompt without the words with the second weight.
    assert {data["max"] for data in bar} == {5 * STEPS}
    assert max(data["value"] for data in bar) == 5 * STEPS


def test_a_file_as_hubs_serve_it_is_called_by_its_folder(server: Server, loras: Path) -> None:
    (loras / "hub").mkdir(exist_ok=True)
    write(loras / "hub" / "pytorch_lora_weights.safetensors", "lora_unet")
    graph = wrong([{"name": "hub/pytorch_lora_weights.safetensors"}], kind="adapters")
    assert told_by(server, server.run(graph)["compare"])["columns"] == ["no adapter", "hub"]


def test_another_step_of_a_training_is_drawn_without_a_change_of_the_graph(server: Server, loras: Path) -> None:
    graph = wrong([{"name": "goes_on.safetensors"}], kind="steps")
    write(loras / "goes_on.safetensors", "lora_unet")
    columns = []
    for step in (100, 200):
        write(loras / f"goes_on-step{step:08d}.safetensors", "lora_unet")
        columns.append(told_by(server, server.run(graph)["compare"])["columns"])
    assert columns == [["no adapter", "step 100", "the end"], ["no adapter", "step 100", "step 200", "the end"]]


def test_the_grid_is_saved_with_its_pictures_and_settings(server: Server, outputs: dict[str, Any]) -> None:
    (saved,) = outputs["compare"]["images"]
    assert (saved["type"], saved["subfolder"]) == ("output", "lora_loom")
    with Image.open(server.file(saved)) as picture:
        told, graph = json.loads(picture.info["lora_loom.compare"]), json.loads(picture.info["prompt"])
    assert graph["compare"]["class_type"] == "LoomCompare"
    assert told["columns"] == ["weight 0", "weight 1"] and told["rows"] == told["prompts"] == list(PROMPTS)
    assert (told["seed"], told["steps"], told["cfg"], told["sampler"], told["weights"]) == (3, STEPS, 3.0, "euler", [0.0, 1.0])
    assert [row["name"] for row in told["adapters"]] == ["looks.safetensors", "unet_only.safetensors"]
    grid = pixels(server, saved)
    assert all(holds(grid, pixels(server, cell)) for cell in outputs["cells"]["images"])


def test_a_report_is_on_the_node_with_its_picture(server: Server, outputs: dict[str, Any]) -> None:
    (text,) = outputs["inspect"]["text"]
    lines = text.splitlines()
    facts = ("kind: LoRA", "base family: SD 1.x", "rank: 4 in 18 layers", "alpha: 2 (scale 0.5) in 18 layers", "  steps: 77")
    for line in ("looks.safetensors", *facts):
        assert line in lines, text
    assert server.file(outputs["inspect"]["images"][0]).is_file()
    assert outputs["inspect last"]["text"][0].startswith("unet_only.safetensors\n")


def test_what_was_saved_loads_in_cores_loader_and_does_the_same(server: Server, loras: Path, outputs: dict[str, Any]) -> None:
    original = read_header(loras / "looks.safetensors")
    assert "ss_steps" not in read_header(loras / "looks_kohya.safetensors").metadata
    assert read_header(loras / "looks_diffusers.safetensors").metadata["ss_steps"] == "77"
    assert read_adapter(loras / "looks_diffusers.safetensors").naming == "diffusers"
    assert {entry.dtype for entry in read_header(loras / "looks_kohya.safetensors").tensors.values()} == {"F32"}
    assert set(read_header(loras / "looks_kohya.safetensors").tensors) == set(original.tensors)
    before = len(server.log.read_text())
    graph: Graph = {"checkpoint": node("CheckpointLoaderSimple", ckpt_name="mini_base.safetensors")}
    for name in ("looks", "looks_kohya", "looks_diffusers"):
        file = {"lora_name": f"{name}.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
        graph[name] = node("LoraLoader", model=["checkpoint", 0], clip=["checkpoint", 1], **file)
        graph |= drawing(f"{name} core", [name, 0], [name, 1], PROMPTS[0])
    done = server.run(graph)
    first, *others = (pixels(server, done[f"{name} core save"]["images"][0]) for name in ("looks", "looks_kohya", "looks_diffusers"))
    # To a grey level of 255: where numbers lie in a file, and so in memory, changes how core's products are rounded.
    assert all(np.abs(first.astype(int) - other).max() <= 1 for other in others)
    assert not np.array_equal(first, pixels(server, outputs["plain save"]["images"][0]))
    assert "lora key not loaded" not in server.log.read_text()[before:]


@pytest.mark.parametrize(("weights", "got"), [("0, x", "'x'"), ("0,,1", "nothing"), ("", "nothing"), ("11", "'11'"), ("nan", "'nan'")])
def test_weights_that_are_none_are_refused_when_queued(server: Server, loras: Path, weights: str, got: str) -> None:
    with pytest.raises(Refused) as refused:
        server.queue(wrong(weights=weights))
    assert f"weights: numbers from -10 to 10 with commas between them are needed, as in 0, 0.5, 1; got {got}." in json.dumps(refused.value.body)


def wrong(rows: list[dict[str, Any]] | None = None, **settings: Any) -> Graph:
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name="mini_base.safetensors"),
        "stack": node("LoomAdapterStack", rows=json.dumps(rows or [{"name": "looks.safetensors"}])),
        "compare": compare("stack", PROMPTS[0], **settings),
    }


def save(name: str = "free", metadata: str = "{}", naming: str = "kohya", **row: Any) -> Graph:
    return {
        "stack": node("LoomAdapterStack", rows=json.dumps([{"name": "looks.safetensors", **row}])),
        "save": node("LoomSaveAdapter", adapters=["stack", 0], name=name, naming=naming, save_format="fp16", metadata=metadata),
    }


def test_what_cannot_be_saved_or_compared_is_told(server: Server, loras: Path) -> None:
    for graph, words in (
        (save("unet_only"), "exists and was not made by LoRA Loom"),
        (save("../up"), "is not a plain file name"),
        (save(metadata="{"), "metadata is not JSON"),
        (save(naming="civitai"), "naming: there is no 'civitai': choose one of kohya, diffusers, PEFT."),
        (wrong(kind="colours"), "compare: there is no 'colours': choose one of weights, adapters, adapters x weights, steps."),
        (wrong(sampler="ruler"), "sampler: there is no 'ruler': choose one of euler, "),
        (wrong(scheduler="bus"), "scheduler: there is no 'bus': choose one of "),
        (wrong(without="red food, Apple"), 'without: no line of the prompt holds \\"Apple\\" (red apple, red food): write it as the prompt does'),
    ):
        with pytest.raises(Refused) as refused:
            server.queue(graph)
        assert words in json.dumps(refused.value.body)
    assert "a file holds no weights" in server.fail(save(model=0.5))
    assert "there are 0 adapters that are on" in server.fail(save(on=False))
    assert "there is nothing to compare" in server.fail(wrong([{"name": "looks.safetensors", "on": False}]))
    assert "has no adapters of single steps beside it, like looks-step00000500.safetensors" in server.fail(wrong(kind="steps"))
    for count, more in ((401, {}), (400, {"without": "red food"})):
        told = server.fail(wrong(weights=", ".join(str(number / 100) for number in range(count)), **more))
        assert "the grid would have 401 pictures, and at most 400 are drawn" in told
    linked = wrong(without=["words", 0])
    linked["words"] = node("PrimitiveString", value="green")
    assert 'no line of the prompt holds "green" (red apple, red food)' in server.fail(linked)
    assert not (loras / "free.safetensors").exists()


def test_a_comparison_can_be_cancelled(server: Server, loras: Path) -> None:
    prompt = server.queue(wrong(steps=5000))
    time.sleep(2)
    server.post("/interrupt", {})
    entry = server.wait(prompt, timeout=20)
    assert "execution_interrupted" in [kind for kind, _ in entry["status"]["messages"]]
