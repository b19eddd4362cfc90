"""Stacks as users and programs queue them: what comes out of a real server, and what is refused before anything runs."""
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loom_server import Refused, Server, drawing_graph, node
from PIL import Image
from random_adapters import write_embedding, write_hypernetwork, write_lora
from safetensors.torch import load_file, save_file

PROMPT = "red apple, red food"


@pytest.fixture(scope="module", autouse=True)
def files(server: Server) -> Iterator[None]:
    """Adapters that were not trained: two LoRAs, one of them with a text encoder's part, an embedding, a hypernetwork, and what is none of ours."""
    models = server.base / "models"
    checkpoint = models / "checkpoints" / "mini_base.safetensors"
    for kind in ("embeddings", "hypernetworks"):
        (models / kind).mkdir(exist_ok=True)
    loras = models / "loras"
    write_lora(loras / "one.safetensors", checkpoint, seed=1, text=True)
    write_lora(loras / "two.safetensors", checkpoint, seed=2)
    write_embedding(models / "embeddings" / "words.safetensors", 768)
    write_embedding(models / "embeddings" / "wide.safetensors", 1024)
    write_embedding(models / "embeddings" / "two words.safetensors", 768)
    _write_served_embeddings(models / "embeddings")
    write_hypernetwork(models / "hypernetworks" / "hyper.pt")
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    wide = {f"{key}.lora_up.weight": torch.ones(640, 4), f"{key}.lora_down.weight": torch.ones(4, 2048)}
    save_file(wide, loras / "for_sdxl.safetensors")
    broken = load_file(loras / "two.safetensors")
    name = next(name for name in broken if name.endswith("lora_up.weight"))
    broken[name][0, 0] = float("nan")
    save_file(broken, loras / "broken.safetensors")
    (loras / "words_page.safetensors").write_text("<!doctype html><title>Sign in</title>")
    yield
    for path in loras.glob("*.safetensors"):
        if path.stem in ("one", "two", "for_sdxl", "broken", "words_page"):
            path.unlink()


def _write_served_embeddings(folder: Path) -> None:
    """One embedding as concept libraries, A1111 and download sites serve it, and one of SDXL as a training script left it."""
    vector = torch.randn(768, generator=torch.Generator().manual_seed(5)) * 0.3
    for name in ("cat-toy", "bird", "advanced"):
        (folder / name).mkdir(exist_ok=True)
    torch.save({"<cat-toy>": vector}, folder / "cat-toy" / "learned_embeds.bin")
    save_file({"<bird>": vector}, folder / "bird" / "learned_embeds.safetensors")
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vector[None]}, "name": "toy", "step": 500}, folder / "old.pt")
    save_file({"emb_params": vector[None]}, folder / "flat.safetensors")
    tables = {"text_encoders_0": torch.randn(2, 768), "text_encoders_1": torch.randn(2, 1280)}
    save_file(tables, folder / "advanced" / "my_emb.safetensors")


def row(name: str, model: float = 1.0, clip: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"on": True, "name": name, "model": model, "clip": clip, **more}


def applied(rows: list[dict[str, Any]], mode: str, prefix: str, **stack: Any) -> dict[str, Any]:
    """A drawing with a stack, and its report and words shown."""
    return {
        **drawing_graph(["apply", 0], ["apply", 1], PROMPT, prefix, steps=3),
        "stack": node("LoomAdapterStack", rows=json.dumps(rows), **stack),
        "apply": node("LoomApplyAdapters", model=["checkpoint", 0], clip=["checkpoint", 1], adapters=["stack", 0], mode=mode, strength=1.0),
        "report": node("PreviewAny", source=["apply", 2]),
        "words": node("PreviewAny", source=["stack", 2]),
    }


def drawn(server: Server, graph: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    outputs = server.run(graph)
    saved = outputs["save"]["images"][0]
    with Image.open(server.base / "output" / saved["subfolder"] / saved["filename"]) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16), outputs


