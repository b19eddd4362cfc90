"""What a layer of an adapter is made of: the names of its tensors, and what their shapes have to agree on.

Names and shapes are those that ComfyUI reads (comfy/weight_adapter in 0.3.75); (IA)^3 is LyCORIS's
(https://github.com/KohakuBlueleaf/LyCORIS), which ComfyUI does not read. Everything here works on shapes, so that a file's header is enough.
"""
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias, cast

from torch import Tensor

Layer: TypeAlias = Mapping[str, Tensor]
"""A layer's tensors by their canonical suffix: `lora_up.weight`, `alpha`, `hada_w1_a`, ..."""
Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape]
LayerKind = Literal["LoRA", "LoHa", "LoKr", "GLoRA", "OFT", "BOFT", "IA3", "full difference"]


class Tensors(NamedTuple):
    """The suffixes of one kind's own tensors: those that a layer of it must have, and those that it may."""

    required: frozenset[str]
    optional: frozenset[str]


def _tensors(required: str, optional: str = "") -> Tensors:
    return Tensors(frozenset(required.split()), frozenset(optional.split()))


KINDS = {
    "LoRA": _tensors("lora_up.weight lora_down.weight", "lora_mid.weight"),
    "LoHa": _tensors("hada_w1_a hada_w1_b hada_w2_a hada_w2_b", "hada_t1 hada_t2"),
    "LoKr": _tensors("", "lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2"),
    "GLoRA": _tensors("a1.weight a2.weight b1.weight b2.weight"),
    "OFT": _tensors("oft_blocks", "rescale"),
    "IA3": _tensors("weight on_input"),
    "full difference": _tensors("diff"),
    "norm difference": _tensors("w_norm"),
    "replaced weight": _tensors("set_weight"),
}
"""How the arithmetic tells layers apart. A file's kind (`layer_kind`) takes the last three as one, and four-dimensional OFT as BOFT."""
BIASES = frozenset({"diff_b", "b_norm"})
BESIDE = BIASES | {"alpha", "dora_scale"}
"""What may be beside the tensors of a kind."""
SUFFIXES = frozenset({"reshape_weight"}).union(BESIDE, *(kind.required | kind.optional for kind in KINDS.values()))
"""Every canonical suffix. `weight` belongs to a layer only beside `on_input`: anything has a weight."""
NOT_FACTORS = frozenset({"alpha", "reshape_weight", "on_input"})
"""Those that may be whole numbers."""

_OF_A_DIFFERENCE = ("full difference", "norm difference", "replaced weight")
_MATRICES = frozenset().union(*(KINDS[kind].required | KINDS[kind].optional for kind in ("LoRA", "LoHa", "LoKr", "GLoRA")))
# A Tucker core is checked where it is used.
_MATRICES -= {"lora_mid.weight", "hada_t1", "hada_t2", "lokr_t2"}


@lru_cache(maxsize=1024)  # thousands of layers, and a handful of ways to name what they hold
def kinds_in(suffixes: frozenset[str]) -> tuple[str, ...]:
    """The kinds that any of the suffixes belongs to, in the order of KINDS."""
    return tuple(kind for kind, (required, optional) in KINDS.items() if not (required | optional).isdisjoint(suffixes))


def layer_kind(shapes: Shapes) -> LayerKind | None:
    """What kind of layer these tensors make; the first of several. None: nothing that changes a weight or a bias, as `alpha` alone."""
    kind = next(iter(kinds_in(frozenset(shapes))), None)
    if kind in _OF_A_DIFFERENCE or (kind is None and not BIASES.isdisjoint(shapes)):
        return "full difference"
    if kind == "OFT" and len(shapes.get("oft_blocks", ())) == 4:
        return "BOFT"
    return cast("LayerKind | None", kind)


