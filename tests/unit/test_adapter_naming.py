"""Whatever scheme a file's names follow, its layers get the same keys; and what is saved under another scheme loads in the program it is for."""
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_models import NETWORKS, SHAPES, layer_names, randomise, tiny_text, tiny_unet
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.utils import convert_state_dict_to_diffusers
from loom_server import told_in_comfyui
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from trainer.adapters.files import FileError
from trainer.adapters.ldm import is_usual_layout, path_of, to_diffusers, to_ldm
from trainer.adapters.naming import Naming, sort_names
from trainer.adapters.reading import Adapter, read_adapter
from trainer.adapters.renaming import NamingError, renamed
from trainer.families.detect import UNetShape
from trainer.families.unet import unet_config
from trainer.methods import lora
from trainer.options import Network

families = pytest.mark.parametrize(("family", "shape"), SHAPES.items(), ids=SHAPES.keys())
every_kind = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_Q = "text_model.encoder.layers.3.self_attn.q_proj"


def keys_of(names: dict[str, tuple[int, ...]]) -> dict[str, set[str]]:
    return {key: set(layer) for key, layer in sort_names(names, {}).layers.items()}


@families
def test_every_layer_of_a_real_unet_has_one_ldm_path_and_comes_back(family: str, shape: UNetShape) -> None:
    names = layer_names(shape)
    paths = {name: path_of(name.replace(".", "_")) for name in names}
    assert all(path == tuple(name.split(".")) or "linear_" in name for name, path in paths.items())
    ldm = {name: to_ldm(path, family) for name, path in paths.items() if path}
    assert None not in ldm.values() and len(set(ldm.values())) == len(names)
    assert all(path is not None and is_usual_layout(path) and to_diffusers(path, family) == paths[name] for name, path in ldm.items())


@families
def test_the_paths_are_those_that_diffusers_reads_a_checkpoint_by(family: str, shape: UNetShape) -> None:
    names = layer_names(shape)
    numbered = {name: torch.tensor(float(number)) for number, name in enumerate(names)}
    ldm = {name: ".".join(to_ldm(path_of(name, "."), family)) for name in names}
    # Norms stand for nothing here, and biases are where the weights are.
    state = {f"model.diffusion_model.{ldm[name]}.{end}": value for name, value in numbered.items() for end in ("weight", "bias")}
    found = convert_ldm_unet_checkpoint(state, unet_config(shape))
    assert {name: found[f"{name}.weight"].item() for name in names} == {name: value.item() for name, value in numbered.items()}


def test_comfyui_applies_every_layer_of_a_whole_unet_where_it_belongs_under_canonical_and_diffusers_names(tmp_path: Path) -> None:
    wanted: dict[str, dict[str, float]] = {}
    for family, shape in SHAPES.items():
        layers: dict[str, dict[str, Tensor]] = {}
        targets: dict[str, float] = {}
        for name in layer_names(shape):
            number = float(len(layers))
            layers["lora_unet_" + name.replace(".", "_")] = {"lora_up.weight": torch.ones(1, 1), "lora_down.weight": torch.full((1, 1), number)}
            targets[f"diffusion_model.{'.'.join(to_ldm(path_of(name, '.'), family))}.weight"] = number
        for prefix, encoder in (("lora_te", "clip_l"),) if family == "SD 1.x" else (("lora_te1", "clip_l"), ("lora_te2", "clip_g")):
            for part in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc2"):
                number = float(len(layers))
                key = f"{prefix}_text_model_encoder_layers_11_{part.replace('.', '_')}"
                layers[key] = {"lora_up.weight": torch.ones(1, 1), "lora_down.weight": torch.full((1, 1), number)}
                targets[f"{encoder}.transformer.text_model.encoder.layers.11.{part}.weight"] = number
        for scheme in ("kohya", "diffusers"):
            save_file(renamed(layers, scheme), tmp_path / f"{family}.{scheme}.safetensors")
            wanted[f"{family}.{scheme}.safetensors"] = targets
        # And back: the names that ComfyUI's own trainer writes become the canonical keys.
        own = {f"{target.removesuffix('.weight')}.lora_up.weight": (1, 1) for target in targets if target.startswith("diffusion_model.")}
        assert set(sort_names(own, {"ss_base_model_version": family}).layers) == {key for key in layers if key.startswith("lora_unet_")}
    found = told_in_comfyui("names_in_comfyui.py", *(tmp_path / name for name in wanted))
    assert {name: told["unloaded"] for name, told in found.items()} == {name: [] for name in wanted}
    assert {name: told["targets"] for name, told in found.items()} == wanted


