"""Pictures side by side: the same seed and prompts with other adapters or other weights."""
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io

from ..trainer.adapters.stack import EMBEDDING, HYPERNETWORK, Row
from ..trainer.grid import labelled_grid
from ..trainer.messages import shown
from ..trainer.prompts import parse_words, without_words
from ..trainer.spec import step_output, steps_of
from .apply import apply_rows, scaled
from .choices import choice_problem
from .drawing import Sampling, decoded, encoded, latent, save_grid
from .kept import Kept
from .paths import adapter_file
from .pictures import as_image, as_picture
from .rows import load
from .sockets import LoomAdapters
from .stamps import redone, remember, stamp

METADATA = "lora_loom.compare"

_WEIGHTS, _ADAPTERS, _BOTH, _STEPS = "weights", "adapters", "adapters x weights", "steps"
_KINDS = [_WEIGHTS, _ADAPTERS, _BOTH, _STEPS]
_LARGEST = 10.0
_MOST_CELLS = 400
_MOST_OF_WORDS = 60  # characters of them in a label
_PREFIX = "lora_loom/compare"
# Every LoRA of diffusers is called this on a hub: the folder that it was put into tells which it is.
_OF_A_HUB = "pytorch_lora_weights"

_Stack = tuple[Row, ...]
# A picture's prompt, and the rows of its stack that change anything.
_Cell = tuple[str, _Stack]


@dataclass(frozen=True)
class Layout:
    """A table without its prompts: `columns` are labels, `lines` labels with the stack of each column."""

    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[_Stack, ...]], ...]


@dataclass(frozen=True)
class _Table:
    """What is drawn, and where: labels, and a line of cells for each of `rows`."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[_Cell, ...], ...]


class LoomCompare(io.ComfyNode):
    """A labelled table of pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomCompare",
            display_name="Compare Adapters",
            category="LoRA Loom/adapters",
            description="Draws prompts with several weights or adapters at one seed, and lays the pictures out in a labelled grid.",
            inputs=[
                io.Model.Input("model", tooltip="The model to draw with."),
                io.Clip.Input("clip", tooltip="Its text encoder; adapters that hold a part for it change it too."),
                io.Vae.Input("vae", tooltip="Makes the pictures."),
                LoomAdapters.Input("adapters", tooltip="The stack to compare; rows that are off and embeddings are in no column."),
                io.String.Input("prompt", default="", multiline=True, tooltip="A row of pictures for each line."),
                io.String.Input("negative", default="", multiline=True, tooltip="What the pictures should not show; the same for all."),
                io.Combo.Input(
                    "compare",
                    options=_KINDS,
                    default=_WEIGHTS,
                    tooltip="weights: of the whole stack. adapters: none, then each alone. x: a row for each. steps: of the last one's training.",
                ),
                io.String.Input("weights", default="0, 0.5, 1", tooltip="Numbers with commas between them; every weight of the stack is multiplied."),
                io.Int.Input("width", default=512, min=16, max=8192, step=8, tooltip="Width of a picture in pixels."),
                io.Int.Input("height", default=512, min=16, max=8192, step=8, tooltip="Height of a picture in pixels."),
                # Without this the page adds "randomize" to an input called seed, and no two grids would show the same.
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip="The noise that all start from."),
                io.Int.Input("steps", default=20, min=1, max=10_000, tooltip="Sampling steps."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Guidance scale."),
                io.Combo.Input("sampler", options=list(comfy.samplers.KSampler.SAMPLERS), default="euler", tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=list(comfy.samplers.KSampler.SCHEDULERS), default="normal", tooltip="As in KSampler."),
                io.String.Input(
                    "without",
                    default="",
                    optional=True,
                    tooltip="Words with commas between them: one more column, drawn as the last one but with prompts that lack them. Empty: none.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="All pictures with labels; also saved to output/lora_loom."),
                io.Image.Output(display_name="pictures", tooltip="The pictures alone, row by row."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls, compare: Any = None, weights: Any = None, sampler: Any = None, scheduler: Any = None, prompt: Any = None, without: Any = None
    ) -> bool | str:
        known = comfy.samplers.KSampler
        problem = choice_problem(compare=(compare, _KINDS), sampler=(sampler, known.SAMPLERS), scheduler=(scheduler, known.SCHEDULERS))
        if problem:
            return problem
        try:
            if isinstance(weights, str):
                parse_weights(weights)
            if isinstance(prompt, str) and isinstance(without, str):
                without_words(_lines(prompt), parse_words(without))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, compare: Any = None, **_: Any) -> int:
        # A training that goes on leaves more of these files beside an adapter whose own file stays as it is.
        return redone("LoomCompare", None) if compare in (_STEPS, None) else 0

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        adapters: tuple[Row, ...],
        prompt: str,
        negative: str,
        compare: str,
        weights: str,
        without: str = "",
        **settings: Any,
    ) -> io.NodeOutput:
        Kept.drop_others(cls.hidden)
        sampling = Sampling(**settings)
        prompts, words, factors = _lines(prompt), parse_words(without), parse_weights(weights)
        layout = layout_of(compare, adapters, factors)
        table = _table(layout, prompts, words)
        node = str(cls.hidden.unique_id)
        drawn = _Drawing(model, clip, vae, sampling, node, adapters).all([cell for line in table.cells for cell in line], negative)
        images = [[drawn[cell] for cell in line] for line in table.cells]
        note = _note(prompts, negative, table.rows, sampling)
        grid = labelled_grid([[as_picture(image) for image in line] for line in images], table.columns, table.rows, note)
        told = {
            "compare": compare,
            "columns": table.columns,
            "rows": table.rows,
            "prompts": prompts,
            "without": words or None,
            "negative": negative,
            "adapters": [row.model_dump() for row in adapters],
            "weights": factors if compare in (_WEIGHTS, _BOTH) else None,
            **settings,
        }
        saved = save_grid(grid, _PREFIX, METADATA, told, cls.hidden)
        if compare == _STEPS:
            file = adapter_file(layout.lines[0][1][-1][0].name)
            remember("LoomCompare", node, lambda: {step: stamp(path) for step, path in steps_of(file).items()})
        return io.NodeOutput(as_image(grid), torch.stack([image for line in images for image in line]), ui={"images": [saved]})


