"""Training."""
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

from ..trainer.adapters.files import sha256_of
from ..trainer.adapters.made_metadata import TRAINING
from ..trainer.adapters.stack import Row
from ..trainer.data.sources import check_captions
from ..trainer.dataset import Dataset
from ..trainer.events import Event, Finished, Phase, Progress, Sample
from ..trainer.history import History
from ..trainer.options import Checkpointing, Hardware, Network, NetworkOptions, Objective, OptimizerOptions, Options, Sampling, TextOptions
from ..trainer.spec import Base, TrainLoRASpec, run_id, steps_of
from ..trainer.typed import explain
from .dataset import Datasets
from .jobs import execute, finished_history, remember
from .made import refuse_others
from .paths import cache_folder, lora_output, run_folder
from .sockets import LoomAdapters, LoomBase, LoomDataset, LoomOptions, LoraModel, LossMap

# How often the adapter of a name has had to be made again, and the file that its last training left: see fingerprint_inputs.
_REDO: Counter[str] = Counter()
_LEFT: dict[str, tuple[Path, int]] = {}

# One step's loss says next to nothing, since its timestep decides it: results tell the mean of this many steps at either end.
_LOSS_STEPS = 50


class LoomTrainLoRA(io.ComfyNode):
    """Trains a LoRA in a process of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomTrainLoRA",
            display_name="Train LoRA",
            category="LoRA Loom/training",
            description="Trains a LoRA on a dataset and saves it to models/loras.",
            inputs=[
                LoomBase.Input("base", tooltip="The checkpoint to train on."),
                LoomDataset.Input("dataset", tooltip="The pictures and captions."),
                io.String.Input("name", default="my_lora", tooltip="The adapter's file name in models/loras, without .safetensors."),
                io.Int.Input("rank", default=16, min=1, max=1024, tooltip="Capacity of the LoRA; the file grows with it."),
                io.Float.Input(
                    "alpha", default=16.0, min=0.01, max=4096.0, step=0.5, tooltip="The LoRA's scale is alpha / rank. The same as rank is 1."
                ),
                io.Int.Input("steps", default=1000, min=1, max=1_000_000, tooltip="Optimiser steps, each on batch_size pictures."),
                io.Int.Input("batch_size", default=1, min=1, max=1024, tooltip="Pictures a step."),
                io.Float.Input(
                    "learning_rate", default=1e-4, min=1e-7, max=10.0, step=1e-5, round=1e-7, tooltip="Usual for LoRA with AdamW: 1e-4 to 1e-3."
                ),
                # Without this the page adds "randomize" to an input called seed, and every queueing would be another training.
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip="The same seed gives the same adapter."),
                io.Combo.Input(
                    "precision",
                    options=["auto", "fp16", "bf16", "fp32"],
                    default="auto",
                    optional=True,
                    tooltip="auto: fp16 on CUDA, fp32 on the CPU. The LoRA's own weights are always fp32 while training.",
                ),
                LoomOptions.Input(
                    "options", optional=True, tooltip="Options nodes, chained: sampling, optimizer, network, text encoder, hardware..."
                ),
                LoomDataset.Input(
                    "validation",
                    optional=True,
                    tooltip="Held-out pictures; their loss is measured before and after, and as often as Checkpointing Options say.",
                ),
                LoomDataset.Input(
                    "class_dataset",
                    optional=True,
                    tooltip="Pictures of the class for prior preservation (DreamBooth); needs Prior Preservation in the options.",
                ),
            ],
            outputs=[
                LoomAdapters.Output(display_name="adapters", tooltip="The new adapter as a stack of one, to apply or stack on."),
                LoraModel.Output(display_name="lora_model", tooltip="The new adapter for core's Load LoRA Model."),
                LossMap.Output(display_name="loss_map", tooltip="Every step's loss, for core's Plot Loss Graph."),
                io.Image.Output(display_name="samples", tooltip="The last sample pictures; nothing if none were asked for."),
                io.Image.Output(display_name="loss_plot", tooltip="The loss curve."),
                io.String.Output(display_name="adapter_name", tooltip="The file's name relative to models/loras."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None, **_: Any) -> int:
        # ComfyUI remembers a node's outputs, files are not among them. A training that was stopped, and one whose file has since been
        # deleted or replaced, is to be gone on with, so its fingerprint changes.
        # A name that comes by a link is not told here: then any of them counts.
        for known in [name] if name is not None else list(_LEFT):
            left = _LEFT.get(known)
            if left and (not left[0].is_file() or left[0].stat().st_mtime_ns != left[1]):
                _REDO[known] += 1
                del _LEFT[known]
        return _REDO[name] if name is not None else _REDO.total()

    @classmethod
    def execute(cls, base: Base, dataset: Datasets, name: str, options: Options | None = None, **settings: Any) -> io.NodeOutput:
        # What is only looked at is framed as what is trained, without chance.
        framing = dataset[0].framing.plain()
        validation = tuple(part.model_copy(update={"framing": framing}) for part in settings.pop("validation", None) or ())
        class_images = settings.pop("class_dataset", None) or ()
        for part in (*dataset, *validation, *class_images):
            check_captions(part)
        options = options or Options()
        output = lora_output(name)
        try:
            added = options.network or NetworkOptions()
            network = Network(rank=settings.pop("rank"), alpha=settings.pop("alpha"), **added.model_dump())
            spec = TrainLoRASpec(
                name=name,
                output=str(output),
                base=base,
                datasets=dataset,
                validation=validation,
                class_images=class_images,
                cache=str(cache_folder()),
                network=network,
                optimizer=options.optimizer or OptimizerOptions(),
                objective=options.objective or Objective(),
                text=options.text or TextOptions(),
                prior=options.prior,
                checkpointing=options.checkpointing or Checkpointing(),
                hardware=options.hardware or Hardware(),
                sampling=_sampling(options.sampling, dataset[0], settings["steps"]),
                **settings,
            )
        except ValidationError as error:
            raise ValueError(explain(error)) from error
        for path in (output, *(steps_of(output).values() if spec.checkpointing.adapter_every_steps else ())):
            refuse_others("loras", path, TRAINING)
        folder = run_folder(run_id(spec))
        told = _finished(folder, output)
        if told is None:
            comfy.model_management.unload_all_models()
            comfy.model_management.soft_empty_cache()
            run = execute(spec, str(cls.hidden.unique_id), name, _Watcher(spec, folder, cls.hidden.unique_id))
            told = run.history
            if run.state == "stopped":
                _REDO[name] += 1
        else:
            remember(spec, str(cls.hidden.unique_id), name, told)
        if not isinstance(told.end, Finished) or not told.end.adapter:
            raise ValueError(f"the training of {name} was stopped before it had an adapter to go on with.")
        _LEFT[name] = (output, output.stat().st_mtime_ns)
        return _outputs(folder, output, told)


def _sampling(options: Sampling | None, dataset: Dataset, steps: int) -> Sampling:
    sampling = options or Sampling(every_steps=max(1, steps // 4))
    prompts = (sampling.prompts or (dataset.training_caption(dataset.images[0]),)) if sampling.draw else ()
    return sampling.model_copy(update={"prompts": prompts, "width": dataset.framing.resolution, "height": dataset.framing.resolution})


def _finished(folder: Path, output: Path) -> History | None:
    """The history of this very training if it is done already; its adapter is put back in place if it is gone."""
    told = finished_history(folder)
    kept = folder / "adapter.safetensors"
    if told is None or not isinstance(told.end, Finished) or not kept.is_file() or sha256_of(kept) != told.end.sha256:
        return None
    if not output.is_file() or sha256_of(output) != told.end.sha256:
        temporary = output.with_suffix(".tmp")
        shutil.copyfile(kept, temporary)
        os.replace(temporary, output)
    return told


class _Watcher:
    """Moves ComfyUI's own progress bar, with the newest sample as its preview."""

    def __init__(self, spec: TrainLoRASpec, folder: Path, node: Any) -> None:
        self.bar = comfy.utils.ProgressBar(spec.steps, node_id=node)
        self.steps = spec.steps
        self.folder = folder

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.bar.update_absolute(event.step, event.total)
        elif isinstance(event, Sample):
            with Image.open(self.folder / event.file) as picture:
                self.bar.update_absolute(event.step, self.steps, ("JPEG", picture.convert("RGB"), 512))
        elif isinstance(event, Phase) and event.total:
            self.bar.update_absolute(0, self.steps)


