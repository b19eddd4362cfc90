"""Training the vectors of a new word."""
from pathlib import Path
from typing import Any

from comfy_api.latest import io
from pydantic import ValidationError

from ..trainer.adapters.stack import EMBEDDING, Row
from ..trainer.file_names import check_word_name
from ..trainer.messages import explain
from ..trainer.options import NewWord, Options
from ..trainer.spec import Base, TextualInversionSpec
from ..trainer.templates import TEMPLATES, named, templated
from . import stamps
from .choices import choice_problem
from .dataset import Datasets
from .paths import embedding_output
from .sockets import LoomAdapters, LoomBase, LoomDataset, LoomOptions, LoomResult, LossMap
from .training import name_problem, refuse_options, train, training_spec

_NODE = "LoomTrainTextualInversion"


class LoomTrainTextualInversion(io.ComfyNode):
    """Trains an embedding in a process of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomTrainTextualInversion",
            display_name="Train Textual Inversion",
            category="LoRA Loom/training",
            description="Trains the vectors of a new word on a dataset, and nothing of the base; saves them to models/embeddings.",
            inputs=[
                LoomBase.Input("base", tooltip="The checkpoint to train on."),
                LoomDataset.Input("dataset", tooltip="The pictures; with template captions, their captions too."),
                io.String.Input("name", default="my_word", tooltip="The file in models/embeddings; prompts call it embedding:NAME. No spaces."),
                io.String.Input(
                    "placeholder", default="<my-word>", tooltip="The new word, as captions and sample prompts write it. One that is none yet."
                ),
                io.String.Input(
                    "initializer", default="", tooltip="A word that comes close, e.g. toy: the vectors begin as its own. Empty: they are drawn."
                ),
                io.Int.Input("vectors", default=1, min=1, max=75, tooltip="How many tokens the word is: more hold more, and take more of a prompt."),
                io.Combo.Input(
                    "template",
                    options=list(TEMPLATES),
                    default="object",
                    tooltip="What pictures are called: a photo of the word, a painting in its style, or by their own captions with the word in them.",
                ),
                io.Int.Input("steps", default=2000, min=1, max=1_000_000, tooltip="Optimiser steps, each on batch_size pictures."),
                io.Int.Input("batch_size", default=1, min=1, max=1024, tooltip="Pictures a step."),
                io.Float.Input(
                    "learning_rate", default=5e-4, min=1e-7, max=10.0, step=1e-5, round=1e-7, tooltip="Usual with AdamW: 5e-4 to 5e-3."
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip="The same seed gives the same embedding."
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="A prompt with the placeholder in it; it comes out with embedding:NAME instead, for CLIPTextEncode.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", "fp16", "bf16", "fp32"],
                    default="auto",
                    optional=True,
                    tooltip="auto: fp16 on CUDA, fp32 on the CPU. The vectors themselves are always fp32.",
                ),
                LoomOptions.Input("options", optional=True, tooltip="Options nodes, chained: sampling, optimizer, objective, hardware..."),
                LoomDataset.Input(
                    "validation",
                    optional=True,
                    tooltip="Held-out pictures; their loss, by dataset too, is measured before, after, and as often as Checkpointing Options say.",
                ),
            ],
            outputs=[
                LoomAdapters.Output(display_name="adapters", tooltip="The embedding as a row of a stack, whose words name it."),
                io.String.Output(display_name="word", tooltip="embedding:NAME, to write into prompts."),
                io.String.Output(display_name="prompt", tooltip="The prompt with embedding:NAME for the placeholder."),
                LossMap.Output(display_name="loss_map", tooltip="Every step's loss, for core's Plot Loss Graph."),
                io.Image.Output(display_name="samples", tooltip="The last sample pictures; nothing if none were asked for."),
                io.Image.Output(display_name="loss_plot", tooltip="The loss curve."),
                LoomResult.Output(display_name="result", tooltip="How the training went, for Compare Methods."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls, template: Any = None, placeholder: Any = None, initializer: Any = None, vectors: Any = None, name: Any = None
    ) -> bool | str:
        problem = choice_problem(template=(template, TEMPLATES)) or name_problem(name, check_word_name)
        if problem:
            return problem
        try:
            if isinstance(placeholder, str):
                NewWord(placeholder=placeholder)
        except ValidationError as error:
            return explain(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, name: str | None, **_: Any) -> int:
        return stamps.redone(_NODE, name)

    @classmethod
    def execute(
        cls,
        base: Base,
        dataset: Datasets,
        name: str,
        placeholder: str,
        initializer: str,
        vectors: int,
        template: Any,
        prompt: str = "",
        options: Options | None = None,
        validation: Datasets | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        options = options or Options()
        # Without the new word in their captions, pictures of a class would not be about anything that trains.
        refuse_options(options, "textual inversion", network="Network Options", word="New Word Options", prior="Prior Preservation")
        spec = training_spec(
            TextualInversionSpec,
            base,
            templated(dataset, template, placeholder),
            options,
            validation=templated(validation, template, placeholder) if validation else None,
            name=name,
            output=str(embedding_output(name)),
            word=NewWord(placeholder=placeholder, initializer=initializer, vectors=vectors),
            **settings,
        )
        done = train(_NODE, cls.hidden.unique_id, spec)
        word = EMBEDDING + Path(done.spec.output).stem
        return io.NodeOutput(
            (Row(name=word),),
            word,
            named(prompt, placeholder, word),
            {"loss": done.losses},
            done.samples(),
            done.loss_plot(),
            done.result(word),
            ui=done.ui(word),
        )