def parse_weights(text: str) -> tuple[float, ...]:
    """Weights from numbers with commas between them, each once. Raises ValueError that names what is wrong."""
    words = [word.strip() for word in text.split(",")]
    found = []
    for word in words:
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not -_LARGEST <= number <= _LARGEST:
            given = repr(word[:40]) if word else "nothing"
            raise ValueError(f"weights: numbers from -10 to 10 with commas between them are needed, as in 0, 0.5, 1; got {given}.")
        found.append(number)
    return tuple(dict.fromkeys(found))


def layout_of(compare: str, adapters: Sequence[Row], weights: Sequence[float]) -> Layout:
    """The table that is asked for. Raises ValueError if no adapter that draws is on."""
    stack = tuple(row for row in adapters if row.on and not row.name.startswith(EMBEDDING))
    if not stack:
        raise ValueError("there is nothing to compare: the stack has no adapter that is on. Embeddings are compared by naming them in the prompt.")
    if compare == _STEPS:
        labels, rows = zip(*_by_step(stack[-1]), strict=True)
        return Layout(("no adapter", *labels), (("", ((), *((row,) for row in rows))),))
    if compare == _ADAPTERS:
        return Layout(("no adapter", *map(_label, stack)), (("", ((), *((row,) for row in stack))),))
    columns = tuple(f"weight {weight:g}" for weight in weights)
    alone = [("", stack)] if compare == _WEIGHTS else [(_label(row), (row,)) for row in stack]
    return Layout(columns, tuple((label, tuple(scaled(rows, weight) for weight in weights)) for label, rows in alone))


def _lines(prompt: str) -> list[str]:
    """The prompts of the grid: one for each line that says something."""
    return [line.strip() for line in prompt.splitlines() if line.strip()] or [""]


