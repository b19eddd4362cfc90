"""What a run remembers: order and noise by step, saved states, its history and its plot."""
import itertools
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from small import Small

from trainer.checkpoint import StateError, latest_state, load_state, save_state, saved_steps
from trainer.data.order import batch_indices, generator
from trainer.ema import Ema
from trainer.events import Event, Failed, Finished, Phase, Progress, Sample, Started, Validation, parse_event
from trainer.history import History, history, read_events
from trainer.plot import draw_loss, save_loss, smoothed


@pytest.mark.parametrize(("length", "batch"), [(7, 1), (7, 3), (6, 4), (3, 8), (1, 1), (1, 4)])
def test_every_visit_comes_once_a_pass(length: int, batch: int) -> None:
    seen = [i for step in range(length * 3) for i in batch_indices(5, step, batch, length)]
    assert len(seen) == length * 3 * batch
    for start in range(0, len(seen), length):
        assert sorted(seen[start : start + length]) == list(range(length))


def test_the_order_is_that_of_seed_and_step_and_passes_differ() -> None:
    forward = [batch_indices(1, step, 2, 20) for step in range(40)]
    assert [batch_indices(1, step, 2, 20) for step in reversed(range(40))] == forward[::-1]
    assert forward != [batch_indices(2, step, 2, 20) for step in range(40)]
    assert forward[:10] != forward[10:20]


def test_generator_streams_differ_by_seed_and_name() -> None:
    def draw(*names: str | int) -> tuple[float, ...]:
        return tuple(torch.randn(8, generator=generator(*names)).tolist())

    keys = [(0, "noise", 1), (0, "noise", 2), (1, "noise", 1), (0, "timesteps", 1), (0, "noise"), (0, "noise1"), (0, "noise", 11), (0, "noise", 1, 1)]
    assert len({draw(*key) for key in keys}) == len(keys)
    torch.manual_seed(3)
    assert [draw(*key) for key in keys] == [draw(*key) for key in keys]
    assert draw(2**64 - 1, "noise") != draw(0, "noise")


def names(run: Path) -> list[str]:
    return sorted(entry.name for entry in (run / "state").iterdir())


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, first, second = Small(), Small(), Small()
    whole.train(0, 10)
    first.train(0, 6)
    folder = first.save(tmp_path, 6)
    state = latest_state(tmp_path)
    assert state is not None
    assert (state.step, state.draws, Path(state.folder)) == (6, 7, folder)
    second.train(20, 23)  # somewhere else entirely, so that loading must replace everything
    load_state(state, second.parameters, second.optimizer, None)
    second.train(6, 10)
    assert all(torch.equal(whole.parameters[name], second.parameters[name]) for name in whole.parameters)


def test_the_average_is_kept(tmp_path: Path) -> None:
    small, other = Small(), Small()
    ema, fresh = Ema(list(small.parameters.values()), 0.9), Ema(list(other.parameters.values()), 0.9)
    for step in range(5):
        small.train(step, step + 1)
        ema.update(step)
    save_state(tmp_path, 5, 5, small.parameters, small.optimizer, None, ema)
    load_state(latest_state(tmp_path), other.parameters, other.optimizer, None, fresh)
    assert all(torch.equal(a, b) for a, b in zip(ema.tensors(), fresh.tensors(), strict=True))
    with fresh.swapped():
        assert not torch.equal(other.parameters["0.weight"], small.parameters["0.weight"])
    assert torch.equal(other.parameters["0.weight"], small.parameters["0.weight"])


def test_as_many_states_are_kept_as_are_asked_for(tmp_path: Path) -> None:
    small = Small()
    for keep, left in ((1, 1), (3, 3)):
        for step in range(1, 6):
            save_state(tmp_path, 10 * keep + step, step, small.parameters, small.optimizer, None, keep=keep)
        assert len(names(tmp_path)) == left
        assert latest_state(tmp_path).step == 10 * keep + 5


def test_the_scaler_is_kept(tmp_path: Path) -> None:
    small, scaler = Small(), torch.amp.GradScaler("cpu")
    small.train(0, 1)
    saved = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=7)
    small.save(tmp_path, 1, saved.state_dict())
    load_state(latest_state(tmp_path), small.parameters, small.optimizer, scaler)
    assert scaler.state_dict() == saved.state_dict()


def test_older_states_are_removed(tmp_path: Path) -> None:
    small = Small()
    assert latest_state(tmp_path) is None
    small.train(0, 1)
    for step in (5, 10, 15, 100):
        small.save(tmp_path, step)
    assert names(tmp_path) == ["step-00000015", "step-00000100"]
    assert latest_state(tmp_path).step == 100


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_newest_state_is_passed_over(tmp_path: Path, file: str, how: str) -> None:
    small = Small()
    small.train(0, 1)
    small.save(tmp_path, 5)
    newest = small.save(tmp_path, 10)
    state = latest_state(tmp_path)
    assert state is not None
    if how == "flipped":
        flip(newest / file)
    elif how == "cut":
        (newest / file).write_bytes((newest / file).read_bytes()[:-3])
    else:
        (newest / file).unlink()
    assert latest_state(tmp_path).step == 5
    with pytest.raises(StateError, match="step-00000010"):
        load_state(state, small.parameters, small.optimizer, None)


