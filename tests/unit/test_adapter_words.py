"""What an adapter's file says of itself and what a prompt has to say for it, however odd the file or its name is."""
import json

import pytest
import torch

from trainer.adapters.made_metadata import TRAINING, made_by, made_metadata, maker
from trainer.adapters.stack import Row, embedding_words, to_lora_stack, trigger_words

DEEP = "[" * 200_000


def test_words_and_tags_that_are_nested_without_end_count_as_none() -> None:
    assert trigger_words({"ss_trained_words": DEEP}) == []
    layers = {"lora_unet_conv_in": {"lora_up.weight": torch.ones(4, 1), "lora_down.weight": torch.ones(1, 4)}}
    told = {"a": {"ss_tag_frequency": DEEP, "ss_trained_words": DEEP}, "b": {"ss_tag_frequency": '{"food": {"red": 2}}'}}
    metadata = made_metadata("x", "SD 1.x", layers, {}, made_by("LoomMergeAdapters", {}, []), told)
    assert json.loads(metadata["ss_tag_frequency"]) == {"food": {"red": 2}}
    assert "modelspec.trigger_phrase" not in metadata


@pytest.mark.parametrize(
    ("metadata", "node"),
    [
        ({}, None),
        ({"ss_steps": "1"}, None),
        ({"lora_loom.spec": '{"task": "train_lora"}'}, TRAINING),
        ({"lora_loom.spec": "{}"}, ""),
        ({"lora_loom.made_by": made_by("LoomMergeAdapters", {}, [])}, "LoomMergeAdapters"),
        ({"lora_loom.spec": "{}", "lora_loom.made_by": made_by("LoomSaveAdapter", {}, [])}, "LoomSaveAdapter"),
        ({"lora_loom.made_by": "{}"}, ""),
        ({"lora_loom.made_by": "{"}, ""),
        ({"lora_loom.made_by": '"LoomMergeAdapters"'}, ""),
        ({"lora_loom.made_by": DEEP}, ""),
        # A save of a training's adapter is no longer that training's, even if its entry is damaged.
        ({"lora_loom.spec": "{}", "lora_loom.made_by": "{"}, ""),
    ],
)
def test_a_file_names_the_node_that_made_it(metadata: dict[str, str], node: str | None) -> None:
    assert maker(metadata) == node


@pytest.mark.parametrize(
    ("name", "clip", "words"),
    [
        ("embedding:food.safetensors", 1.0, "embedding:food"),
        ("embedding:food.pt", 0.8, "(embedding:food:0.8)"),
        ("embedding:food(v2).safetensors", 1.0, r"embedding:food\(v2\)"),
        ("embedding:food(v2)", 0.5, r"(embedding:food\(v2\):0.5)"),
    ],
)
def test_a_prompt_names_an_embedding_so_that_comfyui_finds_it(name: str, clip: float, words: str) -> None:
    assert embedding_words(Row(name=name, clip=clip)) == words


def test_other_packs_are_told_names_and_weights_of_what_is_on() -> None:
    rows = (Row(name="a", model=0.5, blocks="OUTALL", start=0.5), Row(name="b", on=False), Row(name="embedding:c"), Row(name="hypernetwork:d"))
    assert to_lora_stack(rows) == [("a", 0.5, 1.0)]