def lora_names(module: str, up: str = ".lora_up.weight", down: str = ".lora_down.weight") -> dict[str, tuple[int, ...]]:
    width = 768 if "text" in module else 640
    return {module + up: (width, 4), module + down: (4, width)}


A_B = (".lora_B.weight", ".lora_A.weight")
SCHEMES: dict[str, tuple[str, str, Naming, tuple[str, str]]] = {
    "kohya": ("lora_unet_" + Q.replace(".", "_"), "lora_te_" + TEXT_Q.replace(".", "_"), "kohya", (".lora_up.weight", ".lora_down.weight")),
    "kohya, as diffusers converts": (
        "lora_unet_" + Q.replace(".", "_"),
        "lora_te1_" + TEXT_Q.replace(".", "_"),
        "kohya",
        (".lora_up.weight", ".lora_down.weight"),
    ),
    "kohya, LDM paths": (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_te_" + TEXT_Q.replace(".", "_"),
        "kohya, LDM paths",
        (".lora_up.weight", ".lora_down.weight"),
    ),
    "peft": (f"unet.{Q}", f"text_encoder.{TEXT_Q}", "PEFT", A_B),
    "peft, transformers 5": (f"unet.{Q}", f"text_encoder.{TEXT_Q.removeprefix('text_model.')}", "PEFT", A_B),
    "peft models": (f"base_model.model.{Q}", f"base_model.model.{TEXT_Q}", "PEFT", A_B),
    "peft models with prefixes": (f"unet.base_model.model.{Q}", f"text_encoder.base_model.model.{TEXT_Q}", "PEFT", A_B),
    "peft with the adapter's name": (f"unet.{Q}", f"text_encoder.{TEXT_Q}", "PEFT", (".lora_B.default.weight", ".lora_A.default.weight")),
    "diffusers": (f"unet.{Q}", f"text_encoder.{TEXT_Q}", "diffusers", (".lora.up.weight", ".lora.down.weight")),
    "diffusers, text": (f"unet.{Q}", f"text_encoder.{TEXT_Q}", "diffusers", (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight")),
    "diffusers, old": (
        "unet." + Q.replace("to_q", "processor.to_q"),
        "text_encoder." + TEXT_Q.replace("q_proj", "to_q"),
        "diffusers",
        ("_lora.up.weight", "_lora.down.weight"),
    ),
    "ComfyUI": (
        "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        f"text_encoders.clip_l.transformer.{TEXT_Q}",
        "ComfyUI",
        (".lora_up.weight", ".lora_down.weight"),
    ),
}


@pytest.mark.parametrize(("unet", "text", "naming", "ends"), SCHEMES.values(), ids=SCHEMES.keys())
def test_every_scheme_gives_the_same_keys(unet: str, text: str, naming: Naming, ends: tuple[str, str]) -> None:
    # Only SD 1.x has this block; it tells the family.
    shallow = lora_names("lora_unet_up_blocks_3_attentions_0_transformer_blocks_0_attn2_to_k") | {
        "lora_unet_up_blocks_3_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 768)
    }
    alone = sort_names(lora_names(unet, *ends) | lora_names(text, *ends), {})
    assert (alone.naming, alone.not_understood) == (naming, ())
    with_family = sort_names(lora_names(unet, *ends) | lora_names(text, *ends) | shallow, {})
    assert with_family.family == "SD 1.x"
    wanted = {"lora_unet_" + Q.replace(".", "_"), "lora_te_" + TEXT_Q.replace(".", "_")}
    assert wanted < set(with_family.layers)
    assert all(set(with_family.layers[key]) == {"lora_up.weight", "lora_down.weight"} for key in wanted)


def test_sdxl_has_two_text_encoders_and_the_first_is_te1() -> None:
    unet = lora_names("lora_unet_input_blocks_7_1_transformer_blocks_9_attn2_to_v") | lora_names("lora_unet_label_emb_0_2")
    for first, second in (("lora_te1_", "lora_te2_"), ("lora_te_", "lora_te2_")):
        names = unet | lora_names(first + TEXT_Q.replace(".", "_")) | lora_names(second + TEXT_Q.replace(".", "_"))
        assert sort_names(names, {}).family == "SDXL"
        assert set(keys_of(names)) == {
            "lora_unet_down_blocks_2_attentions_0_transformer_blocks_9_attn2_to_v",
            "lora_unet_add_embedding_linear_2",
            "lora_te1_" + TEXT_Q.replace(".", "_"),
            "lora_te2_" + TEXT_Q.replace(".", "_"),
        }


@every_kind
def test_our_own_files_are_understood_whole_and_keep_their_keys(network: Network) -> None:
    unet = tiny_unet()
    lora.inject(unet, network, seed=0)
    tensors = lora.adapter_tensors([lora.Adapted("lora_unet", unet)], network)
    contents = sort_names({name: tuple(tensor.shape) for name, tensor in tensors.items()}, {})
    assert (contents.naming, contents.not_understood) == ("kohya", ())
    assert {f"{key}.{suffix}" for key, layer in contents.layers.items() for suffix in layer} == set(tensors)
    assert all(f"{key}.{suffix}" == name for key, layer in contents.layers.items() for suffix, name in layer.items())


def test_layers_of_other_families_keep_names_that_comfyui_matches() -> None:
    flux = {
        "lora_unet_double_blocks_0_img_attn_qkv": "lora_unet_double_blocks_0_img_attn_qkv",
        "transformer.single_transformer_blocks.0.attn.to_q": "transformer.single_transformer_blocks.0.attn.to_q",
        "base_model.model.transformer_blocks.0.attn.to_q": "transformer.transformer_blocks.0.attn.to_q",
        "diffusion_model.single_blocks.0.linear1": "diffusion_model.single_blocks.0.linear1",
        "lora_transformer_single_transformer_blocks_0_attn_to_q": "lora_transformer_single_transformer_blocks_0_attn_to_q",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    }
    contents = sort_names({end: shape for name in flux for end, shape in lora_names(name).items()}, {})
    assert contents.family == "Flux"
    assert set(contents.layers) == set(flux.values())


def test_a_unet_with_one_residual_block_a_level_keeps_its_ldm_paths() -> None:
    # Counting by three would name other layers than were trained; ComfyUI matches these names as they are.
    names = lora_names("diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_q") | lora_names("diffusion_model.input_blocks.2.0.op")
    assert set(keys_of(names)) == {"lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q", "lora_unet_input_blocks_2_0_op"}


def test_what_is_not_understood_is_named_and_nothing_is_dropped() -> None:
    good = lora_names("lora_unet_up_blocks_3_attentions_0_transformer_blocks_0_attn1_to_q")
    odd = {
        "lora_unet_up_blocks_3_attentions_0_transformer_blocks_0_attn1_to_z.lora_up.weight": (1, 1),
        "lora_te_text_model_encoder_layers_0_attn_in_proj.lora_down.weight": (4, 768),
        "lora_unet_input_blocks_999_1_proj_in.lora_down.weight": (4, 768),
        "lora_unet_up_blocks_up_blocks_3_proj_in.lora_down.weight": (4, 768),
        "lora_unet_up_blocks_4_attentions_0_proj_in.lora_down.weight": (4, 768),
        "something.else": (3,),
        "lora_unet_conv_in.oft_diag": (3,),
        ".alpha": (),
    }
    contents = sort_names(good | odd | lora_names("lora_te_text_model_encoder_layers_0_mlp_fc1"), {"ss_base_model_version": "sd_v1"})
    assert contents.family == "SD 1.x"
    assert contents.not_understood == tuple(odd)
    assert len(contents.layers) == 2


def test_one_layer_under_two_names_is_not_mixed() -> None:
    kohya, ldm = lora_names("lora_unet_" + Q.replace(".", "_")), lora_names("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q")
    contents = sort_names(kohya | ldm, {})
    assert set(contents.layers) == {"lora_unet_" + Q.replace(".", "_")}
    assert contents.not_understood == tuple(ldm)


def test_embeddings_that_onetrainer_bundles_are_found() -> None:
    names = {"bundle_emb.my.word.clip_l": (4, 768), "bundle_emb.my.word.clip_g": (4, 1280), "bundle_emb.old.string_to_param.*": (2, 768)}
    contents = sort_names(lora_names("lora_te1_" + TEXT_Q.replace(".", "_")) | names, {})
    assert set(contents.bundled.values()) == {("my.word", "clip_l"), ("my.word", "clip_g"), ("old", "")}
    assert contents.not_understood == ()


# Against diffusers and peft themselves.

NETWORK = NETWORKS["LoCon"]


@pytest.fixture
def trained(tmp_path: Path) -> tuple[UNet2DConditionModel, CLIPTextModel, Adapter]:
    unet, text = tiny_unet(), tiny_text()
    randomise([*lora.inject(unet, NETWORK, seed=0), *lora.inject_text(text, NETWORK, seed=0, number=0)])
    tensors = lora.adapter_tensors([lora.Adapted("lora_unet", unet), lora.Adapted("lora_te_text_model", text)], NETWORK, dtype=torch.float32)
    save_file(tensors, tmp_path / "trained.safetensors")
    return unet, text, read_adapter(tmp_path / "trained.safetensors")


def deltas(model: nn.Module) -> dict[str, Tensor]:
    return {
        name.removeprefix("text_model."): next(iter(layer.get_delta_weight(name_) for name_ in layer.active_adapters)).double()
        for name, layer in lora._layers(model)
    }


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert wanted[name].norm() > 1e-3
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", ["diffusers", "PEFT", "kohya"])
def test_diffusers_loads_what_is_saved(scheme: str, trained: tuple[UNet2DConditionModel, CLIPTextModel, Adapter], tmp_path: Path) -> None:
    unet, text, adapter = trained
    tensors = renamed(adapter.layers, scheme)
    save_file(tensors, tmp_path / "saved.safetensors")
    fresh, fresh_text = tiny_unet(), tiny_text()
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        str(tmp_path), weight_name="saved.safetensors", return_lora_metadata=True, local_files_only=True
    )
    StableDiffusionPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=fresh, metadata=metadata)
    StableDiffusionPipeline.load_lora_into_text_encoder(state, network_alphas=alphas, text_encoder=fresh_text, metadata=metadata)
    same(deltas(fresh), deltas(unet))
    same(deltas(fresh_text), deltas(text))


