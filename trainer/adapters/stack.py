"""A stack: adapters with weights, in order."""
import json
import math
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from ..messages import explain, shown
from ..typed import Model

Curve = Literal["constant", "rising", "falling", "bell"]

EMBEDDING = "embedding:"
HYPERNETWORK = "hypernetwork:"


class StackError(ValueError):
    """The rows are wrong; the message names the row."""


class Row(Model):
    """One adapter and how strongly it works on the model and on the text encoder.

    `name` is relative to models/loras; `embedding:NAME` is one of models/embeddings, `hypernetwork:NAME` one of models/hypernetworks. A row without
    a name is off, as in a list where nothing has been chosen yet. `blocks`: a preset's name or a number for each block of the model
    (`blocks.block_weights`); empty: 1 everywhere. `start`, `end`: the part of the sampling in which it works on the model, 0 to 1; `curve`: how its
    weight goes there.
    """

    on: bool = True
    name: str
    model: float = Field(default=1.0, ge=-100, le=100)
    clip: float = Field(default=1.0, ge=-100, le=100)
    blocks: str = Field(default="", max_length=1000)
    start: float = Field(default=0.0, ge=0, le=1)
    end: float = Field(default=1.0, ge=0, le=1)
    curve: Curve = "constant"

    @model_validator(mode="before")
    @classmethod
    def _from_others(cls, row: Any) -> Any:
        """rgthree's loader has rows {on, lora, strength, strengthTwo}; without strengthTwo both are the same."""
        if not isinstance(row, dict):
            return row
        if "lora" in row and "name" not in row:
            strength = row.get("strength", 1.0)
            two = row.get("strengthTwo")
            known = {"on": row.get("on", True), "name": row["lora"], "model": strength, "clip": strength if two is None else two}
            row = known | {key: value for key, value in row.items() if key not in ("on", "lora", "strength", "strengthTwo")}
        return row | {"on": False, "name": ""} if "name" in row and _is_nothing(row["name"]) else row

    @model_validator(mode="after")
    def _in_order(self) -> "Row":
        if self.start >= self.end:
            raise ValueError(f"start {self.start:g} is not below end {self.end:g}")
        return self

    @property
    def scheduled(self) -> bool:
        """Whether the weight changes while sampling."""
        return (self.start, self.end, self.curve) != (0.0, 1.0, "constant")

    def weight_at(self, progress: float) -> float:
        """What the model weight is multiplied by when `progress`, 0 to 1, of the sampling is done. The end counts as inside."""
        if not self.start <= progress <= self.end:
            return 0.0
        inside = (progress - self.start) / (self.end - self.start)
        match self.curve:
            case "constant":
                return 1.0
            case "rising":
                return inside
            case "falling":
                return 1.0 - inside
            case "bell":
                return math.sin(math.pi * inside)


_ENTRY = ("name", "model", "clip")
_NO_STACK = "lora_stack is not a list of (name, model strength, clip strength)"
_ROWS: TypeAdapter[tuple[Row, ...]] = TypeAdapter(tuple[Row, ...])


def _is_nothing(name: Any) -> bool:
    """Whether a row's name says that nothing is chosen: packs write None for it."""
    return name is None or (isinstance(name, str) and name.strip() in ("", "None"))


def parse_rows(text: str) -> tuple[Row, ...]:
    """Rows from the node's JSON list. Raises StackError."""
    try:
        return _ROWS.validate_json(text or "[]")
    except ValidationError as error:
        raise StackError(f"rows: {explain(error)}") from error


def from_lora_stack(stack: Any) -> tuple[Row, ...]:
    """Rows from another pack's LORA_STACK; entries without a name are left out.

    Raises StackError if it is not a list of (name, model strength, clip strength).
    """
    if not isinstance(stack, list | tuple):
        raise StackError(f"{_NO_STACK}: it is of the type {type(stack).__name__}. Connect another pack's lora_stack.")
    for number, entry in enumerate(stack, 1):
        if not isinstance(entry, list | tuple) or len(entry) != len(_ENTRY):
            given = repr(entry) if isinstance(entry, str | int | float) else f"of the type {type(entry).__name__}"
            raise StackError(f"{_NO_STACK}: entry {number} is {shown(given)}. Mend it in the pack that it comes from.")
    try:
        rows = _ROWS.validate_python([dict(zip(_ENTRY, entry, strict=True)) for entry in stack])
    except ValidationError as error:
        raise StackError(f"{_NO_STACK}, counted from 0: {explain(error)}") from error
    return tuple(row for row in rows if row.name)


def to_lora_stack(rows: tuple[Row, ...]) -> list[tuple[str, float, float]]:
    """Rows as other packs take them, names and weights only: blocks and parts of the steps are lost.

    Rows that are off, embeddings and hypernetworks are left out.
    """
    return [(row.name, row.model, row.clip) for row in rows if row.on and not row.name.startswith((EMBEDDING, HYPERNETWORK))]


def trigger_words(metadata: dict[str, str]) -> list[str]:
    """The words that a file says it listens to."""
    phrase = metadata.get("modelspec.trigger_phrase", "").strip()
    if phrase:
        return [phrase]
    try:
        words = json.loads(metadata.get("ss_trained_words", "[]"))
    except (ValueError, RecursionError):
        return []
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []


def embedding_words(row: Row) -> str:
    """What a prompt has to say for an embedding: `embedding:NAME`, with its weight where that is not 1, and the name's parentheses escaped.

    A folder is named with a slash: prompts take a backslash for an escape.
    """
    stem = row.name.removesuffix(".safetensors").removesuffix(".pt").removesuffix(".bin")
    stem = stem.replace("\\", "/").replace("(", r"\(").replace(")", r"\)")
    return stem if row.clip == 1 else f"({stem}:{row.clip:g})"
