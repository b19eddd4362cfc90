"""Optimisers, schedules and the average: what they do, and that a saved one goes on to the bit."""
import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from trainer.checkpoint import latest_state, load_state, save_state
from trainer.data.order import generator
from trainer.ema import Ema
from trainer.optim import build, check, in_use, restore, state_tensors, supports_found_inf
from trainer.options import OptimizerName, OptimizerOptions
from trainer.schedule import factor
from trainer.typed import SpecError

PACKAGES = {"adamw8bit": "bitsandbytes", "lion": "lion_pytorch", "prodigy": "prodigyopt", "came": "came_pytorch"}
PACKAGES["adamw_schedule_free"] = "schedulefree"
INSTALLED = [name for name in get_args(OptimizerName) if find_spec(PACKAGES.get(name, "torch")) is not None and name != "adamw8bit"]


class Small:
    """A real model, and one optimiser."""

    def __init__(self, name: Any, **arguments: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        self.optimizer = build(OptimizerOptions(name=name, arguments=tuple(arguments.items())), self.model.parameters(), 0.01)

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            self.optimizer.zero_grad()
            x = torch.randn(5, 3, generator=generator(0, "x", step))
            self.model(x).pow(2).mean().backward()
            self.optimizer.step()

    def loss(self) -> float:
        with torch.no_grad():
            return float(self.model(torch.randn(64, 3, generator=generator(0, "held out"))).pow(2).mean())


@pytest.mark.parametrize("name", INSTALLED)
def test_every_optimiser_learns(name: str) -> None:
    small = Small(name)
    before = small.loss()
    small.train(0, 30)
    assert small.loss() < before


@pytest.mark.parametrize("name", INSTALLED)
def test_an_optimiser_goes_on_from_its_saved_state_to_the_bit(name: str) -> None:
    whole, first, second = Small(name), Small(name), Small(name)
    whole.train(0, 10)
    first.train(0, 6)
    tensors, rest = state_tensors(first.optimizer)
    second.train(20, 23)  # somewhere else, so that everything must be replaced
    second.model.load_state_dict(first.model.state_dict())
    restore(second.optimizer, {key: tensor.clone() for key, tensor in tensors.items()}, json.loads(json.dumps(rest)))
    second.train(6, 10)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True))


@pytest.mark.parametrize("name", INSTALLED)
def test_every_optimiser_goes_on_from_a_state_on_the_disk_to_the_bit(name: str, tmp_path: Path) -> None:
    whole, first, second = Small(name), Small(name), Small(name)
    whole.train(0, 10)
    first.train(0, 6)
    save_state(tmp_path, 6, 6, {key: value.detach() for key, value in first.model.named_parameters()}, first.optimizer, None)
    state = latest_state(tmp_path)
    assert state is not None
    load_state(state, {key: value.data for key, value in second.model.named_parameters()}, second.optimizer, None)
    second.train(6, 10)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True))


class Wrapping(torch.optim.Adagrad):
    """Its saved state is in a dictionary, as that of bitsandbytes 0.50 is."""

    def state_dict(self) -> dict[str, Any]:
        whole = super().state_dict()
        return {**whole, "state": {index: {"wrapped": {**entry}} for index, entry in whole["state"].items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "state": {index: entry["wrapped"] for index, entry in state_dict["state"].items()}})


def test_a_state_of_dictionaries_comes_back_as_it_was(tmp_path: Path) -> None:
    first, second = (Wrapping([nn.Parameter(torch.ones(3))], lr=0.1) for _ in range(2))
    first.param_groups[0]["params"][0].grad = torch.full((3,), 0.5)
    first.step()
    save_state(tmp_path, 1, 1, {}, first, None)
    state = latest_state(tmp_path)
    assert state is not None
    load_state(state, {}, second, None)
    saved, found = first.state_dict()["state"][0]["wrapped"], second.state_dict()["state"][0]["wrapped"]
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[name], found[name]) for name in saved)


@pytest.mark.parametrize("name", INSTALLED)
def test_weights_in_use_come_back_to_the_bit(name: str) -> None:
    small = Small(name)
    small.train(0, 5)
    before = [parameter.detach().clone() for parameter in small.model.parameters()]
    with in_use(small.optimizer):
        differs = any(not torch.equal(a, b) for a, b in zip(before, small.model.parameters(), strict=True))
    assert differs == (name == "adamw_schedule_free")
    assert all(torch.equal(a, b) for a, b in zip(before, small.model.parameters(), strict=True))


def test_arguments_reach_the_optimiser_and_wrong_ones_are_named() -> None:
    group = Small("adamw", weight_decay=0.5, betas=(0.8, 0.9)).optimizer.param_groups[0]
    assert (group["weight_decay"], group["betas"]) == (0.5, (0.8, 0.9))
    with pytest.raises(SpecError, match=r"adamw has no argument wieght_decay. It has: betas, eps, weight_decay"):
        check(OptimizerOptions(name="adamw", arguments=(("wieght_decay", 0.5),)))
    with pytest.raises(SpecError, match="adamw refuses its arguments"):
        Small("adamw", betas=(2.0, 0.9))


