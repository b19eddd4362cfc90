"""Trainings from the spec to the file, on a tiny base: data, what is trained, and how a run goes on."""
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import KILLED
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from workshop import STEPS, Workshop, output, told

from trainer.data.cache import Cache, key_of
from trainer.data.framing import cuts
from trainer.dataset import Dataset, Framing
from trainer.events import Checkpoint, Data, Sample, Started, Warned
from trainer.families import load_family
from trainer.history import History
from trainer.options import TextOptions
from trainer.spec import Base, steps_of


def close(story: History, other: History, tolerance: float = 1e-4) -> bool:
    assert story.losses.keys() == other.losses.keys()
    return all(abs(story.losses[step] - other.losses[step]) <= tolerance for step in story.losses)


@pytest.fixture(scope="module")
def plain(workshop: Workshop) -> tuple[Path, History]:
    """A training of defaults, to compare with."""
    return workshop.train("plain", validation=[workshop.dataset("carrot")])


def shapes(workshop: Workshop) -> dict[str, Any]:
    for name, size in (("wide", (128, 64)), ("high", (64, 130)), ("large", (300, 290)), ("long", (256, 100))):
        image = Image.effect_noise(size, 60).convert("RGB")
        ImageDraw.Draw(image).ellipse((10, 10, 50, 50), fill="red")
        workshop.picture(name, image)
    framing = {"resolution": 128, "bucket_step": 32, "crop": "random", "crops": 2, "flip": True}
    return workshop.dataset("wide", "high", "large", "long", framing=framing)


def test_a_second_training_encodes_nothing_and_ends_the_same(workshop: Workshop, tmp_path: Path) -> None:
    settings = {"datasets": [shapes(workshop)], "batch_size": 2, "cache": str(tmp_path)}
    first, story = workshop.train("shapes", **settings)
    assert (story.data.pictures_encoded, story.data.captions_encoded) == (4, 5)
    assert {(bucket.width, bucket.height) for bucket in story.data.buckets} == {(128, 64), (64, 128), (128, 128), (192, 64)}
    second, again = workshop.train("shapes again", **settings)
    assert (again.data.pictures_encoded, again.data.captions_encoded) == (0, 0)
    assert output(first).read_bytes() == output(second).read_bytes()
    damaged = next(tmp_path.rglob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    third, mended = workshop.train("shapes once more", **settings)
    assert mended.data.pictures_encoded + mended.data.captions_encoded == 1
    assert output(first).read_bytes() == output(third).read_bytes()


def test_what_an_earlier_way_of_reading_images_has_encoded_is_not_used(workshop: Workshop, tmp_path: Path) -> None:
    data = workshop.dataset("lemon", "banana")
    digest = load_family(Base.model_validate(workshop.base), TextOptions()).vae_digest()
    for image in Dataset.model_validate(data).images:
        rectangles = cuts(64, 64, image.sha256, Framing(resolution=64))
        Cache(tmp_path).put(key_of("latents", image.sha256, digest, rectangles, "", False), {"latents": torch.zeros(1, 4, 8, 8)})
    assert workshop.train("read anew", datasets=[data], cache=str(tmp_path))[1].data.pictures_encoded == 2


def test_deep_grey_trains_as_shallow_grey_does_and_a_turned_tiff_as_a_high_image(workshop: Workshop) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (64, 128)).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    losses = []
    for name, image, mask, options in (
        ("shallow", Image.fromarray(np.rot90(grey, 3)), Image.fromarray(np.rot90(grey, 3)), {}),
        ("deep", Image.fromarray(grey.astype(np.uint16) * 257), Image.fromarray(grey.astype(np.float32) / 255, "F"), {"exif": exif}),
    ):
        paths = [workshop.place / f"{name} {what}.tiff" for what in ("image", "mask")]
        for path, content in zip(paths, (image, mask), strict=True):
            content.save(path, **options)
        # The hash decides nothing but the order of chance.
        entry = {"path": str(paths[0]), "sha256": "a", "caption": "noise", "mask": str(paths[1]), "mask_sha256": "b"}
        data = {"name": "noise", "images": [entry], "framing": {"resolution": 128}}
        story = workshop.train(name, datasets=[data], steps=4)[1]
        assert [(bucket.width, bucket.height) for bucket in story.data.buckets] == [(64, 128)]
        losses.append(story)
    assert close(*losses, 1e-5)


