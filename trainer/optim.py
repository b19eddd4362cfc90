"""The optimisers that a training may use, by name."""
import contextlib
import importlib
import importlib.util
import inspect
import math
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
    # The state moves to the machine's memory where the GPU's is short. https://arxiv.org/abs/2305.14314, section 3
    "paged_adamw8bit": _Entry("bitsandbytes.optim", "PagedAdamW8bit", "bitsandbytes", _ADAM),
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
# Not settings of a training: they are set here, train away from the pictures, or are for other kinds of program.
_NOT_SET_BY_USERS = {"self", "params", "lr", "maximize", "differentiable", "capturable", "fsdp_in_use", "use_triton"}


def check(options: OptimizerOptions) -> None:
    """Raise SpecError for whatever would keep the optimiser from its first step: no package, a wrong argument, or values that it refuses.

    The values are tried on a small matrix and a vector on the CPU, since several classes look at them in their first step only.
    """
    constructor, arguments = _chosen(options)
    parameters = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    with _refusals(options):
        optimizer = _made(constructor, parameters, 1e-4, arguments)
        optimizer.step()
        with in_use(optimizer):
            finite = all(bool(torch.isfinite(parameter).all()) for parameter in parameters)
        if not finite:
            raise ValueError("the first step makes the weights NaN or infinite")


def build(options: OptimizerOptions, parameters: Iterable[Any], learning_rate: float) -> torch.optim.Optimizer:
    """The optimiser of `parameters`, or of groups of them as torch's optimisers take them.

    Raises SpecError as `check` does, and for values that the class refuses.
    """
    constructor, arguments = _chosen(options)
    with _refusals(options):
        return _made(constructor, parameters, learning_rate, arguments)


def _made(constructor: Any, parameters: Iterable[Any], learning_rate: float, arguments: dict[str, Any]) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = constructor(list(parameters), lr=learning_rate, **arguments)
    if hasattr(optimizer, "train"):
        optimizer.train()  # schedule-free: refuses to step otherwise
    return optimizer


@contextlib.contextmanager
def _refusals(options: OptimizerOptions) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # a RuntimeError that says nothing of the arguments
    except (TypeError, ValueError, AssertionError, LookupError, ArithmeticError, RuntimeError) as error:
        reason = str(error) or "it gives no reason"
        raise SpecError(f"optimizer {options.name} refuses its arguments {dict(options.arguments)}: {reason}") from error


def _chosen(options: OptimizerOptions) -> tuple[Any, dict[str, Any]]:
    """The class, and the arguments to give it."""
    entry = _ENTRIES[options.name]
    if importlib.util.find_spec(entry.module.split(".")[0]) is None:
        raise SpecError(
            f"optimizer {options.name} needs a package that is not installed: python -m pip install {entry.package}, with the Python that trains."
        )
    constructor = getattr(importlib.import_module(entry.module), entry.name)
    signature = inspect.signature(constructor).parameters
    known = {name: parameter.default for name, parameter in signature.items() if name not in _NOT_SET_BY_USERS}
    unknown = [name for name, _ in options.arguments if name not in known]
    if unknown:
        raise SpecError(f"optimizer {options.name} has no argument {', '.join(unknown)}. It has: {', '.join(known)}.")
    for name, value in options.arguments:
        wanted = _kind(known[name])
        if wanted and _kind(value) != wanted:
            raise SpecError(f"optimizer {options.name}: the argument {name} is {value!r}, and has to be {wanted}, as {known[name]!r} is.")
    return constructor, {**entry.defaults, **dict(options.arguments)}


def _kind(value: Any) -> str:
    """What a value is, in words; empty where a default says nothing of the values that may take its place."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return f"a list of {len(value)} numbers" if isinstance(value, tuple) else ""


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
    """Everything the optimiser remembers: tensors by `<index>.<name>`, and the rest as JSON data, whose floats come back to the bit.

    The name of what lies in a dictionary of the state is its path, with slashes: bitsandbytes wraps its quantised tensors so. Its tables are
    one tensor for all parameters; each gets one of its own here, since a .safetensors file holds no tensor twice.
    """
    whole = optimizer.state_dict()
    memory: set[int] = set()
    tensors: dict[str, Tensor] = {}
    rest: dict[str, dict[str, Any]] = {}
    for index, entry in whole["state"].items():
        for path, value in _flat(entry):
            if isinstance(value, Tensor):
                tensors[f"{index}.{path}"] = value.clone() if value.data_ptr() in memory else value
                memory.add(value.data_ptr())
            else:
                rest.setdefault(str(index), {})[path] = _encoded(value)
    groups = [{name: _encoded(value) for name, value in group.items() if name != "params"} for group in whole["param_groups"]]
    return tensors, {"state": rest, "groups": groups}


def restore(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], rest: Any) -> None:
    """Put back what `state_tensors` gave, into an optimiser of the same parameters."""
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, path = key.split(".", 1)
        _put(state.setdefault(int(index), {}), path, tensor)
    for index, entry in rest["state"].items():
        for path, value in entry.items():
            _put(state.setdefault(int(index), {}), path, _decoded(value))
    whole = optimizer.state_dict()
    groups = []
    for group, saved in zip(whole["param_groups"], rest["groups"], strict=True):
        plain = {name: _decoded(value) for name, value in saved.items()}
        # JSON has no tuples.
        values = {name: tuple(value) if isinstance(group.get(name), tuple) else value for name, value in plain.items()}
        groups.append({**group, **values})
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _flat(entry: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _put(entry: dict[str, Any], path: str, value: Any) -> None:
    *outer, name = path.split("/")
    for folder in outer:
        entry = entry.setdefault(folder, {})
    entry[name] = value


def _encoded(value: Any) -> Any:
    # JSON has no infinity, which Prodigy's growth_rate is; pydantic would write null.
    return {"float": str(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _decoded(value: Any) -> Any:
    return float(value["float"]) if isinstance(value, dict) else value