def layer_problem(shapes: Shapes) -> str | None:
    """What is wrong with a layer of these shapes, for the end of an error's sentence; None: they fit together.

    A missing counterpart, ranks that disagree, an empty tensor, too few dimensions.
    """
    kind = layer_kind(shapes)
    if kind is None:
        return f"holds {', '.join(sorted(shapes))} and nothing to apply"
    own = KINDS["OFT" if kind == "BOFT" else kind]
    missing = sorted(own.required - shapes.keys()) if kind != "full difference" else []
    if missing:
        return f"is a {kind} layer without {missing[0]}"
    for suffix, shape in shapes.items():
        if 0 in shape:
            return f"has an empty {suffix} of shape {shape}"
        if suffix in _MATRICES and len(shape) < 2:
            return f"has a {suffix} of shape {shape}; it has to be a matrix or a convolution's kernel"
    if math.prod(shapes.get("alpha", ())) != 1:
        return f"has an alpha of shape {shapes['alpha']}; it has to be one number"
    check = _CHECKS.get(kind)
    return check(shapes) if check else None


def layer_rank(shapes: Shapes) -> int | None:
    """The rank that `alpha` is divided by; None where there is none (full matrices, OFT). The layer has no `layer_problem`."""
    kind = layer_kind(shapes)
    if kind == "LoRA":
        return shapes["lora_down.weight"][0]
    if kind == "LoHa":
        return shapes["hada_w1_b"][0]
    if kind == "LoKr":
        # As ComfyUI: the second factor's rank where it has one.
        return next((shapes[suffix][0] for suffix in ("lokr_w2_b", "lokr_w1_b") if suffix in shapes), None)
    if kind == "GLoRA":
        return shapes["b1.weight"][0] if _is_old_glora(shapes) else shapes["b1.weight"][1]
    return None


def layer_size(shapes: Shapes) -> tuple[int | None, int | None]:
    """(out, in) features or channels of the layer that is adapted, None where the tensors do not say.

    `in` counts the kernel's positions too where a kind stores a convolution's input flattened. The layer has no `layer_problem`.
    """
    kind = layer_kind(shapes)
    if kind == "LoRA":
        return shapes["lora_up.weight"][0], shapes["lora_down.weight"][1]
    if kind == "LoHa":
        return shapes["hada_w1_a"][1 if "hada_t1" in shapes else 0], shapes["hada_w1_b"][1]
    if kind == "LoKr":
        first, second = _lokr_factor(shapes, "1"), _lokr_factor(shapes, "2")
        return first[0] * second[0], first[1] * second[1]
    if kind == "GLoRA":
        old = _is_old_glora(shapes)
        return shapes["b2.weight" if old else "b1.weight"][0], shapes["b1.weight" if old else "b2.weight"][1]
    if kind == "OFT":
        return math.prod(shapes["oft_blocks"][:2]), None
    if "diff" in shapes and len(shapes["diff"]) > 1:
        return shapes["diff"][0], shapes["diff"][1]
    return None, None


def is_wide_convolution(shapes: Shapes) -> bool:
    """Whether a LoRA layer adapts a convolution with a kernel larger than 1x1, which is what makes a LoCon."""
    return "lora_mid.weight" in shapes or any(math.prod(shapes.get(name, ())[2:]) > 1 for name in ("lora_down.weight", "lora_up.weight"))


def _disagree(shapes: Shapes, one: str, one_axis: int, other: str, other_axis: int, on: str = "rank") -> str | None:
    first, second = shapes[one][one_axis], shapes[other][other_axis]
    if first == second:
        return None
    return f"has {one} of shape {shapes[one]} and {other} of shape {shapes[other]}, which disagree on the {on}: {first} and {second}"


