"""What a layer of each kind adds to its weight: as ComfyUI computes it, and as exact factors where the kind has them."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loom_server import comfyui
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.adapters.delta import bias_delta, delta, low_rank, needs_base, weight_shape
from trainer.adapters.layer_tensors import AdapterMathError

Layer = dict[str, Tensor]

# Every case in one process: ComfyUI's own key loader and its own arithmetic.
IN_COMFYUI = """
import sys
from comfy.cli_args import args
args.cpu = True
import comfy.lora, torch
from safetensors.torch import load_file, save_file
tensors = load_file(sys.argv[1])
told = {}
for case in sorted({name.split("|")[0] for name in tensors}):
    base = tensors[f"{case}|base"]
    lora = {"x." + name.split("|")[1]: tensor for name, tensor in tensors.items() if name.startswith(case + "|") and not name.endswith("|base")}
    patches = comfy.lora.load_lora(lora, {"x": "x.weight"})
    told[case] = comfy.lora.calculate_weight([(1.0, patches["x.weight"], 1.0, None, None)], base.clone(), "x.weight") - base
save_file(told, sys.argv[2])
"""


def numbers(*shape: int, seed: int = 0, scale: float = 0.3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * scale


def lora(out: int = 12, inside: int = 8, rank: int = 3, kernel: tuple[int, ...] = (), seed: int = 0, alpha: float | None = 2.0) -> Layer:
    ones = [1] * len(kernel)
    layer = {"lora_up.weight": numbers(out, rank, *ones, seed=seed), "lora_down.weight": numbers(rank, inside, *kernel, seed=seed + 1)}
    return layer if alpha is None else layer | {"alpha": torch.tensor(alpha)}


def loha(out: int = 12, inside: int = 8, ranks: tuple[int, int] = (2, 3)) -> Layer:
    (a, b), layer = ranks, {"alpha": torch.tensor(1.5)}
    layer |= {"hada_w1_a": numbers(out, a), "hada_w1_b": numbers(a, inside)}
    return layer | {"hada_w2_a": numbers(out, b, seed=5), "hada_w2_b": numbers(b, inside, seed=6)}


def loha_tucker() -> Layer:
    halves = {f"hada_w{n}_a": numbers(3, 12, seed=n) for n in (1, 2)} | {f"hada_w{n}_b": numbers(3, 8, seed=n + 9) for n in (1, 2)}
    return halves | {f"hada_t{n}": numbers(3, 3, 3, 3, seed=n + 20) for n in (1, 2)} | {"alpha": torch.tensor(1.5)}


def lokr(*names: str, kernel: tuple[int, ...] = ()) -> Layer:
    columns = 4 * (9 if "flat" in names else 1)
    every = {
        "lokr_w1": numbers(3, 2),
        "lokr_w1_a": numbers(3, 1),
        "lokr_w1_b": numbers(1, 2),
        "lokr_w2": numbers(4, 4, *kernel),
        "lokr_w2_a": numbers(2, 4) if "lokr_t2" in names else numbers(4, 2),
        "lokr_w2_b": numbers(2, columns),
        "lokr_t2": numbers(2, 2, 3, 3),
        "alpha": torch.tensor(1.5),
    }
    return {name: every[name] for name in ("alpha", *names) if name != "flat"}


def glora(out: int, inside: int, rank: int, older: bool = False, columns: int | None = None) -> Layer:
    a = [(rank, inside), (inside, rank)] if older else [(inside, rank), (rank, inside)]
    b = [(rank, columns or inside), (out, rank)] if older else [(out, rank), (rank, columns or inside)]
    names = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
    return {name: numbers(*shape, seed=n) for n, (name, shape) in enumerate(zip(names, a + b, strict=True))} | {"alpha": torch.tensor(2.0)}


LINEAR, CONV, POINTWISE, SQUARE = (12, 8), (12, 8, 3, 3), (12, 8, 1, 1), (12, 12)
ON_OUTPUT, ON_INPUT = {"dora_scale": numbers(12, 1) + 2}, {"dora_scale": numbers(1, 8) + 2}
MIDDLE = {**lora(kernel=(1, 1)), "lora_mid.weight": numbers(3, 3, 3, 3)}

CASES: dict[str, tuple[Layer, tuple[int, ...]]] = {
    "lora": (lora(), LINEAR),
    "lora without alpha": (lora(alpha=None), LINEAR),
    "lora of rank 1": (lora(rank=1), LINEAR),
    "lora on a 3x3 convolution": (lora(kernel=(3, 3)), CONV),
    "lora on a 1x1 convolution": (lora(kernel=(1, 1)), POINTWISE),
    "lora of matrices on a 1x1 convolution": (lora(), POINTWISE),
    "lora with a mid tensor": (MIDDLE, CONV),
    "dora, output axis": (lora() | ON_OUTPUT, LINEAR),
    "dora, input axis": (lora() | ON_INPUT, LINEAR),
    "dora on a convolution, output axis": (lora(kernel=(3, 3)) | {"dora_scale": numbers(12, 1, 1, 1) + 2}, CONV),
    "dora on a convolution, input axis": (lora(kernel=(3, 3)) | {"dora_scale": numbers(1, 8, 1, 1) + 2}, CONV),
    "loha": (loha(), LINEAR),
    "loha, flat, on a convolution": (loha(inside=72), CONV),
    "loha, tucker": (loha_tucker(), CONV),
    "loha, decomposed": (loha() | ON_OUTPUT, LINEAR),
    "lokr, whole": (lokr("lokr_w1", "lokr_w2"), LINEAR),
    "lokr, second factored": (lokr("lokr_w1", "lokr_w2_a", "lokr_w2_b"), LINEAR),
    "lokr, first factored": (lokr("lokr_w1_a", "lokr_w1_b", "lokr_w2"), LINEAR),
    "lokr, both factored": (lokr("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"), LINEAR),
    "lokr on a convolution": (lokr("lokr_w1", "lokr_w2", kernel=(3, 3)), CONV),
    "lokr, flat, on a convolution": (lokr("lokr_w1", "lokr_w2_a", "lokr_w2_b", "flat"), CONV),
    "lokr, tucker": (lokr("lokr_w1", "lokr_w2_a", "lokr_w2_b", "lokr_t2"), CONV),
    "lokr, decomposed": (lokr("lokr_w1", "lokr_w2_a", "lokr_w2_b") | ON_INPUT, LINEAR),
    "glora": (glora(12, 8, 3), LINEAR),
    "glora, older": (glora(12, 8, 3, older=True), LINEAR),
    "glora, square": (glora(12, 12, 3), SQUARE),
    "glora, older, square": (glora(12, 12, 3, older=True), SQUARE),
    "glora, full rank": (glora(12, 12, 12), SQUARE),
    "glora on a convolution": (glora(12, 8, 3, columns=72), CONV),
    "oft": ({"oft_blocks": numbers(3, 4, 4)}, LINEAR),
    "oft, constrained": ({"oft_blocks": numbers(3, 4, 4), "alpha": torch.tensor(0.1)}, CONV),
    "boft": ({"oft_blocks": numbers(2, 4, 4, 4), "alpha": torch.tensor(0.0)}, (16, 8)),
    "full difference": ({"diff": numbers(12, 8)}, LINEAR),
    "norm difference": ({"w_norm": numbers(12)}, (12,)),
    "replaced weight": ({"set_weight": numbers(12, 8, seed=3)}, LINEAR),
}


# ComfyUI 0.3.75 logs an error and skips this one: torch.kron wants what its einsum does not give.
FAILS_IN_COMFYUI = {"lokr, tucker"}


@pytest.fixture(scope="module")
def in_comfyui(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("deltas")
    tensors = {f"{case}|{name}": tensor.clone() for case, (layer, _) in CASES.items() for name, tensor in layer.items()}
    tensors |= {f"{case}|base": numbers(*shape, seed=77, scale=1.0) for case, (_, shape) in CASES.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if name.split("|")[0] not in FAILS_IN_COMFYUI}
    save_file(tensors, folder / "in.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", IN_COMFYUI, str(folder / "in.safetensors"), str(folder / "out.safetensors")],
        cwd=comfyui(),
        env={**os.environ, "PYTHONPATH": str(comfyui())},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ERROR" not in done.stderr + done.stdout
    return load_file(folder / "out.safetensors")


@pytest.mark.parametrize("case", [case for case in CASES if case not in FAILS_IN_COMFYUI])
def test_the_change_is_the_one_that_comfyui_makes(case: str, in_comfyui: dict[str, Tensor]) -> None:
    layer, shape = CASES[case]
    change = delta(layer, base=numbers(*shape, seed=77, scale=1.0), dtype=torch.float64)
    assert change.dtype == torch.float64
    assert change.shape == shape
    assert change.norm() > 1e-2
    torch.testing.assert_close(change.float(), in_comfyui[case], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_shape_is_known_without_the_base_or_the_base_is_asked_for(case: str) -> None:
    layer, shape = CASES[case]
    if needs_base(layer):
        with pytest.raises(AdapterMathError, match="connect the base model"):
            delta(layer)
        assert low_rank(layer) is None
        return
    change = delta(layer, dtype=torch.float64)
    assert change.shape == weight_shape(layer)
    if "flat" in case:
        assert change.shape == (12, 72)
    elif case != "lora of matrices on a 1x1 convolution":
        assert change.shape == shape
    whole = delta(layer, base=numbers(*shape), dtype=torch.float64)
    assert torch.equal(change.flatten(), whole.flatten())


@pytest.mark.parametrize("case", CASES)
def test_factors_make_exactly_the_change(case: str) -> None:
    layer, _ = CASES[case]
    factors = low_rank(layer, dtype=torch.float64)
    if factors is not None:
        change = delta(layer, dtype=torch.float64).flatten(1)
        torch.testing.assert_close(factors.up @ factors.down, change, rtol=1e-12, atol=1e-14)


def test_lokr_with_a_tucker_core_entry_by_entry() -> None:
    layer = {name: tensor.double() for name, tensor in CASES["lokr, tucker"][0].items()}
    first, core, rows, columns = (layer[name] for name in ("lokr_w1", "lokr_t2", "lokr_w2_a", "lokr_w2_b"))
    change = delta(layer, dtype=torch.float64)
    for out, inside, y, x in ((0, 0, 0, 0), (11, 7, 2, 2), (5, 3, 1, 2), (7, 6, 2, 0)):
        second = sum(core[i, j, y, x] * rows[i, out % 4] * columns[j, inside % 4] for i in range(2) for j in range(2))
        assert float(change[out, inside, y, x]) == pytest.approx(float(1.5 / 2 * first[out // 4, inside // 4] * second))


def test_the_ranks_of_products() -> None:
    ranks = {case: factors.rank for case, (layer, _) in CASES.items() if (factors := low_rank(layer)) is not None}
    assert ranks["lora without alpha"] == 3
    assert ranks["lora with a mid tensor"] == 3
    assert ranks["loha"] == 6  # 2 * 3
    assert ranks["loha, tucker"] == 9
    assert ranks["lokr, second factored"] == 4  # min(3, 2) * 2
    assert ranks["lokr, both factored"] == 2
    assert low_rank(loha(ranks=(4, 4))) is None  # 16 is more than full rank
    assert low_rank({"diff": numbers(12, 8)}) is None


def test_ia3_scales_outputs_or_inputs() -> None:
    base = numbers(12, 8, 3, 3, scale=1.0)
    outputs, inputs = numbers(1, 12, 1, 1), numbers(1, 8, 1, 1)
    change = delta({"weight": outputs, "on_input": torch.tensor(0)}, base=base)
    torch.testing.assert_close(change, base * outputs.reshape(12, 1, 1, 1))
    torch.testing.assert_close(delta({"weight": inputs, "on_input": torch.tensor(1)}, base=base), base * inputs)


@pytest.mark.parametrize("blocks", [numbers(4, 4, 4), numbers(2, 4, 4, 4)], ids=["oft", "boft"])
def test_orthogonal_layers_keep_the_norm_and_rescale_changes_it(blocks: Tensor) -> None:
    base, factor = numbers(16, 8, scale=1.0).double(), numbers(16, 1).double() + 2
    turned = base + delta({"oft_blocks": blocks}, base=base, dtype=torch.float64)
    assert float(turned.norm()) == pytest.approx(float(base.norm()), rel=1e-9)
    rescaled = base + delta({"oft_blocks": blocks, "rescale": factor}, base=base, dtype=torch.float64)
    torch.testing.assert_close(rescaled, factor * turned)


def test_a_dora_layer_that_was_not_trained_changes_nothing() -> None:
    base = numbers(12, 8, scale=1.0).double()
    layer = lora() | {"dora_scale": base.norm(dim=1, keepdim=True)}
    layer["lora_up.weight"] = torch.zeros(12, 3)
    assert float(delta(layer, base=base, dtype=torch.float64).abs().max()) < 1e-6


def test_a_bias_is_told_apart_from_the_weight() -> None:
    assert bias_delta(lora()) is None
    assert torch.equal(bias_delta({"diff_b": numbers(12)}), numbers(12))
    assert torch.equal(bias_delta({"w_norm": numbers(12), "b_norm": numbers(12, seed=4)}), numbers(12, seed=4))


def test_extremes_of_fp16_do_not_overflow() -> None:
    layer = {name: torch.full_like(tensor, 60000.0).half() for name, tensor in lora(alpha=None).items()}
    torch.testing.assert_close(delta(layer), torch.full((12, 8), 3 * 60000.0**2))
    layer = {name: torch.full_like(tensor, 6e-8).half() for name, tensor in lora(alpha=None).items()}
    assert float(delta(layer).min()) > 0


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        ({}, "no kind of adapter"),
        ({"lora_up.weight": numbers(12, 3)}, "lora_down.weight is missing"),
        (lora() | {"diff": numbers(12, 8)}, "LoRA and full difference"),
        (lora() | {"reshape_weight": torch.tensor([12, 16])}, "reshape_weight is not understood"),
        (lora() | {"lora_up.weight": numbers(12, 4)}, r"\(12, 4\) @ \(3, 8\)"),
        (lora() | {"lora_up.weight": numbers(12)}, "a matrix or a kernel is needed"),
        ({"lora_up.weight": torch.zeros(12, 0), "lora_down.weight": torch.zeros(0, 8), "alpha": torch.tensor(1.0)}, r"\(12, 0\)"),
        (lora() | {"alpha": numbers(2)}, "alpha has shape"),
        (lora(alpha=float("nan")), "alpha holds NaN"),
        (lora() | {"lora_up.weight": torch.full((12, 3), float("inf"))}, "lora_up.weight holds NaN or infinity"),
        (MIDDLE | {"lora_mid.weight": numbers(2, 3, 3, 3)}, "lora_mid.weight"),
        ({name: tensor for name, tensor in loha_tucker().items() if name != "hada_t2"}, "one is missing"),
        (loha() | {"hada_w2_b": numbers(3, 9)}, "different shapes"),
        (lokr("lokr_w1"), "lokr_w2_a is missing"),
        ({"diff": numbers(12, 8), **ON_OUTPUT}, "dora_scale does not go with"),
    ],
)
def test_what_cannot_be_computed_is_told(layer: Layer, told: str) -> None:
    with pytest.raises(AdapterMathError, match=told):
        delta(layer)


@pytest.mark.parametrize(
    ("layer", "shape", "told"),
    [
        (lora(), (12, 9), "another model"),
        (lora() | {"dora_scale": numbers(5, 1)}, LINEAR, "dora_scale has shape"),
        (lora() | ON_OUTPUT, (96,), "another model"),
        (glora(12, 8, 3), (12, 9), "another model"),
        (glora(12, 8, 3) | {"b2.weight": numbers(2, 8)}, LINEAR, "do not fit together"),
        ({"oft_blocks": numbers(3, 4, 4)}, (13, 8), "turns 12 outputs"),
        ({"oft_blocks": numbers(5, 3, 4, 4)}, LINEAR, "too many"),
        ({"weight": numbers(5), "on_input": torch.tensor(1)}, LINEAR, "input axis has 8"),
        ({"set_weight": numbers(12, 9)}, LINEAR, "another model"),
    ],
)
def test_a_base_that_does_not_fit_is_told(layer: Layer, shape: tuple[int, ...], told: str) -> None:
    with pytest.raises(AdapterMathError, match=told):
        delta(layer, base=numbers(*shape))


def test_the_arithmetic_loads_neither_comfyui_nor_the_heavy_libraries() -> None:
    pack = Path(__file__).resolve().parents[2]
    code = "import sys, trainer.adapters.merge, trainer.adapters.extract\n"
    code += "print([name for name in ('comfy', 'diffusers', 'peft', 'accelerate', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=pack, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
