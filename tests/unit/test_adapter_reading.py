"""Files as they come: what is read is what was written, and what is broken is told with the file's and the tensor's name, at once."""
import json
import pickle
import random
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from adapter_models import NETWORKS, randomise, tiny_unet
from safetensors.torch import save_file
from torch import Tensor

from trainer.adapters.embedding import read_embedding
from trainer.adapters.files import FileError, sha256_of
from trainer.adapters.hypernetwork import read_hypernetwork
from trainer.adapters.metadata import tensors_sha256
from trainer.adapters.pickles import load_pickle
from trainer.adapters.reading import describe_file, read_adapter
from trainer.methods import lora

KEY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


def small(rank: int = 4) -> dict[str, Tensor]:
    numbers = torch.Generator().manual_seed(1)
    return {
        f"{KEY}.lora_up.weight": torch.randn(640, rank, generator=numbers).half(),
        f"{KEY}.lora_down.weight": torch.randn(rank, 768, generator=numbers).half(),
        f"{KEY}.alpha": torch.tensor(2.0),
    }


def told(path: Path, *words: str) -> str:
    with pytest.raises(FileError) as caught:
        read_adapter(path)
    message = str(caught.value)
    assert message.startswith(path.name)
    assert all(word in message for word in words), message
    assert len(message) < 1000
    return message


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_was_trained_is_read_bit_for_bit(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    unet = tiny_unet()
    randomise(lora.inject(unet, NETWORKS[kind], seed=0))
    tensors = lora.adapter_tensors([lora.Adapted("lora_unet", unet)], NETWORKS[kind], dtype)
    save_file(tensors, tmp_path / "a.safetensors", {"ss_base_model_version": "sd_1.5"})
    adapter = read_adapter(tmp_path / "a.safetensors", sha256_of(tmp_path / "a.safetensors").upper())
    assert (adapter.kind, adapter.family, adapter.naming, adapter.not_understood) == (kind, "SD 1.x", "kohya", ())
    assert adapter.metadata == {"ss_base_model_version": "sd_1.5"}
    found = {f"{key}.{suffix}": tensor for key, layer in adapter.layers.items() for suffix, tensor in layer.items()}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


def test_the_adapter_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(small(), path)
    adapter = read_adapter(path)
    with path.open("r+b") as file:
        file.truncate(100)
    assert torch.equal(adapter.layers[KEY]["lora_up.weight"], small()[f"{KEY}.lora_up.weight"])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_are_numbers_too(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in small().items()}
    save_file(tensors, tmp_path / "a.safetensors")
    assert read_adapter(tmp_path / "a.safetensors").layers[KEY]["lora_up.weight"].dtype == dtype
    tensors[f"{KEY}.lora_up.weight"] = torch.full((640, 4), float("nan")).to(dtype)
    save_file(tensors, tmp_path / "b.safetensors")
    told(tmp_path / "b.safetensors", "NaN", f"{KEY}.lora_up.weight")


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "NaN or infinity"), (float("-inf"), "infinity"), (-1e9, "1e+09")])
@pytest.mark.parametrize("name", ["lora_up.weight", "alpha"])
def test_one_bad_number_is_found(value: float, word: str, name: str, tmp_path: Path) -> None:
    tensors = {key: tensor.float() for key, tensor in small().items()}
    tensors[f"{KEY}.{name}"].view(-1)[-1] = value
    save_file(tensors, tmp_path / "a.safetensors")
    told(tmp_path / "a.safetensors", word, f"{KEY}.{name}")


