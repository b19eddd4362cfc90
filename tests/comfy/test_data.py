"""Data and run options in the real server: several datasets with captions and masks of their own, prior preservation, going on from another run."""
import json
import shutil

import pytest
from loom_server import PACK, Refused, Server, node, training_graph
from PIL import Image

from trainer.adapters.files import read_header

CHECKPOINTING = {"every_steps": 4, "every_minutes": 0.0, "keep_last": 3, "validate_every_steps": 2}


@pytest.fixture(scope="module")
def material(server: Server) -> Server:
    """A folder of wide and high pictures with several captions each, and masks for them."""
    wide, masks = server.base / "input" / "wide", server.base / "input" / "wide_masks"
    for folder in (wide, masks):
        folder.mkdir()
    for name, size in (("lemon", (160, 90)), ("banana", (90, 160))):
        with Image.open(PACK / "tests" / "food" / f"{name}.png") as picture:
            picture.convert("RGB").resize(size).save(wide / f"{name}.png")
        Image.new("L", size, 255).save(masks / f"{name}.png")
        (wide / f"{name}.txt").write_text(f"{name}, food, drawn\na {name} on white\n")
    return server


def graph(name: str, **numbers: object) -> dict:
    found = training_graph(name, **{"steps": 8, "batch_size": 2, **numbers})
    wide = {"folder": "input/wide", "repeats": 2, "trigger_word": "sks", "missing_captions": "refuse", "caption_lines": True}
    found["wide"] = node("LoomDatasetFromFolder", **wide, masks="input/wide_masks")
    sizes = {"resolution": 128, "bucket_step": 32, "crop": "random", "crops": 2, "flip": True}
    found["wide size"] = node("LoomResolution", dataset=["wide", 0], **sizes)
    found["use"] = node("LoomCaptionUse", dataset=["wide size", 0], shuffle=True, keep_tokens=1, dropout=0.1, tag_dropout=0.1)
    found["both"] = node("LoomCombineDatasets", dataset_1=["size", 0], dataset_2=["use", 0])
    found["train"]["inputs"] |= {"dataset": ["both", 0], "validation": ["size", 0]}
    return found


def test_datasets_of_many_shapes_and_a_text_encoder_train_together(material: Server) -> None:
    prompt = graph("of_all_sorts")
    prompt["text"] = node("LoomTextEncoder", learning_rate=1e-4, clip_skip=2, max_tokens="150", emphasis=True, options=["sampling", 0])
    prompt["prior"] = node("LoomPrior", class_prompt="food", num_class_images=3, weight=0.5, steps=2, guidance_scale=3.0, options=["text", 0])
    prompt["checkpointing"] = node("LoomCheckpointing", **CHECKPOINTING, adapter="best", options=["prior", 0])
    hardware = {"gradient_checkpointing": True, "compile": False, "channels_last": False, "base_format": "as precision", "processes": 1}
    prompt["hardware"] = node("LoomHardware", **hardware, options=["checkpointing", 0])
    prompt["class"] = node("LoomDatasetFromFolder", folder="input/food_heldout", repeats=1, trigger_word="", missing_captions="refuse")
    prompt["class_size"] = node("LoomResolution", dataset=["class", 0], resolution=128, buckets=False)
    prompt["train"]["inputs"] |= {"options": ["hardware", 0], "class_dataset": ["class_size", 0], "validation": ["both", 0]}
    prompt["check"] = node("LoomCheckDataset", dataset=["both", 0], batch_size=2)
    prompt["sheet"] = node("SaveImage", images=["check", 1], filename_prefix="sheet")
    outputs = material.run(prompt)
    report = outputs["check"]["text"][0]
    assert "wide: 2 pictures, 4 visits a pass, 4 different captions" in report
    assert all(line in report for line in ("128 x 128: 3, 3, 1.5", "64 x 128: 1, 2, 1", "128 x 64: 1, 2, 1"))
    trained = outputs["train"]["lora_loom"][0]
    assert sum(bucket["pictures"] for bucket in trained["buckets"]) == 5
    assert [step for step, _ in trained["validation"]] == [0, 2, 4, 6, 8]
    few, wide = (trained["validation_by_dataset"][name] for name in ("few", "wide"))
    assert trained["validation"] == [[step, pytest.approx((3 * loss + 2 * wide[i][1]) / 5)] for i, (step, loss) in enumerate(few)]
    header = read_header(material.base / "models" / "loras" / "of_all_sorts.safetensors")
    assert any(name.startswith("lora_te_text_model_encoder_layers_") for name in header.tensors)
    assert header.metadata["modelspec.trigger_phrase"] == "sks"
    # Core's own loader takes the file whole.
    log_before = len(material.log.read_text())
    drawing = {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name="mini_base.safetensors"),
        "lora": node(
            "LoraLoader", model=["checkpoint", 0], clip=["checkpoint", 1], lora_name="of_all_sorts.safetensors", strength_model=1.0, strength_clip=1.0
        ),
        "text": node("CLIPTextEncode", clip=["lora", 1], text="sks"),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampler": node(
            "KSampler", model=["lora", 0], positive=["text", 0], negative=["text", 0], latent_image=["latent", 0],
            seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="all_sorts"),
    }
    material.run(drawing)
    assert "lora key not loaded" not in material.log.read_text()[log_before:]


