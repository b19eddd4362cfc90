"""What is said of a file from its header: the kind, the family, ranks and parts; and what a file is that is no adapter."""
import pytest
from adapter_models import NETWORKS, tiny_text, tiny_unet

from trainer.adapters.files import FileError, Header, TensorEntry
from trainer.adapters.kinds import AdapterFacts, describe_adapter
from trainer.adapters.layers import layer_problem, layer_rank, layer_size
from trainer.methods import lora
from trainer.options import Network

Shape = tuple[int, ...]
DOWN = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
TUCKER = {
    **{"hada_w1_a": (4, 8), "hada_w1_b": (5, 9), "hada_t1": (4, 5, 3, 3)},
    **{"hada_w2_a": (4, 8), "hada_w2_b": (5, 9), "hada_t2": (4, 5, 3, 3)},
}
TEXT = "text_model_encoder_layers_0_self_attn_q_proj"


def header(shapes: dict[str, Shape], metadata: dict[str, str] | None = None, dtype: str = "F16") -> Header:
    return Header({name: TensorEntry(dtype, shape) for name, shape in shapes.items()}, metadata or {}, "")


def facts(shapes: dict[str, Shape], metadata: dict[str, str] | None = None) -> AdapterFacts:
    return describe_adapter(header(shapes, metadata), "some.safetensors")


def told(shapes: dict[str, Shape], dtype: str = "F16") -> str:
    with pytest.raises(FileError) as caught:
        describe_adapter(header(shapes, dtype=dtype), "some.safetensors")
    assert str(caught.value).startswith("some.safetensors")
    assert len(str(caught.value)) < 900
    return str(caught.value)


def pair(key: str, out: int, width: int, rank: int = 4) -> dict[str, Shape]:
    return {f"{key}.lora_up.weight": (out, rank), f"{key}.lora_down.weight": (rank, width)}


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_kinds_that_training_makes(kind: str) -> None:
    network: Network = NETWORKS[kind]
    unet, text = tiny_unet(), tiny_text()
    lora.inject(unet, network, seed=0)
    if network.kind == "lora":
        lora.inject_text(text, network, seed=0, number=0)
    tensors = lora.adapter_tensors([lora.Adapted("lora_unet", unet), lora.Adapted("lora_te_text_model", text)], network)
    entries = {name: TensorEntry("F32" if name.endswith(("alpha", "dora_scale")) else "F16", tuple(t.shape)) for name, t in tensors.items()}
    found = describe_adapter(Header(entries, {"ss_base_model_version": "sd_1.5", "ss_network_alpha": "3.0"}, ""), "a")
    layers = {name.split(".")[0] for name in tensors}
    assert (found.kind, found.family, found.naming, found.alpha) == (kind, "SD 1.x", "kohya", 3.0)
    assert sum(found.parts.values()) == found.layers_with_alpha == len(layers)
    assert found.parts.get("text encoder", 0) == sum(layer.startswith("lora_te_") for layer in layers)
    assert found.parameters == sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith(".alpha"))
    assert set(found.ranks) <= {network.rank, network.conv_rank or network.rank}
    assert found.decomposed == (len(layers) if kind == "DoRA" else 0)
    assert sum(found.dtypes.values()) == len(tensors)
    assert found.not_understood == 0
    assert AdapterFacts.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({"a1.weight": (4, 9), "a2.weight": (9, 4), "b1.weight": (4, 9), "b2.weight": (7, 4)}, "GLoRA"),
        ({"a1.weight": (9, 4), "a2.weight": (4, 9), "b1.weight": (7, 4), "b2.weight": (4, 9)}, "GLoRA"),
        ({"oft_blocks": (8, 4, 4), "alpha": ()}, "OFT"),
        ({"oft_blocks": (3, 8, 4, 4), "rescale": (32, 1)}, "BOFT"),
        ({"weight": (32,), "on_input": ()}, "IA3"),
        ({"diff": (32, 32), "diff_b": (32,)}, "full difference"),
        ({"lora_up.weight": (8, 4, 1, 1), "lora_down.weight": (4, 8, 1, 1), "lora_mid.weight": (4, 4, 3, 3)}, "LoCon"),
        ({"lora_up.weight": (8, 4, 1, 1), "lora_down.weight": (4, 8, 1, 1)}, "LoRA"),
        (TUCKER, "LoHa"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (4, 8), "lokr_w2_b": (4, 9), "lokr_t2": (4, 4, 3, 3), "alpha": (1,)}, "LoKr"),
    ],
)
def test_kinds_that_others_make(shapes: dict[str, Shape], kind: str) -> None:
    named = {f"lora_unet_down_blocks_0_resnets_0_conv1.{suffix}": shape for suffix, shape in shapes.items()}
    assert facts(named).kind == kind
    # Norms and biases trained beside it do not make it another kind; a layer of another kind does.
    beside = {"lora_unet_down_blocks_0_resnets_0_norm1.w_norm": (32,), "lora_unet_down_blocks_0_resnets_0_norm1.b_norm": (32,)}
    assert facts(named | beside).kind == kind
    other = {"lora_unet_conv_in.lokr_w1": (2, 2), "lora_unet_conv_in.lokr_w2": (4, 8)} if kind != "LoKr" else pair("lora_unet_conv_in", 8, 8)
    assert facts(named | other).kind == ("mixed" if kind != "full difference" else "LoKr")