def test_both_modes_draw_the_same_and_cores_loaders_too(server: Server) -> None:
    rows = [row("one.safetensors", 0.8, 0.5), row("two.safetensors", -0.6)]
    merged, outputs = drawn(server, applied(rows, "merged", "merged"))
    live, live_outputs = drawn(server, applied(rows, "live", "live"))
    chain = drawing_graph(["second", 0], ["second", 1], PROMPT, "chain", steps=3)
    chain["first"] = node(
        "LoraLoader", model=["checkpoint", 0], clip=["checkpoint", 1], lora_name="one.safetensors", strength_model=0.8, strength_clip=0.5
    )
    chain["second"] = node("LoraLoader", model=["first", 0], clip=["first", 1], lora_name="two.safetensors", strength_model=-0.6, strength_clip=0.0)
    core, _ = drawn(server, chain)
    plain, _ = drawn(server, drawing_graph(["checkpoint", 0], ["checkpoint", 1], PROMPT, "plain", steps=3))
    assert np.abs(merged - plain).mean() > 2
    assert np.abs(merged - live).max() <= 1
    assert np.abs(merged - core).max() <= 1
    first, second = outputs["report"]["text"][0].splitlines()
    assert first.startswith("one.safetensors: LoRA, model 0.8, text encoder 0.5, ") and second.startswith("two.safetensors: LoRA, model -0.6")
    assert live_outputs["report"]["text"][0].splitlines()[1].endswith("live")


def test_a_part_of_the_steps_is_between_nothing_and_all(server: Server) -> None:
    plain, _ = drawn(server, applied([{**row("two.safetensors"), "on": False}], "live", "off"))
    late, _ = drawn(server, applied([row("two.safetensors", start=0.5)], "live", "late"))
    whole, _ = drawn(server, applied([row("two.safetensors")], "live", "whole"))
    assert 0 < np.abs(late - plain).mean() < np.abs(whole - plain).mean()


def test_rows_of_other_packs_embeddings_and_hypernetworks_stack_too(server: Server) -> None:
    rows = [
        {"on": True, "lora": "two.safetensors", "strength": 0.5, "strengthTwo": None},
        row("embedding:words.safetensors", clip=0.8),
        row("hypernetwork:hyper.pt", 0.7),
    ]
    graph = applied(rows, "merged", "others")
    picture, outputs = drawn(server, graph)
    assert outputs["words"]["text"] == ["(embedding:words:0.8)"]
    lines = outputs["report"]["text"][0].splitlines()
    assert lines[0].startswith("two.safetensors: LoRA, model 0.5, text encoder 0.5")
    assert lines[1] == "embedding:words.safetensors: embedding, 2 vectors, works where a prompt says (embedding:words:0.8)"
    assert lines[2] == "hypernetwork:hyper.pt: hypernetwork, model 0.7, widths 768"
    graph["apply"]["inputs"]["adapters"] = ["stack_of_one", 0]
    graph["stack_of_one"] = node("LoomAdapterStack", rows=json.dumps([row("two.safetensors", 0.5, 0.5)]))
    without, _ = drawn(server, graph)
    assert np.abs(picture - without).mean() > 1, "the hypernetwork was not applied"


def test_embeddings_work_as_they_are_served_in_their_folders_too(server: Server) -> None:
    names = ("embedding:flat.safetensors", "embedding:cat-toy/learned_embeds.bin", "embedding:bird/learned_embeds.safetensors", "embedding:old.pt")
    pictures = []
    for name in names:
        graph = applied([row(name)], "merged", "embedded")
        words = server.run({"stack": graph["stack"], "words": graph["words"]})["words"]["text"][0]
        assert words == name.rpartition(".")[0]
        graph["positive"]["inputs"]["text"] = f"{PROMPT}, {words}"
        pictures.append(drawn(server, graph)[0])
    plain, _ = drawn(server, applied([], "merged", "not_embedded"))
    assert np.abs(pictures[0] - plain).mean() > 1
    assert all(np.array_equal(pictures[0], picture) for picture in pictures[1:])


