"""Files as other programs write them: a sound one is read as its program means it, and one of a kind that is not read is called by its name."""
import hashlib
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapter_models import randomise, tiny_unet
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.adapters.delta import delta
from trainer.adapters.embedding import read_embedding
from trainer.adapters.files import FileError, read_header
from trainer.adapters.metadata import tensors_sha256
from trainer.adapters.naming import sort_names
from trainer.adapters.reading import describe_file, read_adapter
from trainer.adapters.report import inspect_file
from trainer.adapters.saving import MetadataError, saved_metadata

KEY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
NOTHING = hashlib.sha256(b"").hexdigest()


def small(key: str = KEY, rank: int = 4, out: int = 640, inputs: int = 768) -> dict[str, Tensor]:
    numbers = torch.Generator().manual_seed(1)
    return {
        f"{key}.lora_up.weight": torch.randn(out, rank, generator=numbers),
        f"{key}.lora_down.weight": torch.randn(rank, inputs, generator=numbers),
        f"{key}.alpha": torch.tensor(2.0),
    }


def told(path: Path) -> str:
    with pytest.raises(FileError) as caught:
        describe_file(path)
    with pytest.raises(FileError) as again:
        read_adapter(path)
    message = str(caught.value)
    assert str(again.value) == message
    assert message.startswith(path.name) and len(message) < 500
    assert "download" not in message.lower()
    return message


# Hashes that others write.