def _table(layout: Layout, prompts: Sequence[str], words: Sequence[str]) -> _Table:
    """The layout for each prompt, with one more column where `words` are left out of it.

    Raises ValueError for more pictures than are drawn, and for words that no prompt holds.
    """
    columns = layout.columns
    if words:
        columns = (*columns, f'{columns[-1]}, without "{shown(", ".join(words), _MOST_OF_WORDS)}"')
    count = len(prompts) * len(layout.lines) * len(columns)
    if count > _MOST_CELLS:
        raise ValueError(f"the grid would have {count} pictures, and at most {_MOST_CELLS} are drawn: take fewer prompts, weights or adapters.")
    left = without_words(prompts, words)
    rows: list[str] = []
    cells: list[tuple[_Cell, ...]] = []
    for text in prompts:
        for label, stacks in layout.lines:
            rows.append(" · ".join(part for part in (text if len(prompts) > 1 or not label else "", label) if part))
            line = [(text, _working(stack)) for stack in stacks]
            cells.append((*line, *([(left[text], line[-1][1])] if words else [])))
    return _Table(columns, tuple(rows), tuple(cells))


def _by_step(row: Row) -> list[tuple[str, Row]]:
    """The adapters that its training has saved on the way, and the adapter itself, each with its label. Raises ValueError if there are none."""
    file = adapter_file(row.name)
    subfolder = row.name[: max(row.name.rfind("/"), row.name.rfind("\\")) + 1]
    found = [(f"step {step:,}", row.model_copy(update={"name": subfolder + path.name})) for step, path in steps_of(file).items()]
    if not found:
        like = step_output(file, 500).name
        raise ValueError(f"{row.name} has no adapters of single steps beside it, like {like}: set adapter_every_steps of Checkpointing Options.")
    return [*found, ("the end", row)]


def _label(row: Row) -> str:
    """The adapter's name, and its weights where they are not 1."""
    path = PurePosixPath(row.name.removeprefix(HYPERNETWORK).replace("\\", "/"))
    name = path.parent.name if path.stem == _OF_A_HUB and path.parent.name else path.stem
    if row.model == row.clip:
        return name if row.model == 1 else f"{name} {row.model:g}"
    return f"{name} {row.model:g} / {row.clip:g}"


def _working(stack: _Stack) -> _Stack:
    """The rows that change anything: stacks that have the same ones draw the same."""
    return tuple(row for row in stack if row.model or row.clip)


class _Drawing:
    """Draws cells. All texts are encoded first, then all latents are made, then all pictures: each of the models is needed once."""

    def __init__(self, model: Any, clip: Any, vae: Any, sampling: Sampling, node: str, adapters: Sequence[Row]) -> None:
        self._model, self._clip, self._vae, self._sampling, self._node = model, clip, vae, sampling, node
        # What one picture needs is read from what all need: else each would read its files anew.
        load(adapters, node)

    def all(self, cells: Iterable[_Cell], negative: str) -> dict[_Cell, torch.Tensor]:
        """Pictures (h, w, 3) in [0, 1]; equal cells are drawn once."""
        prompts: dict[_Stack, list[str]] = {}
        for text, stack in dict.fromkeys(cells):
            prompts.setdefault(stack, []).append(text)
        models: dict[_Stack, Any] = {}
        texts: dict[tuple[_Stack, str], Any] = {}
        known: dict[tuple[Any, str], Any] = {}
        for stack in prompts:
            models[stack], clip, _ = apply_rows(self._model, self._clip, stack, "live", f"{self._node} picture")
            for text in (*prompts[stack], negative):
                # A stack without a part for the text encoder leaves it as it was.
                key = (clip.patcher.patches_uuid, text)
                if key not in known:
                    known[key] = encoded(clip, text)
                texts[stack, text] = known[key]
        bar = comfy.utils.ProgressBar(sum(map(len, prompts.values())) * self._sampling.steps, node_id=self._node)
        latents: dict[_Cell, torch.Tensor] = {}
        for stack in list(models):
            model = models.pop(stack)
            for text in prompts[stack]:
                done = len(latents) * self._sampling.steps
                latents[text, stack] = latent(model, texts[stack, text], texts[stack, negative], self._sampling, bar, done)
        return {key: decoded(self._vae, found) for key, found in latents.items()}


def _note(prompts: Sequence[str], negative: str, rows: Sequence[str], sampling: Sampling) -> str:
    """What no label says."""
    missing = [prompts[0]] if not any(prompts[0] in row for row in rows) else []
    return " · ".join([*missing, *([f"negative: {negative.strip()}"] if negative.strip() else []), sampling.told()])