def test_an_embedding_that_comfyui_reads_a_part_of_is_told_and_saved_so_that_it_reads_all(server: Server) -> None:
    name = "embedding:advanced/my_emb.safetensors"
    load = {"load": node("LoomLoadAdapter", adapter=name, model_weight=1.0, clip_weight=1.0, blocks="")}
    told = server.run({**load, "shown": node("PreviewAny", source=["load", 2])})["shown"]["text"][0]
    assert "embedding, SDXL" in told and "Save it with Save Adapter" in told
    save = {"adapters": ["load", 0], "name": "my_emb", "naming": "kohya", "save_format": "fp16", "metadata": '{"ss_trained_words": ["toy"]}'}
    outputs = server.run({**load, "save": node("LoomSaveAdapter", **save)})
    assert outputs["save"]["text"][0].startswith("models/embeddings/my_emb.safetensors: ")
    folder = server.base / "models" / "embeddings"
    made, source = load_file(folder / "my_emb.safetensors"), load_file(folder / "advanced" / "my_emb.safetensors")
    assert torch.equal(made["clip_l"], source["text_encoders_0"].half()) and torch.equal(made["clip_g"], source["text_encoders_1"].half())
    assert "set naming to kohya" in server.fail({**load, "save": node("LoomSaveAdapter", **{**save, "naming": "PEFT"})})
    assert "has spaces" in server.fail({**load, "save": node("LoomSaveAdapter", **{**save, "name": "my emb"})})


def test_names_without_their_ending_are_completed_for_other_packs_and_rows_without_a_name_are_skipped(server: Server) -> None:
    rows = [row("one", 0.5), row(""), {"on": True, "lora": "None", "strength": 1.0}, row("embedding:flat"), {**row("gone"), "on": False}]
    graph = applied(rows, "merged", "completed", lora_stack=["load_stack", 1])
    graph["load_stack"] = node("LoomAdapterStack", rows=json.dumps([row("two", 0.25, 0.25)]))
    graph["told"] = node("PreviewAny", source=["stack", 1])
    told = server.run(graph)
    assert json.loads(told["told"]["text"][0]) == [["two.safetensors", 0.25, 0.25], ["one.safetensors", 0.5, 1.0]]
    lines = told["report"]["text"][0].splitlines()
    assert [line.partition(":")[0] for line in lines] == ["two.safetensors", "one.safetensors", "embedding", "gone"]
    # ComfyUI's own loader stands for other packs: it knows a file by its whole name alone.
    name = json.loads(told["told"]["text"][0])[1][0]
    chain = {"checkpoint": node("CheckpointLoaderSimple", ckpt_name="mini_base.safetensors")}
    chain["lora"] = node("LoraLoaderModelOnly", model=["checkpoint", 0], lora_name=name, strength_model=1.0)
    chain["apply"] = node("LoomApplyAdapters", model=["lora", 0], adapters=["stack", 0], mode="merged", strength=0.0)
    server.run({**chain, "stack": graph["load_stack"], "shown": node("PreviewAny", source=["apply", 2])})


def test_a_file_that_is_replaced_under_a_row_that_comes_by_a_link_is_read_anew(server: Server) -> None:
    swapped = server.base / "models" / "loras" / "swapped.safetensors"
    graph = applied([], "merged", "linked")
    graph["rows"] = node("PrimitiveStringMultiline", value=json.dumps([row(swapped.name)]))
    graph["stack"]["inputs"]["rows"] = ["rows", 0]
    pictures = []
    for source in ("one", "two"):
        swapped.write_bytes(swapped.with_stem(source).read_bytes())
        pictures.append(drawn(server, graph)[0])
    assert not np.array_equal(*pictures)
    again = dict(server.wait(server.queue(graph))["status"]["messages"])["execution_cached"]["nodes"]
    swapped.unlink()
    assert {"stack", "apply", "save"} <= set(again), "nothing has changed, and yet it was drawn again"


def test_a_loaded_adapter_goes_before_a_stack_and_around_it_go_cores_nodes(server: Server) -> None:
    graph = applied([row("two.safetensors", 0.5, 0.5)], "live", "chained", adapters=["load", 0])
    graph["load"] = node("LoomLoadAdapter", adapter="one.safetensors", model_weight=0.5, clip_weight=0.25, blocks="OUTALL")
    graph["facts"] = node("PreviewAny", source=["load", 2])
    graph["freed"] = node("FreeU_V2", model=["apply", 0], b1=1.3, b2=1.4, s1=0.9, s2=0.2)
    graph["sampler"]["inputs"]["model"] = ["freed", 0]
    _, outputs = drawn(server, graph)
    assert [line.split(",")[0] for line in outputs["report"]["text"][0].splitlines()] == ["one.safetensors: LoRA", "two.safetensors: LoRA"]
    facts, on_the_node = outputs["facts"]["text"][0], outputs["load"]["text"][0]
    assert facts == on_the_node
    first, second = facts.splitlines()
    assert first == "one.safetensors: LoRA, SD 1.x, kohya names"
    assert "layers (" in second and "text encoder" in second and ", rank " in second