def test_what_is_worth_a_warning_is_told_before_anything_is_encoded(workshop: Workshop) -> None:
    data = workshop.dataset("lemon", "banana", notes=["1 file is left out (videos are not read): film.mp4"])
    story = workshop.train("warned", datasets=[data], validation=[workshop.dataset("lemon")], optimizer={"warmup": 100})[1]
    kinds = [event.event for event in story.events]
    assert kinds.count("warning") == 3 and kinds.index("warning") < next(i for i, e in enumerate(story.events) if e.event == "data")
    warnings = [event.message for event in story.events if isinstance(event, Warned)]
    assert warnings[0] == "food: 1 file is left out (videos are not read): film.mp4"
    assert "1 of 1 validation images are trained on as well" in warnings[1]
    assert f"the warm-up takes 100 steps and the training {STEPS}" in warnings[2]


def test_adapters_of_single_steps_are_those_of_shorter_trainings(workshop: Workshop) -> None:
    folder, _ = workshop.train("stepped", checkpointing={"adapter_every_steps": 5})
    files = steps_of(output(folder))
    assert list(files) == [5, 10]
    short, _ = workshop.train("five", steps=5)
    here, there = load_file(files[5]), load_file(output(short))
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def test_encoding_that_is_killed_goes_on(workshop: Workshop) -> None:
    cache = workshop.place / "killed" / "cache"
    folder = workshop.run("killed", datasets=[shapes(workshop)], cache=str(cache))
    kept = []
    for _ in range(2):
        # An entry takes three changes to files, the first one five: folders, a temporary file, the rename.
        code, _, _ = workshop.nursery.attempt(folder, change=8)
        assert code == KILLED
        kept.append(len([path for path in cache.rglob("*.safetensors") if not path.name.startswith(".")]))
    assert 0 < kept[0] < kept[1] < 9
    assert workshop.nursery.attempt(folder)[0] == 0
    data = [event for event in told(folder).events if isinstance(event, Data)][-1]
    assert data.pictures_encoded + data.captions_encoded == 9 - kept[1]


def test_what_the_mask_hides_is_not_trained(workshop: Workshop, plain: tuple[Path, History]) -> None:
    def masked(name: str, *shades: int) -> History:
        data = workshop.dataset("lemon", "banana", "bread")
        for image, shade in zip(data["images"], shades, strict=True):
            path = workshop.picture(f"mask-{name}-{shade}-{Path(image['path']).stem}", Image.new("L", (32, 32), shade))
            image |= {"mask": str(path), "mask_sha256": f"{shade}"}
        return workshop.train(name, datasets=[data], validation=[workshop.dataset("carrot")])[1]

    assert close(masked("white", 255, 255, 255), plain[1], 1e-5)
    black = masked("black", 0, 0, 0)
    assert set(black.losses.values()) == {0.0}
    assert any(isinstance(event, Warned) and "all black" in event.message for event in black.events)
    assert black.validation[STEPS] == pytest.approx(black.validation[0], abs=1e-6)


def test_the_alpha_channel_is_a_mask(workshop: Workshop) -> None:
    left = Image.new("RGBA", (64, 64), (200, 30, 30, 0))
    left.paste((30, 30, 200, 255), (0, 0, 32, 64))
    workshop.picture("half", left)
    half = workshop.train("alpha", datasets=[workshop.dataset("half", mask_from_alpha=True)])[1]
    whole = workshop.train("no alpha", datasets=[workshop.dataset("half")])[1]
    shares = [half.losses[step] / whole.losses[step] for step in (1, 2)]
    assert all(0.3 < share < 0.7 for share in shares)


