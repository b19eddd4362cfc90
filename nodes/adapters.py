"""Stacks of adapters, and applying them."""
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.sd
from comfy_api.latest import io
from safetensors.torch import load_file

from ..trainer.adapters.files import read_header
from ..trainer.adapters.stack import Row, StackError, from_lora_stack, parse_rows, to_lora_stack, trigger_words
from .paths import PathError, model_file
from .sockets import LoomAdapters, LoraStack


class LoomAdapterStack(io.ComfyNode):
    """Any number of adapters with weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomAdapterStack",
            display_name="Adapter Stack",
            category="LoRA Loom/adapters",
            description="Stacks LoRAs with a weight each for the model and the text encoder.",
            inputs=[
                io.String.Input(
                    "rows",
                    default="[]",
                    multiline=True,
                    tooltip='A JSON list of {"on", "name", "model", "clip"}; names are relative to models/loras.',
                ),
                LoomAdapters.Input("adapters", optional=True, tooltip="Adapters to put before these rows, e.g. the one just trained."),
                LoraStack.Input("lora_stack", optional=True, tooltip="A LORA_STACK of another pack to put before these rows."),
            ],
            outputs=[
                LoomAdapters.Output(display_name="adapters", tooltip="The whole stack."),
                LoraStack.Output(display_name="lora_stack", tooltip="The same for other packs: (name, model, clip) tuples."),
                io.String.Output(display_name="trigger_words", tooltip="The words that the adapters which are on listen to."),
            ],
        )

    @classmethod
    def validate_inputs(cls, rows: Any = "[]") -> bool | str:
        if not isinstance(rows, str):
            return True  # Supplied by a link: looked at when the node runs.
        try:
            _check_files(parse_rows(rows))
        except (StackError, PathError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, rows: Any = None, **_: Any) -> list[tuple[int, int]]:
        # A file that was replaced under its name is another adapter.
        try:
            files = _check_files(parse_rows(rows)) if isinstance(rows, str) else []
            stats = [file.stat() for file in files if file]
        except (StackError, PathError, OSError):
            return []  # execute says what is wrong
        return [(stat.st_size, stat.st_mtime_ns) for stat in stats]

    @classmethod
    def execute(cls, rows: str, adapters: tuple[Row, ...] = (), lora_stack: Any = None) -> io.NodeOutput:
        stack = (*from_lora_stack(lora_stack or ()), *(adapters or ()), *parse_rows(rows))
        files = _check_files(stack)
        words = [word for file in files if file for word in trigger_words(read_header(file).metadata)]
        return io.NodeOutput(stack, to_lora_stack(stack), ", ".join(dict.fromkeys(words)))


class LoomApplyAdapters(io.ComfyNode):
    """Patches a model and its text encoder with a stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomApplyAdapters",
            display_name="Apply Adapters",
            category="LoRA Loom/adapters",
            description="Applies a stack of adapters to a model.",
            inputs=[
                io.Model.Input("model", tooltip="The model to adapt."),
                LoomAdapters.Input("adapters", tooltip="The stack to apply."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder to adapt, for adapters that hold a part for it."),
                io.Combo.Input("mode", options=["merged"], default="merged", tooltip="merged: the adapters are added to the weights."),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="Multiplies every weight of the stack; 0 leaves the model alone."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The adapted model."),
                io.Clip.Output(display_name="clip", tooltip="The adapted text encoder."),
                io.String.Output(display_name="report", tooltip="What was applied, and what of it matched."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, adapters: tuple[Row, ...], mode: str, strength: float, clip: Any = None) -> io.NodeOutput:
        lines = []
        for row, file in zip(adapters, _check_files(adapters), strict=True):
            weights = (row.model * strength, row.clip * strength)
            if file is None or weights == (0.0, 0.0):
                lines.append(f"{row.name}: off")
                continue
            tensors = load_file(file)
            matched, layers = _matching(tensors, model, clip)
            if not matched:
                raise ValueError(f"{row.name}: none of its {layers} layers exist in this model: it was made for another family.")
            model, clip = comfy.sd.load_lora_for_models(model, clip, tensors, *weights)
            lines.append(f"{row.name}: model {weights[0]:g}, text encoder {weights[1]:g}, {matched} of {layers} layers")
        return io.NodeOutput(model, clip, "\n".join(lines))


def _matching(tensors: dict[str, Any], model: Any, clip: Any) -> tuple[int, int]:
    """How many of the file's layers the model (and the text encoder) has, and how many there are."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, keys)
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(tensors)), keys, log_missing=False)
    layers = {name.rsplit(".", 2 if name.endswith(".weight") else 1)[0] for name in tensors}
    return len(patches), len(layers)


def _check_files(rows: tuple[Row, ...]) -> list[Path | None]:
    """The files of the rows, in order; None for a row that is off. Raises PathError that names the row."""
    files: list[Path | None] = []
    for number, row in enumerate(rows, 1):
        try:
            files.append(model_file("loras", row.name) if row.on else None)
        except PathError as error:
            raise PathError(f"row {number}: {error}") from error
    return files
