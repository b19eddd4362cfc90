"""The optimisers that a training may use, by name."""
import contextlib
import importlib
import importlib.util
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .options import OptimizerName, OptimizerOptions
from .typed import SpecError


@dataclass(frozen=True)
class _Entry:
    """Where a class is, the package to install for it, and what is set unless the user sets it."""

    module: str
    name: str
    package: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)


_ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
_ENTRIES: dict[OptimizerName, _Entry] = {
    # Fused: one kernel for all tensors, and a bad step is left out without a wait for the device. https://arxiv.org/abs/1711.05101
    "adamw": _Entry("torch.optim", "AdamW", defaults={**_ADAM, "fused": True}),
    "adamw8bit": _Entry("bitsandbytes.optim", "AdamW8bit", "bitsandbytes", _ADAM),  # https://arxiv.org/abs/2110.02861
    # Its own relative step and scaling would leave learning_rate and schedule without effect. https://arxiv.org/abs/1804.04235
    "adafactor": _Entry("transformers", "Adafactor", defaults={"relative_step": False, "scale_parameter": False}),
    "lion": _Entry("lion_pytorch", "Lion", "lion-pytorch"),  # https://arxiv.org/abs/2302.06675
    "prodigy": _Entry("prodigyopt", "Prodigy", "prodigyopt"),  # https://arxiv.org/abs/2306.06101
    "adamw_schedule_free": _Entry("schedulefree", "AdamWScheduleFree", "schedulefree"),  # https://arxiv.org/abs/2405.15682
    "came": _Entry("came_pytorch", "CAME", "came-pytorch"),  # https://arxiv.org/abs/2307.02047
    "sgd": _Entry("torch.optim", "SGD"),
    "radam": _Entry("torch.optim", "RAdam", defaults={"decoupled_weight_decay": True}),  # https://arxiv.org/abs/1908.03265
    "nadam": _Entry("torch.optim", "NAdam", defaults={"decoupled_weight_decay": True}),
    "rmsprop": _Entry("torch.optim", "RMSprop"),
    "adagrad": _Entry("torch.optim", "Adagrad"),
}


def check(options: OptimizerOptions) -> None:
    """Raise SpecError if the optimiser's package is missing, or its class has not one of the arguments."""
    _chosen(options)


def build(options: OptimizerOptions, parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """The optimiser of `parameters`. Raises SpecError as `check` does, and for values that the class refuses."""
    constructor, defaults = _chosen(options)
    arguments = {**defaults, **dict(options.arguments)}
    try:
        optimizer: torch.optim.Optimizer = constructor(list(parameters), lr=learning_rate, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise SpecError(f"optimizer {options.name} refuses its arguments {dict(options.arguments)}: {error}") from error
    if hasattr(optimizer, "train"):
        optimizer.train()  # schedule-free: refuses to step otherwise
    return optimizer


def _chosen(options: OptimizerOptions) -> tuple[Any, dict[str, Any]]:
    entry = _ENTRIES[options.name]
    if importlib.util.find_spec(entry.module.split(".")[0]) is None:
        raise SpecError(
            f"optimizer {options.name} needs a package that is not installed: python -m pip install {entry.package}, with the Python that trains."
        )
    constructor = getattr(importlib.import_module(entry.module), entry.name)
    known = [name for name in inspect.signature(constructor).parameters if name not in ("self", "params", "lr")]
    unknown = [name for name, _ in options.arguments if name not in known]
    if unknown:
        raise SpecError(f"optimizer {options.name} has no argument {', '.join(unknown)}. It has: {', '.join(known)}.")
    return constructor, entry.defaults


def supports_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step looks at `optimizer.found_inf` (a tensor, 1 where the step is to be left out) on the device, as torch's fused Adams do."""
    return isinstance(optimizer, torch.optim.Adam) and all(group["fused"] for group in optimizer.param_groups)


@contextlib.contextmanager
def in_use(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Schedule-free optimisers train other weights than those to use: the model has the latter meanwhile, the former afterwards, to the bit."""
    if not hasattr(optimizer, "eval") or not hasattr(optimizer, "train"):
        yield
        return
    parameters = [parameter.data for group in optimizer.param_groups for parameter in group["params"]]
    kept = [parameter.clone() for parameter in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        torch._foreach_copy_(parameters, kept)


def state_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Any]:
    """Everything the optimiser remembers: tensors by `<index>.<name>`, and the rest as JSON data, whose floats come back to the bit."""
    whole = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    rest: dict[str, dict[str, Any]] = {}
    for index, entry in whole["state"].items():
        for name, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                rest.setdefault(str(index), {})[name] = value
    groups = [{name: value for name, value in group.items() if name != "params"} for group in whole["param_groups"]]
    return tensors, {"state": rest, "groups": groups}


def restore(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], rest: Any) -> None:
    """Put back what `state_tensors` gave, into an optimiser of the same parameters."""
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    for index, entry in rest["state"].items():
        state.setdefault(int(index), {}).update(entry)
    whole = optimizer.state_dict()
    groups = []
    for group, saved in zip(whole["param_groups"], rest["groups"], strict=True):
        # JSON has no tuples.
        values = {name: tuple(value) if isinstance(group.get(name), tuple) else value for name, value in saved.items()}
        groups.append({**group, **values})
    optimizer.load_state_dict({"state": state, "param_groups": groups})
