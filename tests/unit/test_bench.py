"""The GPU benchmark is wired as the trainer is now: one step of each of its tiny models, on the CPU."""
import pytest

from bench.gpu_child import TINY, Subject


@pytest.mark.parametrize("model", TINY)
def test_a_tiny_model_takes_a_step(model: str) -> None:
    assert Subject(TINY[model], "fp32", False, "").steps(1, 2) > 0
