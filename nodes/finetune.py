"""Training the base itself."""
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
from comfy_api.latest import io

from ..trainer.options import Checkpointing, Hardware, Options
from ..trainer.spec import Base, FineTuneSpec
from . import stamps
from .dataset import Datasets
from .paths import checkpoint_output
from .sockets import LoomBase, LoomDataset, LoomOptions, LoomResult, LossMap
from .training import name_problem, refuse_options, train, training_spec, trigger_word

_NODE = "LoomFineTune"


class LoomFineTune(io.ComfyNode):
    """Trains all weights of a checkpoint in a process of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomFineTune",
            display_name="Fine-Tune Checkpoint",
            category="LoRA Loom/training",
            description="Trains the UNet itself, and if asked the text encoder, and saves a whole checkpoint; with class pictures it is DreamBooth.",
            inputs=[
                LoomBase.Input("base", tooltip="The checkpoint to train. Its file stays as it is."),
                LoomDataset.Input("dataset", tooltip="The pictures and captions."),
                io.String.Input("name", default="my_model", tooltip="The new file's name in models/checkpoints, without .safetensors."),
                io.Int.Input("steps", default=1000, min=1, max=1_000_000, tooltip="Optimiser steps, each on batch_size pictures."),
                io.Int.Input("batch_size", default=1, min=1, max=1024, tooltip="Pictures a step."),
                io.Float.Input(
                    "learning_rate", default=1e-5, min=0.0, max=10.0, step=1e-6, round=1e-8, tooltip="Usual: 1e-6 to 1e-5, DreamBooth 2e-6 to 5e-6."
                ),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip="The same seed gives the same weights."),
                io.Combo.Input(
                    "save_format",
                    options=["fp16", "bf16", "fp32"],
                    default="fp16",
                    tooltip="The number format of the file; fp16 halves it and is what most checkpoints have.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", "fp16", "bf16", "fp32"],
                    default="auto",
                    optional=True,
                    tooltip="What is computed in. auto: fp16 on CUDA, fp32 on the CPU. The weights themselves are fp32 while they train.",
                ),
                LoomOptions.Input(
                    "options", optional=True, tooltip="Options nodes, chained: optimizer (EMA), text encoder, prior, sampling, hardware..."
                ),
                LoomDataset.Input(
                    "validation",
                    optional=True,
                    tooltip="Held-out pictures; their loss, by dataset too, is measured before, after, and as often as Checkpointing Options say.",
                ),
                LoomDataset.Input(
                    "class_dataset",
                    optional=True,
                    tooltip="Pictures of the class for prior preservation (DreamBooth); needs Prior Preservation in the options.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The trained model, to draw with."),
                io.Clip.Output(display_name="clip", tooltip="Its text encoder."),
                io.Vae.Output(display_name="vae", tooltip="Its VAE, which is the base's."),
                LossMap.Output(display_name="loss_map", tooltip="Every step's loss, for core's Plot Loss Graph."),
                io.Image.Output(display_name="samples", tooltip="The last sample pictures; nothing if none were asked for."),
                io.Image.Output(display_name="loss_plot", tooltip="The loss curve."),
                io.String.Output(display_name="checkpoint_name", tooltip="The file's name relative to models/checkpoints."),
                LoomResult.Output(display_name="result", tooltip="How the training went, for Compare Methods."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: Any = None) -> bool | str:
        return name_problem(name) or True

    @classmethod
    def fingerprint_inputs(cls, name: str | None, **_: Any) -> int:
        return stamps.redone(_NODE, name)

    @classmethod
    def execute(cls, base: Base, dataset: Datasets, name: str, options: Options | None = None, **settings: Any) -> io.NodeOutput:
        options = options or Options()
        refuse_options(options, "a full fine-tune", network="Network Options", word="New Word Options")
        spec = training_spec(
            FineTuneSpec,
            base,
            dataset,
            options,
            # A state is three to four times the model's size: none is left of a training that has ended.
            checkpointing=Checkpointing(keep_last=0),
            hardware=Hardware(gradient_checkpointing=True),
            name=name,
            output=str(checkpoint_output(name)),
            **settings,
        )
        done = train(_NODE, cls.hidden.unique_id, spec)
        model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(
            done.spec.output, output_vae=True, output_clip=True, embedding_directory=folder_paths.get_folder_paths("embeddings")
        )
        checkpoint = Path(done.spec.output).relative_to(folder_paths.get_folder_paths("checkpoints")[0]).as_posix()
        return io.NodeOutput(
            model,
            clip,
            vae,
            {"loss": done.losses},
            done.samples(),
            done.loss_plot(),
            checkpoint,
            done.result(trigger_word(dataset)),
            ui=done.ui(checkpoint),
        )
