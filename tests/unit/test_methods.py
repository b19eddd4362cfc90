"""Methods beside LoRA, from the spec to the file, on a tiny base: what trains, what stays, what is saved, and how a run goes on."""
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel
from workshop import STEPS, Workshop, output

from trainer.events import Started
from trainer.methods.words import Rows
from trainer.spec import steps_of

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
WORD = {"placeholder": "<bun>", "initializer": "lemon", "vectors": 2}
PICTURE = {"prompts": ["<bun>, food"], "steps": 1, "width": 64, "height": 64}


def tuned(workshop: Workshop, name: str, **settings: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """A fine-tune of the tiny base: its run's folder and the new checkpoint."""
    folder, _ = workshop.train(name, task="fine_tune", **{"save_format": "fp32", "steps": 4, **settings})
    return folder, load_file(output(folder))


def base(workshop: Workshop) -> dict[str, torch.Tensor]:
    return load_file(workshop.base["checkpoint"])


def changed(workshop: Workshop, tensors: dict[str, torch.Tensor]) -> set[str]:
    """Which tensors are not the base's."""
    return {name for name, tensor in base(workshop).items() if not torch.equal(tensor.to(tensors[name].dtype), tensors[name])}


def word_data(workshop: Workshop, *names: str) -> list[dict[str, Any]]:
    return [workshop.dataset(*names, trigger_word="<bun>")]


@pytest.fixture(scope="module")
def plain(workshop: Workshop) -> tuple[Path, dict[str, torch.Tensor]]:
    """A fine-tune of the UNet alone, with an average that the file does not get."""
    return tuned(workshop, "tuned", optimizer={"ema_decay": 0.9, "save_average": False}, checkpointing={"every_steps": 2, "keep_last": 1})


@pytest.fixture(scope="module")
def embedding(workshop: Workshop) -> Path:
    """A textual inversion's folder."""
    settings = {"word": WORD, "datasets": word_data(workshop, "lemon", "bread"), "sampling": PICTURE, "checkpointing": {"every_steps": 4}}
    return workshop.train("inverted", task="textual_inversion", learning_rate=1e-2, **settings)[0]


# Full fine-tuning


def test_a_learning_rate_of_zero_gives_back_the_checkpoint_to_the_bit(workshop: Workshop) -> None:
    folder, tensors = tuned(workshop, "still", learning_rate=0.0, steps=1, optimizer={"ema_decay": 0.9})
    assert tensors.keys() == base(workshop).keys()
    assert not changed(workshop, tensors)
    with safe_open(output(folder), framework="pt") as file:
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-v1"


def test_the_whole_unet_trains_and_nothing_else(workshop: Workshop, plain: tuple[Path, dict[str, torch.Tensor]]) -> None:
    names = changed(workshop, plain[1])
    unet = {name for name in base(workshop) if name.startswith(UNET)}
    assert names <= unet
    # A bias in front of a norm has no gradient to speak of.
    assert len(names) > 0.98 * len(unet)


def test_the_text_encoder_trains_at_its_own_rate(workshop: Workshop, plain: tuple[Path, dict[str, torch.Tensor]]) -> None:
    _, tensors = tuned(workshop, "tuned with text", text={"learning_rate": 1e-4}, hardware={"gradient_checkpointing": True})
    names = changed(workshop, tensors)
    assert not any(name.startswith(VAE) for name in names)
    assert sum(name.startswith(TEXT) for name in names) > 20


def test_the_average_is_saved_wherever_it_is_kept(workshop: Workshop, plain: tuple[Path, dict[str, torch.Tensor]]) -> None:
    _, average = tuned(workshop, "averaged", optimizer={"ema_decay": 0.9})
    _, on_cpu = tuned(workshop, "averaged on the cpu", optimizer={"ema_decay": 0.9, "ema_device": "cpu"})
    name = UNET + "out.2.weight"
    moved = [float((tensors[name] - base(workshop)[name].float()).norm()) for tensors in (average, plain[1])]
    assert 0 < moved[0] < 0.95 * moved[1]
    assert all(torch.equal(average[name], on_cpu[name]) for name in average)


def test_a_killed_fine_tune_goes_on_to_the_same_file(workshop: Workshop, plain: tuple[Path, dict[str, torch.Tensor]]) -> None:
    settings = {"task": "fine_tune", "save_format": "fp32", "steps": 4}
    more = {"optimizer": {"ema_decay": 0.9, "save_average": False}, "checkpointing": {"every_steps": 2, "keep_last": 1}}
    killed = workshop.run("tuned and killed", **settings, **more)
    workshop.nursery.attempt(killed, change=20)
    assert "step-00000002" in {path.name for path in (killed / "state").iterdir()}
    assert not output(killed).exists()
    assert workshop.nursery.attempt(killed)[0] == 0
    tensors = load_file(output(killed))
    assert all(torch.equal(tensor, plain[1][name]) for name, tensor in tensors.items())


def test_no_state_is_left_where_none_is_to_be(workshop: Workshop) -> None:
    checkpointing = {"every_steps": 1, "keep_last": 0, "adapter_every_steps": 1}
    folder, _ = tuned(workshop, "left", steps=2, save_format="fp16", checkpointing=checkpointing)
    assert not (folder / "state").exists()
    assert list(steps_of(output(folder))) == [1]
    # A checkpoint has no second copy in the run's folder.
    assert not list(folder.glob("*.safetensors"))


def test_prior_preservation_without_weight_is_none(workshop: Workshop) -> None:
    prior = {"prior": {"class_prompt": "", "weight": 0.0}, "class_images": [workshop.dataset("carrot")]}
    folder, _ = workshop.train("subject alone", task="fine_tune", steps=2)
    other, _ = workshop.train("class without weight", task="fine_tune", steps=2, **prior)
    here, there = load_file(output(folder)), load_file(output(other))
    assert all(torch.equal(here[name], there[name]) for name in here)
    third, _ = workshop.train("class with weight", task="fine_tune", steps=2, **prior | {"prior": {"weight": 1.0}})
    assert not torch.equal(load_file(output(third))[UNET + "out.2.weight"], here[UNET + "out.2.weight"])


# Textual inversion


def test_only_the_new_rows_of_a_table_train() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    encoder = CLIPTextModel(CLIPTextConfig(**sizes, eos_token_id=49, bos_token_id=48, pad_token_id=49)).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    ids = torch.tensor([[48, 3, 7, 49]])
    known = encoder(ids).last_hidden_state
    rows = Rows(encoder.get_input_embeddings(), before["embeddings.token_embedding.weight"][[7, 7]].clone())
    encoder.set_input_embeddings(rows)
    # A new word that begins as an old one is read as that.
    assert torch.equal(encoder(torch.tensor([[48, 3, 51, 49]])).last_hidden_state, known)
    optimizer = torch.optim.AdamW([parameter for parameter in encoder.parameters() if parameter.requires_grad], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        encoder(torch.tensor([[48, 3, 50, 49]])).last_hidden_state.square().mean().backward()
        optimizer.step()
    after = {name.replace("token_embedding.table", "token_embedding"): tensor for name, tensor in encoder.state_dict().items()}
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert (rows.vectors[0] != before["embeddings.token_embedding.weight"][7]).any()
    assert torch.equal(encoder(ids).last_hidden_state, known)


def test_an_embedding_is_trained_and_saved(workshop: Workshop, embedding: Path) -> None:
    tensors = load_file(output(embedding))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {"emb_params": (2, 768)}
    assert not torch.equal(*tensors["emb_params"])
    assert (embedding / "embedding.safetensors").read_bytes() == output(embedding).read_bytes()
    assert {path.name for path in (embedding / "samples").iterdir()} == {"step-00000000-0.png", f"step-{STEPS:08d}-0.png"}
    with safe_open(output(embedding), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert metadata["modelspec.trigger_phrase"] == "embedding:bun"


def test_a_killed_textual_inversion_goes_on_to_the_same_file(workshop: Workshop, embedding: Path) -> None:
    settings = {"word": WORD, "datasets": word_data(workshop, "lemon", "bread"), "sampling": PICTURE, "checkpointing": {"every_steps": 4}}
    killed = workshop.run("inverted and killed", task="textual_inversion", learning_rate=1e-2, **settings)
    workshop.nursery.attempt(killed, change=20)
    assert not output(killed).exists()
    assert workshop.nursery.attempt(killed)[0] == 0
    assert output(killed).read_bytes() == output(embedding).read_bytes()


def test_an_embedding_trains_along_with_a_lora(workshop: Workshop) -> None:
    place = workshop.place / "bun.safetensors"
    word = {**WORD, "learning_rate": 1e-2}
    held_out = [workshop.dataset("carrot", trigger_word="<bun>")]
    folder, story = workshop.train("pivotal", word=word, word_output=str(place), datasets=word_data(workshop, "lemon"), validation=held_out)
    adapter, vectors = load_file(output(folder)), load_file(place)["emb_params"]
    assert all(name.startswith("lora_unet_") for name in adapter)
    assert any(tensor.any() for name, tensor in adapter.items() if name.endswith("lora_up.weight"))
    assert not torch.equal(*vectors)
    with safe_open(output(folder), framework="pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "embedding:bun"
    alone = workshop.train("not pivotal", datasets=word_data(workshop, "lemon"))[1]
    extra = [next(event for event in one.events if isinstance(event, Started)).parameters for one in (story, alone)]
    assert extra[0] - extra[1] == vectors.numel()


# What is refused before anything is loaded


@pytest.mark.parametrize(
    ("task", "settings", "words"),
    [
        ("textual_inversion", {"word": {"placeholder": "lemon"}}, "'lemon' is a word that the base knows already"),
        ("textual_inversion", {"word": {"placeholder": "<b>", "initializer": "lemon bread"}}, "is 2 tokens (lemon</w> bread</w>)"),
        ("textual_inversion", {"word": {"placeholder": "a word"}}, "is not one word"),
        ("textual_inversion", {"word": {"placeholder": "<b>"}, "name": "my bun"}, "prompts call an embedding by its file's name"),
        ("textual_inversion", {"word": {"placeholder": "<b>"}, "text": {"learning_rate": 1e-4}}, "trains the new word alone"),
        ("textual_inversion", {"word": {"placeholder": "<b>"}, "network": {}}, "network: Extra inputs are not permitted"),
        ("fine_tune", {"hardware": {"base_format": "fp8"}}, "base_format fp8 is for a base that stays as it is"),
    ],
)
def test_what_cannot_be_trained_is_told(workshop: Workshop, task: str, settings: dict[str, Any], words: str) -> None:
    data = [workshop.dataset("lemon", framing={"resolution": 4096})]
    message = workshop.refused(f"refused {words[:20]}", **{"task": task, "datasets": data, **settings})
    assert words in message


def test_a_training_that_cannot_fit_is_refused_with_what_it_needs(workshop: Workshop) -> None:
    data = [workshop.dataset("lemon", framing={"resolution": 4096})]
    message = workshop.refused("too large", task="fine_tune", datasets=data, batch_size=1024, optimizer={"ema_decay": 0.9})
    told = re.search(r"at least ([\d.]+) GiB, and ([\d.]+) GiB are free on \w+ \w+ \(([\d.]+) for 1024 pictures a step", message)
    assert told, message
    needs, free, pictures = map(float, told.groups())
    assert needs > free and needs >= pictures > needs / 2
    assert message.endswith("Lower batch_size or resolution, and raise gradient_accumulation_steps instead.")


def test_pictures_of_the_subject_are_none_of_its_class(workshop: Workshop) -> None:
    message = workshop.refused("class is subject", class_images=[workshop.dataset("carrot", "lemon")], prior={})
    assert "1 of the class pictures are pictures of the subject too, the first is lemon.png" in message
