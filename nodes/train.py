"""Training a LoRA."""
from typing import Any

import folder_paths
from comfy_api.latest import io
from safetensors.torch import load_file

from ..trainer.adapters.stack import EMBEDDING, Row
from ..trainer.options import Network, NetworkOptions, Options
from ..trainer.spec import Base, TrainLoRASpec
from ..trainer.templates import with_word
from . import stamps
from .dataset import Datasets
from .paths import embedding_output, lora_output
from .sockets import LoomAdapters, LoomBase, LoomDataset, LoomOptions, LoomResult, LoraModel, LossMap
from .training import name_problem, train, training_spec, trigger_word

_NODE = "LoomTrainLoRA"


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
                    tooltip="Held-out pictures; their loss, by dataset too, is measured before, after, and as often as Checkpointing Options say.",
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
    def execute(
        cls,
        base: Base,
        dataset: Datasets,
        name: str,
        rank: int,
        alpha: float,
        options: Options | None = None,
        validation: Datasets | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        options = options or Options()
        network = Network(rank=rank, alpha=alpha, **(options.network or NetworkOptions()).model_dump())
        word = options.word
        spec = training_spec(
            TrainLoRASpec,
            base,
            with_word(dataset, word.placeholder) if word else dataset,
            options,
            validation=with_word(validation, word.placeholder) if word and validation else validation,
            name=name,
            output=str(lora_output(name)),
            network=network,
            word=word,
            word_output=str(embedding_output(name)) if word else "",
            **settings,
        )
        done = train(_NODE, cls.hidden.unique_id, spec)
        output, *others = (result.output for result in done.spec.results)
        adapter = output.relative_to(folder_paths.get_folder_paths("loras")[0]).as_posix()
        embedding = EMBEDDING + others[0].stem if word else ""
        rows = (Row(name=adapter), *([Row(name=embedding)] if word else []))
        return io.NodeOutput(
            rows,
            load_file(output),
            {"loss": done.losses},
            done.samples(),
            done.loss_plot(),
            adapter,
            done.result(embedding or trigger_word(dataset)),
            ui=done.ui(adapter),
        )
