"""Run in ComfyUI's folder: what a server holds that runs have finished in, one after the other, as JSON on the last line.

    python many_runs.py OUTPUT COUNT

The answer has `held`, bytes after each run; `listed`, the runs that the routes tell; `first_losses`, how many losses they tell of the first run.
"""
import asyncio
import gc
import importlib
import json
import sys
import tracemalloc
from pathlib import Path

from comfy.cli_args import args
from in_comfyui import import_pack

STEPS = 5000


def main(output: Path, count: int) -> None:
    args.cpu = True
    importlib.import_module("utils.extra_config")  # first, as ComfyUI's main.py has it: another module is called utils too
    import folder_paths
    from server import PromptServer

    folder_paths.set_output_directory(str(output))
    PromptServer(asyncio.new_event_loop())
    import_pack()
    from lora_loom.nodes.paths import runs_root
    from lora_loom.nodes.runs import Run, announce, find_run, history_of, listed_runs
    from lora_loom.trainer.events import Finished, Progress, Started
    from lora_loom.trainer.history import History

    tracemalloc.start()
    held = []
    for number in range(count):
        folder = runs_root() / f"bun-{number:012x}"
        folder.mkdir(parents=True)
        run = Run(folder.name, "7", "bun", "train_lora", folder, History())
        announce(run)
        with (folder / "events.jsonl").open("w") as file:
            for event in told(folder.name, Started, Progress, Finished):
                run.history.add(event)
                file.write(event.model_dump_json() + "\n")
        run.state = "finished"
        del run
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
    listed, _ = listed_runs(count)
    first = history_of(find_run(f"bun-{0:012x}"))
    print(json.dumps({"held": held, "listed": [run.id for run in listed], "first_losses": len(first.losses)}))


def told(run: str, started: type, progress: type, finished: type) -> list[object]:
    """The events of a training."""
    rates = {"total": STEPS, "learning_rate": 1e-3, "elapsed_seconds": 1.0, "steps_per_second": 1.0}
    steps = [progress(step=step, losses=(0.5,), **rates) for step in range(1, STEPS + 1)]
    return [started(run=run, pid=1, task="train_lora", total_steps=STEPS), *steps, finished(step=STEPS)]


main(Path(sys.argv[1]), int(sys.argv[2]))
