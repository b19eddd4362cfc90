"""Options about words: how captions are read, and prior preservation of a class."""
from typing import Any

from comfy_api.latest import io

from ..trainer.options import Options, PivotalWord, Prior, TextOptions
from .chaining import CATEGORY, chained
from .sockets import LoomOptions


class LoomTextEncoder(io.ComfyNode):
    """How captions and prompts are read, and whether the text encoder is trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomTextEncoder",
            display_name="Text Encoder Options",
            category=CATEGORY,
            description="How a training reads captions, and whether the text encoder gets an adapter too.",
            inputs=[
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=1e-5,
                    round=1e-7,
                    tooltip="Train the text encoder too, at this learning rate, e.g. 5e-5. 0: it is not trained.",
                ),
                io.Int.Input(
                    "clip_skip", default=0, min=0, max=12, tooltip="The layer that counts, from the end; 2 for many anime bases. 0: the base's own."
                ),
                io.Combo.Input(
                    "max_tokens", options=["75", "150", "225"], default="75", tooltip="Longer captions are read in chunks of 75 tokens up to this."
                ),
                io.Boolean.Input(
                    "emphasis", default=False, tooltip="Parentheses weigh words as in ComfyUI's prompts: (word:1.2). Off: they are plain text."
                ),
                LoomOptions.Input("options", optional=True, tooltip="Other options nodes, chained."),
            ],
            outputs=[LoomOptions.Output(display_name="options", tooltip="For a training node, or the next options node.")],
        )

    @classmethod
    def execute(cls, max_tokens: str, options: Options | None = None, **values: Any) -> io.NodeOutput:
        values["max_tokens"] = int(max_tokens)
        return chained(options, "text", "Text Encoder Options", TextOptions, values)


class LoomNewWord(io.ComfyNode):
    """A new word that is trained along with a LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomNewWord",
            display_name="New Word Options",
            category=CATEGORY,
            description="Trains the vectors of a new word along with a LoRA (pivotal tuning); they go to models/embeddings under the LoRA's name.",
            inputs=[
                io.String.Input(
                    "placeholder", default="<my-word>", tooltip="The new word, as captions write it; put first in every caption that lacks it."
                ),
                io.String.Input(
                    "initializer", default="", tooltip="A word that comes close, e.g. toy: the vectors begin as its own. Empty: they are drawn."
                ),
                io.Int.Input("vectors", default=1, min=1, max=75, tooltip="How many tokens the word is: more hold more, and take more of a prompt."),
                io.Float.Input(
                    "learning_rate", default=1e-3, min=1e-7, max=10.0, step=1e-5, round=1e-7, tooltip="Of the vectors alone. Usual: 3e-4 to 3e-3."
                ),
                LoomOptions.Input("options", optional=True, tooltip="Other options nodes, chained."),
            ],
            outputs=[LoomOptions.Output(display_name="options", tooltip="For a training node, or the next options node.")],
        )

    @classmethod
    def execute(cls, options: Options | None = None, **values: Any) -> io.NodeOutput:
        return chained(options, "word", "New Word Options", PivotalWord, values)


class LoomPrior(io.ComfyNode):
    """Prior preservation, as in DreamBooth."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomPrior",
            display_name="Prior Preservation",
            category=CATEGORY,
            description="Trains pictures of the class along, so that the base does not forget it (DreamBooth).",
            inputs=[
                io.String.Input(
                    "class_prompt",
                    default="",
                    tooltip="What the base draws class pictures from, e.g. a photo of a dog. Empty: only the class dataset's pictures are used.",
                ),
                io.Int.Input(
                    "num_class_images", default=100, min=1, max=10000, tooltip="With a class_prompt: as many pictures as there are to be in all."
                ),
                io.Float.Input("weight", default=1.0, min=0.0, max=100.0, step=0.1, tooltip="Of the class pictures' loss (prior_loss_weight)."),
                io.Int.Input("steps", default=25, min=1, max=200, tooltip="Sampler steps (Euler) of a drawn class picture."),
                io.Float.Input("guidance_scale", default=7.0, min=0.0, max=50.0, step=0.1, tooltip="Classifier-free guidance of a drawn picture."),
                LoomOptions.Input("options", optional=True, tooltip="Other options nodes, chained."),
            ],
            outputs=[LoomOptions.Output(display_name="options", tooltip="For a training node, or the next options node.")],
        )

    @classmethod
    def execute(cls, class_prompt: str, options: Options | None = None, **values: Any) -> io.NodeOutput:
        return chained(options, "prior", "Prior Preservation", Prior, {"class_prompt": class_prompt.strip(), **values})
