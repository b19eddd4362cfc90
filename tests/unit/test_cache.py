"""What was encoded is kept whole, or not at all."""
import os

import pytest
import torch

from trainer.data.cache import Cache, key_of

KEY = key_of("latents", "a", 1)
ENTRY = {"latents": torch.randn(2, 4, 8, 8), "mask": torch.ones(2, 1, 8, 8)}


def test_an_entry_comes_back_to_the_bit(tmp_path) -> None:
    Cache(tmp_path).put(KEY, ENTRY)
    found = Cache(tmp_path).get(KEY)
    assert found.keys() == ENTRY.keys() and all(torch.equal(found[name], ENTRY[name]) for name in ENTRY)
    assert Cache(tmp_path).get(key_of("latents", "a", 2)) is None


@pytest.mark.parametrize("where", ["header", "tensors", "end"])
def test_a_damaged_entry_is_not_there(tmp_path, where: str) -> None:
    Cache(tmp_path).put(KEY, ENTRY)
    (file,) = tmp_path.rglob("*.safetensors")
    data = bytearray(file.read_bytes())
    if where == "end":
        data = data[:-7]
    else:
        data[20 if where == "header" else -100] ^= 1
    file.write_bytes(data)
    assert Cache(tmp_path).get(KEY) is None


def test_without_a_folder_nothing_is_kept() -> None:
    cache = Cache(None)
    cache.put(KEY, ENTRY)
    assert cache.get(KEY) is None and not cache.problem


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    cache = Cache(tmp_path / "cache")
    cache.put(KEY, ENTRY)
    assert str(tmp_path / "cache") in cache.problem
    cache.put(KEY, ENTRY)
    assert cache.get(KEY) is None
    assert os.listdir(tmp_path) == ["cache"]
