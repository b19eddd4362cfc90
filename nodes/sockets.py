"""Our socket types, and those that we share with core and with other packs."""
from dataclasses import dataclass
from pathlib import Path

from comfy_api.latest import io

LoomDataset = io.Custom("LOOM_DATASET")
LoomBase = io.Custom("LOOM_BASE")
LoomAdapters = io.Custom("LOOM_ADAPTERS")
LoomOptions = io.Custom("LOOM_OPTIONS")
LoomResult = io.Custom("LOOM_RESULT")


@dataclass(frozen=True)
class TrainingResult:
    """What goes over a LOOM_RESULT: how a training went, and what it left.

    `task`: the method, as specs call it; `word`: by which prompts call what was trained; `files`: what it wrote, the main one first; `base`: the
    checkpoint it was trained on. `parameters`: how many numbers were trained; `seconds`: of its steps alone, None where they are not known;
    `peak_memory`: bytes, 0 where it is not known; `validation`: (step, loss) in order.
    """

    task: str
    name: str
    word: str
    files: tuple[Path, ...]
    base: Path
    steps: int
    parameters: int
    seconds: float | None
    peak_memory: int
    validation: tuple[tuple[int, float], ...]


# Core's training nodes.
LoraModel = io.Custom("LORA_MODEL")
LossMap = io.Custom("LOSS_MAP")

# The ecosystem's: list[tuple[name relative to models/loras, model strength, clip strength]].
LoraStack = io.Custom("LORA_STACK")
