"""Options of the run itself: what is kept of it, and what it runs on."""
from typing import Any, get_args

from comfy_api.latest import io

from ..trainer.options import BaseFormat, Checkpointing, Hardware, Options, StateOfRun
from .chaining import CATEGORY, chained
from .off_loop import off_loop
from .paths import PathError, state_choices, state_folder
from .sockets import LoomOptions

_NEW = "a new start"


class LoomCheckpointing(io.ComfyNode):
    """When states are saved, and how often held-out pictures are looked at."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomCheckpointing",
            display_name="Checkpointing Options",
            category=CATEGORY,
            description="How often a training's state is saved, how many are kept, and how often the validation loss is measured.",
            inputs=[
                io.Int.Input("every_steps", default=500, min=0, max=1_000_000, tooltip="Save the state every so many steps. 0: not by steps."),
                io.Float.Input(
                    "every_minutes", default=0.0, min=0.0, max=10_000.0, step=1.0, tooltip="Save the state every so many minutes. 0: not by time."
                ),
                io.Int.Input(
                    "keep_last", default=2, min=0, max=1000, tooltip="States that are kept, the newest ones. 0: none once the training has finished."
                ),
                io.Int.Input(
                    "validate_every_steps",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Measure the loss of the validation pictures every so many steps. 0: before and after only.",
                ),
                io.Boolean.Input(
                    "keep_best", default=False, optional=True, tooltip="Keep the state with the lowest validation loss too, however old it is."
                ),
                io.Combo.Input(
                    "adapter",
                    options=["last", "best"],
                    default="last",
                    optional=True,
                    tooltip="Which weights the adapter gets: those of the last step, or those with the lowest validation loss.",
                ),
                io.Combo.Input(
                    "continue_from",
                    options=[_NEW, *state_choices()],
                    default=_NEW,
                    optional=True,
                    tooltip="A saved state of another run to go on from, as if it had not ended: more steps, a new learning rate, other pictures.",
                ),
                io.Boolean.Input(
                    "tensorboard", default=False, optional=True, tooltip="Write losses and pictures for TensorBoard into the run's folder."
                ),
                io.Int.Input(
                    "adapter_every_steps",
                    default=0,
                    min=0,
                    max=1_000_000,
                    optional=True,
                    tooltip="Also save the adapter of every so many steps, as NAME-step00000500 beside the last one. 0: only the last one.",
                ),
                LoomOptions.Input("options", optional=True, tooltip="Other options nodes, chained."),
            ],
            outputs=[LoomOptions.Output(display_name="options", tooltip="For a training node, or the next options node.")],
        )

    @classmethod
    @off_loop
    def validate_inputs(cls, continue_from: str = _NEW) -> bool | str:
        try:
            _start(continue_from)
        except PathError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, continue_from: str = _NEW, options: Options | None = None, **values: Any) -> io.NodeOutput:
        values["start"] = _start(continue_from)
        return chained(options, "checkpointing", "Checkpointing Options", Checkpointing, values)


def _start(name: str) -> StateOfRun | None:
    """The state that `state_choices` calls `name`. Raises PathError."""
    if name == _NEW:
        return None
    run, step = state_folder(name)
    return StateOfRun(run=str(run), step=step)


class LoomHardware(io.ComfyNode):
    """Memory and speed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomHardware",
            display_name="Hardware Options",
            category=CATEGORY,
            description="Trades speed for memory, or spreads a training over several devices.",
            inputs=[
                io.Boolean.Input(
                    "gradient_checkpointing", default=False, tooltip="Much less memory for about a third more time: parts are computed again."
                ),
                io.Boolean.Input(
                    "compile", default=False, tooltip="Compile the UNet's blocks with torch: faster steps, after each block has been compiled once."
                ),
                io.Boolean.Input("channels_last", default=False, tooltip="Another order of the UNet's numbers in memory; faster on some GPUs."),
                io.Combo.Input(
                    "base_format",
                    options=list(get_args(BaseFormat)),
                    default="as precision",
                    tooltip="How the frozen base is stored while training. fp8: half the memory of fp16, for a little speed and accuracy.",
                ),
                io.Int.Input(
                    "processes",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Devices to train on at once, through accelerate. Each sees batch_size pictures a step.",
                ),
                LoomOptions.Input("options", optional=True, tooltip="Other options nodes, chained."),
            ],
            outputs=[LoomOptions.Output(display_name="options", tooltip="For a training node, or the next options node.")],
        )

    @classmethod
    def execute(cls, options: Options | None = None, **values: Any) -> io.NodeOutput:
        return chained(options, "hardware", "Hardware Options", Hardware, values)