def test_a_run_goes_on_from_a_state_of_another(material: Server) -> None:
    first = training_graph("goes_on", steps=8)
    first["checkpointing"] = node("LoomCheckpointing", **CHECKPOINTING, options=["sampling", 0])
    first["train"]["inputs"]["options"] = ["checkpointing", 0]
    run = material.run(first)["train"]["lora_loom"][0]["run"]
    more = json.loads(json.dumps(first))
    more["train"]["inputs"] |= {"name": "goes_on_more", "steps": 10}
    more["checkpointing"]["inputs"]["continue_from"] = f"{run} @ 4"
    trained = material.run(more)["train"]["lora_loom"][0]
    events = (material.base / f"output/lora_loom/runs/{trained['run']}/events.jsonl").read_text().splitlines()
    assert [json.loads(line)["resumed_from"] for line in events if '"started"' in line] == [4]
    more["checkpointing"]["inputs"]["continue_from"] = f"{run} @ 5"
    with pytest.raises(Refused, match="continue_from"):
        material.queue(more)
    more["checkpointing"]["inputs"]["continue_from"] = f"{run} @ 4"
    more["train"]["inputs"] |= {"name": "goes_on_otherwise", "rank": 8}
    assert "network.rank was 4 and is 8" in material.fail(more)


def test_what_cannot_be_is_told_before_anything_is_encoded(material: Server) -> None:
    prompt = training_graph("no_class")
    prompt["prior"] = node("LoomPrior", class_prompt="", num_class_images=3, weight=1.0, steps=2, guidance_scale=3.0, options=["sampling", 0])
    prompt["train"]["inputs"]["options"] = ["prior", 0]
    assert "connect a class dataset" in material.fail(prompt)
    lonely = material.base / "input" / "lonely_masks"
    shutil.copytree(material.base / "input" / "wide_masks", lonely)
    (lonely / "lemon.png").unlink()
    prompt = graph("no_mask")
    prompt["wide"]["inputs"]["masks"] = "input/lonely_masks"
    assert "lemon.png has no mask" in material.fail(prompt)


def test_what_a_folder_leaves_out_is_told_on_the_nodes_in_the_log_and_by_the_run(material: Server) -> None:
    folder = material.base / "input" / "left_out"
    for name in ("a.png", "2024_photos/b.png", "dogs/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACK / "tests" / "food" / "lemon.png", folder / name)
        (folder / name).with_suffix(".txt").write_text("a lemon")
    (folder / "film.mp4").write_bytes(b"")
    (folder / "readme.txt").write_text("about")
    prompt = training_graph("left_out", folder="input/left_out", steps=2)
    prompt["check"] = node("LoomCheckDataset", dataset=["size", 0], batch_size=1)
    prompt["train"]["inputs"]["validation"] = ["size", 0]
    outputs = material.run(prompt)
    notes = ("2024_photos/ (2024)", "dogs/ (1 image)", "videos are not read): film.mp4", "1 text file without an image of that name: readme.txt")
    on_node = outputs["dataset"]["text"]
    assert on_node[0] == "2 images, 2 visits a pass"
    run = outputs["train"]["lora_loom"][0]["run"]
    events = [json.loads(line) for line in (material.base / f"output/lora_loom/runs/{run}/events.jsonl").read_text().splitlines()]
    warnings = "\n".join(event["message"] for event in events if event["event"] == "warning")
    for told in ("\n".join(on_node), outputs["check"]["text"][0], material.log.read_text(), warnings):
        assert all(note in told for note in notes)
    assert "2 of 2 validation images are trained on as well" in warnings
    # What was noted is no part of the work: the run is the same without the video.
    (folder / "film.mp4").unlink()
    assert material.run(prompt)["train"]["lora_loom"][0]["run"] == run
    prompt["dataset"]["inputs"] |= {"recursive": True, "large_repeats": True}
    assert material.run({name: prompt[name] for name in ("dataset", "size", "check")})["dataset"]["text"][0] == "3 images, 2,026 visits a pass"


def test_a_folder_that_is_not_there_is_reported_on_its_own_input_alone(server: Server) -> None:
    with pytest.raises(Refused) as refused:
        server.queue(training_graph("x", folder="input/nowhere"))
    errors = refused.value.body["node_errors"]["dataset"]["errors"]
    assert [error["extra_info"]["input_name"] for error in errors] == ["folder"]
    prompt = training_graph("x")
    prompt["dataset"]["inputs"]["masks"] = "input/nowhere_either"
    assert "folder 'input/nowhere_either' does not exist" in server.fail(prompt)