def test_bf16_holds_numbers_that_fp16_does_not_and_absurd_ones_are_found(tmp_path: Path) -> None:
    tensors = small() | {f"{KEY}.lora_up.weight": torch.full((640, 4), 5e5, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert read_adapter(tmp_path / "a.safetensors").layers[KEY]["lora_up.weight"][0, 0] > 4e5
    save_file(tensors | {f"{KEY}.lora_up.weight": torch.full((640, 4), 1e9, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    told(tmp_path / "a.safetensors", "damaged")


def test_quantised_factors_are_refused_and_whole_alphas_are_not(tmp_path: Path) -> None:
    save_file(small() | {f"{KEY}.alpha": torch.tensor(2)}, tmp_path / "a.safetensors")
    assert read_adapter(tmp_path / "a.safetensors").layers[KEY]["alpha"] == 2
    save_file(small() | {f"{KEY}.lora_up.weight": torch.ones(640, 4, dtype=torch.int8)}, tmp_path / "a.safetensors")
    told(tmp_path / "a.safetensors", "I8", f"{KEY}.lora_up.weight")


# Damage.


def test_every_flipped_bit_is_found_where_a_hash_is_known(tmp_path: Path) -> None:
    tensors = small(1)
    made = tmp_path / "made.safetensors"
    # Two ways to know: our own hash (a training's, another node's), and one from elsewhere.
    digest = tensors_sha256(tensors)
    ours = [{"modelspec.hash_sha256": "0x" + digest, key: "{}"} for key in ("lora_loom.spec", "lora_loom.made_by")]
    for metadata in (*ours, {}):
        save_file(tensors, made, metadata)
        whole, known = made.read_bytes(), None if metadata else sha256_of(made)
        read_adapter(made, known)
        payload = 8 + struct.unpack("<Q", whole[:8])[0]
        for place in (payload, payload + 1001, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            path = tmp_path / "damaged.safetensors"
            path.write_bytes(damaged)
            with pytest.raises(FileError, match=r"damaged\.safetensors.*sha256"):
                read_adapter(path, known)
            if metadata:
                assert KEY in read_adapter(path, recorded_hash=False).layers


def test_a_sha256_that_is_none_is_told(tmp_path: Path) -> None:
    save_file(small(), tmp_path / "a.safetensors")
    with pytest.raises(FileError, match="64 hex digits"):
        read_adapter(tmp_path / "a.safetensors", "abc")


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    save_file(small(1), tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "part.safetensors"
    for length in {*range(0, 400, 7), *range(400, len(whole), 97), len(whole) - 1}:
        path.write_bytes(whole[:length])
        told(path)


def test_a_thousand_damaged_headers_end_in_an_error_or_an_adapter(tmp_path: Path) -> None:
    save_file(small(1), tmp_path / "whole.safetensors", {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 2})})
    whole = (tmp_path / "whole.safetensors").read_bytes()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    chance, path, errors = random.Random(0), tmp_path / "damaged.safetensors", 0
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 5))):
            damaged[chance.randrange(end)] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            read_adapter(path)
        except FileError as error:
            assert str(error).startswith(path.name)
            errors += 1
    assert errors > 500


def test_a_header_that_lies_about_its_tensors_is_an_error(tmp_path: Path) -> None:
    entries = {
        f"{KEY}.lora_up.weight": {"dtype": "F16", "shape": [640, 4], "data_offsets": [0, 8]},
        f"{KEY}.lora_down.weight": {"dtype": "F16", "shape": [4, 768], "data_offsets": [8, 16]},
    }
    text = json.dumps(entries).encode()
    (tmp_path / "lie.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 16)
    told(tmp_path / "lie.safetensors", "cannot be read")


def test_ten_thousand_names_of_nonsense_take_no_time(tmp_path: Path) -> None:
    nonsense = {f"lora_unet_{'up_blocks_' * 20}{number}.lora_mid.weight": torch.zeros(1, 1) for number in range(5_000)}
    nonsense |= {f"{'a.' * 200}{number}": torch.zeros(1) for number in range(5_000)}
    save_file(nonsense, tmp_path / "nonsense.safetensors")
    save_file(nonsense | small(), tmp_path / "mostly.safetensors", {"ss_base_model_version": "sd_v1"})
    start = time.process_time()
    told(tmp_path / "nonsense.safetensors")
    adapter = read_adapter(tmp_path / "mostly.safetensors")
    assert time.process_time() - start < 5
    assert len(adapter.not_understood) == 10_000
    assert list(adapter.layers) == [KEY]


def test_other_things_are_named_for_what_they_are(tmp_path: Path) -> None:
    save_file({"emb_params": torch.randn(2, 768)}, tmp_path / "word.safetensors")
    told(tmp_path / "word.safetensors", "embedding", "models/embeddings")
    save_file({"model.diffusion_model.out.2.weight": torch.zeros(4, 4)}, tmp_path / "base.safetensors")
    told(tmp_path / "base.safetensors", "whole checkpoint", "models/checkpoints")
    (tmp_path / "page.safetensors").write_text("<!doctype html>" + "x" * 100)
    told(tmp_path / "page.safetensors", "web page")
    torch.save(small(), tmp_path / "old.pt")
    told(tmp_path / "old.pt", "pickle")
    told(tmp_path / "missing.safetensors", "cannot be read")


def test_bundled_embeddings_come_with_the_adapter(tmp_path: Path) -> None:
    word = torch.randn(3, 768)
    save_file(small() | {"bundle_emb.word.string_to_param.*": word, "bundle_emb.other.clip_l": word * 2}, tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert torch.equal(adapter.embeddings["word"][""], word)
    assert torch.equal(adapter.embeddings["other"]["clip_l"], word * 2)
    assert describe_file(tmp_path / "a.safetensors").bundled == ("other", "word")


# Embeddings and hypernetworks.


def test_embeddings_of_every_layout_are_read(tmp_path: Path) -> None:
    one, two = torch.randn(4, 768), torch.randn(4, 1280)
    save_file({"emb_params": one}, tmp_path / "a.safetensors", {"name": "word"})
    save_file({"clip_l": one, "clip_g": two}, tmp_path / "b.safetensors")
    save_file({"<cat-toy>": one[0].clone()}, tmp_path / "c.safetensors")
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": one}, "name": "word", "step": 5}, tmp_path / "d.pt")
    torch.save({"<cat-toy>": one[0].clone()}, tmp_path / "e.bin")
    for name, family, token in (
        ("a.safetensors", "SD 1.x", None),
        ("b.safetensors", "SDXL", None),
        ("c.safetensors", "SD 1.x", "<cat-toy>"),
        ("d.pt", "SD 1.x", "word"),
        ("e.bin", "SD 1.x", "<cat-toy>"),
    ):
        found = read_embedding(tmp_path / name)
        assert (found.family, found.token) == (family, token)
        assert torch.equal(found.vectors["clip_l"], one if name[0] in "abd" else one[:1])
        facts = describe_file(tmp_path / name)
        assert (facts.kind, facts.family, facts.vectors) == ("embedding", family, len(found.vectors["clip_l"]))
    assert torch.equal(read_embedding(tmp_path / "b.safetensors").vectors["clip_g"], two)
    assert read_embedding(tmp_path / "a.safetensors").metadata == {"name": "word"}


def test_broken_embeddings_are_told(tmp_path: Path) -> None:
    save_file({"emb_params": torch.tensor([[float("nan")] * 768])}, tmp_path / "a.safetensors")
    with pytest.raises(FileError, match=r"a\.safetensors.*NaN"):
        read_embedding(tmp_path / "a.safetensors")
    save_file(small(), tmp_path / "a.safetensors")
    with pytest.raises(FileError, match=r"a\.safetensors is not an embedding"):
        read_embedding(tmp_path / "a.safetensors")
    # One number that claims to be ten million vectors.
    torch.save({"string_to_param": {"*": torch.ones(1).expand(900, 768)}}, tmp_path / "huge.pt")
    with pytest.raises(FileError, match=r"huge\.pt.*not a plain tensor"):
        read_embedding(tmp_path / "huge.pt")
    for content in ([1, 2], {"string_to_param": 5}, {"a": "b"}, {}):
        torch.save(content, tmp_path / "odd.pt")
        with pytest.raises(FileError, match=r"odd\.pt"):
            read_embedding(tmp_path / "odd.pt")


def network(width: int, inner: int | None = None) -> dict[str, Tensor]:
    wide = inner or 2 * width
    return {
        "linear.0.weight": torch.randn(wide, width) * 0.01,
        "linear.0.bias": torch.zeros(wide),
        "linear.1.weight": torch.ones(wide),
        "linear.1.bias": torch.zeros(wide),
        "linear.2.weight": torch.randn(width, wide) * 0.01,
        "linear.2.bias": torch.zeros(width),
    }


def test_hypernetworks_are_read(tmp_path: Path) -> None:
    content = {320: (network(320), network(320)), 768: (network(768), network(768)), "activation_func": "relu", "is_layer_norm": True, "name": "h"}
    torch.save(content, tmp_path / "h.pt")
    found = read_hypernetwork(tmp_path / "h.pt")
    assert (found.family, found.activation, found.layer_norm, found.name) == ("SD 1.x", "relu", True, "h")
    assert torch.equal(found.layers[768][1]["linear.2.weight"], content[768][1]["linear.2.weight"])
    facts = describe_file(tmp_path / "h.pt")
    assert (facts.kind, facts.family, facts.widths) == ("hypernetwork", "SD 1.x", (320, 768))
    assert facts.parameters == sum(tensor.numel() for width in (320, 768) for state in content[width] for tensor in state.values())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({320: (network(320), network(640))}, "320, values"),
        ({320: (network(320),)}, "two networks"),
        ({320: (network(320), {})}, "gives 0 numbers"),
        ({320: (network(320), network(320) | {"linear.2.weight": torch.full((320, 640), float("inf"))})}, "linear.2.weight holds NaN"),
        ({320: (network(320), {"linear.0.weight": torch.ones(320, 320)})}, "no bias"),
        ({"activation_func": "exec"}, "exec"),
        ({"activation_func": ["relu"]}, "activation"),
    ],
)
def test_broken_hypernetworks_are_told(change: dict[object, object], told: str, tmp_path: Path) -> None:
    torch.save({320: (network(320), network(320)), **change}, tmp_path / "h.pt")
    with pytest.raises(FileError, match=told) as caught:
        read_hypernetwork(tmp_path / "h.pt")
    assert str(caught.value).startswith("h.pt")


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def test_a_pickle_never_runs_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"string_to_param": {"*": Evil(mark)}}, protocol=2))
    torch.save({"string_to_param": {"*": Evil(mark)}}, tmp_path / "evil.bin")
    for name in ("evil.pt", "evil.bin"):
        for read in (read_embedding, read_hypernetwork, describe_file):
            with pytest.raises(FileError, match=rf"{name} is a pickle that holds more than numbers"):
                read(tmp_path / name)
    assert not mark.exists()


