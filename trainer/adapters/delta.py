"""What a layer of an adapter adds to the weight: the change itself, or exact factors of it.

LoRA https://arxiv.org/abs/2106.09685, LoHa https://arxiv.org/abs/2108.06098, LoKr, GLoRA and the others as LyCORIS has them
(https://arxiv.org/abs/2309.14859), DoRA https://arxiv.org/abs/2402.09353, OFT https://arxiv.org/abs/2306.07280, BOFT
https://arxiv.org/abs/2311.06243, (IA)^3 https://arxiv.org/abs/2205.05638.
"""
import math

import torch
from torch import Tensor

from .layer_tensors import RELATIVE, AdapterMathError, check_chain, get, kind_of, matrix, pair, scale_of
from .layers import BIASES, Layer
from .lowrank import Factors
from .relative_delta import CHANGES, decomposed


def changes_weight(layer: Layer) -> bool:
    """Whether the layer changes a weight; some change a bias alone (`diff_b`, `b_norm`)."""
    return not set(layer) - {"alpha"} <= BIASES


def needs_base(layer: Layer) -> bool:
    """Whether the change depends on the weight that it is added to: DoRA, GLoRA, OFT, BOFT, (IA)^3. Raises AdapterMathError."""
    return "dora_scale" in layer or kind_of(layer) in RELATIVE


def _tucker(layer: Layer, core: str, rows: str, columns: str, dtype: torch.dtype) -> Factors:
    """LyCORIS's core (i, j, *kernel) with `rows` (i, out) and `columns` (j, in), as up (out, i) and down (i, in * kernel)."""
    middle, left, right = get(layer, core, dtype), matrix(layer, rows, dtype), matrix(layer, columns, dtype)
    if middle.dim() < 3 or middle.shape[:2] != (left.shape[0], right.shape[0]):
        raise AdapterMathError(f"{core} {tuple(middle.shape)} does not fit {rows} {tuple(left.shape)} and {columns} {tuple(right.shape)}")
    return Factors(left.T.contiguous(), torch.einsum("ij...,jr->ir...", middle, right).flatten(1))


def _lora(layer: Layer, dtype: torch.dtype) -> Factors:
    up, down = matrix(layer, "lora_up.weight", dtype), matrix(layer, "lora_down.weight", dtype)
    scale = scale_of(layer, down.shape[0])
    if "lora_mid.weight" in layer:
        middle = get(layer, "lora_mid.weight", dtype)
        if middle.dim() < 3 or middle.shape[:2] != (up.shape[1], down.shape[0]):
            raise AdapterMathError(f"lora_mid.weight {tuple(middle.shape)} does not fit ranks {up.shape[1]} and {down.shape[0]}")
        down = torch.einsum("ij...,jr->ir...", middle, down).flatten(1)
    check_chain("lora_up.weight and lora_down.weight", up, down)
    return Factors(up * scale, down)


def _loha(layer: Layer, dtype: torch.dtype) -> tuple[Factors, Factors]:
    """The two products whose entries are multiplied; alpha is in the first."""
    if ("hada_t1" in layer) != ("hada_t2" in layer):
        raise AdapterMathError("hada_t1 and hada_t2 come together; one is missing")
    if "hada_t1" in layer:
        first, second = (_tucker(layer, f"hada_t{n}", f"hada_w{n}_a", f"hada_w{n}_b", dtype) for n in (1, 2))
    else:
        first, second = (pair(layer, f"hada_w{n}_a", f"hada_w{n}_b", dtype) for n in (1, 2))
    if (first.up.shape[0], first.down.shape[1]) != (second.up.shape[0], second.down.shape[1]):
        raise AdapterMathError("the two halves of LoHa (hada_w1, hada_w2) have different shapes")
    return Factors(first.up * scale_of(layer, layer["hada_w1_b"].shape[0]), first.down), second


def _lokr(layer: Layer, dtype: torch.dtype) -> tuple[Tensor | Factors, Tensor | Factors]:
    """The two parts of the Kronecker product, each whole or factored; alpha is in the first. Without any factored part alpha is ignored."""
    sides: list[Tensor | Factors] = []
    rank = None
    for side in ("lokr_w1", "lokr_w2"):
        if side in layer:
            sides.append(matrix(layer, side, dtype))
            continue
        if side == "lokr_w2" and "lokr_t2" in layer:
            sides.append(_tucker(layer, "lokr_t2", "lokr_w2_a", "lokr_w2_b", dtype))
        else:
            sides.append(pair(layer, f"{side}_a", f"{side}_b", dtype))
        rank = layer[f"{side}_b"].shape[0]
    first, second = sides
    scale = 1.0 if rank is None else scale_of(layer, rank)
    return (Factors(first.up * scale, first.down) if isinstance(first, Factors) else first * scale), second


def low_rank(layer: Layer, *, dtype: torch.dtype = torch.float32) -> Factors | None:
    """Exact factors of the change, up (out, r) and down (r, in * kernel), alpha folded in; none where the kind has none.

    LoHa: rank r1 * r2 by the face-splitting product (https://en.wikipedia.org/wiki/Khatri–Rao_product). LoKr: the mixed-product property
    (https://en.wikipedia.org/wiki/Kronecker_product). Both only where that is below full rank. Raises AdapterMathError.
    """
    kind = kind_of(layer)
    if "dora_scale" in layer:
        return None
    if kind == "LoRA":
        return _lora(layer, dtype)
    if kind == "LoHa":
        a, b = _loha(layer, dtype)
        if a.rank * b.rank >= min(a.up.shape[0], a.down.shape[1]):
            return None
        return Factors((a.up[:, :, None] * b.up[:, None, :]).flatten(1), (a.down[:, None, :] * b.down[None, :, :]).flatten(0, 1))
    if kind == "LoKr":
        first, second = (_thin(side) for side in _lokr(layer, dtype))
        smaller_side = min(first.up.shape[0] * second.up.shape[0], first.down.shape[1] * second.down.shape[1])
        if first.rank * second.rank >= smaller_side:
            return None
        return Factors(torch.kron(first.up, second.up), torch.kron(first.down, second.down))
    return None