def test_the_text_encoder_is_trained_at_its_own_rate_and_resumes(workshop: Workshop, plain: tuple[Path, History]) -> None:
    settings = {"text": {"learning_rate": 5e-3}, "network": {"rank": 2, "alpha": 2.0, "dropout": 0.2}, "checkpointing": {"every_steps": 4}}
    folder, _ = workshop.train("text", **settings)
    tensors = load_file(output(folder))
    prefix, end = "lora_te_text_model_encoder_layers_", "lora_up.weight"
    ups = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix) and name.endswith(end)}
    assert len(ups) == 2 * 6  # two layers: q, k, v, out, fc1, fc2
    assert all(tensor.any() for tensor in ups.values())
    killed = workshop.run("text killed", **settings)
    workshop.nursery.attempt(killed, change=12)
    assert workshop.nursery.attempt(killed)[0] == 0
    assert output(killed).read_bytes() == output(folder).read_bytes()
    # At a rate of next to nothing, what the UNet learns is what it learns alone.
    still = workshop.train("text still", text={"learning_rate": 1e-12}, validation=[workshop.dataset("carrot")])[1]
    assert close(still, plain[1])


def test_drawn_captions_are_encoded_when_they_come(workshop: Workshop) -> None:
    use = {"shuffle": True, "keep_tokens": 1, "tag_dropout": 0.3, "dropout": 0.2}
    settings = {"datasets": [workshop.dataset("lemon", "banana", caption_use=use)], "checkpointing": {"every_steps": 4}}
    folder, story = workshop.train("tags", **settings)
    assert story.data.captions_encoded == 0
    killed = workshop.run("tags killed", **settings)
    workshop.nursery.attempt(killed, change=12)
    assert workshop.nursery.attempt(killed)[0] == 0
    assert output(killed).read_bytes() == output(folder).read_bytes()


def test_prior_preservation_draws_what_is_missing_once(workshop: Workshop, tmp_path: Path, plain: tuple[Path, History]) -> None:
    prior = {"class_prompt": "food", "num_class_images": 3, "steps": 2}
    settings = {"prior": prior, "class_images": [workshop.dataset("carrot")], "cache": str(tmp_path), "validation": [workshop.dataset("carrot")]}
    _, story = workshop.train("prior", **settings)
    drawn = sorted(tmp_path.glob("class_images/*/*.png"))
    assert [path.name for path in drawn] == ["00000.png", "00001.png"]
    times = [path.stat().st_mtime_ns for path in drawn]
    _, again = workshop.train("prior again", **settings)
    assert [path.stat().st_mtime_ns for path in drawn] == times and again.losses == story.losses
    # The loss is that of the pictures and of the class together; with no weight the class is not there.
    assert all(story.losses[step] > plain[1].losses[step] + 0.1 for step in (1, 2))
    folder, unweighed = workshop.train("prior without weight", **settings | {"prior": {**prior, "weight": 0.0}})
    assert unweighed.losses == plain[1].losses
    here, there = load_file(output(folder)), load_file(output(plain[0]))
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def test_a_training_starts_from_an_adapter(workshop: Workshop, plain: tuple[Path, History]) -> None:
    start = {"path": str(output(plain[0])), "sha256": "a"}
    held_out = [workshop.dataset("carrot")]
    story = workshop.train("started", network={"rank": 2, "alpha": 1.0, "start_from": start}, validation=held_out)[1]
    assert story.validation[0] == pytest.approx(plain[1].validation[STEPS], rel=1e-4)
    assert story.validation[0] != pytest.approx(plain[1].validation[0], rel=1e-3)
    for network, word in (
        ({"rank": 4, "alpha": 2.0}, "2 in the file and 4 here"),
        ({"rank": 2, "alpha": 2.0, "kind": "loha"}, "is no loha like this one"),
    ):
        assert word in workshop.refused(f"started {word}", network={**network, "start_from": start})