@pytest.mark.parametrize("key", ["sshs_model_hash", "modelspec.hash_sha256"])
@pytest.mark.parametrize("digest", [NOTHING, "0x" + NOTHING, "ab" * 32], ids=["of nothing", "of nothing, ModelSpec's form", "of something else"])
def test_a_hash_that_another_program_wrote_refuses_nothing_and_is_a_line_of_the_report(key: str, digest: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(small(), path, {key: digest, "ss_network_module": "lycoris.kohya"})
    assert list(read_adapter(path).layers) == [KEY]
    assert sum(line.startswith(f"{key} in its metadata is not the sha256") for line in inspect_file(path).text.splitlines()) == 1


def test_a_hash_that_is_right_is_no_line_of_the_report(tmp_path: Path) -> None:
    save_file(small(), tmp_path / "a.safetensors", {"sshs_model_hash": tensors_sha256(small())})
    assert "sshs_model_hash" not in inspect_file(tmp_path / "a.safetensors").text


def test_our_own_hash_refuses_and_not_once_another_program_has_written_its_own_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    ours = {"lora_loom.spec": "{}", "modelspec.hash_sha256": "0x" + "0" * 64}
    save_file(small(), path, ours)
    with pytest.raises(FileError, match=r"a\.safetensors is not as it was made.*sha256"):
        read_adapter(path)
    # kohya's resizing keeps all of the metadata and writes its own hash of the new tensors.
    save_file(small(), path, ours | {"sshs_model_hash": tensors_sha256(small())})
    assert KEY in read_adapter(path).layers


# The first bytes.


def padded(path: Path, tensors: dict[str, Tensor], first: bytes) -> None:
    """Write a file whose header's length begins with these bytes."""
    for length in range(80_000):
        save_file(tensors, path, {"title": "x" * length})
        if path.read_bytes().startswith(first):
            return
        gap = (int.from_bytes(first, "little") - int.from_bytes(path.read_bytes()[: len(first)], "little")) % 256 ** len(first)
        save_file(tensors, path, {"title": "x" * (length + gap)})
        if path.read_bytes().startswith(first):
            return
    raise AssertionError("no such length")


@pytest.mark.parametrize("first", [b"\x80", b"PK"], ids=["a pickle's", "a zip archive's"])
def test_a_header_whose_length_looks_like_the_start_of_a_pickle_is_a_header(first: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    padded(path, small(), first)
    assert describe_file(path).kind == read_adapter(path).kind == "LoRA"
    assert inspect_file(path).kind == "LoRA"
    padded(path, {"emb_params": torch.ones(2, 768)}, first)
    assert describe_file(path).kind == "embedding"
    assert read_embedding(path).vectors["clip_l"].shape == (2, 768)


@pytest.mark.parametrize("first", [b"\x80", b"PK"])
def test_what_is_left_of_such_a_file_is_called_truncated(first: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    padded(path, small(), first)
    for length in (20, 100, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:length])
        for read in (describe_file, read_adapter, read_embedding):
            with pytest.raises(FileError, match=r"a\.safetensors is truncated"):
                read(path)


# peft's alpha.


class Layers(nn.Module):
    """Modules as a model of images has them."""

    def __init__(self) -> None:
        super().__init__()
        self.down_blocks = tiny_unet().down_blocks


CONFIGS: dict[str, Any] = {
    "LoRA": peft.LoraConfig(r=4, lora_alpha=16, target_modules=["to_q", "proj_in"]),
    "rsLoRA": peft.LoraConfig(r=4, lora_alpha=16, use_rslora=True, target_modules=["to_q"]),
    "patterns": peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=["to_q", "to_k"], alpha_pattern={"to_k": 3, "attn1.*to_q": 5}, rank_pattern={"to_k": 2}
    ),
    "LoHa": peft.LoHaConfig(r=4, alpha=16, target_modules=["to_q"]),
    "LoKr": peft.LoKrConfig(r=4, alpha=16, target_modules=["to_q"], decompose_factor=4),
    "LoKr of whole factors": peft.LoKrConfig(r=64, alpha=16, target_modules=["to_q"], decompose_factor=4),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_alpha_that_peft_saves_beside_its_file_counts(config: Any, tmp_path: Path) -> None:
    model = peft.get_peft_model(Layers(), config)
    randomise([parameter for parameter in model.parameters() if parameter.requires_grad])
    model.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path / "adapter_model.safetensors")
    assert adapter.not_understood == () and adapter.alpha_from == "adapter_config.json beside it"
    modules = model.base_model.model.named_modules()
    wanted = {name: module.get_delta_weight("default") for name, module in modules if hasattr(module, "get_delta_weight")}
    assert len(wanted) > 1 and len(wanted) == len(adapter.layers)
    for name, change in wanted.items():
        layer = adapter.layers["lora_unet_" + name.replace(".", "_")]
        torch.testing.assert_close(delta(layer).reshape(change.shape), change, rtol=1e-4, atol=1e-6)
    assert "; as adapter_config.json beside it says" in inspect_file(tmp_path / "adapter_model.safetensors").text


def plain_peft(path: Path, metadata: dict[str, str] | None = None) -> Path:
    name = f"base_model.model.unet.{KEY.removeprefix('lora_unet_').replace('_', '.').replace('down.blocks', 'down_blocks')}"
    name = name.replace("transformer.blocks", "transformer_blocks").replace("to.k", "to_k")
    save_file({f"{name}.lora_A.weight": torch.ones(4, 768), f"{name}.lora_B.weight": torch.ones(640, 4)}, path, metadata)
    return path


def scale(path: Path) -> float:
    layer = read_adapter(path).layers[KEY]
    return float(layer.get("alpha", torch.tensor(4.0))) / 4


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        ({"lora_alpha": "16"}, 4),
        ({"lora_alpha": "16.0", "use_rslora": "true"}, 8),
        ({"lora_alpha": "16", "alpha_pattern": '{"attn2.to_k": 8}'}, 2),
        ({"lora_alpha": "as you like"}, 1),
        ({"lora_alpha": "None"}, 1),
        # kohya's, which nobody applies.
        ({"ss_network_alpha": "16"}, 1),
        ({"lora_adapter_metadata": '{"unet.lora_alpha": 12}', "lora_alpha": "16"}, 3),
    ],
)
def test_the_alpha_in_the_metadata_counts_where_the_tensors_have_none(metadata: dict[str, str], wanted: float, tmp_path: Path) -> None:
    path = plain_peft(tmp_path / "a.safetensors", metadata)
    assert scale(path) == wanted
    assert ("says" in inspect_file(path).text) == (wanted != 1)
    save_file(small(), path, metadata)
    assert float(read_adapter(path).layers[KEY]["alpha"]) == 2.0