def _outputs(folder: Path, output: Path, told: History) -> io.NodeOutput:
    name = output.relative_to(folder_paths.get_folder_paths("loras")[0]).as_posix()
    losses = [loss for _, loss in sorted(told.losses.items())]
    last = [sample for sample in told.samples if sample.step == told.samples[-1].step]
    plot = _picture(folder / "loss.png")
    # None: what hangs on it does not run, and nothing is wrong.
    samples = torch.cat([_picture(folder / sample.file) for sample in last]) if last else ExecutionBlocker(None)
    subfolder = f"lora_loom/runs/{folder.name}"
    images = [{"filename": Path(s.file).name, "subfolder": f"{subfolder}/samples", "type": "output"} for s in last]
    loss_plot = {"filename": "loss.png", "subfolder": subfolder, "type": "output"}
    result = {
        "run": folder.name,
        "adapter": name,
        "steps": told.end.step if isinstance(told.end, Finished) else 0,
        "first_loss": _mean(losses[:_LOSS_STEPS]),
        "last_loss": _mean(losses[-_LOSS_STEPS:]),
        "seconds_per_step": told.seconds_per_step(),
        "validation": sorted(told.validation.items()),
        "buckets": [bucket.model_dump() for bucket in told.data.buckets] if told.data else [],
        "loss_plot": loss_plot,
    }
    return io.NodeOutput(
        (Row(name=name),),
        load_file(output),
        {"loss": losses},
        samples,
        plot,
        name,
        ui={"images": [*images, loss_plot], "lora_loom": [result]},
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _picture(path: Path) -> torch.Tensor:
    """As ComfyUI's IMAGE: (1, h, w, 3) in [0, 1]."""
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0).unsqueeze(0)