@pytest.mark.parametrize("scheme", ["diffusers", "PEFT", "kohya"])
def test_what_is_saved_is_read_back_the_same(scheme: str, trained: tuple[UNet2DConditionModel, CLIPTextModel, Adapter], tmp_path: Path) -> None:
    adapter = trained[2]
    save_file(renamed(adapter.layers, scheme), tmp_path / "saved.safetensors")
    again = read_adapter(tmp_path / "saved.safetensors")
    assert again.naming == scheme
    assert again.layers.keys() == adapter.layers.keys()
    for key, layer in adapter.layers.items():
        torch.testing.assert_close(product(again.layers[key]), product(layer), rtol=1e-5, atol=1e-7)


def product(layer: dict[str, Tensor]) -> Tensor:
    up, down = layer["lora_up.weight"].double().flatten(1), layer["lora_down.weight"].double().flatten(1)
    return up @ down * (layer["alpha"].double() / down.shape[0] if "alpha" in layer else 1.0)


def test_alpha_that_does_not_fit_into_the_numbers_is_an_error() -> None:
    layer = {"lora_up.weight": torch.full((4, 2), 6e4).half(), "lora_down.weight": torch.ones(2, 4).half(), "alpha": torch.tensor(8.0)}
    with pytest.raises(NamingError, match=r"lora_unet_conv_in.*range of torch\.float16"):
        renamed({"lora_unet_conv_in": layer}, "PEFT")