def _lora_problem(shapes: Shapes) -> str | None:
    wrong = _disagree(shapes, "lora_up.weight", 1, "lora_down.weight", 0)
    if not wrong and "lora_mid.weight" in shapes:
        if len(shapes["lora_mid.weight"]) < 3:
            return f"has a lora_mid.weight of shape {shapes['lora_mid.weight']}; it has to be a convolution's kernel"
        wrong = _disagree(shapes, "lora_mid.weight", 0, "lora_up.weight", 1) or _disagree(shapes, "lora_mid.weight", 1, "lora_down.weight", 0)
    if not wrong and "dora_scale" in shapes:
        count, size = math.prod(shapes["dora_scale"]), layer_size(shapes)
        if count not in size:
            return f"has a dora_scale of {count} numbers for a layer of {size[0]} outputs and {size[1]} inputs"
    return wrong


def _loha_problem(shapes: Shapes) -> str | None:
    if ("hada_t1" in shapes) != ("hada_t2" in shapes):
        return "has one of hada_t1 and hada_t2; there have to be both or neither"
    out = 1 if "hada_t1" in shapes else 0
    wrong = _disagree(shapes, "hada_w1_a", out, "hada_w2_a", out, "outputs") or _disagree(shapes, "hada_w1_b", 1, "hada_w2_b", 1, "inputs")
    for number in "12":
        core, first, second = f"hada_t{number}", f"hada_w{number}_a", f"hada_w{number}_b"
        wrong = wrong or (_core_problem(shapes, core, first, second) if core in shapes else _disagree(shapes, first, 1, second, 0))
    return wrong


def _lokr_problem(shapes: Shapes) -> str | None:
    for number in "12":
        whole, first, second = (f"lokr_w{number}{end}" for end in ("", "_a", "_b"))
        if whole in shapes:
            continue
        if first not in shapes or second not in shapes:
            return f"is a LoKr layer without {whole} or both of {first} and {second}"
        core = number == "2" and "lokr_t2" in shapes
        wrong = _core_problem(shapes, "lokr_t2", first, second) if core else _disagree(shapes, first, 1, second, 0)
        if wrong:
            return wrong
    return None


def _core_problem(shapes: Shapes, core: str, first: str, second: str) -> str | None:
    """A Tucker core is (rank of the first factor, rank of the second, kernel): its factors are (rank, out) and (rank, in)."""
    if len(shapes[core]) < 3:
        return f"has a {core} of shape {shapes[core]}; it has to be a convolution's kernel"
    return _disagree(shapes, core, 0, first, 0) or _disagree(shapes, core, 1, second, 0)


def _lokr_factor(shapes: Shapes, number: str) -> tuple[int, int]:
    """(out, in) of one Kronecker factor."""
    whole = shapes.get(f"lokr_w{number}")
    if whole:
        return whole[0], whole[1]
    out = 1 if number == "2" and "lokr_t2" in shapes else 0
    return shapes[f"lokr_w{number}_a"][out], shapes[f"lokr_w{number}_b"][1]


def _is_old_glora(shapes: Shapes) -> bool:
    """LyCORIS swapped the factors' roles: first (rank, in) and (out, rank) for b1 and b2, then (out, rank) and (rank, in)."""
    a1, a2, b1, b2 = (shapes[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    return b2[1] == b1[0] == a1[0] == a2[1]


def _glora_problem(shapes: Shapes) -> str | None:
    a1, a2, b1, b2 = (shapes[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    if _is_old_glora(shapes) or b2[0] == b1[1] == a1[1] == a2[0]:
        return None
    return f"has GLoRA factors a1 {a1}, a2 {a2}, b1 {b1}, b2 {b2}, which do not agree on one rank"


def _oft_problem(shapes: Shapes) -> str | None:
    blocks = shapes["oft_blocks"]
    if len(blocks) not in (3, 4) or blocks[-1] != blocks[-2]:
        return f"has oft_blocks of shape {blocks}; they have to be square blocks: (blocks, size, size), or (factors, blocks, size, size) for BOFT"
    return None


_CHECKS: dict[LayerKind, Callable[[Shapes], str | None]] = {
    "LoRA": _lora_problem,
    "LoHa": _loha_problem,
    "LoKr": _lokr_problem,
    "GLoRA": _glora_problem,
    "OFT": _oft_problem,
    "BOFT": _oft_problem,
}
