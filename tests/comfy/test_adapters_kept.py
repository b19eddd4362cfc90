"""A server that has used 50 adapters, each in another graph, holds no more than after the first."""
from typing import Any

import pytest
from loom_server import told_in_comfyui


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = told_in_comfyui("adapters_kept.py", tmp_path_factory.mktemp("kept"), timeout=580)
    print(found)
    return found


@pytest.mark.parametrize("mode", ["merged", "live"])
def test_fifty_adapters_leave_no_more_behind_than_one(told: dict[str, Any], mode: str) -> None:
    first, last = told[mode]["0"], told[mode]["49"]
    assert first["adapters"] == last["adapters"] == 1
    assert first["live stacks"] == last["live stacks"] <= 1
    assert last["tensor bytes"] - first["tensor bytes"] < told["adapter bytes"]
    assert told["adapter bytes"] > 2_000_000
    # What the allocator keeps of one adapter after another is not what 50 of them are.
    assert last["resident bytes"] - first["resident bytes"] < 10 * told["adapter bytes"]
