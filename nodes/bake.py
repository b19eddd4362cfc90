"""A checkpoint out of a checkpoint and a stack of adapters."""
from functools import partial
from typing import Any

from comfy_api.latest import io

from ..trainer.adapters.bake import Baked, bake
from ..trainer.adapters.checkpoint_layers import BIAS, checkpoint_layers
from ..trainer.adapters.layers import Layer
from ..trainer.adapters.made_metadata import MADE_BY, made_by
from ..trainer.adapters.merge import is_text_encoder, weight_of
from ..trainer.adapters.saving import AS_THE_FILE
from ..trainer.adapters.stack import Row
from ..trainer.families.detect import UNET, Checkpoint, describe_checkpoint
from .choices import choice_problem
from .kept import Kept
from .made import refuse_own_source, sources_of, target, target_problem, watched
from .matching import Weights, some
from .off_loop import off_loop
from .parts import Part, blocks_of, check_together, merge_weight, not_carried, parts_of
from .paths import model_choices, model_file
from .sockets import LoomAdapters
from .stamps import named_stamp, redone, remember, stamp


class LoomBakeCheckpoint(io.ComfyNode):
    """A checkpoint with the adapters of a stack in its weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomBakeCheckpoint",
            display_name="Bake Checkpoint",
            category="LoRA Loom/adapters",
            description="Saves a checkpoint with the adapters of a stack in its weights to models/checkpoints.",
            inputs=[
                io.Combo.Input("checkpoint", options=model_choices("checkpoints"), tooltip="The checkpoint to start from. Its file is not changed."),
                LoomAdapters.Input("adapters", tooltip="The stack to put into the weights."),
                io.String.Input("name", default="my_checkpoint", tooltip="The new file's name in models/checkpoints, without .safetensors."),
                io.Combo.Input(
                    "dtype",
                    options=list(AS_THE_FILE),
                    default=next(iter(AS_THE_FILE)),
                    tooltip="Number format of the UNet and the text encoders. The VAE always stays as it is.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="checkpoint_name", tooltip="The file's name relative to models/checkpoints."),
                io.String.Output(display_name="report", tooltip="What was changed, and what the number format took of it."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @off_loop
    def validate_inputs(cls, checkpoint: Any = None, name: Any = None, dtype: Any = None) -> bool | str:
        try:
            if isinstance(checkpoint, str):
                path = model_file("checkpoints", checkpoint)
                describe_checkpoint(path)
                if isinstance(name, str):
                    refuse_own_source(target("checkpoints", name, "LoomBakeCheckpoint"), [path])
        except ValueError as error:
            return str(error)
        return choice_problem(dtype=(dtype, list(AS_THE_FILE))) or target_problem("checkpoints", name, "LoomBakeCheckpoint") or True

    @classmethod
    def fingerprint_inputs(cls, checkpoint: Any = None, name: Any = None, **_: Any) -> list[Any]:
        return [redone("LoomBakeCheckpoint", name), named_stamp(partial(model_file, "checkpoints"), checkpoint)]

    @classmethod
    def execute(cls, checkpoint: str, adapters: tuple[Row, ...], name: str, dtype: str) -> io.NodeOutput:
        source, output = model_file("checkpoints", checkpoint), target("checkpoints", name, "LoomBakeCheckpoint")
        refuse_own_source(output, [source])
        Kept.drop_others(cls.hidden)
        described = describe_checkpoint(source)
        places = checkpoint_layers(described, checkpoint)
        parts = parts_of(adapters, str(cls.hidden.unique_id), described.family)
        check_together(parts)
        layers, missing = _layers(parts, described, {key: place.shape for key, place in places.items() if place.adaptable})
        files = [{"name": checkpoint, "size": source.stat().st_size, "header_sha256": described.header.sha256}, *sources_of(parts)]
        step = watched(cls.hidden.unique_id, len(described.header.tensors))
        metadata = {MADE_BY: made_by("LoomBakeCheckpoint", {"dtype": dtype}, files)}
        converted = (UNET, *(text.prefix for text in described.texts))
        baked = bake(source, output, places, layers, metadata, dtype=AS_THE_FILE[dtype], converted=converted, progress=step)
        remember("LoomBakeCheckpoint", name, lambda: stamp(output))
        text = "\n".join([*_told(baked, checkpoint, output.name), *missing, *not_carried(parts)])
        return io.NodeOutput(output.name, text, ui={"text": [text]})


def _layers(parts: list[Part], described: Checkpoint, shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, list[tuple[float, Layer]]], list[str]]:
    """Weights and layers by key, and lines about layers that the checkpoint has no weight for. Raises MatchError or BlockError."""
    weights = {key: shape for key, shape in shapes.items() if not key.endswith(BIAS)}
    of_text = {key: key for key in weights if is_text_encoder(key)}
    there = Weights(described.family, {key: key for key in weights if key not in of_text}, of_text, weights, True)
    found: dict[str, list[tuple[float, Layer]]] = {}
    lines = []
    # Sums are made in an order that is not that of the stack, so that its order changes no bit.
    for part in sorted(parts, key=lambda part: (part.row.name, part.row.model_dump_json())):
        match = there.match(part.row.name, part.adapter)
        strength, block = merge_weight(part), blocks_of(part.family)
        for key, layer in (match.model | match.clip).values():
            if weight := weight_of(strength, key, block(key)):
                found.setdefault(key, []).append((weight, layer))
        told = f"{part.row.name}: model {part.row.model:g}, text encoder {part.row.clip:g}, {match.count} of {len(part.adapter.layers)} layers"
        lines.append(told + match.left_out("checkpoint", 3))
    return found, lines


def _told(baked: Baked, checkpoint: str, name: str) -> list[str]:
    lines = [f"{checkpoint}: {baked.changed} of {baked.tensors} tensors changed, saved as models/checkpoints/{name} ({baked.size / 2**20:.0f} MiB)"]
    if baked.changed:
        lines.append(f"rounding to the file's number format took {baked.lost * 100:.3g} % of the change")
    if baked.unused:
        lines.append(f"the checkpoint has no place for {some(baked.unused)}")
    return lines
