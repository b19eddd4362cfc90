"""For scripts that run in ComfyUI's folder: the pack's own modules without a server."""
import sys
import types
from pathlib import Path


def import_pack() -> None:
    """Make the pack's modules importable as `lora_loom...`, without the server that its __init__ files need."""
    root = Path(__file__).resolve().parents[1]
    for name, folder in (("lora_loom", root), ("lora_loom.nodes", root / "nodes")):
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