def test_an_alpha_that_went_into_the_tensors_is_not_applied_again() -> None:
    metadata = {"lora_alpha": "16", "use_rslora": "true", "alpha_pattern": "{}", "lora_adapter_metadata": "{}", "title": "a"}
    assert saved_metadata(metadata, "{}", small(), "{}").keys().isdisjoint(metadata.keys() - {"title"})
    with pytest.raises(MetadataError, match="lora_alpha"):
        saved_metadata({}, '{"lora_alpha": 3}', small(), "{}")


def test_a_configuration_beside_other_files_is_not_theirs_and_a_broken_one_is_named(tmp_path: Path) -> None:
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 16}))
    assert scale(plain_peft(tmp_path / "adapter_model.safetensors")) == 4
    assert scale(plain_peft(tmp_path / "other.safetensors")) == 1
    for broken in (b"{", b"[1]", b"\xff\xfe", b"[" * 100_000):
        config.write_bytes(broken)
        with pytest.raises(FileError, match=r"adapter_model\.safetensors: adapter_config\.json beside it") as caught:
            read_adapter(tmp_path / "adapter_model.safetensors")
        assert len(str(caught.value)) < 300


# Kinds that are not read.

UNREAD: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "OneTrainer's OFT": ({f"{KEY}.oft_R.weight": (8, 28), f"{KEY}.alpha": ()}, "OFT of OneTrainer"),
    "OneTrainer's OFT with magnitudes": ({f"{KEY}.oft_R.weight": (8, 28), f"{KEY}.dora_scale": (640, 1)}, "OFT of OneTrainer"),
    "kohya's OFT": ({"oft_unet_input_blocks_1.oft_blocks": (4, 8, 8), "oft_unet_input_blocks_1.alpha": ()}, "OFT of kohya"),
    "T-LoRA": ({f"{KEY}.{name}": (4, 8) for name in ("q_layer.weight", "p_layer.weight", "lambda_layer", "alpha")}, "T-LoRA"),
    "XLabs": ({f"double_blocks.0.processor.qkv_lora1.{way}.weight": (16, 3072) for way in ("down", "up")}, "XLabs LoRA for FLUX"),
    "XLabs, single": ({f"single_blocks.0.processor.proj_lora.{way}.weight": (16, 3072) for way in ("down", "up")}, "XLabs LoRA for FLUX"),
    "LLLite": ({"lllite_unet_input_blocks_4_1_attn1_to_q.down.0.weight": (16, 640)}, "ControlNet-LLLite"),
    "AnimateDiff": (
        {f"down_blocks.0.motion_modules.0.attention_blocks.0.processor.to_q_lora.{way}.weight": (4, 4) for way in ("down", "up")},
        "motion LoRA of AnimateDiff",
    ),
    "GLoRA with a core": (
        {f"{KEY}.{name}.weight": (4, 4, 1, 1) for name in ("a1", "a2", "b1", "b2")} | {f"{KEY}.bm.weight": (4, 4, 3, 3)},
        "GLoRA with a core",
    ),
}


@pytest.mark.parametrize(("shapes", "what"), UNREAD.values(), ids=UNREAD.keys())
def test_a_kind_that_is_not_read_is_called_by_its_name(shapes: dict[str, tuple[int, ...]], what: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "a.safetensors")
    message = told(tmp_path / "a.safetensors")
    assert what in message and "nothing is wrong with the file" in message


