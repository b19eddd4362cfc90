"""What a run is asked to do: what is refused, and what makes two runs the same."""
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from trainer.adapters.files import write_bytes
from trainer.events import Failed, Finished, Progress, Stop, parse_command, parse_event
from trainer.messages import explain
from trainer.spec import RUN_ID_PATTERN, CaptionSpec, TrainLoRASpec, fingerprint, read_spec, run_id, step_output
from trainer.typed import SpecError

IMAGE: dict[str, Any] = {"path": "/data/food/a.png", "sha256": "aa", "caption": "a bun", "repeats": 2}
BASE: dict[str, Any] = {
    "name": "sd.safetensors",
    "checkpoint": "/models/sd.safetensors",
    "family": "SD 1.x",
    "tokenizer": "/clip",
    "header_sha256": "bb",
    "size": 5,
    "mtime_ns": 6,
}


def train(image: dict[str, Any] | None = None, **changes: Any) -> TrainLoRASpec:
    dataset = {"name": "food", "images": [{**IMAGE, **(image or {})}]}
    spec = {"name": "bun", "output": "/loras/bun.safetensors", "base": BASE, "datasets": [dataset], "steps": 10}
    return TrainLoRASpec.model_validate(spec | changes)


def caption(name: str = "food", **changes: Any) -> CaptionSpec:
    return CaptionSpec.model_validate({"captioner": "/blip", "dataset": {"name": name, "images": [IMAGE]}} | changes)


def refused(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        train(**changes)
    return explain(caught.value)


@pytest.mark.parametrize("spec", [train(), train(image={"caption": "Käsebrötchen"}), caption()], ids=["train", "unicode", "caption"])
def test_a_spec_is_read_as_it_was_written(tmp_path: Path, spec: TrainLoRASpec | CaptionSpec) -> None:
    (tmp_path / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    assert read_spec(tmp_path / "spec.json") == spec
    assert fingerprint(read_spec(tmp_path / "spec.json")) == fingerprint(spec)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"stepps": 5}, "stepps: Extra"),
        ({"network": {"rank": 4, "alhpa": 1}}, "network.alhpa: Extra"),
        ({"base": {**BASE, "colour": 1}}, "base.colour: Extra"),
        ({"sampling": {"prompt": "x"}}, "sampling.prompt: Extra"),
        ({"datasets": [{"name": "d", "images": [{**IMAGE, "weight": 1}]}]}, "datasets.0.images.0.weight: Extra"),
        ({"datasets": [{"name": "d", "images": [IMAGE], "framing": {"bucket": 1}}]}, "datasets.0.framing.bucket: Extra"),
    ],
)
def test_unknown_keys_are_named(changes: dict[str, Any], key: str) -> None:
    assert key in refused(**changes)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"steps": 0}, "steps: Input should be greater than or equal to 1 (got 0)"),
        ({"learning_rate": float("nan")}, "learning_rate:"),
        ({"learning_rate": 0}, "learning_rate:"),
        ({"seed": 2**64}, "seed:"),
        ({"precision": "fp8"}, "precision:"),
        ({"network": {"rank": 0}}, "network.rank:"),
        ({"network": {"alpha": 0}}, "network.alpha:"),
        ({"datasets": [{"name": "d", "images": []}]}, "datasets.0.images:"),
        ({"datasets": []}, "datasets:"),
        ({"datasets": [{"name": "d", "images": [IMAGE], "framing": {"resolution": 500}}]}, "datasets.0.framing.resolution:"),
        ({"datasets": [{"name": "d", "images": [{**IMAGE, "repeats": 0}]}]}, "datasets.0.images.0.repeats:"),
        ({"version": 2}, "version:"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], wanted: str) -> None:
    assert wanted in refused(**changes)


def test_all_findings_come_at_once() -> None:
    message = refused(steps=0, batch_size=0)
    assert "steps:" in message
    assert "batch_size:" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "name",
    [
        *("", " a", ".hidden", "../a", "a/b", "a\\b", "a.", "a ", "a\nb", "a\n", "a:b", "a\0", "-a", "x" * 101),
        *('a"b', "a<b", "a>b", "a|b", "a?b", "a*b", "a\x7f", "a\u202eb"),
    ],
)
def test_bad_names(name: str) -> None:
    assert "is not a plain file name" in refused(name=name)