@pytest.mark.parametrize(
    ("key", "layer", "told"),
    [
        ("lora_unet_conv_in", {"hada_w1_a": torch.ones(1)}, "hada_w1_a"),
        ("lora_unet_conv_in", {"lora_up.weight": torch.ones(2, 1), "lora_down.weight": torch.ones(1, 2), "dora_scale": torch.ones(2)}, "dora_scale"),
        ("lora_unet_double_blocks_0_img_attn_qkv", {}, "SD 1.x"),
        ("lora_unet_input_blocks_3_1_proj_in", {}, "SD 1.x"),
    ],
)
def test_what_a_scheme_has_no_names_for_is_an_error(key: str, layer: dict[str, Tensor], told: str) -> None:
    with pytest.raises(NamingError, match=told):
        renamed({key: layer}, "diffusers")


def peft_unet(**options: object) -> UNet2DConditionModel:
    unet = tiny_unet()
    unet.add_adapter(LoraConfig(target_modules=["to_q", "proj_in", "conv1"], **{"r": 4, "lora_alpha": 4, **options}))
    randomise([parameter for parameter in unet.parameters() if parameter.requires_grad])
    return unet


WAYS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "peft": lambda state: {f"unet.{name}": tensor for name, tensor in state.items()},
    "peft model": lambda state: {f"base_model.model.{name}": tensor for name, tensor in state.items()},
    "diffusers": lambda state: {f"unet.{name}": tensor for name, tensor in convert_state_dict_to_diffusers(state).items()},
    "no prefix": lambda state: dict(state),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_what_peft_and_diffusers_write_is_read_as_they_mean_it(way: Callable[[dict[str, Tensor]], dict[str, Tensor]], tmp_path: Path) -> None:
    unet = peft_unet()
    save_file({name: tensor.contiguous() for name, tensor in way(get_peft_model_state_dict(unet)).items()}, tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert adapter.not_understood == ()
    wanted = deltas(unet)
    assert {key.removeprefix("lora_unet_") for key in adapter.layers} == {name.replace(".", "_") for name in wanted}
    for name, delta in wanted.items():
        layer = adapter.layers["lora_unet_" + name.replace(".", "_")]
        if delta.dim() == 2 or delta.shape[2] == 1:
            torch.testing.assert_close(product(layer), delta.flatten(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"lora_alpha": 6},
        {"lora_alpha": 6, "use_rslora": True},
        {"lora_alpha": 6, "alpha_pattern": {"proj_in": 3, r"mid_block\..*attn\d\.to_(q|k)": 8}},
    ],
    ids=["alpha", "rslora", "pattern"],
)
def test_pefts_alpha_comes_from_the_configuration_in_the_file(options: dict[str, object], tmp_path: Path) -> None:
    unet = peft_unet(**options)
    unet.save_lora_adapter(tmp_path, safe_serialization=True)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    adapter = read_adapter(path)
    for name, delta in deltas(unet).items():
        layer = adapter.layers["lora_unet_" + name.replace(".", "_")]
        torch.testing.assert_close(product(layer), delta.flatten(1), rtol=1e-5, atol=1e-6)