PEFTS: dict[str, tuple[Any, str]] = {
    "AdaLoRA": (peft.AdaLoraConfig(init_r=4, total_step=10, target_modules=["to_q"]), "AdaLoRA"),
    "OFT": (peft.OFTConfig(oft_block_size=8, target_modules=["to_q"]), "OFT of OneTrainer or peft"),
    "IA3": (peft.IA3Config(target_modules=["to_q"], feedforward_modules=[]), "(IA)^3 of peft"),
    "VeRA": (peft.VeraConfig(r=4, target_modules=["attn1.to_q"]), "VeRA"),
    "HRA": (peft.HRAConfig(r=4, target_modules=["to_q"]), "HRA"),
    "FourierFT": (peft.FourierFTConfig(n_frequency=8, target_modules=["to_q"]), "fourierft_"),
    "MiSS": (peft.MissConfig(r=4, target_modules=["to_q"]), "MiSS"),
    "RandLoRA": (peft.RandLoraConfig(r=4, target_modules=["attn1.to_q"]), "randlora_"),
    "RoAd": (peft.RoadConfig(target_modules=["to_q"], group_size=16), "road_"),
}


@pytest.mark.parametrize(("config", "what"), PEFTS.values(), ids=PEFTS.keys())
def test_pefts_other_kinds_are_called_by_their_names(config: Any, what: str, tmp_path: Path) -> None:
    peft.get_peft_model(Layers(), config).save_pretrained(tmp_path)
    assert what in told(tmp_path / "adapter_model.safetensors")


def test_layers_of_an_unread_kind_beside_good_ones_are_not_understood(tmp_path: Path) -> None:
    path, other = tmp_path / "a.safetensors", KEY.replace("to_k", "to_v")
    save_file(small() | {f"{other}.oft_R.weight": torch.zeros(8, 28), f"{other}.alpha": torch.tensor(1.0)}, path)
    adapter = read_adapter(path)
    assert list(adapter.layers) == [KEY] and set(adapter.not_understood) == {f"{other}.oft_R.weight", f"{other}.alpha"}


# What is beside good layers.


@pytest.mark.parametrize("name", ["alpha", "dora_scale"])
def test_a_lone_alpha_beside_good_layers_is_told_and_refuses_nothing(name: str, tmp_path: Path) -> None:
    path, lone = tmp_path / "a.safetensors", f"{KEY.replace('to_k', 'to_v')}.{name}"
    save_file(small() | {lone: torch.tensor(4.0)}, path)
    adapter = read_adapter(path)
    assert (list(adapter.layers), adapter.not_understood) == ([KEY], (lone,))
    assert f"not understood, and not applied: 1 tensor: {lone}" in inspect_file(path).text


def test_the_layers_that_a_family_has_no_names_for_are_kept_under_their_own() -> None:
    # SVD is told from its widths for SD 2.x, and has layers over time beside those.
    spatial = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    over_time = "diffusion_model.input_blocks.1.1.time_stack.0.attn1.to_q"
    names = {f"{name}.lora_{end}.weight": shape for name in (spatial, over_time) for end, shape in (("up", (320, 4)), ("down", (4, 1024)))}
    contents = sort_names(names, {})
    assert contents.family == "SD 2.x"
    assert list(contents.layers) == ["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", over_time]
    assert contents.not_understood == ()


@pytest.mark.parametrize(
    ("module", "key"),
    [
        ("img_in", "diffusion_model.img_in"),
        ("final_layer.linear", "diffusion_model.final_layer.linear"),
        ("noise_refiner.0.attention.qkv", "diffusion_model.noise_refiner.0.attention.qkv"),
        ("lora_unet__blocks_0_cross_attn_k", "lora_unet_blocks_0_cross_attn_k"),
    ],
)
def test_layers_of_any_other_model_are_layers(module: str, key: str) -> None:
    contents = sort_names({f"{module}.lora_B.weight": (8, 4), f"{module}.lora_A.weight": (4, 8)}, {})
    assert list(contents.layers) == [key] and contents.not_understood == ()


def test_a_shape_of_a_thousand_dimensions_makes_a_short_message(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(small() | {f"{KEY}.lora_mid.weight": torch.zeros(1).reshape([1] * 1000)}, path)
    assert len(read_header(path).shape(f"{KEY}.lora_mid.weight")) == 1000
    with pytest.raises(FileError, match="which no tensor has") as caught:
        read_adapter(path)
    assert len(str(caught.value)) < 500
