"""Applying a stack of adapters to a model."""
from collections.abc import Sequence
from typing import Any

from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..trainer.adapters.embedding import ENCODER_WIDTHS
from ..trainer.adapters.hypernetwork import TEXT_WIDTHS, Hypernetwork, read_hypernetwork
from ..trainer.adapters.layers import Layer
from ..trainer.adapters.reading import describe_file
from ..trainer.adapters.stack import EMBEDDING, HYPERNETWORK, Row, embedding_words
from ..trainer.messages import shown
from . import live
from .branches import Branch
from .kept import Kept
from .live import LiveStack, can_branch
from .matching import Matched, MatchError, Target, Weights, model_family, some
from .merged import comfyui_patches, patches
from .rows import NOT_WHOLE, Loaded, load, row_files
from .sockets import LoomAdapters

# A node's last live stack, for the next one with other weights.
_LAST: Kept[LiveStack] = Kept()

_Parts = dict[Target, list[tuple[float, Layer]]]


class LoomApplyAdapters(io.ComfyNode):
    """Gives a model and its text encoder the adapters of a stack."""

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
                io.Combo.Input(
                    "mode",
                    options=["merged", "live"],
                    default="merged",
                    tooltip="merged: added to the weights. live: computed beside them; changed weights cost nothing, and steps can have their own.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="Multiplies every weight of the stack; 0 leaves the model alone."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The adapted model."),
                io.Clip.Output(display_name="clip", tooltip="The adapted text encoder."),
                io.String.Output(display_name="report", tooltip="What was applied, and what of it matched."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(cls, mode: Any = "merged") -> bool | str:
        # ComfyUI does not look at what programs send for a list of choices.
        return mode in ("merged", "live", None) or f"mode is {mode!r}: it is merged or live."

    @classmethod
    def execute(cls, model: Any, adapters: tuple[Row, ...], mode: str, strength: float, clip: Any = None) -> io.NodeOutput:
        Kept.drop_others(cls.hidden)
        model, clip, told = apply_rows(model, clip, scaled(adapters, strength), mode, str(cls.hidden.unique_id))
        report = "\n".join(told)
        return io.NodeOutput(model, clip, report, ui={"text": (report,)})


def scaled(rows: Sequence[Row], strength: float) -> tuple[Row, ...]:
    """The rows with all of their weights multiplied."""
    return tuple(row.model_copy(update={"model": row.model * strength, "clip": row.clip * strength}) for row in rows)


def apply_rows(model: Any, clip: Any, rows: Sequence[Row], mode: str, node: str) -> tuple[Any, Any, list[str]]:
    """A model and a text encoder (or None) with the adapters of the rows, and a line for each row; those that came in are not changed.

    `node`: for whom files are kept, see `rows.load`. Raises PathError, FileError, MatchError, BlockError or ValueError that names the row.
    """
    _refuse_schedules(rows, mode)
    loaded = [one for one in load(rows, node, model_family(model)) if one.row.model or one.row.clip]
    weights = Weights.of(model, clip)
    matches = [weights.match(one.row.name, one.adapter) for one in loaded]
    # By identity: two rows may be equal, and each has a line.
    told = {id(one.row): _told(one, match) for one, match in zip(loaded, matches, strict=True)}
    told |= _embeddings(rows, weights)
    model = _with_hypernetworks(model, rows, weights, told)
    branches: list[Branch] = []
    if any(match.count for match in matches):
        model, clip, branches = _applied(model, clip, loaded, matches, mode, told)
    if branches:
        _beside(model, branches, node)
    else:
        _LAST.drop(node)
    return model, clip, [told.get(id(row), f"{row.name}: {'weight 0' if row.on else 'off'}") for row in rows]


def _applied(
    model: Any, clip: Any, loaded: Sequence[Loaded], matches: Sequence[Matched], mode: str, told: dict[int, str]
) -> tuple[Any, Any, list[Branch]]:
    """The model and the text encoder with what is merged, and what goes beside the model's layers."""
    branches: list[Branch] = []
    model_parts: _Parts = {}
    clip_parts: _Parts = {}
    special: list[tuple[Any, dict[Target, Any], float]] = []
    files = ", ".join(dict.fromkeys(one.row.name for one in loaded))
    model = model.clone()
    clip = None if clip is None else clip.clone()
    # Sums are made in an order that is not that of the stack, so that its order changes no bit.
    in_order = sorted(zip(loaded, matches, strict=True), key=lambda pair: (pair[0].row.name, pair[0].row.model_dump_json()))
    for one, match in in_order:
        beside = 0
        for target, (key, layer) in match.model.items():
            weight = one.weight(key, text=False)
            if not weight:
                continue
            if mode == "live" and can_branch(model, target, layer, one.row.scheduled):
                branches.append(Branch(one.row, weight, key, layer, target))
                beside += 1
            else:
                model_parts.setdefault(target, []).append((weight, layer))
        for target, (key, layer) in match.clip.items():
            if weight := one.weight(key, text=True):
                clip_parts.setdefault(target, []).append((weight, layer))
        special += [(model, found, one.weight(key, text=False)) for key, found in comfyui_patches(match.model)]
        if clip is not None:
            special += [(clip.patcher, found, one.weight(key, text=True)) for key, found in comfyui_patches(match.clip)]
        if mode == "live":
            if one.row.scheduled and beside < len(match.model):
                raise MatchError(
                    f"{one.row.name}: {len(match.model) - beside} of its layers cannot be computed beside the model's, so they have no schedule over "
                    "the steps. Leave start, end and curve of its row alone."
                )
            told[id(one.row)] += f", {beside} live"
    # ComfyUI patches a model anew after every call of add_patches, an empty one too.
    if model_parts:
        model.add_patches(patches(model_parts, files))
    if clip_parts:
        clip.patcher.add_patches(patches(clip_parts, files))
    for patcher, found, weight in special:
        if weight:
            patcher.add_patches(found, weight)
    return model, clip, branches


def _beside(model: Any, branches: Sequence[Branch], node: str) -> None:
    """One wrapper for all branches of the model, those of an earlier node with them: DoRA's are reckoned from the layer's own output."""
    before = model.get_attachment(live.KEY)
    stack = LiveStack(model, (*(before.branches if before else ()), *branches), _LAST.get(node))
    _LAST.put(node, stack)
    model.set_attachments(live.KEY, stack)
    model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, live.KEY)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, live.KEY, stack)
    # So that ComfyUI knows of what they need on the device, and makes room for it.
    model.set_additional_models(live.KEY, [stack.factors])