def test_a_training_that_starts_from_other_layers_says_which_are_new_and_a_broken_start_is_refused(
    workshop: Workshop, plain: tuple[Path, History], tmp_path: Path
) -> None:
    start = {"path": str(output(plain[0])), "sha256": "a"}
    told_more = workshop.train("fewer", steps=1, network={"rank": 2, "alpha": 2.0, "targets": "attention", "start_from": start})[1]
    (warning,) = [event.message for event in told_more.events if isinstance(event, Warned)]
    assert "layers of bun.safetensors are not in this network" in warning
    wider = workshop.train("more layers", steps=1, network={"rank": 2, "alpha": 2.0, "conv_rank": 2, "start_from": start})[1]
    (warning,) = [event.message for event in wider.events if isinstance(event, Warned)]
    assert "of this network's layers are not in bun.safetensors and begin as new ones" in warning
    broken = {name: tensor * float("nan") for name, tensor in load_file(output(plain[0])).items()}
    save_file(broken, tmp_path / "nan.safetensors")
    start = {"path": str(tmp_path / "nan.safetensors"), "sha256": "a"}
    assert "holds NaN" in workshop.refused("broken start", network={"rank": 2, "alpha": 2.0, "start_from": start})


def test_more_steps_are_those_of_a_longer_training(workshop: Workshop) -> None:
    short, _ = workshop.train("short", steps=8, checkpointing={"every_steps": 4, "keep_last": 5})
    whole, story = workshop.train("longer", steps=STEPS)
    for step in (4, 8):
        start = {"start": {"run": str(short), "step": step}}
        more, told_more = workshop.train(f"more from {step}", steps=STEPS, checkpointing=start)
        assert load_file(output(more)).keys() == load_file(output(whole)).keys()
        assert all(torch.equal(a, b) for a, b in zip(load_file(output(more)).values(), load_file(output(whole)).values(), strict=True))
        assert told_more.losses == {at: loss for at, loss in story.losses.items() if at > step}
        assert [event.resumed_from for event in told_more.events if isinstance(event, Started)] == [step]


def test_what_a_state_does_not_fit_is_refused_by_name(workshop: Workshop) -> None:
    other, _ = workshop.train("other", steps=4)
    start = {"start": {"run": str(other), "step": 4}}
    for number, (changes, words) in enumerate(
        (
            ({"network": {"rank": 3, "alpha": 2.0}}, ["network.rank was 2 and is 3"]),
            ({"optimizer": {"name": "sgd", "ema_decay": 0.9}}, ['optimizer.name was "adamw" and is "sgd"', "optimizer.ema_decay was 0.0 and is 0.9"]),
            ({"text": {"learning_rate": 1e-4}}, ["text.learning_rate was 0.0 and is 0.0001"]),
            ({"steps": 4}, ["set steps higher"]),
            ({"checkpointing": {"start": {"run": str(other), "step": 3}}}, ["has no saved state of step 3"]),
        )
    ):
        message = workshop.refused(f"refused {number}", **{"checkpointing": start, **changes})
        assert all(word in message for word in words), message


def test_each_validation_dataset_has_a_loss_of_its_own_and_the_mean_is_that_of_all(workshop: Workshop, plain: tuple[Path, History]) -> None:
    parts = [workshop.dataset("carrot", name="style"), *(workshop.dataset(name, name="others") for name in ("corn", "grapes"))]
    story = workshop.train("held out by dataset", validation=parts)[1]
    assert list(story.validation_by_dataset) == ["style", "others"]
    style, others = story.validation_by_dataset.values()
    assert style == plain[1].validation
    assert story.validation.keys() == others.keys() == {0, STEPS}
    assert all(mean == pytest.approx((style[step] + 2 * others[step]) / 3) for step, mean in story.validation.items())
    together = workshop.train("held out together", validation=[workshop.dataset("carrot", "corn", "grapes")])[1]
    assert (together.validation, together.validation_by_dataset) == (story.validation, {})