@pytest.mark.parametrize("name", ["CON", "nul", "Aux", "com1", "LPT9", "com¹", "con.v2", "NUL.a.b"])
def test_names_of_windows_devices(name: str) -> None:
    assert "on Windows, where it is a device's" in refused(name=name)


@pytest.mark.parametrize(("character", "most"), [("食", 70), ("é", 100), ("𠀋", 52)])
def test_a_name_leaves_room_for_what_is_added_to_it(tmp_path: Path, character: str, most: int) -> None:
    asked = train(name=character * most, output=str(tmp_path / f"{character * most}.safetensors"))
    longest = step_output(Path(asked.saved_as(f"{asked.name}-9999").output), 1_000_000)
    write_bytes(longest, b"written beside it first, under a longer name")
    assert longest.is_file()
    if most < 100:
        assert "is too long for a file system" in refused(name=character * (most + 1))


LETTERS = ["食べ物", "हिन्दी", "می\u200cخواهم", "e\u0301te"]


@pytest.mark.parametrize("name", ["a", "My LoRA v1.2", "a+b_c-d", "x" * 100, "_a", "console", "com10", "a.con", *LETTERS])
def test_good_names(name: str) -> None:
    assert train(name=name).name == name


def test_specs_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        train().steps = 5


def test_where_the_dataset_lies_does_not_matter() -> None:
    assert fingerprint(train(image={"path": "/elsewhere/a.png"})) == fingerprint(train())
    held_out = [{"name": "v", "images": [{**IMAGE, "path": f"/{folder}/a.png"}]} for folder in "xy"]
    assert fingerprint(train(validation=[held_out[0]])) == fingerprint(train(validation=[held_out[1]])) != fingerprint(train())


CHANGES: dict[str, dict[str, Any]] = {
    "caption": {"image": {"caption": "a roll"}},
    "no caption": {"image": {"caption": None}},
    "picture": {"image": {"sha256": "ab"}},
    "file name": {"image": {"path": "/data/food/b.png"}},
    "repeats": {"image": {"repeats": 3}},
    "steps": {"steps": 11},
    "seed": {"seed": 1},
    "learning rate": {"learning_rate": 2e-4},
    "rank": {"network": {"rank": 8}},
    "base": {"base": {**BASE, "header_sha256": "cc"}},
    "base saved again": {"base": {**BASE, "mtime_ns": 7}},
    "vae": {"base": {**BASE, "vae": "/vae.safetensors"}},
    "prompt": {"sampling": {"prompts": ["x"]}},
    "trigger word": {"datasets": [{"name": "food", "images": [IMAGE], "trigger_word": "sks"}]},
    "crop": {"datasets": [{"name": "food", "images": [IMAGE], "framing": {"crop": "random"}}]},
    "caption dropout": {"datasets": [{"name": "food", "images": [IMAGE], "caption_use": {"dropout": 0.1}}]},
    "another caption": {"image": {"more_captions": ["a roll"]}},
    "mask": {"image": {"mask": "/masks/a.png", "mask_sha256": "dd"}},
    "clip skip": {"text": {"clip_skip": 2}},
    "state to go on from": {"checkpointing": {"start": {"run": "/runs/bun-0123456789ab", "step": 5}}},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_changes_the_result_changes_the_fingerprint(change: dict[str, Any]) -> None:
    changed = train(**change)
    assert fingerprint(changed) != fingerprint(train())
    assert run_id(changed) != run_id(train())


def test_what_was_only_noted_changes_no_run() -> None:
    noted = train(image={"size": [64, 48]})
    dataset = noted.datasets[0].model_copy(update={"notes": ("2 files are left out",)})
    noted = noted.model_copy(update={"datasets": (dataset,), "validation": (dataset,)})
    assert run_id(noted) == run_id(train().model_copy(update={"validation": train().datasets}))
    captioned = caption()
    assert run_id(captioned.model_copy(update={"dataset": dataset})) == run_id(captioned)


def test_fingerprint_is_the_same_every_time() -> None:
    assert fingerprint(train()) == fingerprint(train())
    assert len(fingerprint(train())) == 64
    assert run_id(train()).endswith(fingerprint(train())[:12])


@pytest.mark.parametrize(
    "name", ["bun", "My LoRA v1.2", "食べ物", "ÄÖÜ", "İstanbul", "a - b + c", "_", "__a__", "a" * 100, "a" * 59 + "-b", "x+", "1.5"]
)
def test_run_ids_are_plain_folder_names(name: str) -> None:
    for spec in (train(name=name), caption(name)):
        assert RUN_ID_PATTERN.fullmatch(run_id(spec))


@pytest.mark.parametrize("name", ["", "../../etc", "input/food", "a\nb", "---", " "])
def test_a_dataset_name_may_be_anything(name: str) -> None:
    assert RUN_ID_PATTERN.fullmatch(run_id(caption(name)))


def test_a_name_that_is_not_unicode_is_refused_by_the_model() -> None:
    with pytest.raises(ValidationError):
        caption("k\udce4se")


def test_run_ids_are_readable() -> None:
    assert run_id(train(name="My LoRA v1.2")).startswith("my-lora-v1-2-")
    assert run_id(train(name="食べ物")).startswith("run-")
    assert run_id(caption()).startswith("caption-food-")


@pytest.mark.parametrize(
    "text", ["../x", "a-0123456789ab/..", "a-0123456789ab\n", "-0123456789ab", "a-0123456789AB", "a-0123456789a", "a--0123456789ab", ""]
)
def test_what_is_no_run_id(text: str) -> None:
    assert not RUN_ID_PATTERN.fullmatch(text)


def test_which_pictures_are_captioned() -> None:
    images = [IMAGE, {**IMAGE, "path": "/b.png", "caption": None}, {**IMAGE, "path": "/c.png", "caption": ""}]
    dataset = {"name": "food", "images": images}
    assert [i.path for i in caption(dataset=dataset).images_to_caption()] == ["/b.png", "/c.png"]
    assert len(caption(dataset=dataset, mode="all images").images_to_caption()) == 3


def spec_error(path: Path, content: str | bytes | None = None) -> str:
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SpecError) as caught:
        read_spec(path)
    assert "spec.json" in str(caught.value)
    return str(caught.value)


