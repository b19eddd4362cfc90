"""`python -m trainer run <run folder>`: what ComfyUI's side starts. See `events` for the protocol and the exit codes."""
import importlib.util
import json
import sys
import time
from pathlib import Path

_NEEDED = ("torch", "pydantic", "safetensors", "PIL", "numpy", "accelerate", "diffusers", "peft", "transformers")
_PACKAGES = {"PIL": "pillow"}


def main(arguments: list[str]) -> int:
    """Exit code as in `events.ExitCode`; 2 also for a command line that is not understood."""
    if len(arguments) != 2 or arguments[0] != "run":
        print("usage: python -m trainer run <run folder>", file=sys.stderr)
        return 2
    # Before any import of ours: pydantic itself may be what is missing.
    missing = [_PACKAGES.get(name, name) for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        requirements = Path(__file__).resolve().parent.parent / "requirements.txt"
        message = f"{', '.join(missing)} missing from {sys.executable}: run \"{sys.executable}\" -m pip install -r \"{requirements}\""
        print(json.dumps({"event": "failed", "time": time.time(), "message": message}), flush=True)
        return 2
    from .job import run_job

    return int(run_job(Path(arguments[1])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