def test_block_weights_may_come_by_a_link_and_are_then_looked_at_when_the_node_runs(server: Server) -> None:
    graph = {"load": node("LoomLoadAdapter", adapter="one.safetensors", model_weight=1.0, clip_weight=1.0, blocks=["words", 0])}
    graph |= {"words": node("PrimitiveString", value="OUTALL"), "shown": node("PreviewAny", source=["load", 1])}
    server.run(graph)
    graph["words"]["inputs"]["value"] = "OUTSIDE"
    assert "OUTALL" in server.fail(graph)


def test_an_adapter_that_does_not_tell_its_family_has_the_models_blocks(server: Server) -> None:
    path = server.base / "models" / "loras" / "untold.safetensors"
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{key}.lora_up.weight": torch.ones(320, 4), f"{key}.lora_down.weight": torch.ones(4, 320)}, path)
    try:
        pictures = [drawn(server, applied([row(path.name, blocks=blocks)], "merged", "blocks"))[0] for blocks in ("NONE", "MIDD")]
        assert np.abs(pictures[0] - pictures[1]).mean() > 1
        assert "OUTALL" in server.fail(applied([row(path.name, blocks="OUTSIDE")], "merged", "blocks"))
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("adapter", "blocks", "says"),
    [
        ("gone.safetensors", "", "'gone.safetensors' is not in ComfyUI's loras folders"),
        ("two.safetensors", "OUTSIDE", "OUTALL"),
        ("two.safetensors", "1, 0.5", "17 or 26 numbers"),
        ("words_page.safetensors", "", "words_page.safetensors is a web page"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_refused_when_it_is_queued(server: Server, adapter: str, blocks: str, says: str) -> None:
    graph = {"load": node("LoomLoadAdapter", adapter=adapter, model_weight=1.0, clip_weight=1.0, blocks=blocks)}
    graph["shown"] = node("PreviewAny", source=["load", 1])
    with pytest.raises(Refused) as refused:
        server.queue(graph)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (row("gone.safetensors"), ["row 1", "gone.safetensors", "loras"]),
        (row("embedding:gone"), ["row 1", "gone", "embeddings"]),
        (row("embedding:two words"), ["row 1 (embedding:two words)", "rename the file"]),
        (row("two.safetensors", start=0.6, end=0.4), ["start 0.6", "end 0.4"]),
        (row("two.safetensors", blocks="OUTSIDE"), ["row 1", "two.safetensors", "OUTALL"]),
        (row("two.safetensors", blocks="1, 0.5"), ["row 1", "17 or 26 numbers"]),
        (row("two.safetensors", curve="zigzag"), ["curve"]),
        (row("../../outside"), ["row 1", "loras"]),
        ({**row("two.safetensors"), "wieght": 1}, ["wieght"]),
        ({**row("two.safetensors"), "model": 1e9}, ["model", "100"]),
    ],
)
def test_rows_that_are_wrong_are_refused_when_they_are_queued(server: Server, bad: dict[str, Any], says: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        server.queue(applied([bad], "live", "never"))
    for part in says:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("bad", "mode", "says"),
    [
        (row("for_sdxl.safetensors"), "live", ["for_sdxl.safetensors", "SDXL", "SD 1.x"]),
        (row("broken.safetensors"), "merged", ["broken.safetensors", "lora_up.weight", "NaN"]),
        (row("two.safetensors", start=0.5), "merged", ["row 1", "two.safetensors", "mode", "live"]),
        (row("hypernetwork:hyper.pt", end=0.5), "live", ["hyper.pt", "hypernetworks have none"]),
        (row("embedding:wide"), "live", ["embedding:wide", "SD 2.x", "SD 1.x"]),
        (row("mini.safetensors"), "live", ["mini.safetensors", "a whole checkpoint", "models/checkpoints"]),
    ],
)
def test_adapters_that_do_not_fit_are_named(server: Server, bad: dict[str, Any], mode: str, says: list[str]) -> None:
    link = server.base / "models" / "loras" / "mini.safetensors"
    if bad["name"] == link.name:
        link.symlink_to(Path("..") / "checkpoints" / "mini_base.safetensors")
    try:
        message = server.fail(applied([bad], mode, "never"))
    finally:
        link.unlink(missing_ok=True)
    for part in says:
        assert part in message