def test_read_spec_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    assert "cannot be read (No such file or directory)" in spec_error(path)
    assert "Invalid JSON" in spec_error(path, "{")
    assert "Invalid JSON" in spec_error(path, b"\xff\xfe")
    assert "task" in spec_error(path, "{}")
    assert "'fly'" in spec_error(path, '{"task": "fly"}')
    assert "steps: Field required" in spec_error(path, json.dumps({"task": "train_lora", "name": "a"}))
    data = json.loads(train().model_dump_json()) | {"stepps": 5}
    assert "stepps: Extra inputs are not permitted (got 5)" in spec_error(path, json.dumps(data))


def test_long_values_are_not_repeated_in_the_message() -> None:
    assert "yyy" not in refused(precision="y" * 500)


@pytest.mark.parametrize(
    "event",
    [
        Progress(step=2, total=5, losses=(0.5, 0.25), learning_rate=1e-4, elapsed_seconds=1.0, steps_per_second=2.0),
        Finished(step=5, adapter="/ä.safetensors", sha256="aa"),
        Failed(message="two\nlines"),
    ],
)
def test_an_event_is_one_line_that_reads_back(event: Any) -> None:
    line = event.model_dump_json()
    assert "\n" not in line
    assert parse_event(line) == event


@pytest.mark.parametrize("line", ["", "{}", "null", '{"event": "flying"}', '{"event": "failed", "message": "x", "more": 1}', '{"event": "fail'])
def test_what_is_no_event(line: str) -> None:
    with pytest.raises(ValidationError):
        parse_event(line)


def test_commands() -> None:
    assert parse_command('{"command": "stop"}') == Stop(save="adapter")
    assert parse_command('{"command": "sample"}').command == "sample"
    for line in ('{"command": "stop", "save": "all"}', '{"command": "jump"}', "stop"):
        with pytest.raises(ValidationError):
            parse_command(line)
