"""Training methods side by side: the same prompts and noise with the base and with what each method has made of it, and what each took."""
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..trainer.adapters.stack import EMBEDDING, HYPERNETWORK, Row
from ..trainer.grid import labelled_grid
from ..trainer.method_table import MethodRow, method_table
from .apply import apply_rows
from .choices import choice_problem
from .drawing import Sampling, decoded, encoded, latent, save_grid
from .kept import Kept
from .pictures import as_image, as_picture
from .rows import row_files
from .sockets import LoomAdapters, LoomResult, TrainingResult

METADATA = "lora_loom.compare_methods"
WORD = "WORD"

_PREFIX = "lora_loom/methods"
_MOST_CELLS = 400
# By slot: its column's label, and the methods whose results belong there. DreamBooth is prior preservation, whatever trains.
_SLOTS = {
    "lora": ("LoRA", ("train_lora",)),
    "dreambooth": ("DreamBooth", ("fine_tune", "train_lora")),
    "textual_inversion": ("textual inversion", ("textual_inversion",)),
    "fine_tune": ("full fine-tune", ("fine_tune",)),
}


@dataclass(frozen=True)
class _Column:
    """What is drawn with: the base, with `rows` on it or with `checkpoint` in its place. `word`: what prompts say for WORD."""

    label: str
    word: str
    rows: tuple[Row, ...] = ()
    checkpoint: str = ""


class LoomCompareMethods(io.ComfyNode):
    """A labelled table of pictures, and one of numbers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomCompareMethods",
            display_name="Compare Methods",
            category="LoRA Loom/training",
            description="Draws the same prompts with the base and with what each training method has made of it, and tells what each took.",
            inputs=[
                io.Model.Input("model", tooltip="The base that all were trained on."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Makes the pictures."),
                io.String.Input(
                    "prompts",
                    default="a photo of WORD",
                    multiline=True,
                    tooltip="A row of pictures for each line. WORD stands for what was trained: each column says it in its own way.",
                ),
                io.String.Input(
                    "base_word", default="", tooltip="What WORD is for the base, and where a training had no trigger word: the class, e.g. dog."
                ),
                io.String.Input("negative", default="", multiline=True, tooltip="What the pictures should not show; the same for all."),
                io.Int.Input("width", default=512, min=16, max=8192, step=8, tooltip="Width of a picture in pixels."),
                io.Int.Input("height", default=512, min=16, max=8192, step=8, tooltip="Height of a picture in pixels."),
                # Without this the page adds "randomize" to an input called seed, and no two grids would show the same.
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip="The noise that all start from."),
                io.Int.Input("steps", default=20, min=1, max=10_000, tooltip="Sampling steps."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Guidance scale."),
                io.Combo.Input("sampler", options=list(comfy.samplers.KSampler.SAMPLERS), default="euler", tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=list(comfy.samplers.KSampler.SCHEDULERS), default="normal", tooltip="As in KSampler."),
                LoomResult.Input("lora", optional=True, tooltip="The result of Train LoRA."),
                LoomResult.Input("dreambooth", optional=True, tooltip="The result of a training with Prior Preservation, of a LoRA or a checkpoint."),
                LoomResult.Input("textual_inversion", optional=True, tooltip="The result of Train Textual Inversion."),
                LoomResult.Input("fine_tune", optional=True, tooltip="The result of Fine-Tune Checkpoint."),
                LoomAdapters.Input("hypernetwork", optional=True, tooltip="A stack with a hypernetwork, from Load Adapter: a column more."),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="All pictures with labels; also saved to output/lora_loom."),
                io.String.Output(display_name="table", tooltip="What each method trained, left and took, in markdown."),
                io.Image.Output(display_name="pictures", tooltip="The pictures alone, row by row."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, sampler: Any = None, scheduler: Any = None) -> bool | str:
        known = comfy.samplers.KSampler
        return choice_problem(sampler=(sampler, known.SAMPLERS), scheduler=(scheduler, known.SCHEDULERS)) or True

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        prompts: str,
        base_word: str,
        negative: str,
        lora: TrainingResult | None = None,
        dreambooth: TrainingResult | None = None,
        textual_inversion: TrainingResult | None = None,
        fine_tune: TrainingResult | None = None,
        hypernetwork: tuple[Row, ...] = (),
        **settings: Any,
    ) -> io.NodeOutput:
        Kept.drop_others(cls.hidden)
        sampling = Sampling(**settings)
        slots = {"lora": lora, "dreambooth": dreambooth, "textual_inversion": textual_inversion, "fine_tune": fine_tune}
        results = {slot: result for slot, result in slots.items() if result is not None}
        _check(results)
        hypernetwork = _hypernetworks(hypernetwork)
        lines = [line.strip() for line in prompts.splitlines() if line.strip()] or [WORD]
        columns = [_Column("base", base_word), *(_column(slot, result, base_word) for slot, result in results.items())]
        if hypernetwork:
            columns.append(_Column("hypernetwork", base_word, hypernetwork))
        if len(columns) * len(lines) > _MOST_CELLS:
            raise ValueError(f"the grid would have {len(columns) * len(lines)} pictures, and at most {_MOST_CELLS} are drawn: take fewer prompts.")
        drawn = _draw(model, clip, vae, columns, lines, negative, sampling, str(cls.hidden.unique_id))
        note = " · ".join([*([f"negative: {negative.strip()}"] if negative.strip() else []), sampling.told()])
        grid = labelled_grid([[as_picture(image) for image in row] for row in drawn], [one.label for one in columns], lines, note)
        table = method_table([MethodRow("base"), *(_row(slot, result) for slot, result in results.items()), *_of_hypernetwork(hypernetwork)])
        told = {
            "columns": [{"label": one.label, "word": one.word, "rows": [row.model_dump() for row in one.rows]} for one in columns],
            "prompts": lines,
            "negative": negative,
            "table": table,
            **settings,
        }
        saved = save_grid(grid, _PREFIX, METADATA, told, cls.hidden)
        pictures = torch.stack([image for row in drawn for image in row])
        return io.NodeOutput(as_image(grid), table, pictures, ui={"images": [saved], "text": [table]})


def said(line: str, word: str) -> str:
    """The prompt with `word` in the place of WORD; where there is none, without it and without a comma that then stands first."""
    text = re.sub(rf"\b{WORD}\b", lambda _: word, line)
    return text.strip() if word else text.strip(" ,")


def _check(results: Mapping[str, TrainingResult]) -> None:
    """Raises ValueError for a result in a slot of another method, and for results of different bases."""
    for slot, result in results.items():
        label, tasks = _SLOTS[slot]
        if result.task not in tasks:
            raise ValueError(f"{slot} is the column of {label}, and {result.name} comes of {result.task}: connect it to the input of its own method.")
    bases = {result.base: slot for slot, result in results.items()}
    if len(bases) > 1:
        told = ", ".join(f"{slot}: {base.name}" for base, slot in bases.items())
        raise ValueError(f"the results were trained on different bases ({told}): methods are compared on one.")


def _hypernetworks(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows that are on. Raises ValueError for one that is no hypernetwork: the column would be called what it is not."""
    on = tuple(row for row in rows if row.on)
    for row in on:
        if not row.name.startswith(HYPERNETWORK):
            raise ValueError(
                f"hypernetwork is the column of hypernetworks, and {row.name} is none: connect a stack of hypernetworks alone; "
                "adapters of other kinds are compared by Compare Adapters."
            )
    return on