WRONG = [
    ("adamw", "weight_decay", (1.0, 2.0), "weight_decay is .*, and has to be a number"),
    ("adamw", "weight_decay", True, "weight_decay is True, and has to be a number"),
    ("adamw", "betas", 0.9, "betas is 0.9, and has to be a list of 2 numbers"),
    ("adamw", "amsgrad", 1.0, "amsgrad is 1.0, and has to be true or false"),
    ("adamw", "eps", -1.0, "Invalid epsilon value: -1.0"),
    ("adamw", "foreach", True, "cannot be `True` together"),
    ("adamw", "maximize", True, "has no argument maximize. It has: betas, eps"),
    ("adamw", "weight_decay", math.inf, "NaN or infinite"),
    ("adafactor", "eps", 1e-8, "eps is 1e-08, and has to be a list of 2 numbers"),
    ("adafactor", "relative_step", True, "refuses its arguments"),
    ("lion", "betas", (2.0, 0.9), "refuses its arguments"),
    ("prodigy", "slice_p", 1.5, "refuses its arguments"),
    ("came", "betas", (0.9, 0.999), "betas is .*, and has to be a list of 3 numbers"),
    ("adamw_schedule_free", "betas", (0.0, 0.9), "refuses its arguments"),
]


@pytest.mark.parametrize(("name", "argument", "value", "message"), WRONG)
def test_what_an_optimiser_would_refuse_is_told_before_anything_is_loaded(name: Any, argument: str, value: Any, message: str) -> None:
    if name not in INSTALLED:
        pytest.skip("its package is not installed")
    with pytest.raises(SpecError, match=message):
        check(OptimizerOptions(name=name, arguments=((argument, value),)))


@pytest.mark.parametrize("name", INSTALLED)
def test_every_optimiser_passes_the_check_and_leaves_random_numbers_alone(name: Any) -> None:
    before = torch.get_rng_state()
    check(OptimizerOptions(name=name))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif("prodigy" not in INSTALLED, reason="its package is not installed")
def test_a_whole_number_stays_one_through_a_spec() -> None:
    options = OptimizerOptions(name="prodigy", arguments=(("slice_p", 11),))
    read = OptimizerOptions.model_validate_json(options.model_dump_json())
    check(read)
    assert repr(read.arguments) == "(('slice_p', 11),)"


@pytest.mark.parametrize("name", [name for name in PACKAGES if name not in INSTALLED])
def test_a_missing_package_is_named(name: Any) -> None:
    if find_spec(PACKAGES[name]) is not None:
        pytest.skip("it is installed here")
    with pytest.raises(SpecError, match=f"optimizer {name} needs a package that is not installed: python -m pip install"):
        check(OptimizerOptions(name=name))


def test_only_what_looks_at_found_inf_is_said_to() -> None:
    for name in INSTALLED:
        small = Small(name)
        if not supports_found_inf(small.optimizer):
            continue
        before = [parameter.detach().clone() for parameter in small.model.parameters()]
        small.optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
        small.train(0, 1)
        assert all(torch.equal(a, b) for a, b in zip(before, small.model.parameters(), strict=True)), name
    assert supports_found_inf(Small("adamw").optimizer)
    assert not supports_found_inf(Small("adamw", fused=False).optimizer)


def rates(schedule: Any, total: int, **options: Any) -> list[float]:
    return [factor(OptimizerOptions(schedule=schedule, **options), step, total) for step in range(total)]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cosine_with_restarts", "polynomial"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_after_the_warm_up_schedules_are_those_of_diffusers(schedule: str, warmup: int) -> None:
    options: dict[str, Any] = {"cycles": 3} if schedule == "cosine_with_restarts" else {"power": 2.0} if schedule == "polynomial" else {}
    theirs = {"num_cycles": 3} if "cycles" in options else options
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=40, **theirs)
    expected = []
    for _ in range(40):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    # diffusers' polynomial ends at a rate of 1e-7.
    assert rates(schedule, 40, warmup=warmup, **options)[warmup:] == pytest.approx(expected[warmup:], abs=2e-7)


def test_the_warm_up_rises_evenly_from_its_first_step() -> None:
    assert rates("constant", 6, warmup=3) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert rates("constant", 6, warmup=0.5) == rates("constant", 6, warmup=3)
    assert rates("constant", 6) == [1.0] * 6


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_a_schedule_ends_low_and_never_leaves_its_range(schedule: str) -> None:
    found = rates(schedule, 1000, warmup=0.1)
    assert found[-1] < 0.01
    assert all(0 <= rate <= 1 and math.isfinite(rate) for rate in found)
    assert factor(OptimizerOptions(schedule=schedule), 1000, 1000) == pytest.approx(0, abs=1e-9)  # type: ignore[arg-type]


def test_the_average_is_that_of_its_definition_and_the_weights_come_back_to_the_bit() -> None:
    weight = torch.tensor([1.0, 3.0])
    ema = Ema([weight], 0.9)
    expected = weight.double()
    for step in range(20):
        weight += 0.37
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.double()
    kept = weight.clone()
    with ema.swapped():
        assert torch.allclose(weight.double(), expected, rtol=1e-5)
    assert torch.equal(weight, kept)
    other = Ema([torch.zeros(2)], 0.9)
    other.load(ema.tensors())
    assert torch.equal(other.tensors()[0], ema.tensors()[0])
