"""Stacks of adapters: what they are made of and where they come from."""
from pathlib import Path
from typing import Any

from comfy_api.latest import io
from pydantic import ValidationError

from ..trainer.adapters.blocks import BlockError, parse_block_weights
from ..trainer.adapters.files import FileError, read_header
from ..trainer.adapters.kinds import AdapterFacts
from ..trainer.adapters.reading import describe_file
from ..trainer.adapters.stack import EMBEDDING, Row, StackError, embedding_words, from_lora_stack, parse_rows, to_lora_stack, trigger_words
from ..trainer.adapters.words import counted
from ..trainer.messages import explain, shown
from .off_loop import off_loop
from .paths import PathError, adapter_file, model_choices
from .rows import NOT_WHOLE, completed, is_lora, row_files
from .sockets import LoomAdapters, LoraStack
from .stamps import named_stamp, redone, remember, stamp


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
                    tooltip="The adapters from first to last, each with its weights for the model and the text encoder.",
                ),
                LoomAdapters.Input("adapters", optional=True, tooltip="Adapters to put before these rows, e.g. the one just trained."),
                LoraStack.Input("lora_stack", optional=True, tooltip="A LORA_STACK of another pack to put before these rows."),
            ],
            outputs=[
                LoomAdapters.Output(display_name="adapters", tooltip="The whole stack."),
                LoraStack.Output(
                    display_name="lora_stack",
                    tooltip="For other packs: (name, model, clip) of each LoRA. Blocks, steps, embeddings, hypernetworks are not in it.",
                ),
                io.String.Output(display_name="trigger_words", tooltip="The words that the adapters which are on listen to."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @off_loop
    def validate_inputs(cls, rows: Any = "[]") -> bool | str:
        if not isinstance(rows, str):
            return True  # Supplied by a link: looked at when the node runs.
        try:
            _check(parse_rows(rows))
        except (StackError, PathError, FileError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, rows: Any = None, **linked: Any) -> list[Any]:
        # A file that was replaced under its name is another adapter.
        try:
            files = row_files(parse_rows(rows)) if isinstance(rows, str) else []
        except (StackError, PathError):
            files = []  # execute says what is wrong
        of_links = redone("LoomAdapterStack", None) if rows is None or "lora_stack" in linked else 0
        return [of_links, *(stamp(file) for file in files if file)]

    @classmethod
    def execute(cls, rows: str, adapters: tuple[Row, ...] = (), lora_stack: Any = None) -> io.NodeOutput:
        stack = (*from_lora_stack(lora_stack or ()), *(adapters or ()), *parse_rows(rows))
        _check(stack)
        stack = completed(stack)
        files = [file for file in row_files(stack) if file]
        remember("LoomAdapterStack", str(cls.hidden.unique_id), lambda: [stamp(file) for file in files])
        return io.NodeOutput(stack, to_lora_stack(stack), ", ".join(_words(stack)))


class LoomLoadAdapter(io.ComfyNode):
    """One adapter, as a stack of one or the next of a stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomLoadAdapter",
            display_name="Load Adapter",
            category="LoRA Loom/adapters",
            description="Takes one adapter from models/loras.",
            inputs=[
                io.Combo.Input("adapter", options=model_choices("loras"), tooltip="The adapter's file."),
                io.Float.Input("model_weight", default=1.0, min=-100.0, max=100.0, step=0.05, tooltip="How strongly it works on the model."),
                io.Float.Input("clip_weight", default=1.0, min=-100.0, max=100.0, step=0.05, tooltip="How strongly it works on the text encoder."),
                io.String.Input(
                    "blocks", default="", tooltip="A preset, or a weight for each block of the model with commas between them. Empty: 1 everywhere."
                ),
                LoomAdapters.Input("adapters", optional=True, tooltip="Adapters to put before it."),
            ],
            outputs=[
                LoomAdapters.Output(display_name="adapters", tooltip="The whole stack."),
                io.String.Output(display_name="trigger_words", tooltip="The words that the adapters listen to."),
                io.String.Output(display_name="report", tooltip="What the adapter is: kind, family, naming, layers, ranks."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @off_loop
    def validate_inputs(cls, adapter: Any = None, blocks: Any = None) -> bool | str:
        if not isinstance(adapter, str):
            return True  # Supplied by a link: looked at when the node runs.
        try:
            file = adapter_file(adapter)
            describe_file(file)
            _check_row(Row(name=adapter, blocks=blocks.strip() if isinstance(blocks, str) else ""), file)
        except ValidationError as error:
            return explain(error)
        except (StackError, PathError, FileError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, adapter: Any = None, **_: Any) -> list[Any]:
        return [named_stamp(adapter_file, adapter), redone("LoomLoadAdapter", None) if adapter is None else 0]

    @classmethod
    def execute(
        cls, adapter: str, model_weight: float, clip_weight: float, blocks: str, adapters: tuple[Row, ...] = ()
    ) -> io.NodeOutput:
        stack = (*(adapters or ()), Row(name=adapter, model=model_weight, clip=clip_weight, blocks=blocks.strip()))
        _check(stack)
        stack = completed(stack)
        file = adapter_file(adapter)
        remember("LoomLoadAdapter", str(cls.hidden.unique_id), lambda: stamp(file))
        report = _told(adapter, describe_file(file))
        return io.NodeOutput(stack, ", ".join(_words(stack)), report, ui={"text": [report]})


def _check(rows: tuple[Row, ...]) -> None:
    """Raise PathError, FileError or StackError for a row whose file is not there or cannot be used as the row says."""
    for number, (row, file) in enumerate(zip(rows, row_files(rows), strict=True), 1):
        try:
            if file is not None:
                _check_row(row, file)
        except StackError as error:
            raise StackError(f"row {number} ({shown(row.name)}): {error}") from error


def _check_row(row: Row, file: Path) -> None:
    """Raise FileError or StackError for block weights that fit no blocks, and for an embedding that no prompt can name."""
    if row.name.startswith(EMBEDDING) and len(row.name.split()) > 1:
        raise StackError("ComfyUI ends the name of an embedding at the first space, so no prompt can name it: rename the file without spaces.")
    if not row.blocks:
        return
    if not is_lora(row):
        raise StackError("it has no blocks that could be weighted: leave blocks empty.")
    family = describe_file(file).family
    if family is None:
        return  # the model tells it, when the row is applied
    try:
        parse_block_weights(row.blocks, family)
    except BlockError as error:
        raise StackError(str(error)) from error


def _told(name: str, facts: AdapterFacts) -> str:
    """The adapter in two lines."""
    naming = [f"{facts.naming} names"] if facts.naming else []
    first = [facts.kind, facts.family or "family not known", *naming]
    if facts.parts:
        ranks = list(facts.ranks)
        rank = [f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"] if ranks else []
        parts = ", ".join(f"{part} {count}" for part, count in facts.parts.items())
        second = [f"{sum(facts.parts.values())} layers ({parts})", *rank]
    else:
        vectors = [f"{facts.vectors} vectors"] if facts.vectors else []
        second = [*vectors, f"widths {', '.join(map(str, facts.widths))}"]
        second += [] if facts.whole_in_comfyui else [f"it {NOT_WHOLE}"]
    if facts.not_understood:
        second.append(f"not understood, and not applied: {counted(facts.not_understood, 'tensor')} ({', '.join(facts.not_understood_names)})")
    return f"{name}: {', '.join(first)}\n{', '.join(second)}"


def _words(rows: tuple[Row, ...]) -> list[str]:
    """Trigger words of the rows that are on, each once; an embedding's is its name."""
    words: list[str] = []
    named = {embedding_words(row) for row in rows if row.on and row.name.startswith(EMBEDDING)}
    for row, file in zip(rows, row_files(rows), strict=True):
        if file is None:
            continue
        if row.name.startswith(EMBEDDING):
            words.append(embedding_words(row))
        elif is_lora(row):
            for phrase in trigger_words(read_header(file).metadata):
                # A LoRA that was trained along with an embedding names it too.
                words += [", ".join(part for part in phrase.split(", ") if part not in named)]
    return list(dict.fromkeys(filter(None, words)))
