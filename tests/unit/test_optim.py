"""Optimisers, schedules and the average: what they do, and that a saved one goes on to the bit."""
import math
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers.optimization import get_scheduler
from small import Small
from torch import nn

from trainer.checkpoint import latest_state, load_state
from trainer.ema import Ema
from trainer.optim import check, in_use, supports_found_inf
from trainer.options import OptimizerName, OptimizerOptions
from trainer.schedule import factor
from trainer.typed import SpecError

NAMES = get_args(OptimizerName)
PACKAGES = [
    ("adamw8bit", "bitsandbytes", "bitsandbytes"),
    ("lion", "lion_pytorch", "lion-pytorch"),
    ("prodigy", "prodigyopt", "prodigyopt"),
    ("adamw_schedule_free", "schedulefree", "schedulefree"),
    ("came", "came_pytorch", "came-pytorch"),
]


@pytest.mark.parametrize("name", NAMES)
def test_every_optimiser_learns(name: str) -> None:
    small = Small(name)
    before = small.loss()
    small.train(0, 30)
    with in_use(small.optimizer):
        assert small.loss() < before


@pytest.mark.parametrize("name", NAMES)
def test_every_optimiser_goes_on_from_a_state_on_the_disk_to_the_bit(name: str, tmp_path: Path) -> None:
    whole, first, second = Small(name), Small(name), Small(name)
    whole.train(0, 10)
    first.train(0, 6)
    first.save(tmp_path, 6)
    second.train(20, 23)  # somewhere else, so that everything must be replaced
    state = latest_state(tmp_path)
    assert state is not None
    load_state(state, second.parameters, second.optimizer, None)
    second.train(6, 10)
    assert second.is_at(whole.copy())


@pytest.mark.parametrize("name", NAMES)
def test_weights_in_use_come_back_to_the_bit(name: str) -> None:
    small = Small(name)
    small.train(0, 5)
    before = small.copy()
    with in_use(small.optimizer):
        assert small.is_at(before) == (name != "adamw_schedule_free")
    assert small.is_at(before)


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
    with pytest.raises(SpecError, match=message):
        check(OptimizerOptions(name=name, arguments=((argument, value),)))


@pytest.mark.parametrize("name", NAMES)
def test_every_optimiser_passes_the_check_and_leaves_random_numbers_alone(name: Any) -> None:
    before = torch.get_rng_state()
    check(OptimizerOptions(name=name))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_whole_number_stays_one_through_a_spec() -> None:
    options = OptimizerOptions(name="prodigy", arguments=(("slice_p", 11),))
    read = OptimizerOptions.model_validate_json(options.model_dump_json())
    check(read)
    assert repr(read.arguments) == "(('slice_p', 11),)"


@pytest.mark.parametrize(("name", "module", "package"), PACKAGES)
def test_a_missing_package_is_named(name: Any, module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # how Python is told that there is no such module
    with pytest.raises(SpecError, match=f"optimizer {name} needs a package that is not installed: python -m pip install {package},"):
        check(OptimizerOptions(name=name))


def test_only_what_looks_at_found_inf_is_said_to() -> None:
    for name in NAMES:
        small = Small(name)
        if not supports_found_inf(small.optimizer):
            continue
        before = small.copy()
        small.optimizer.found_inf = torch.tensor(1.0)
        small.train(0, 1)
        assert small.is_at(before), name
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


def test_piecewise_rules_are_those_of_diffusers() -> None:
    rules = "1:10,0.1:20,0.5:30,0.005"
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler("piecewise_constant", optimizer, step_rules=rules)
    expected = []
    for _ in range(40):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates("piecewise_constant", 40, step_rules=rules) == pytest.approx(expected)
    assert rates("piecewise_constant", 40, step_rules=rules, warmup=2)[2:] == pytest.approx(expected[2:])


@pytest.mark.parametrize("rules", ["", "1:10", "1:10,x", "1:20,0.1:10,0.5", "1:0,0.1", "nan", "-1", "1:10,0.1:10,1"])
def test_rules_that_are_none_are_refused(rules: str) -> None:
    with pytest.raises(ValueError, match="step_rules"):
        OptimizerOptions(schedule="piecewise_constant", step_rules=rules)


def test_rules_of_another_schedule_are_refused() -> None:
    with pytest.raises(ValueError, match="piecewise_constant"):
        OptimizerOptions(schedule="cosine", step_rules="1:10,0.1")


def test_the_warm_up_rises_evenly_from_its_first_step() -> None:
    assert rates("constant", 6, warmup=3) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert rates("constant", 6, warmup=0.5) == rates("constant", 6, warmup=3)
    assert rates("constant", 6) == [1.0] * 6


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_a_schedule_ends_low_and_never_leaves_its_range(schedule: str) -> None:
    found = rates(schedule, 1000, warmup=0.1)
    assert found[-1] < 0.01
    assert all(0 <= rate <= 1 and math.isfinite(rate) for rate in found)
    assert factor(OptimizerOptions(schedule=schedule), 1000, 1000) == pytest.approx(0, abs=1e-9)


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