def _column(slot: str, result: TrainingResult, base_word: str) -> _Column:
    label, _ = _SLOTS[slot]
    file, word = result.files[0], result.word or base_word
    if result.task == "fine_tune":
        return _Column(label, word, checkpoint=str(file))
    if result.task == "textual_inversion":
        return _Column(label, word, (Row(name=EMBEDDING + file.name),))
    return _Column(label, word, (Row(name=file.name),))


def _row(slot: str, result: TrainingResult) -> MethodRow:
    losses = [loss for _, loss in result.validation]
    return MethodRow(
        label=_SLOTS[slot][0],
        parameters=result.parameters,
        file_bytes=sum(file.stat().st_size for file in result.files),
        steps=result.steps,
        seconds=result.seconds,
        peak_memory=result.peak_memory,
        validation=(losses[0], losses[-1]) if len(losses) > 1 else None,
    )


def _of_hypernetwork(rows: Sequence[Row]) -> list[MethodRow]:
    """It was trained elsewhere: its files are all that is known."""
    sizes = [file.stat().st_size for file in row_files(rows) if file]
    return [MethodRow("hypernetwork", file_bytes=sum(sizes))] if rows else []


def _draw(
    model: Any, clip: Any, vae: Any, columns: Sequence[_Column], lines: Sequence[str], negative: str, sampling: Sampling, node: str
) -> list[list[torch.Tensor]]:
    """Pictures (h, w, 3) in [0, 1], a row for each of `lines`. A column's checkpoint is in memory while it draws, and no longer."""
    bar = comfy.utils.ProgressBar(len(columns) * len(lines) * sampling.steps, node_id=node)
    latents: list[list[torch.Tensor]] = []
    for number, column in enumerate(columns):
        with_it, its_clip = _models(model, clip, column, node)
        texts = [encoded(its_clip, said(line, column.word)) for line in lines]
        empty = encoded(its_clip, negative)
        before = number * len(lines)
        latents.append([latent(with_it, text, empty, sampling, bar, (before + i) * sampling.steps) for i, text in enumerate(texts)])
        del with_it, its_clip, texts, empty
    return [[decoded(vae, latents[column][line]) for column in range(len(columns))] for line in range(len(lines))]


def _models(model: Any, clip: Any, column: _Column, node: str) -> tuple[Any, Any]:
    """The model and the text encoder of a column."""
    if column.checkpoint:
        embeddings = folder_paths.get_folder_paths("embeddings")
        found = comfy.sd.load_checkpoint_guess_config(column.checkpoint, output_vae=False, output_clip=True, embedding_directory=embeddings)
        return found[0], found[1]
    model, clip, _ = apply_rows(model, clip, column.rows, "live", f"{node} picture")
    return model, clip