def _with_hypernetworks(model: Any, rows: Sequence[Row], weights: Weights, told: dict[int, str]) -> Any:
    """The model with core's patches for the hypernetworks among the rows. Raises FileError or MatchError."""
    from comfy_extras.nodes_hypernetwork import load_hypernetwork_patch

    for row, file in zip(rows, row_files(rows), strict=True):
        if file is None or not row.name.startswith(HYPERNETWORK) or not row.model:
            continue
        found = read_hypernetwork(file)
        used = _used_widths(row.name, found, weights)
        model = model.clone()
        patch = load_hypernetwork_patch(str(file), row.model)
        model.set_model_attn1_patch(patch)
        model.set_model_attn2_patch(patch)
        idle = sorted(found.layers.keys() - used)
        told[id(row)] = f"{row.name}: hypernetwork, model {row.model:g}, widths {', '.join(map(str, sorted(used)))}"
        told[id(row)] += f"; not in this model: {', '.join(map(str, idle))}" if idle else ""
    return model


def _used_widths(name: str, hypernetwork: Hypernetwork, weights: Weights) -> set[int]:
    """Which of its widths attention in this model has. Raises MatchError for none, and for texts of another width than the model reads."""
    made_for = f" made for {hypernetwork.family}" if hypernetwork.family else ""
    widths = ", ".join(map(str, sorted(hypernetwork.layers)))
    read = weights.attention_widths(text=True)
    texts = hypernetwork.layers.keys() & TEXT_WIDTHS
    used = hypernetwork.layers.keys() & weights.attention_widths()
    if not used or (texts and read and not texts & read):
        has = ", ".join(map(str, sorted(weights.attention_widths()))) or "none that one could change"
        raise MatchError(
            f"{name} is a hypernetwork{made_for} with the widths {widths}, and the model is {weights.family}, whose attention has {has}"
            f"{f' and reads texts of {min(read)}' if read else ''}: choose one that was made for it."
        )
    return set(used)


def _embeddings(rows: Sequence[Row], weights: Weights) -> dict[int, str]:
    """What prompts have to say for the embeddings among the rows.

    Raises FileError, or MatchError for one whose vectors no text encoder of the model can read.
    """
    told = {}
    # Without a text encoder to look at, those of the families whose encoders are known.
    takes = weights.text_widths or ENCODER_WIDTHS.get(weights.family, frozenset())
    for row, file in zip(rows, row_files(rows), strict=True):
        if file is None or not row.name.startswith(EMBEDDING):
            continue
        facts = describe_file(file)
        if facts.kind != "embedding":
            raise MatchError(f"{row.name} is no embedding: its file is of the kind {facts.kind}, which goes to another folder.")
        if takes and takes.isdisjoint(facts.widths):
            made_for = f"was made for {facts.family}: it " if facts.family else ""
            raise MatchError(
                f"{row.name} {made_for}has vectors of {', '.join(map(str, facts.widths))} numbers, and the text encoders of this model "
                f"({weights.family}) take {', '.join(map(str, sorted(takes)))}: choose one that was made for it."
            )
        if not facts.whole_in_comfyui:
            raise MatchError(f"{row.name} {NOT_WHOLE}")
        told[id(row)] = f"{row.name}: embedding, {facts.vectors} vectors, works where a prompt says {embedding_words(row)}"
    return told


def _refuse_schedules(rows: Sequence[Row], mode: str) -> None:
    for number, row in enumerate(rows, 1):
        if row.on and row.scheduled and (mode != "live" or row.name.startswith(HYPERNETWORK)):
            way = "hypernetworks have none" if row.name.startswith(HYPERNETWORK) else "set mode to live"
            raise ValueError(f"row {number} ({shown(row.name)}) has a schedule over the steps, which weights that are merged cannot have: {way}.")


def _told(one: Loaded, match: Matched) -> str:
    row, adapter = one.row, one.adapter
    text = f"{row.name}: {adapter.kind}, model {row.model:g}, text encoder {row.clip:g}, {match.count} of {len(adapter.layers)} layers"
    if match.skipped:
        text += f" ({match.skipped} are for a text encoder, and none is connected)"
    text += match.left_out("model")
    if adapter.not_understood:
        text += f"; not understood: {some(adapter.not_understood)}"
    return text
