"""A stack: adapters with weights, in order."""
import json
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from ..typed import Model, explain


class StackError(ValueError):
    """The rows are wrong; the message names the row."""


class Row(Model):
    """One adapter and how strongly it works on the model and on the text encoder; `name` is relative to models/loras."""

    on: bool = True
    name: str
    model: float = Field(default=1.0, ge=-100, le=100)
    clip: float = Field(default=1.0, ge=-100, le=100)


_ROWS: TypeAdapter[tuple[Row, ...]] = TypeAdapter(tuple[Row, ...])


def parse_rows(text: str) -> tuple[Row, ...]:
    """Rows from the node's JSON list. Raises StackError."""
    try:
        return _ROWS.validate_json(text or "[]")
    except ValidationError as error:
        raise StackError(f"rows: {explain(error)}") from error


def from_lora_stack(stack: Any) -> tuple[Row, ...]:
    """Rows from another pack's LORA_STACK. Raises StackError if it is not a list of (name, model strength, clip strength)."""
    try:
        return tuple(Row(name=name, model=model, clip=clip) for name, model, clip in stack)
    except (TypeError, ValueError) as error:
        raise StackError(f"lora_stack is not a list of (name, model strength, clip strength): {error}") from error


def to_lora_stack(rows: tuple[Row, ...]) -> list[tuple[str, float, float]]:
    """Rows as other packs take them; those that are off are left out."""
    return [(row.name, row.model, row.clip) for row in rows if row.on]


def trigger_words(metadata: dict[str, str]) -> list[str]:
    """The words that a file says it listens to."""
    phrase = metadata.get("modelspec.trigger_phrase", "").strip()
    if phrase:
        return [phrase]
    try:
        words = json.loads(metadata.get("ss_trained_words", "[]"))
    except ValueError:
        return []
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []
