"""Training methods: what trains, and what is saved of it. The rest of the trainer knows none of them by name."""
from typing import TYPE_CHECKING

from ..spec import FineTuneSpec, TextualInversionSpec, TrainingSpec, TrainLoRASpec

if TYPE_CHECKING:
    from ..families.protocol import Family
    from .protocol import Method


def load_method(spec: TrainingSpec, family: "Family") -> "Method":
    """The method that the spec asks for. Loads the heavy libraries."""
    from .finetune import FineTune
    from .lora import LoRA
    from .textual_inversion import TextualInversion

    if isinstance(spec, TrainLoRASpec):
        return LoRA(spec, family)
    if isinstance(spec, FineTuneSpec):
        return FineTune(spec, family)
    assert isinstance(spec, TextualInversionSpec)
    return TextualInversion(spec, family)
