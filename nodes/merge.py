"""Adapters out of adapters: several merged into one, and one of another rank."""
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from pydantic import ValidationError

from ..trainer.adapters.merge import MERGE_OPTIONS, MergeOptions, merge
from ..trainer.adapters.merge_report import MergeResult
from ..trainer.adapters.plain import FORMATS
from ..trainer.adapters.stack import Row
from ..trainer.messages import explain
from .choices import choice_problem
from .kept import Kept
from .made import refuse_own_source, save_adapter, sources_of, target, target_problem, watched
from .matching import model_family
from .off_loop import off_loop
from .parts import base_weights, blocks_of, common_family, merge_weight, not_carried, parts_of, weighted_family
from .sockets import LoomAdapters
from .stamps import redone

_DEFAULTS: dict[str, Any] = {"rank": 0, "energy": 0.0, "density": 0.5, "drop_rate": 0.5, "seed": 0, "dare_variant": "linear"}
_OF_METHOD = {
    "concatenate": (),
    "svd": ("rank", "energy"),
    "ties": ("rank", "energy", "density"),
    "dare": ("rank", "energy", "drop_rate", "seed", "dare_variant"),
    "magnitude_prune": ("rank", "energy", "density"),
    "slerp": ("rank", "energy"),
}
_NAMES = {"dare_variant": "variant"}
_VARIANTS = ["linear", "ties"]


