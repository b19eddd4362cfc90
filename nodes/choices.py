"""What a list offers: ComfyUI refuses no other value that a program sends for a V3 node's list."""
from collections.abc import Sequence
from typing import Any

from ..trainer.messages import shown


def choice_problem(**inputs: tuple[Any, Sequence[str]]) -> str | None:
    """What is wrong with the first of the inputs, by name the value and the choices, that is none of them. One that comes by a link is None."""
    for name, (value, choices) in inputs.items():
        if value is not None and value not in choices:
            return f"{name}: there is no {shown(repr(value))}: choose one of {', '.join(choices)}."
    return None