def test_a_pattern_names_the_layers_that_peft_means(tmp_path: Path) -> None:
    unet = peft_unet(lora_alpha=6, alpha_pattern={"attn1.to_q": 3, r"^mid_block\.attentions\.0\.proj_in|up_blocks.1.attentions.0.proj_in": 8})
    unet.save_lora_adapter(tmp_path, safe_serialization=True)
    adapter = read_adapter(tmp_path / "pytorch_lora_weights.safetensors")
    alphas = {name: layer.scaling["default"] * layer.r["default"] for name, layer in lora._layers(unet)}
    assert set(alphas.values()) == {3, 6, 8}
    assert {key: layer["alpha"].item() for key, layer in adapter.layers.items()} == {
        "lora_unet_" + name.replace(".", "_"): alpha for name, alpha in alphas.items()
    }


@pytest.mark.parametrize(
    "config",
    [
        "not json",
        "[1]",
        "[" * 100_000,
        '{"lora_alpha": "4"}',
        '{"lora_alpha": true}',
        '{"lora_alpha": NaN}',
        f'{{"lora_alpha": 1{"0" * 400}}}',
        '{"alpha_pattern": ["a"]}',
        '{"lora_alpha": 4, "alpha_pattern": {"(a+)+b": 4}}',
    ],
)
def test_a_configuration_that_is_none_is_told(config: str, tmp_path: Path) -> None:
    tensors = {f"unet.{Q}.lora_B.weight": torch.ones(4, 2), f"unet.{Q}.lora_A.weight": torch.ones(2, 4)}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": config})
    with pytest.raises(FileError, match=r"a\.safetensors.*lora_adapter_metadata|a\.safetensors.*alpha_pattern") as caught:
        read_adapter(tmp_path / "a.safetensors")
    assert len(str(caught.value)) < 300


def test_doras_magnitude_from_peft_has_a_row_for_each_output(tmp_path: Path) -> None:
    unet = peft_unet(use_dora=True)
    save_file({f"unet.{name}": tensor.contiguous() for name, tensor in get_peft_model_state_dict(unet).items()}, tmp_path / "a.safetensors")
    assert any("lora_magnitude_vector" in name for name in load_file(tmp_path / "a.safetensors"))
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert adapter.kind == "DoRA"
    for name, layer in lora._layers(unet):
        scale = adapter.layers["lora_unet_" + name.replace(".", "_")]["dora_scale"]
        weight = layer.get_base_layer().weight
        assert scale.shape == (weight.shape[0], *[1] * (weight.dim() - 1))
        assert torch.equal(scale.flatten(), layer.lora_magnitude_vector["default"].weight.flatten())