def _thin(side: Tensor | Factors) -> Factors:
    """Factors of the lowest rank that needs no decomposition."""
    if isinstance(side, Factors) and side.rank < min(side.up.shape[0], side.down.shape[1]):
        return side
    whole = side.up @ side.down if isinstance(side, Factors) else side
    rows, columns = whole.shape
    identity = torch.eye(min(rows, columns), dtype=whole.dtype, device=whole.device)
    return Factors(identity, whole) if rows <= columns else Factors(whole, identity)


def weight_shape(layer: Layer, base: Tensor | None = None) -> tuple[int, ...]:
    """Shape of the weight that the layer changes, from the base where there is one, else from the tensors.

    Conv layers whose tensors do not tell their kernel (LoHa and LoKr without a Tucker core) come flat: (out, in * kernel).
    Raises AdapterMathError where only the base knows.
    """
    kind = kind_of(layer)
    if base is not None:
        return tuple(base.shape)
    if kind in RELATIVE:
        raise _base_needed(layer)
    if kind in ("full difference", "norm difference"):
        return tuple(layer["diff" if "diff" in layer else "w_norm"].shape)
    rows, columns = _size(layer, kind)
    kernel = next((layer[name].shape[2:] for name in _WITH_KERNEL if name in layer and layer[name].dim() > 2), None)
    return (rows, columns) if kernel is None else (rows, columns // math.prod(kernel), *kernel)


# A core tells the kernel where there is one; the rest of the layer is 1x1 then.
_WITH_KERNEL = ("lora_mid.weight", "lora_down.weight", "hada_t1", "lokr_w2", "lokr_t2")


def _size(layer: Layer, kind: str) -> tuple[int, int]:
    """(out, in * kernel)."""
    if kind == "LoKr":
        sides = [(side, side) if isinstance(side, Tensor) else side for side in _lokr(layer, torch.float32)]
        return math.prod(left.shape[0] for left, _ in sides), math.prod(right.shape[1] for _, right in sides)
    up, down = _lora(layer, torch.float32) if kind == "LoRA" else _loha(layer, torch.float32)[0]
    return up.shape[0], down.shape[1]


def _base_needed(layer: Layer) -> AdapterMathError:
    kind = "DoRA" if "dora_scale" in layer else kind_of(layer)
    return AdapterMathError(f"a {kind} layer changes a weight by an amount that depends on that weight: connect the base model it was trained on")


def delta(layer: Layer, *, base: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """The change W' - W of the weight at strength 1, in the weight's shape, (out, in) or (out, in, kh, kw), computed in `dtype`.

    A missing alpha means scale 1. `base` is W: for DoRA, GLoRA, OFT, BOFT and (IA)^3, and to give flat conv layers their kernel.
    DoRA follows ComfyUI (0.3.75, comfy/weight_adapter/base.py): (W + change) * dora_scale / norm, with the norm of W's rows where dora_scale
    lies along the output axis, and of the columns of W + change where it lies along the input axis. OFT's `rescale` follows LyCORIS.

    Raises:
        AdapterMathError: no base where one is needed, shapes that do not fit, NaN, tensors that are missing or not understood.
    """
    kind = kind_of(layer)
    if base is None and needs_base(layer):
        raise _base_needed(layer)
    weight = None
    if base is not None and needs_base(layer):
        if base.dim() < 2:
            raise AdapterMathError(f"the base's weight is {tuple(base.shape)}; {kind} changes matrices and kernels: the adapter is for another model")
        weight = base.detach().to(next(iter(layer.values())).device, dtype)
    if kind in RELATIVE:
        assert weight is not None
        change = CHANGES[kind](layer, weight)
    else:
        change = _independent(layer, kind, dtype)
    shape = weight_shape(layer, base)
    if change.numel() != math.prod(shape):
        raise AdapterMathError(f"the layer makes {tuple(change.shape)}, but the base's weight is {shape}: the adapter is for another model")
    change = change.reshape(shape)
    if "dora_scale" in layer:
        assert weight is not None
        change = decomposed(change, weight, get(layer, "dora_scale", dtype))
    return change


def bias_delta(layer: Layer, *, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """The change of the bias, (out,), if the layer has one. Raises AdapterMathError."""
    name = next((name for name in ("diff_b", "b_norm") if name in layer), None)
    return None if name is None else get(layer, name, dtype)


def _independent(layer: Layer, kind: str, dtype: torch.dtype) -> Tensor:
    if kind == "LoRA":
        up, down = _lora(layer, dtype)
        return up @ down
    if kind == "LoHa":
        a, b = _loha(layer, dtype)
        return (a.up @ a.down).mul_(b.up @ b.down)
    if kind == "LoKr":
        first, second = (side if isinstance(side, Tensor) else side.up @ side.down for side in _lokr(layer, dtype))
        return torch.kron(first, second)
    return get(layer, "diff" if kind == "full difference" else "w_norm", dtype)
