"""The adapters of a stack as the parts of something new: what they weigh there, and that they belong together."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from comfy.model_patcher import get_key_weight

from ..trainer.adapters.blocks import block_names, block_of, has_blocks
from ..trainer.adapters.delta import changes_weight, needs_base
from ..trainer.adapters.family import STABLE_DIFFUSION, text_widths
from ..trainer.adapters.layer_tensors import naming
from ..trainer.adapters.merge import Weight, is_text_encoder
from ..trainer.adapters.stack import HYPERNETWORK, Row
from ..trainer.messages import shown
from .matching import MatchError, Target, Weights, is_readable, some, weight_of
from .rows import Loaded, is_lora, load, row_files


@dataclass(frozen=True)
class Part(Loaded):
    """A row that is on, its LoRA and where that is."""

    file: Path


def parts_of(rows: Sequence[Row], node: str, family: str | None = None) -> list[Part]:
    """The rows that are on, with their files read. `family`: see `rows.load`.

    Raises ValueError for a row that cannot be a part (an embedding, a hypernetwork, a schedule), PathError and FileError as `load` does.
    """
    for number, row in enumerate(rows, 1):
        if not row.on:
            continue
        if not is_lora(row):
            kind = "a hypernetwork" if row.name.startswith(HYPERNETWORK) else "an embedding"
            raise ValueError(f"row {number} ({shown(row.name)}) is {kind}, which changes no weights that could be added up: turn the row off.")
        if row.scheduled:
            said = "has a schedule over the steps, which a file cannot have: clear its start, end and curve."
            raise ValueError(f"row {number} ({shown(row.name)}) {said}")
    files = [file for row, file in zip(rows, row_files(rows), strict=True) if file]
    return [Part(one.row, one.adapter, one.family, file) for one, file in zip(load(rows, node, family), files, strict=True)]


def merge_weight(part: Part) -> Weight:
    """The row's weights. Raises BlockError that names the row's file."""
    return Weight(unet=part.row.model, text_encoder=part.row.clip, blocks=part.blocks)


def check_together(parts: Sequence[Part]) -> None:
    """Raise MatchError that names two files whose layers read texts of different widths: they were trained with other text encoders."""
    widths = [(part, found) for part in parts if (found := text_widths(part.adapter.layers))]
    for part, found in widths[1:]:
        first, before = widths[0]
        if found.isdisjoint(before):
            of_first, of_part = (one.adapter.family or "another model" for one in (first, part))
            told = " and ".join(", ".join(map(str, sorted(of))) for of in (before, found))
            raise MatchError(
                f"{first.row.name} was made for {of_first} and {part.row.name} for {of_part}: their layers read texts of {told} numbers, and "
                "adapters of two families do not fit together. Turn one of the rows off."
            )


def common_family(parts: Sequence[Part]) -> str | None:
    """The family that all files tell which tell any; None if there is none. Raises MatchError for files that cannot be merged."""
    check_together(parts)
    told = list(dict.fromkeys(part.adapter.family for part in parts if part.adapter.family))
    family = told[0] if len(told) == 1 else None
    schemes = {part.adapter.naming for part in parts}
    # Canonical keys are alike whatever the scheme; the names of other models' layers are kept as they are.
    if len(schemes) > 1 and not set(told) & STABLE_DIFFUSION:
        raise MatchError(
            f"the adapters are named in different ways ({', '.join(sorted(schemes))}), and for {' or '.join(told) or 'their family'} it cannot be "
            "told which of their layers are the same. Use files of one scheme."
        )
    return family


def weighted_family(parts: Sequence[Part]) -> str | None:
    """The family whose blocks rows weight; None if no row does. Raises MatchError for rows whose blocks are those of different families."""
    weighted = {part.family: part for part in parts if part.row.blocks}
    layouts = {family: block_names(family) for family in weighted if family and has_blocks(family)}
    if len(set(layouts.values())) > 1:
        one, other = list(layouts)[:2]
        raise MatchError(
            f"{weighted[one].row.name} has weights for the blocks of {one}, and {weighted[other].row.name} for those of {other}: one layer is not in "
            "the same block of both. Leave the blocks of one of them empty."
        )
    return next(iter(layouts), None)


def blocks_of(family: str | None) -> Callable[[str], str | None]:
    """The block of a layer's key."""
    return lambda key: block_of(key, family)


def base_weights(parts: Sequence[Part], model: Any, clip: Any) -> Callable[[str], torch.Tensor | None]:
    """The weights, by an adapter's key, of a model and its text encoder as they were loaded, without any patches; both may be None.

    Raises MatchError where an adapter is for another model, and for a kind that needs a weight and nothing is connected that has it.
    """
    for part in parts:
        for key, layer in part.adapter.layers.items():
            text = is_text_encoder(key)
            if not (part.row.clip if text else part.row.model) or not changes_weight(layer):
                continue
            with naming(f"{part.row.name}: {key}"):
                needed = needs_base(layer)
            if needed and (clip if text else model) is None:
                raise MatchError(
                    f"{part.row.name} changes weights by amounts that depend on them ({part.adapter.kind}, {shown(key)}): connect the base model "
                    f"that it was made for to the input {'clip' if text else 'model'}."
                )
    if model is None:
        return lambda key: None
    weights = Weights.of(model, clip)
    for part in parts:
        weights.match(part.row.name, part.adapter)

    def weight(key: str) -> torch.Tensor | None:
        text = is_text_encoder(key)
        wanted = (weights.clip_targets if text else weights.model_targets).get(key)
        return None if wanted is None else _unpatched(clip.patcher if text else model, wanted)

    return weight


def _unpatched(patcher: Any, target: Target) -> torch.Tensor:
    """The weight in fp32 on the CPU. A model that is in use has its patches in it, and the originals aside.

    Raises MatchError for one that is quantised by rules of another pack.
    """
    if not is_readable(patcher, target):
        raise MatchError(f"{weight_of(target)} of the model is quantised so that only its layer can read it: connect one in fp16, bf16 or fp32.")
    weight, _, convert = get_key_weight(patcher.model, weight_of(target))
    kept = patcher.backup.get(weight_of(target))
    weight = (weight if kept is None else kept.weight).to(device="cpu", dtype=torch.float32, copy=True)
    if convert is not None:
        weight = convert(weight, inplace=True)
    return weight if isinstance(target, str) or target[1] is None else weight.narrow(*target[1])


def not_carried(parts: Sequence[Part]) -> list[str]:
    """Lines for a report: what the files hold that is in no layer, and so not in what is made of them."""
    lines = []
    for part in parts:
        left = [*part.adapter.not_understood, *(f"the embedding {name}" for name in part.adapter.embeddings)]
        if left:
            lines.append(f"left out of {part.row.name}: {some(left)}")
    return lines
