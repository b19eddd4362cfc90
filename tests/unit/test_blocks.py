"""Which block a layer is in, and the weights that people write for blocks."""
import pytest
from adapter_models import SHAPES, layer_names

from trainer.adapters.blocks import PRESETS, BlockError, block_names, block_of, parse_block_weights
from trainer.adapters.ldm import path_of, to_ldm
from trainer.families.detect import UNetShape

# As sd-webui-lora-block-weight ships them.
SD1_PRESETS = {
    "NONE": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "ALL": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
}
SHORT = {
    "SD 1.x": ["BASE", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00", *(f"OUT{number:02}" for number in range(3, 12))],
    "SDXL": ["BASE", "IN04", "IN05", "IN07", "IN08", "M00", *(f"OUT{number:02}" for number in range(6))],
}


def test_the_vectors_are_those_of_the_ecosystem() -> None:
    assert {family: list(block_names(family, full=False)) for family in SHORT} == SHORT
    assert [len(block_names(family, full)) for family in ("SD 1.x", "SDXL") for full in (False, True)] == [17, 26, 12, 20]
    assert block_names("SD 2.x") == block_names("SD 1.x")


@pytest.mark.parametrize(("family", "shape"), SHAPES.items(), ids=SHAPES.keys())
def test_a_layers_block_is_where_ldm_has_it(family: str, shape: UNetShape) -> None:
    sides = {"input_blocks": "IN", "output_blocks": "OUT"}
    transformers = set()
    for name in layer_names(shape):
        key = "lora_unet_" + name.replace(".", "_")
        ldm = to_ldm(path_of(name, "."), family)
        outside = None if ldm[0] in ("time_embed", "label_emb", "out") else "M00"
        wanted = f"{sides[ldm[0]]}{int(ldm[1]):02}" if ldm[0] in sides else outside
        assert block_of(key, family) == wanted
        assert block_of("lora_unet_" + "_".join(ldm), family) == wanted
        if ".attentions." in name:
            transformers.add(wanted)
    assert transformers | {"BASE"} == set(SHORT[family])


def test_text_encoders_are_the_base_and_other_families_have_no_blocks() -> None:
    for prefix in ("lora_te", "lora_te1", "lora_te2"):
        assert block_of(f"{prefix}_text_model_encoder_layers_0_mlp_fc1", "SDXL") == "BASE"
    assert block_of("lora_unet_double_blocks_0_img_attn_qkv", "Flux") is None
    assert block_of("lora_unet_up_blocks_3_resnets_0_conv1", "SDXL") is None
    assert block_of("lora_unet_conv_in", None) is None


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_known_vectors(preset: str) -> None:
    weights = parse_block_weights(preset.lower(), "SD 1.x")
    assert weights.keys() == set(block_names("SD 1.x"))
    assert [weights[name] for name in SHORT["SD 1.x"]] == [float(number) for number in SD1_PRESETS[preset].split(",")]


def test_sdxls_presets_split_its_sides_by_resolution() -> None:
    chosen = {preset: {name for name, weight in parse_block_weights(preset, "SDXL").items() if weight} & set(SHORT["SDXL"]) for preset in PRESETS}
    assert chosen["INS"] == {"BASE", "IN04", "IN05"}
    assert chosen["IND"] == {"BASE", "IN07", "IN08"}
    assert chosen["MIDD"] == {"BASE", "IN07", "IN08", "M00", "OUT00", "OUT01", "OUT02"}
    assert chosen["OUTS"] == {"BASE", "OUT03", "OUT04", "OUT05"}
    assert chosen["ALL"] == set(SHORT["SDXL"])
    assert chosen["NONE"] == set()


def test_a_vector_of_either_length() -> None:
    weights = parse_block_weights(" 1, 0.5,0,0,0,0,-1,0,0,0,0,2 ", "SDXL")
    assert (weights["BASE"], weights["IN04"], weights["OUT00"], weights["OUT05"]) == (1.0, 0.5, -1.0, 2.0)
    assert weights["IN00"] == 0.0
    full = parse_block_weights(",".join(str(number / 10) for number in range(26)), "SD 2.x")
    assert list(full.values()) == [number / 10 for number in range(26)]
    assert list(full) == list(block_names("SD 2.x"))


@pytest.mark.parametrize(
    ("text", "family", "told"),
    [
        ("1,1,1", "SDXL", r"12 or 20 numbers.*got 3 numbers"),
        (SD1_PRESETS["ALL"], "SDXL", "got 17 numbers"),
        ("", "SD 1.x", "17 or 26"),
        ("OUTER", "SD 1.x", r"ALL, NONE.*'OUTER'"),
        ("x" * 10_000, "SD 1.x", "xxx'"),
        ("1,1,1,nan,1,1,1,1,1,1,1,1", "SDXL", "IN07 has to be a number.*'nan'"),
        ("1,1,R,1,1,1,1,1,1,1,1,1", "SDXL", "IN05"),
        ("1,1,1,1,1,1,1,1,1,1,1,1e9", "SDXL", "OUT05"),
        ("ALL", "Flux", "no block weights for Flux"),
    ],
)
def test_wrong_weights_are_told(text: str, family: str, told: str) -> None:
    with pytest.raises(BlockError, match=told) as caught:
        parse_block_weights(text, family)
    assert len(str(caught.value)) < 300
