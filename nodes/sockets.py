"""Our socket types, and those that we share with core and with other packs."""
from comfy_api.latest import io

LoomDataset = io.Custom("LOOM_DATASET")
LoomBase = io.Custom("LOOM_BASE")
LoomAdapters = io.Custom("LOOM_ADAPTERS")
LoomOptions = io.Custom("LOOM_OPTIONS")

# Core's training nodes.
LoraModel = io.Custom("LORA_MODEL")
LossMap = io.Custom("LOSS_MAP")

# The ecosystem's: list[tuple[name relative to models/loras, model strength, clip strength]].
LoraStack = io.Custom("LORA_STACK")