def test_pickles_wait_for_a_torch_that_opens_them_safely(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    for version in ("2.9.1+cu128", "1.13.0", "nightly"):
        with pytest.raises(FileError, match=r"a\.pt.*Convert it to \.safetensors, or update torch to 2\.10"):
            load_pickle(tmp_path / "a.pt", 10_000, version)
    assert load_pickle(tmp_path / "a.pt", 10_000, "2.10.0")["a"] == 1


def test_a_pickle_that_unpacks_to_more_than_its_kind_needs_is_not_opened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 20_000_000)
    assert (tmp_path / "bomb.pt").stat().st_size < 100_000
    with pytest.raises(FileError, match=r"bomb\.pt holds 20000000 bytes, more than the 1000000"):
        load_pickle(tmp_path / "bomb.pt", 1_000_000)


def test_an_alpha_that_is_not_used_may_be_anything(tmp_path: Path) -> None:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{key}.lokr_w1": torch.ones(4, 4), f"{key}.lokr_w2": torch.ones(8, 8), f"{key}.alpha": torch.tensor(1e10)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert read_adapter(tmp_path / "a.safetensors").kind == "LoKr"
    tensors[f"{key}.lokr_w2_a"] = torch.ones(8, 2)
    tensors[f"{key}.lokr_w2_b"] = torch.ones(2, 8)
    del tensors[f"{key}.lokr_w2"]
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(FileError, match="alpha"):
        read_adapter(tmp_path / "b.safetensors")