def test_the_best_state_stays_and_gives_the_adapter(workshop: Workshop) -> None:
    # A rate at which an early step is the best.
    checkpointing = {"every_steps": 0, "keep_last": 1, "validate_every_steps": 2, "adapter": "best"}
    folder, story = workshop.train("best", learning_rate=0.1, steps=4, checkpointing=checkpointing, validation=[workshop.dataset("carrot")])
    best = min((loss, step) for step, loss in story.validation.items() if step)[1]
    assert best < 4
    states = {int(path.name.removeprefix("step-")) for path in (folder / "state").iterdir()}
    assert states == {best, 4}
    with safe_open(output(folder), framework="pt") as file:
        assert file.metadata()["ss_steps"] == str(best)
    saved = load_file(folder / "state" / f"step-{best:08d}" / "weights.safetensors")
    down = next(name for name in saved if "lora_A" in name)
    assert any(torch.equal(saved[down].half(), tensor) for tensor in load_file(output(folder)).values())


@pytest.mark.parametrize(
    ("hardware", "tolerance"),
    [({"gradient_checkpointing": True}, 1e-5), ({"channels_last": True}, 1e-4), ({"compile": True}, 1e-4), ({"base_format": "fp8"}, 0.05)],
    ids=["gradient_checkpointing", "channels_last", "compile", "fp8"],
)
def test_hardware_options_train_the_same(workshop: Workshop, plain: tuple[Path, History], hardware: dict[str, Any], tolerance: float) -> None:
    story = workshop.train(f"hardware {next(iter(hardware))}", hardware=hardware, validation=[workshop.dataset("carrot")])[1]
    assert close(story, plain[1], tolerance)
    # fp8 has to have rounded something.
    assert tolerance < 0.01 or not close(story, plain[1], 1e-5)


def test_fp8_does_not_go_with_dora(workshop: Workshop) -> None:
    network = {"rank": 2, "alpha": 2.0, "decompose": True}
    assert "base_format fp8 does not work with decompose" in workshop.refused("fp8 dora", network=network, hardware={"base_format": "fp8"})


def test_two_processes_are_one_with_the_doubled_batch(workshop: Workshop, tmp_path: Path) -> None:
    common = {"datasets": [shapes(workshop)], "steps": 6, "cache": str(tmp_path), "objective": {"input_perturbation": 0.1}}
    _, alone = workshop.train("one process", batch_size=2, **common)
    folder, together = workshop.train("two processes", batch_size=1, hardware={"processes": 2}, **common)
    assert close(together, alone, 2e-5)
    assert [event.step for event in together.events if isinstance(event, Checkpoint)] == [6]
    assert len([event for event in together.events if isinstance(event, Started)]) == 1
    assert output(folder).is_file()


def test_tensorboard_gets_losses_and_pictures(workshop: Workshop) -> None:
    settings = {"sampling": {"prompts": ["a bun"], "steps": 1, "width": 64, "height": 64}, "checkpointing": {"tensorboard": True}}
    held_out = [workshop.dataset("carrot"), workshop.dataset("corn", name="a plain one")]
    folder, story = workshop.train("board", validation=held_out, **settings)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = (folder / "tensorboard").rglob("events.out.tfevents.*")
    board = EventAccumulator(str(file), size_guidance={"scalars": 0, "images": 0}).Reload()
    assert {event.step: pytest.approx(event.value) for event in board.Scalars("loss")} == story.losses
    for tag, losses in {"": story.validation, **{f"/{name}": losses for name, losses in story.validation_by_dataset.items()}}.items():
        assert {event.step: pytest.approx(event.value) for event in board.Scalars(f"validation_loss{tag}")} == losses
    assert story.validation_by_dataset.keys() == {"food", "a plain one"}
    assert [event.step for event in board.Images("a bun")] == [event.step for event in story.events if isinstance(event, Sample)]


def test_the_adapter_tells_its_data(workshop: Workshop) -> None:
    folder, _ = workshop.train("told", datasets=[shapes(workshop), workshop.dataset("lemon", trigger_word="sks")], steps=1)
    with safe_open(output(folder), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_enable_bucket"] == "True"
    assert metadata["ss_flip_aug"] == "True"
    assert metadata["modelspec.trigger_phrase"] == "sks"
    assert len(json.loads(metadata["ss_datasets"])) == 2