def test_half_a_state_is_none(tmp_path: Path) -> None:
    small = Small()
    small.train(0, 1)
    done = small.save(tmp_path, 5)
    shutil.copytree(done, done.with_name(".step-00000009.tmp"))
    assert latest_state(tmp_path).step == 5
    small.save(tmp_path, 9)
    assert names(tmp_path) == ["step-00000005", "step-00000009"]


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    small = Small()
    small.train(0, 1)
    small.save(tmp_path, 5)
    small.train(1, 3)
    small.save(tmp_path, 5)
    other = Small()
    load_state(latest_state(tmp_path), other.parameters, other.optimizer, None)
    assert all(torch.equal(small.parameters[name], other.parameters[name]) for name in small.parameters)


def test_a_new_state_is_kept_though_damaged_ones_of_later_steps_lie_there(tmp_path: Path) -> None:
    small = Small()
    small.train(0, 1)
    for step in (40, 50):
        flip(small.save(tmp_path, step) / "weights.safetensors")
    assert latest_state(tmp_path) is None
    assert small.save(tmp_path, 10).is_dir()
    assert latest_state(tmp_path).step == 10


@pytest.mark.parametrize("beside", ["step-00000001 copy", "step-00000002.bak", "step-7notes", "step-00000009.txt"])
def test_what_is_no_state_is_neither_counted_nor_removed(tmp_path: Path, beside: str) -> None:
    small = Small()
    (tmp_path / "state" / beside).mkdir(parents=True)
    for step in (5, 10, 15):
        small.save(tmp_path, step)
    assert names(tmp_path) == sorted([beside, "step-00000010", "step-00000015"])
    assert saved_steps(tmp_path) == {10, 15}


@pytest.mark.parametrize("name", ["step-00000005", "step-00000005.before", ".step-00000005.tmp"])
@pytest.mark.parametrize("kind", ["file", "looping link"])
def test_a_file_in_the_place_of_a_state_hides_no_other_and_a_new_state_takes_its_place(tmp_path: Path, name: str, kind: str) -> None:
    small = Small()
    small.save(tmp_path, 4)
    stray = tmp_path / "state" / name
    if kind == "file":
        stray.write_text("not a state")
    else:
        stray.symlink_to(stray.name)
    assert latest_state(tmp_path).step == 4
    assert saved_steps(tmp_path) == {4}
    for _ in range(2):
        small.save(tmp_path, 5)
        assert latest_state(tmp_path).step == 5
    assert names(tmp_path) == ["step-00000004", "step-00000005"]


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    small = Small()
    small.train(0, 1)
    small.save(tmp_path, 5)
    other = {f"more.{name}": tensor for name, tensor in small.parameters.items()}
    with pytest.raises(StateError, match="other layers"):
        load_state(latest_state(tmp_path), other, small.optimizer, None)