FAMILIES: dict[str, tuple[dict[str, Shape], dict[str, str], str | None]] = {
    "SD 1.x by width": (pair(DOWN, 640, 768), {}, "SD 1.x"),
    "SD 2.x by width": (pair(DOWN, 640, 1024), {}, "SD 2.x"),
    "SDXL by width": (pair(DOWN, 640, 2048), {}, "SDXL"),
    "the refiner": (pair(DOWN, 640, 1280), {}, "SDXL refiner"),
    "width before metadata": (pair(DOWN, 640, 768), {"ss_base_model_version": "sdxl_base_v1-0"}, "SD 1.x"),
    "LoKr's width": ({f"{DOWN}.lokr_w1": (8, 8), f"{DOWN}.lokr_w2_a": (80, 2), f"{DOWN}.lokr_w2_b": (2, 256)}, {}, "SDXL"),
    "LoHa's width": ({f"{DOWN}.hada_w{i}_{ab}": shape for i in "12" for ab, shape in (("a", (640, 4)), ("b", (4, 1024)))}, {}, "SD 2.x"),
    "ten transformers in a row": (pair("lora_unet_mid_block_attentions_0_transformer_blocks_9_attn1_to_q", 1280, 1280), {}, "SDXL"),
    "the second encoder": (pair(f"lora_te2_{TEXT}", 1280, 1280) | pair(f"lora_te1_{TEXT}", 768, 768), {}, "SDXL"),
    "SD 1.x's encoder": (pair(f"lora_te_{TEXT}", 768, 768), {}, "SD 1.x"),
    "SD 2.x's encoder": (pair(f"lora_te_{TEXT}", 1024, 1024), {}, "SD 2.x"),
    "SDXL's first encoder alone": (pair(f"lora_te1_{TEXT}", 768, 768), {}, None),
    "convolutions before the transformer": (
        {
            "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": (320, 4, 1, 1),
            "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320, 1, 1),
        },
        {},
        "SD 1.x",
    ),
    "matrices before the transformer": (pair("lora_unet_down_blocks_0_attentions_0_proj_in", 320, 320), {}, "SD 2.x"),
    "metadata at last": (pair("lora_unet_conv_in", 320, 320), {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SDXL"),
    "nothing tells": (pair("lora_unet_conv_in", 320, 320), {"ss_base_model_version": "my own"}, None),
    "Flux": (pair("lora_unet_double_blocks_0_img_attn_qkv", 9216, 3072), {}, "Flux"),
    "Flux by diffusers": (pair("transformer.single_transformer_blocks.3.attn.to_q", 3072, 3072), {}, "Flux"),
    "SD3": (pair("diffusion_model.joint_blocks.0.x_block.attn.qkv", 4608, 1536), {}, "SD3"),
    "SD3 by diffusers": (pair("transformer.transformer_blocks.0.attn.to_q", 1536, 1536), {}, "SD3"),
    "Hunyuan Video": (pair("diffusion_model.double_blocks.19.img_attn.qkv", 9216, 3072), {}, "Hunyuan Video"),
    "Qwen Image": (pair("transformer.transformer_blocks.0.img_mlp.net.2", 3072, 3072), {}, "Qwen Image"),
    "FLUX.2": (pair("diffusion_model.double_blocks.0.img_attn.qkv", 18_432, 6144), {}, "FLUX.2"),
    "FLUX.2 with as many blocks as Hunyuan Video": (pair("diffusion_model.single_blocks.47.linear2", 6144, 6144), {}, "FLUX.2"),
    "Hunyuan Image": (pair("diffusion_model.double_blocks.19.img_attn.qkv", 10_752, 3584), {}, "Hunyuan Image"),
    "Cosmos": (pair("diffusion_model.blocks.0.cross_attn.k_proj", 2048, 1024), {}, "Cosmos"),
    "PixArt, which nothing tells": (pair("diffusion_model.blocks.0.cross_attn.q_linear", 1152, 1152), {}, None),
    "Wan": (pair("diffusion_model.blocks.0.cross_attn.k", 1536, 1536), {}, "Wan"),
}


@pytest.mark.parametrize(("shapes", "metadata", "family"), FAMILIES.values(), ids=FAMILIES.keys())
def test_the_family(shapes: dict[str, Shape], metadata: dict[str, str], family: str | None) -> None:
    assert facts(shapes, metadata).family == family


@pytest.mark.parametrize("family", ["SD 1.x", "SDXL"])
def test_ranks_and_parts_are_counted(family: str) -> None:
    width = 768 if family == "SD 1.x" else 2048
    shapes = pair(DOWN, 640, width, 4) | pair(DOWN.replace("to_k", "to_v"), 640, width, 8) | pair("lora_unet_conv_in", 320, 4, 8)
    shapes |= pair(f"lora_te_{TEXT}", 768, 768, 8) | {f"{DOWN}.alpha": ()}
    found = facts(shapes)
    assert found.ranks == {4: 1, 8: 3}
    assert found.layers_with_alpha == 1
    assert found.parts == {"UNet": 3, "text encoder" if family == "SD 1.x" else "text encoder 1": 1}


def test_what_is_not_understood_is_counted_and_shown_shortly() -> None:
    odd: dict[str, Shape] = {f"{'x' * 5000}{number}": (2,) for number in range(200)}
    found = facts(pair(DOWN, 640, 768) | odd)
    assert found.not_understood == 200
    assert 0 < len(found.not_understood_names) <= 5
    assert all(name.startswith("xxx") and len(name) < 200 for name in found.not_understood_names)


@pytest.mark.parametrize(
    ("shapes", "family", "vectors", "widths"),
    [
        ({"emb_params": (8, 768)}, "SD 1.x", 8, (768,)),
        ({"emb_params": (3, 1024)}, "SD 2.x", 3, (1024,)),
        ({"<cat-toy>": (768,)}, "SD 1.x", 1, (768,)),
        ({"clip_g": (4, 1280), "clip_l": (4, 768)}, "SDXL", 4, (1280, 768)),
    ],
)
def test_embeddings(shapes: dict[str, Shape], family: str, vectors: int, widths: Shape) -> None:
    found = facts(shapes)
    assert (found.kind, found.family, found.vectors, found.widths) == ("embedding", family, vectors, widths)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"], "whole checkpoint"),
        (["first_stage_model.decoder.conv_in.weight"], "checkpoint"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], "VAE"),
        (["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "ControlNet"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "text encoder"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "text encoder"),
        (["down_blocks.0.resnets.0.conv1.weight"], "UNet"),
        (["double_blocks.0.img_attn.qkv.weight"], "diffusion transformer"),
        (["image_proj.norm.weight"], "IP-Adapter"),
        (["oft_unet_input_blocks_1.oft_blocks"], "OFT"),
    ],
)
def test_what_is_no_adapter_is_named(names: list[str], what: str) -> None:
    assert what in told({name: (320, 320) for name in names})


def test_ten_thousand_names_of_nonsense_give_a_short_error() -> None:
    message = told({f"{number}{'y' * 300}": (3,) for number in range(10_000)})
    assert "10000 tensors" in message
    assert "yyy..." in message
    assert "holds no tensors" in told({})


@pytest.mark.parametrize("shape", [(-1, 4), (True, 4), ("4", 4), (4.0, 4), (2**60, 4), ("x" * 10_000,)])
def test_shapes_that_are_none(shape: tuple[object, ...]) -> None:
    assert "lora_unet_conv_in.lora_up.weight" in told(pair("lora_unet_conv_in", 4, 4) | {"lora_unet_conv_in.lora_up.weight": shape})


@pytest.mark.parametrize("dtype", ["F4", "C64", "", "F16 ", ["F16"]])
def test_number_types_that_are_not_known(dtype: str) -> None:
    assert "number type" in told(pair("lora_unet_conv_in", 4, 4), dtype)


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        ({"lora_up.weight": (8, 4), "lora_down.weight": (3, 8)}, "disagree on the rank: 4 and 3"),
        ({"lora_up.weight": (8, 4)}, "without lora_down.weight"),
        ({"lora_down.weight": (4, 8)}, "without lora_up.weight"),
        ({"lora_up.weight": (8,), "lora_down.weight": (4, 8)}, "has to be a matrix"),
        ({"lora_up.weight": (8, 0), "lora_down.weight": (0, 8)}, "empty"),
        ({"lora_up.weight": (8, 4), "lora_down.weight": (4, 8), "alpha": (2,)}, "one number"),
        ({"lora_up.weight": (8, 4), "lora_down.weight": (4, 9), "dora_scale": (7, 1)}, "dora_scale of 7 numbers"),
        ({"lora_up.weight": (8, 4, 1, 1), "lora_down.weight": (4, 8, 1, 1), "lora_mid.weight": (4, 5, 3, 3)}, "lora_mid.weight"),
        ({"hada_w1_a": (8, 4), "hada_w1_b": (4, 9), "hada_w2_a": (8, 4)}, "without hada_w2_b"),
        ({"hada_w1_a": (8, 4), "hada_w1_b": (4, 9), "hada_w2_a": (7, 4), "hada_w2_b": (4, 9)}, "outputs: 8 and 7"),
        ({"hada_w1_a": (8, 4), "hada_w1_b": (4, 9), "hada_w2_a": (8, 4), "hada_w2_b": (5, 9)}, "rank: 4 and 5"),
        ({"hada_w1_a": (8, 4), "hada_w1_b": (4, 9), "hada_w2_a": (8, 4), "hada_w2_b": (4, 9), "hada_t1": (4, 4, 3, 3)}, "both or neither"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (4, 4)}, "without lokr_w2"),
        ({"lokr_w2": (2, 2)}, "without lokr_w1"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (8, 4), "lokr_w2_b": (3, 9)}, "rank: 4 and 3"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (4, 8), "lokr_w2_b": (4, 9), "lokr_t2": (4, 5, 3, 3)}, "rank: 5 and 4"),
        ({"a1.weight": (4, 9), "a2.weight": (9, 4), "b1.weight": (4, 9), "b2.weight": (7, 3)}, "one rank"),
        ({"oft_blocks": (8, 4, 3)}, "square"),
        ({"alpha": ()}, "nothing to apply"),
    ],
)
def test_layers_that_do_not_fit_together_are_told_with_their_key(shapes: dict[str, Shape], problem: str) -> None:
    message = told({f"lora_unet_conv_in.{suffix}": shape for suffix, shape in shapes.items()})
    assert "lora_unet_conv_in " in message
    assert problem in message


