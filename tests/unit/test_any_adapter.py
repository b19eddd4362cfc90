"""Whatever file is put into models/loras: a sound adapter is read, and every other file is refused in a short message that names it; nothing else.

Files are drawn from all kinds, namings and number formats, and from what happens to files.
"""
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from trainer.adapters.files import FileError
from trainer.adapters.reading import describe_file, read_adapter
from trainer.adapters.report import inspect_file

OUT, IN = 24, 16
# Each kind's tensors, for a matrix of 24 outputs and 16 inputs, at a rank.
KINDS: dict[str, Callable[[int], dict[str, tuple[int, ...]]]] = {
    "LoRA": lambda rank: {"lora_up.weight": (OUT, rank), "lora_down.weight": (rank, IN), "alpha": ()},
    "LoRA without alpha": lambda rank: {"lora_up.weight": (OUT, rank), "lora_down.weight": (rank, IN)},
    "LoCon": lambda rank: {"lora_up.weight": (OUT, rank, 1, 1), "lora_down.weight": (rank, IN, 3, 3), "alpha": ()},
    "LoCon with a core": lambda rank: {
        **{"lora_up.weight": (OUT, rank, 1, 1), "lora_down.weight": (rank, IN, 1, 1), "lora_mid.weight": (rank, rank, 3, 3)},
    },
    "DoRA": lambda rank: {"lora_up.weight": (OUT, rank), "lora_down.weight": (rank, IN), "dora_scale": (OUT, 1), "alpha": (1,)},
    "LoHa": lambda rank: {f"hada_w{number}_{end}": shape for number in "12" for end, shape in (("a", (OUT, rank)), ("b", (rank, IN)))},
    "LoKr": lambda rank: {"lokr_w1": (2, 2), "lokr_w2_a": (OUT // 2, rank), "lokr_w2_b": (rank, IN // 2), "alpha": ()},
    "LoKr of whole factors": lambda rank: {"lokr_w1": (2, 2), "lokr_w2": (OUT // 2, IN // 2)},
    "GLoRA": lambda rank: {"a1.weight": (IN, rank), "a2.weight": (rank, IN), "b1.weight": (OUT, rank), "b2.weight": (rank, IN)},
    "OFT": lambda rank: {"oft_blocks": (3, 8, 8), "alpha": ()},
    "BOFT": lambda rank: {"oft_blocks": (2, 3, 8, 8), "rescale": (OUT, 1)},
    "IA3": lambda rank: {"weight": (OUT,), "on_input": ()},
    "full difference": lambda rank: {"diff": (OUT, IN), "diff_b": (OUT,)},
    "norm": lambda rank: {"w_norm": (OUT,), "b_norm": (OUT,)},
}
# How one layer is called, and how LoRA's factors are; every kind goes with those of OF_EVERY_KIND.
NAMINGS: dict[str, tuple[str, dict[str, str]]] = {
    "kohya": ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", {}),
    "kohya, LDM paths": ("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q", {}),
    "LyCORIS": ("lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", {}),
    "ComfyUI": ("diffusion_model.double_blocks.0.img_attn.proj", {}),
    "OneTrainer": ("lora_transformer_single_transformer_blocks_0_attn_to_q", {}),
    "diffusers": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        {"lora_up.weight": "lora.up.weight", "lora_down.weight": "lora.down.weight"},
    ),
    "PEFT": (
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        {"lora_up.weight": "lora_B.weight", "lora_down.weight": "lora_A.weight"},
    ),
    "PEFT, transformer": (
        "transformer.transformer_blocks.0.attn.to_q",
        {"lora_up.weight": "lora_B.weight", "lora_down.weight": "lora_A.weight"},
    ),
}
OF_EVERY_KIND = ("kohya", "kohya, LDM paths", "LyCORIS", "ComfyUI")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
WHOLE = ("alpha", "on_input")


@st.composite
def adapters(draw: st.DrawFn) -> dict[str, Tensor]:
    """A sound adapter of one layer."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    plain = kind.startswith(("LoRA", "LoCon", "DoRA"))
    module, endings = NAMINGS[draw(st.sampled_from(tuple(NAMINGS) if plain else OF_EVERY_KIND))]
    dtype = draw(st.sampled_from(DTYPES))
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    tensors = {}
    for suffix, shape in KINDS[kind](draw(st.integers(1, 5))).items():
        tensor = torch.randn(shape, generator=numbers)
        tensors[f"{module}.{endings.get(suffix, suffix)}"] = (tensor.abs() + 0.5 if suffix in WHOLE else tensor).to(dtype)
    if draw(st.booleans()):
        tensors = {name: (tensor.float().round().long() if name.endswith(".alpha") else tensor) for name, tensor in tensors.items()}
    return tensors


def factor_of(tensors: dict[str, Tensor], draw: st.DrawFn) -> str:
    return draw(st.sampled_from(sorted(name for name in tensors if not name.endswith(WHOLE))))


# What may be in a sound file: (tensors, metadata) to the bytes.


@st.composite
def sound_files(draw: st.DrawFn) -> bytes:
    """A sound adapter, with what other programs and other people leave in files."""
    tensors = draw(adapters())
    metadata: dict[str, str] = {}
    for oddity in draw(st.sets(st.sampled_from(["hash", "alpha", "names", "text", "0x80", "lora_alpha"]))):
        if oddity == "hash":
            key = draw(st.sampled_from(["sshs_model_hash", "modelspec.hash_sha256"]))
            metadata[key] = draw(st.sampled_from(["", "0x", "0x" + "f" * 8, hashlib.sha256(b"").hexdigest(), "0x" + "a" * 64]))
        elif oddity == "alpha":
            tensors["lora_unet_up_blocks_3_attentions_0_transformer_blocks_0_attn1_to_q.alpha"] = torch.tensor(1.0)
        elif oddity == "names":
            tensors |= {draw(st.text(max_size=20)) + f".odd{number}" + "z" * draw(st.sampled_from([0, 5_000])): torch.zeros(1) for number in range(3)}
        elif oddity == "text":
            keys = st.sampled_from(["ss_network_dim", "ss_tag_frequency", "ss_trained_words", "title"])
            metadata |= draw(st.dictionaries(keys, st.text(max_size=50)))
        elif oddity == "lora_alpha":
            metadata["lora_alpha"] = draw(st.sampled_from(["16", "8.0", "none", "[]", ""]))
        else:
            metadata["padding"] = "x" * padding_for_0x80(tensors, metadata)
    return save(tensors, metadata)


def padding_for_0x80(tensors: dict[str, Tensor], metadata: dict[str, str]) -> int:
    """How much text makes the length of the header begin with the byte that a pickle begins with."""
    for count in range(0, 512, 4):
        if save(tensors, {**metadata, "padding": "x" * count})[0] == 0x80:
            return count
    raise AssertionError("no such length")


# What makes a file one that is refused.


@st.composite
def broken_files(draw: st.DrawFn) -> bytes:
    """A file that is no sound adapter."""
    tensors = draw(adapters())
    name = factor_of(tensors, draw)
    fault = draw(st.sampled_from(FAULTS))
    whole = save(tensors)
    if fault == "cut":
        return whole[: draw(st.integers(0, len(whole) - 1))]
    if fault == "nan":
        bad = tensors[name].float().clone()
        bad.view(-1)[draw(st.integers(0, bad.numel() - 1))] = draw(st.sampled_from([float("nan"), float("inf"), float("-inf"), 1e30]))
        return save(tensors | {name: bad})
    if fault == "shape":
        # Without its shape a factor fits nothing: neither its counterpart nor what its kind asks for.
        return save({f"lora_unet_conv_in.{suffix}": torch.ones(shape) for suffix, shape in draw(st.sampled_from(MISFITS)).items()})
    if fault == "missing":
        return save({"lora_unet_conv_in.lora_down.weight": torch.ones(2, 4), "lora_unet_conv_in.alpha": torch.tensor(1.0)})
    if fault == "whole numbers":
        return save({key: (tensor.float().to(torch.int8) if key == name else tensor) for key, tensor in tensors.items()})
    if fault == "empty":
        return save({"lora_unet_conv_in.lora_up.weight": torch.ones(4, 0), "lora_unet_conv_in.lora_down.weight": torch.ones(0, 4)})
    if fault == "bytes":
        return draw(st.sampled_from(BEGINNINGS)) + draw(st.binary(max_size=64))
    if fault == "header":
        header = draw(st.sampled_from(["[]", "{", '{"a": 1}', '{"a": {"dtype": "F32"}}', "[" * 5_000, json.dumps({"a.lora_up.weight": BIG})]))
        return struct.pack("<Q", len(header)) + header.encode()
    if fault == "no header":
        return struct.pack("<Q", draw(st.sampled_from([0, 2**40, 2**63]))) + whole[8:]
    if fault == "ours":
        return save(tensors, {"lora_loom.spec": "{}", "modelspec.hash_sha256": "0x" + "a" * 64})
    if fault == "other":
        return save({key: torch.zeros(2, 768) for key in draw(st.sampled_from(OTHERS))})
    return save({"lora_unet_conv_in.alpha": torch.tensor(1.0)})


FAULTS = ("cut", "nan", "shape", "missing", "whole numbers", "empty", "bytes", "header", "no header", "ours", "other", "alone")
BEGINNINGS = (b"", b"\x80", b"\x80\x02}q\x00.", b"PK\x03\x04" + b"\0" * 60, b"<!doctype html>" + b"x" * 50)
BIG = {"dtype": "F32", "shape": [1] * 3000, "data_offsets": [0, 4]}
MISFITS = (
    {"lora_up.weight": (8, 4), "lora_down.weight": (3, 8)},
    {"lora_up.weight": (8,), "lora_down.weight": (4, 8)},
    {"hada_w1_a": (8, 4), "hada_w1_b": (4, 9), "hada_w2_a": (7, 4), "hada_w2_b": (4, 9)},
    {"lokr_w1": (2, 2), "lokr_w2_a": (4, 4)},
    {"oft_blocks": (8, 4, 3)},
    {"lora_up.weight": (8, 4), "lora_down.weight": (4, 9), "dora_scale": (7, 1)},
)
OTHERS = (
    ["emb_params"],
    ["model.diffusion_model.out.2.weight", "first_stage_model.decoder.conv_in.weight"],
    ["double_blocks.0.processor.qkv_lora1.down.weight", "double_blocks.0.processor.qkv_lora1.up.weight"],
    ["lora_unet_mid_block.oft_R.weight", "lora_unet_mid_block.alpha"],
    ["lycoris_mid_block.q_layer.weight", "lycoris_mid_block.p_layer.weight", "lycoris_mid_block.lambda_layer"],
    ["base_model.model.x.lora_A", "base_model.model.x.lora_B", "base_model.model.x.lora_E"],
    ["a", "b"],
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any") / "some_adapter.safetensors"


@settings(max_examples=250, deadline=None, derandomize=True)
@given(content=sound_files())
def test_every_sound_adapter_is_read(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    adapter = read_adapter(file)
    assert len(adapter.layers) == 1
    assert all(name.endswith(".alpha") or ".odd" in name for name in adapter.not_understood)
    assert describe_file(file).not_understood == len(adapter.not_understood)
    assert len(inspect_file(file).text) < 5000


@settings(max_examples=250, deadline=None, derandomize=True)
@given(content=broken_files())
def test_every_other_file_is_refused_in_a_short_message_that_names_it(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    for read in (read_adapter, inspect_file):
        if read is inspect_file and content == save({"emb_params": torch.zeros(2, 768)}):
            continue  # which is sound, and no LoRA
        with pytest.raises(FileError) as caught:
            read(file)
        message = str(caught.value)
        assert message.startswith(file.name) and len(message) < 700