def test_broken_numbers_are_no_state(tmp_path: Path) -> None:
    small = Small()
    small.train(0, 1)
    small.save(tmp_path, 5)
    next(iter(small.parameters.values()))[0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        small.save(tmp_path, 10)
    assert latest_state(tmp_path).step == 5


def started(resumed_from: int = 0) -> Started:
    return Started(run="r", pid=1, task="train_lora", total_steps=100, resumed_from=resumed_from)


def progress(step: int, *losses: float) -> Progress:
    return Progress(step=step, total=100, losses=losses, learning_rate=1e-4, elapsed_seconds=1.0, steps_per_second=1.0)


def first_attempt() -> list[Event]:
    return [
        started(),
        Validation(step=0, loss=9.0),
        progress(1, 1.0),
        progress(4, 2.0, 3.0, 4.0),
        Sample(step=4, prompt="p", file="four.png"),
        progress(6, 5.0, 6.0),
        Sample(step=6, prompt="p", file="six.png"),
        Validation(step=6, loss=8.0),
        Failed(message="power cut"),
    ]


def test_history_tells_losses_by_step() -> None:
    told = history(first_attempt())
    assert told.losses == {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 5.0, 6: 6.0}
    assert told.progress is not None
    assert told.progress.step == 6
    assert told.validation == {0: 9.0, 6: 8.0}
    assert isinstance(told.end, Failed)
    assert Counter(event.event for event in told.events) == {"started": 1, "validation": 2, "sample": 2, "failed": 1}


def test_of_a_phase_that_counts_only_the_first_and_the_last_count_are_kept() -> None:
    counts = [Phase(name="encoding", done=done, total=1000) for done in range(1001)]
    after = Phase(name="drawing samples")
    told = history([started(), *counts, after, *counts[:2]])
    assert told.events[1:] == [counts[0], counts[-1], after, *counts[:2]]


def test_a_resumed_run_drops_what_was_after_the_step() -> None:
    told = history([*first_attempt(), started(4)])
    assert told.losses == {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}
    assert told.validation == {0: 9.0}
    assert [sample.file for sample in told.samples] == ["four.png"]
    assert told.end is None
    assert told.progress is None
    told.add(progress(5, 50.0))
    told.add(Finished(step=5, stopped=True))
    assert told.losses[5] == 50.0
    assert 6 not in told.losses
    assert isinstance(told.end, Finished)


def test_a_run_from_the_start_forgets_the_attempt_before() -> None:
    told = history([*first_attempt(), started()])
    assert (told.losses, told.samples, told.end) == ({}, [], None)
    assert 6 not in told.validation
    assert [event.event for event in told.events] == ["started"]


def test_the_validation_loss_of_each_dataset_is_told_and_goes_back_with_the_run() -> None:
    told = history(
        [
            started(),
            Validation(step=0, loss=2.0, by_dataset={"style": 1.0, "plain": 3.0}),
            Validation(step=6, loss=4.0, by_dataset={"style": 3.0, "plain": 5.0}),
        ]
    )
    assert told.validation == {0: 2.0, 6: 4.0}
    assert told.validation_by_dataset == {"style": {0: 1.0, 6: 3.0}, "plain": {0: 3.0, 6: 5.0}}
    told.add(started(4))
    assert told.validation_by_dataset == {"style": {0: 1.0}, "plain": {0: 3.0}}


def test_a_validation_from_before_datasets_were_told_is_read() -> None:
    told = history([parse_event('{"time": 1.0, "event": "validation", "step": 5, "loss": 0.5}')])
    assert (told.validation, told.validation_by_dataset) == ({5: 0.5}, {})


def test_the_curve_is_thinned_and_keeps_its_order() -> None:
    told = History()
    told.add(progress(2500, *map(float, range(2500))))
    curve = told.curve(1000)
    assert 500 < len(curve) <= 1000
    assert curve == sorted(curve)
    assert all(loss == step - 1 for step, loss in curve)
    assert len({b[0] - a[0] for a, b in itertools.pairwise(curve)}) == 1
    assert len(told.curve(2500)) == 2500
    assert History().curve() == []


def write(path: Path, events: list[Event]) -> None:
    path.write_text("".join(event.model_dump_json() + "\n" for event in events), encoding="utf-8")


def test_events_are_read_back_and_a_cut_off_last_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = [started(), Phase(name="training", detail="ä\u2028b"), progress(1, 1.0)]
    write(path, events)
    assert list(read_events(path)) == events
    with path.open("a") as file:
        file.write(progress(2, 2.0).model_dump_json()[:-9])
    assert list(read_events(path)) == events
    assert history(read_events(path)).losses == {1: 1.0}


def test_no_events_file_is_no_events(tmp_path: Path) -> None:
    assert list(read_events(tmp_path / "events.jsonl")) == []


RAW, SMOOTH, HELD_OUT = (0xB9, 0xCD, 0xEA), (0x1F, 0x5F, 0xBF), (0xD9, 0x82, 0x2B)


def rows(image: Image.Image, colour: tuple[int, int, int]) -> set[int]:
    pixels = image.load()
    assert pixels is not None
    return {y for y in range(image.height) for x in range(image.width) if pixels[x, y] == colour}


def test_a_constant_loss_is_a_flat_line_in_the_middle() -> None:
    image = draw_loss([0.25] * 20)
    assert image.size == (960, 480)
    lines = rows(image, SMOOTH)
    assert lines
    assert max(lines) - min(lines) <= 4
    assert all(200 < y < 280 for y in lines)


@pytest.mark.parametrize("losses", [[], [0.5]])
@pytest.mark.parametrize("validation", [[], [(1, 0.4)], [(0, 0.4), (1, 0.3)]])
def test_one_loss_or_none_still_makes_a_picture(tmp_path: Path, losses: list[float], validation: list[tuple[int, float]]) -> None:
    save_loss(tmp_path / "loss.png", losses, validation, 1, "loss")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (960, 480)
        assert bool(rows(image.convert("RGB"), HELD_OUT)) == bool(validation)


def test_a_falling_loss_falls() -> None:
    losses = [1.0 - i / 100 for i in range(100)]
    image = draw_loss(losses)
    pixels = image.load()
    assert pixels is not None
    columns = {x: y for x in range(960) for y in range(480) if pixels[x, y] == SMOOTH}
    assert columns[max(columns)] > columns[min(columns)] + 200


def test_smoothing_does_not_pull_towards_zero() -> None:
    assert smoothed([2.0] * 30) == pytest.approx([2.0] * 30)
    assert smoothed([]) == []
    assert smoothed([0.0, 1.0] * 50, 10.0)[-1] == pytest.approx(0.5, abs=0.05)