@pytest.mark.parametrize(
    ("shapes", "rank", "size"),
    [
        ({"lora_up.weight": (8, 4, 1, 1), "lora_down.weight": (4, 9, 3, 3)}, 4, (8, 9)),
        (TUCKER, 5, (8, 9)),
        ({"lokr_w1_a": (2, 3), "lokr_w1_b": (3, 5), "lokr_w2": (4, 7)}, 3, (8, 35)),
        ({"lokr_w1": (2, 5), "lokr_w2": (4, 7, 3, 3)}, None, (8, 35)),
        ({"a1.weight": (9, 4), "a2.weight": (4, 9), "b1.weight": (7, 4), "b2.weight": (4, 9)}, 4, (7, 9)),
        ({"a1.weight": (4, 9), "a2.weight": (9, 4), "b1.weight": (4, 9), "b2.weight": (7, 4)}, 4, (7, 9)),
        ({"oft_blocks": (8, 4, 4)}, None, (32, None)),
        ({"diff": (6, 5, 3, 3)}, None, (6, 5)),
    ],
)
def test_rank_and_size_of_a_layer(shapes: dict[str, Shape], rank: int | None, size: tuple[int | None, int | None]) -> None:
    assert layer_problem(shapes) is None
    assert layer_rank(shapes) == rank
    assert layer_size(shapes) == size