class LoomMergeAdapters(io.ComfyNode):
    """One adapter that does what a stack does."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomMergeAdapters",
            display_name="Merge Adapters",
            category="LoRA Loom/adapters",
            description="Merges the adapters of a stack into one file in models/loras, and reports what that cost.",
            inputs=[
                LoomAdapters.Input("adapters", tooltip="The stack; its rows' weights and blocks become part of the new adapter."),
                io.String.Input("name", default="my_merge", tooltip="The new file's name in models/loras, without .safetensors."),
                io.Combo.Input(
                    "method",
                    options=list(_OF_METHOD),
                    default="concatenate",
                    tooltip="concatenate is exact, and ranks add up. svd is the nearest of a rank. The others: see this node's help.",
                ),
                io.Int.Input("rank", default=0, min=0, max=4096, tooltip="The new adapter's rank at most. 0: as energy says, or no limit."),
                io.Float.Input(
                    "energy", default=0.0, min=0.0, max=1.0, step=0.01, round=0.0001, tooltip="Share of each layer's energy to keep. 0: no limit."
                ),
                io.Float.Input(
                    "density", default=0.5, min=0.01, max=1.0, step=0.05, tooltip="ties, magnitude_prune: share of each change that is kept."
                ),
                io.Float.Input("drop_rate", default=0.5, min=0.0, max=0.99, step=0.05, tooltip="dare: share of each change dropped at random."),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False, tooltip="dare: the same seed drops the same."),
                io.Combo.Input(
                    "dare_variant", options=_VARIANTS, default="linear", tooltip="dare: what is left is added up, or voted on as in ties."
                ),
                io.Combo.Input("save_format", options=list(FORMATS), default="fp16", tooltip="Number format of the file."),
                io.Model.Input("model", optional=True, tooltip="The base model, for DoRA and other kinds that need its weights, unpatched."),
                io.Clip.Input("clip", optional=True, tooltip="Its text encoder, for the same kinds."),
            ],
            outputs=[
                LoomAdapters.Output(display_name="adapters", tooltip="The new adapter as a stack of one."),
                io.String.Output(display_name="adapter_name", tooltip="The file's name relative to models/loras."),
                io.String.Output(display_name="report", tooltip="Ranks, errors against the exact sum, energy, by block."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @off_loop
    def validate_inputs(
        cls,
        name: Any = None,
        method: Any = None,
        rank: Any = 0,
        energy: Any = 0.0,
        density: Any = 0.5,
        drop_rate: Any = 0.5,
        seed: Any = 0,
        dare_variant: Any = "linear",
        save_format: Any = None,
    ) -> bool | str:
        problem = choice_problem(
            method=(method, list(_OF_METHOD)), dare_variant=(dare_variant, _VARIANTS), save_format=(save_format, list(FORMATS))
        )
        if problem:
            return problem
        settings = {"rank": rank, "energy": energy, "density": density, "drop_rate": drop_rate, "seed": seed, "dare_variant": dare_variant}
        if method is not None and None not in settings.values():
            # What comes by a link is looked at when the node runs.
            try:
                merge_options(method, settings)
            except ValueError as error:
                return str(error)
        return target_problem("loras", name, "LoomMergeAdapters") or True

    @classmethod
    def fingerprint_inputs(cls, name: Any = None, **_: Any) -> int:
        return redone("LoomMergeAdapters", name)

    @classmethod
    def execute(
        cls,
        adapters: tuple[Row, ...],
        name: str,
        method: str,
        rank: int,
        energy: float,
        density: float,
        drop_rate: float,
        seed: int,
        dare_variant: str,
        save_format: str,
        model: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        Kept.drop_others(cls.hidden)
        settings = {"rank": rank, "energy": energy, "density": density, "drop_rate": drop_rate, "seed": seed, "dare_variant": dare_variant}
        return _made("LoomMergeAdapters", cls.hidden.unique_id, adapters, name, save_format, merge_options(method, settings), model, clip)


class LoomResizeAdapter(io.ComfyNode):
    """One adapter as a LoRA of another rank."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomResizeAdapter",
            display_name="Resize Adapter",
            category="LoRA Loom/adapters",
            description="Saves an adapter of any kind as the nearest LoRA of another rank, and reports how near that is.",
            inputs=[
                LoomAdapters.Input("adapters", tooltip="A stack with one row on; its weights and blocks become part of the new adapter."),
                io.String.Input("name", default="my_resize", tooltip="The new file's name in models/loras, without .safetensors."),
                io.Int.Input("rank", default=16, min=0, max=4096, tooltip="The new adapter's rank at most. 0: as energy or frobenius say."),
                io.Float.Input(
                    "energy", default=0.0, min=0.0, max=1.0, step=0.01, round=0.0001, tooltip="Share of each layer's energy to keep. 0: no limit."
                ),
                io.Float.Input(
                    "frobenius", default=0.0, min=0.0, max=1.0, step=0.01, round=0.0001, tooltip="Share of each layer's norm to keep. 0: no limit."
                ),
                io.Combo.Input("save_format", options=list(FORMATS), default="fp16", tooltip="Number format of the file."),
                io.Model.Input("model", optional=True, tooltip="The base model, for DoRA and other kinds that need its weights, unpatched."),
                io.Clip.Input("clip", optional=True, tooltip="Its text encoder, for the same kinds."),
            ],
            outputs=[
                LoomAdapters.Output(display_name="adapters", tooltip="The new adapter as a stack of one."),
                io.String.Output(display_name="adapter_name", tooltip="The file's name relative to models/loras."),
                io.String.Output(display_name="report", tooltip="Ranks, errors and energy, by block."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @off_loop
    def validate_inputs(
        cls, name: Any = None, rank: Any = None, energy: Any = None, frobenius: Any = None, save_format: Any = None
    ) -> bool | str:
        if None not in (rank, energy, frobenius):
            try:
                resize_options(rank, energy, frobenius)
            except ValueError as error:
                return str(error)
        return choice_problem(save_format=(save_format, list(FORMATS))) or target_problem("loras", name, "LoomResizeAdapter") or True

    @classmethod
    def fingerprint_inputs(cls, name: Any = None, **_: Any) -> int:
        return redone("LoomResizeAdapter", name)

    @classmethod
    def execute(
        cls,
        adapters: tuple[Row, ...],
        name: str,
        rank: int,
        energy: float,
        frobenius: float,
        save_format: str,
        model: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        Kept.drop_others(cls.hidden)
        on = sum(row.on for row in adapters)
        if on != 1:
            raise ValueError(f"one adapter is resized at a time, and {on} rows of the stack are on. To make one of several, use Merge Adapters.")
        options = resize_options(rank, energy, frobenius)
        return _made("LoomResizeAdapter", cls.hidden.unique_id, adapters, name, save_format, options, model, clip, "resize")


def merge_options(method: str, settings: Mapping[str, Any]) -> MergeOptions:
    """What the node's inputs ask for. Raises ValueError for what makes no sense, and for a changed input that the method does not use."""
    used = _OF_METHOD.get(method)
    if used is None:
        raise ValueError(f"there is no method {method!r}: choose one of {', '.join(_OF_METHOD)}.")
    idle = [f"{name} (to {default})" for name, default in _DEFAULTS.items() if name not in used and settings[name] != default]
    if idle:
        raise ValueError(f"the method {method} does not use {' and '.join(idle)}: set back what is named, or choose another method.")
    if method == "svd" and not settings["rank"] and not settings["energy"]:
        raise ValueError("the method svd needs a rank or an energy above 0: how much to keep. concatenate keeps all.")
    values = {_NAMES.get(name, name): settings[name] for name in used}
    return _valid({"method": method, **values, **({"energy": values["energy"] or None} if "energy" in values else {})})


def resize_options(rank: int, energy: float, frobenius: float) -> MergeOptions:
    """The same for resizing."""
    if not rank and not energy and not frobenius:
        raise ValueError("set rank, energy or frobenius above 0: how much to keep.")
    return _valid({"method": "svd", "rank": rank, "energy": energy or None, "frobenius": frobenius or None})


def _valid(settings: dict[str, Any]) -> MergeOptions:
    try:
        return MERGE_OPTIONS.validate_python(settings)
    except ValidationError as error:
        raise ValueError(explain(error)) from error


def _made(
    node: str,
    unique_id: Any,
    rows: tuple[Row, ...],
    name: str,
    save_format: str,
    options: MergeOptions,
    model: Any,
    clip: Any,
    title: str | None = None,
) -> io.NodeOutput:
    output = target("loras", name, node)
    parts = parts_of(rows, str(unique_id), None if model is None else model_family(model))
    if not parts:
        raise ValueError("no row of the stack is on: there is nothing to make an adapter of.")
    refuse_own_source(output, [part.file for part in parts])
    family = common_family(parts)
    layers = len({key for part in parts for key in part.adapter.layers})
    result = merge(
        [part.adapter.layers for part in parts],
        [merge_weight(part) for part in parts],
        options,
        block_of=blocks_of(weighted_family(parts) or family),
        base_of=base_weights(parts, model, clip),
        dtype=FORMATS[save_format],
        progress=watched(unique_id, layers),
    )
    if title:
        result = MergeResult(result.layers, replace(result.report, title=title))
    settings = options.model_dump(exclude_none=True)
    metadata = {part.row.name: part.adapter.metadata for part in parts}
    return save_adapter(node, output, result, family, save_format, settings, sources_of(parts), metadata, not_carried(parts))
