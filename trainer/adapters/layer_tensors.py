"""A layer of an adapter as a mapping of ComfyUI's suffixes to tensors: which kind it is, and its tensors, checked, as matrices and numbers."""
import contextlib
import itertools
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from ..messages import shown
from .layers import BESIDE, KINDS, Layer, kinds_in
from .lowrank import Factors


class AdapterMathError(ValueError):
    """The arithmetic does not apply to these tensors. The message says where, what is wrong and what to do."""


_LONGEST_KEY = 300


@contextlib.contextmanager
def naming(key: str) -> Iterator[None]:
    """Put the layer's key in front of the message of an AdapterMathError."""
    try:
        yield
    except AdapterMathError as error:
        raise AdapterMathError(f"{shown(key, _LONGEST_KEY)}: {error}") from error


_DECOMPOSABLE = frozenset({"LoRA", "LoHa", "LoKr", "GLoRA"})
RELATIVE = frozenset({"GLoRA", "OFT", "IA3", "replaced weight"})
"""Kinds whose change depends on the weight that it is added to."""


def kind_of(layer: Layer) -> str:
    """Which of the kinds the layer is. Raises AdapterMathError for none, for two at once, and for tensors that are missing or not understood."""
    return _kind_of(frozenset(layer))


@lru_cache(maxsize=1024)
def _kind_of(suffixes: frozenset[str]) -> str:
    names = suffixes - BESIDE
    found = kinds_in(names)
    if len(found) != 1:
        held = " and ".join(found) or "no kind of adapter that is known"
        raise AdapterMathError(f"the layer holds {held} ({', '.join(sorted(suffixes))}): one kind a layer can be computed with")
    required, optional = KINDS[found[0]]
    if names - required - optional or required - names:
        wrong = [f"{name} is not understood" for name in sorted(names - required - optional)]
        wrong += [f"{name} is missing" for name in sorted(required - names)]
        raise AdapterMathError(f"this is {found[0]}, but {'; '.join(wrong)}")
    if "dora_scale" in suffixes and found[0] not in _DECOMPOSABLE:
        raise AdapterMathError(f"dora_scale does not go with {found[0]}")
    return found[0]


def get(layer: Layer, name: str, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`. Raises AdapterMathError if it is missing, NaN or infinite."""
    if name not in layer:
        raise AdapterMathError(f"{name} is missing")
    tensor = layer[name].detach().to(dtype)
    if not torch.isfinite(tensor).all():
        raise AdapterMathError(f"{name} holds NaN or infinity: the file is damaged or its training diverged; use another copy or an earlier save")
    return tensor


def matrix(layer: Layer, name: str, dtype: torch.dtype) -> Tensor:
    """The same as a matrix: a kernel (a, b, kh, kw) becomes (a, b * kh * kw)."""
    tensor = get(layer, name, dtype)
    if tensor.dim() < 2 or not tensor.numel():
        raise AdapterMathError(f"{name} has shape {tuple(tensor.shape)}; a matrix or a kernel is needed")
    return tensor.flatten(1)


def pair(layer: Layer, left: str, right: str, dtype: torch.dtype) -> Factors:
    """Two tensors as the factors of a product. Raises AdapterMathError if they do not fit together."""
    factors = Factors(matrix(layer, left, dtype), matrix(layer, right, dtype))
    check_chain(f"{left} and {right}", *factors)
    return factors


def check_chain(names: str, *matrices: Tensor) -> None:
    """Raises AdapterMathError unless the matrices can be multiplied in their order."""
    if any(a.shape[1] != b.shape[0] for a, b in itertools.pairwise(matrices)):
        shapes = " @ ".join(str(tuple(matrix.shape)) for matrix in matrices)
        raise AdapterMathError(f"{names} do not fit together: {shapes}")


def number(layer: Layer, name: str) -> float:
    """The value of a tensor of one element. Raises AdapterMathError."""
    tensor = get(layer, name, torch.float64)
    if tensor.numel() != 1:
        raise AdapterMathError(f"{name} has shape {tuple(tensor.shape)}; a single number is needed")
    return float(tensor)


def scale_of(layer: Layer, rank: int) -> float:
    """alpha / rank; 1 without alpha."""
    return number(layer, "alpha") / rank if "alpha" in layer else 1.0
