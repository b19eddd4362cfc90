"""Changes that depend on the weight they are added to: DoRA's second half, GLoRA, OFT, BOFT, (IA)^3 and replaced weights."""
from collections.abc import Callable

import torch
from torch import Tensor

from .layer_tensors import AdapterMathError, check_chain, get, matrix, number, scale_of
from .layers import Layer


def magnitude_gain(target: Tensor, weight: Tensor, magnitude: Tensor) -> tuple[Tensor, int]:
    """magnitude / norm, (out,) or (in,), and the axis of the weight that it lies along: 0 or 1. See `delta` for the norm.

    `target` is the weight with the change; `magnitude` has (out, 1, ...) or (1, in, ...) numbers. Raises AdapterMathError.
    """
    rows, columns = weight.shape[0], weight.shape[1]
    on_output = magnitude.dim() > 0 and magnitude.shape[0] == rows
    if magnitude.numel() != (rows if on_output else columns):
        raise AdapterMathError(f"dora_scale has shape {tuple(magnitude.shape)}; {rows} numbers (output axis) or {columns} (input axis) are needed")
    norm = weight.flatten(1).norm(dim=1) if on_output else target.transpose(0, 1).flatten(1).norm(dim=1)
    # ComfyUI's guard against a row of zeros, in the precision that it computes in.
    return magnitude.flatten() / (norm + torch.finfo(torch.float32).eps), 0 if on_output else 1


def decomposed(change: Tensor, weight: Tensor, magnitude: Tensor) -> Tensor:
    """(weight + change) * magnitude / norm - weight. Raises AdapterMathError."""
    target = weight + change
    gain, axis = magnitude_gain(target, weight, magnitude)
    return target * gain.reshape([-1 if dimension == axis else 1 for dimension in range(weight.dim())]) - weight


def _glora(layer: Layer, weight: Tensor) -> Tensor:
    """W a1 a2 + b1 b2, or with the factors the other way round in LyCORIS's older files; told apart by shape as ComfyUI does."""
    a1, a2, b1, b2 = (matrix(layer, f"{name}.weight", weight.dtype) for name in ("a1", "a2", "b1", "b2"))
    older = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    newer = b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]
    square = weight.shape[0] == weight.shape[1] == a2.shape[0]
    if older and (square or not newer):
        flat = weight.flatten(1)
        check_chain("the weight, a2.weight and a1.weight", flat, a2, a1)
        return ((b2 @ b1) + flat @ a2 @ a1).mul_(scale_of(layer, a1.shape[0]))
    if not newer:
        shapes = ", ".join(str(tuple(part.shape)) for part in (a1, a2, b1, b2))
        raise AdapterMathError(f"a1, a2, b1 and b2 do not fit together: {shapes}")
    if a1.shape[0] != weight.shape[1] or a2.shape[1] != weight.shape[1]:
        raise AdapterMathError(f"a1.weight {tuple(a1.shape)} does not fit the base's weight {tuple(weight.shape)}: the adapter is for another model")
    change = torch.einsum("oi...,ij,jk->ok...", weight, a1, a2)
    fixed = b1 @ b2
    if fixed.numel() != change.numel():
        raise AdapterMathError(f"b1 @ b2 is {tuple(fixed.shape)}, but the base's weight is {tuple(weight.shape)}")
    return change.add_(fixed.reshape(change.shape)).mul_(scale_of(layer, a2.shape[0]))


def _rotations(layer: Layer, dtype: torch.dtype) -> Tensor:
    """Cayley's (I + Q)(I - Q)^-1 of each block's skew-symmetric part; for OFT alpha is not a scale but the largest norm of Q."""
    blocks = get(layer, "oft_blocks", dtype)
    if blocks.dim() not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise AdapterMathError(f"oft_blocks has shape {tuple(blocks.shape)}; (blocks, size, size) or (steps, blocks, size, size) is needed")
    skew = blocks - blocks.transpose(-1, -2)
    limit = number(layer, "alpha") if "alpha" in layer else 0.0
    norm = float(skew.norm()) + 1e-8
    if 0 < limit < norm:
        skew = skew * (limit / norm)
    identity = torch.eye(blocks.shape[-1], dtype=dtype, device=blocks.device)
    return (identity + skew) @ torch.linalg.inv(identity - skew)


def _orthogonal(layer: Layer, weight: Tensor) -> Tensor:
    rotations = _rotations(layer, weight.dtype)
    count, size = rotations.shape[-3:-1]
    if count * size != weight.shape[0]:
        told = f"oft_blocks turns {count * size} outputs, but the base's weight has {weight.shape[0]}"
        raise AdapterMathError(f"{told}: the adapter is for another model")
    flat = weight.flatten(1)
    if rotations.dim() == 3:
        turned = (rotations.transpose(1, 2) @ flat.reshape(count, size, -1)).reshape(flat.shape)
    else:
        if size % 2:
            raise AdapterMathError(f"BOFT's blocks have an even size; oft_blocks has {size}")
        turned = flat
        for step, rotation in enumerate(rotations):
            # The butterfly: pair up outputs that lie 2**step half blocks apart, turn, and put them back.
            half = 2**step * (size // 2)
            if weight.shape[0] % (2 * half):
                raise AdapterMathError(f"oft_blocks has {len(rotations)} steps, too many for {weight.shape[0]} outputs")
            paired = turned.reshape(-1, 2, half, flat.shape[1]).transpose(1, 2).reshape(count, size, -1)
            turned = (rotation @ paired).reshape(-1, half, 2, flat.shape[1]).transpose(1, 2).reshape(flat.shape)
    if "rescale" in layer:
        factor = get(layer, "rescale", weight.dtype).flatten()
        if factor.numel() not in (1, weight.shape[0]):
            raise AdapterMathError(f"rescale holds {factor.numel()} numbers; {weight.shape[0]} are needed")
        turned = factor[:, None] * turned
    return turned - flat


def _ia3(layer: Layer, weight: Tensor) -> Tensor:
    axis = 1 if number(layer, "on_input") else 0
    factor = get(layer, "weight", weight.dtype).flatten()
    if factor.numel() != weight.shape[axis]:
        name = ("output", "input")[axis]
        raise AdapterMathError(f"weight holds {factor.numel()} numbers, but the base's {name} axis has {weight.shape[axis]}")
    return weight * factor.reshape([-1 if dimension == axis else 1 for dimension in range(weight.dim())])


def _replaced(layer: Layer, weight: Tensor) -> Tensor:
    new = get(layer, "set_weight", weight.dtype)
    if new.shape != weight.shape:
        raise AdapterMathError(f"set_weight is {tuple(new.shape)}, but the base's weight is {tuple(weight.shape)}: the adapter is for another model")
    return new - weight


CHANGES: dict[str, Callable[[Layer, Tensor], Tensor]] = {
    "GLoRA": _glora,
    "OFT": _orthogonal,
    "IA3": _ia3,
    "replaced weight": _replaced,
}
"""By kind: (layer, weight) to the change, of the same number of entries as the weight."""
