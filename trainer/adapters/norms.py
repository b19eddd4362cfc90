"""How much an adapter changes each block of a model: the Frobenius norm of the change, at weight 1."""
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .blocks import BlockError, block_names, block_of
from .delta import bias_delta, changes_weight, delta, low_rank, needs_base
from .embedding import Embedding
from .hypernetwork import Hypernetwork
from .kinds import part_of
from .layer_tensors import AdapterMathError
from .layers import Layer
from .lowrank import WORK, frobenius

_TEXT_LAYER = re.compile(r"(?:_|\.)(?:layers|resblocks)[._](\d{1,3})(?:[._]|$)")
_BLOCK = re.compile(r"(?:^|[._])((?:single_|double_|joint_)?(?:transformer_)?blocks|layers)[._](\d{1,3})(?:[._]|$)")
_OTHER = "other"


@dataclass(frozen=True)
class Norm:
    """`norm` of what `count` layers (or vectors, or networks) of one block of a part make together; `part` as `kinds.part_of` calls it."""

    part: str
    block: str
    count: int
    norm: float


@dataclass(frozen=True)
class BlockNorms:
    """By block, the model's parts before the text encoders', in their order.

    `unmeasured`: layers whose change depends on the model's own weights, which the file does not hold. `decomposed`: layers of DoRA, measured
    without their magnitudes.
    """

    blocks: tuple[Norm, ...]
    unmeasured: int = 0
    decomposed: int = 0


def block_norms(layers: Mapping[str, Layer], family: str | None, progress: Callable[[int, int], None] | None = None) -> BlockNorms:
    """The norms of an adapter's layers, by canonical key. `progress(done, total)` is called after each; what it raises ends it."""
    squares: dict[tuple[str, str], list[float]] = {}
    unmeasured = decomposed = 0
    for done, (key, layer) in enumerate(layers.items(), 1):
        norm = layer_norm(layer)
        if norm is None:
            unmeasured += 1
        else:
            decomposed += "dora_scale" in layer
            squares.setdefault((part_of(key, family), block_label(key, family)), []).append(norm**2)
        if progress:
            progress(done, len(layers))
    ordered = sorted(squares.items(), key=lambda item: _place(item[0][0], item[0][1], family))
    return BlockNorms(tuple(Norm(part, block, len(of), math.sqrt(math.fsum(of))) for (part, block), of in ordered), unmeasured, decomposed)


def layer_norm(layer: Layer) -> float | None:
    """Frobenius norm of a layer's change of its weight and its bias; that of DoRA without its magnitudes.

    None: the change depends on the weight (GLoRA, OFT, BOFT, (IA)^3, a replaced weight), or the weight becomes larger.
    """
    plain = {name: tensor for name, tensor in layer.items() if name != "dora_scale"}
    try:
        bias = bias_delta(plain, dtype=WORK)
        size = 0.0 if bias is None else float(bias.norm())
        if not changes_weight(plain):
            return size
        if needs_base(plain):
            return None
        factors = low_rank(plain, dtype=WORK)
        change = frobenius(factors) if factors is not None else float(torch.linalg.vector_norm(delta(plain), dtype=WORK))
    except AdapterMathError:
        return None
    return math.hypot(size, change)


def block_label(key: str, family: str | None) -> str:
    """The block of a layer: IN00 ... OUT11, a text encoder's layer, a transformer's block by its name and number, or "other"."""
    if part_of(key, family).startswith("text encoder"):
        layer = _TEXT_LAYER.search(key)
        return f"layer {int(layer[1]):02}" if layer else _OTHER
    known = block_of(key, family)
    if known:
        return known
    try:
        block_names(family or "")
        return _OTHER
    except BlockError:
        found = _BLOCK.search(key)
        return f"{found[1]} {int(found[2]):02}" if found else _OTHER


def embedding_norms(embedding: Embedding) -> tuple[Norm, ...]:
    """The length of each of an embedding's vectors."""
    return tuple(
        Norm(encoder, f"vector {number}", 1, float(vector.to(WORK).norm()))
        for encoder, table in embedding.vectors.items()
        for number, vector in enumerate(table, 1)
    )


def hypernetwork_norms(hypernetwork: Hypernetwork) -> tuple[Norm, ...]:
    """The norm of all weights of each of a hypernetwork's networks: two for each width, for keys and for values."""
    return tuple(
        Norm(f"width {width}", name, 1, math.hypot(*(float(tensor.to(WORK).norm()) for tensor in state.values())))
        for width, pair in sorted(hypernetwork.layers.items())
        for name, state in zip(("keys", "values"), pair, strict=True)
    )


def _place(part: str, block: str, family: str | None) -> tuple[bool, str, bool, int, str]:
    try:
        order = block_names(family or "")
    except BlockError:
        order = ()
    return part.startswith("text encoder"), part, block == _OTHER, order.index(block) if block in order else 0, block
