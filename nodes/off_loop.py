"""Looking at files when a graph is queued, without holding up ComfyUI's event loop, which asks every node's `validate_inputs`."""
import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

Answer = bool | str


def off_loop(validate: Callable[..., Answer]) -> Callable[..., Coroutine[Any, Any, Answer]]:
    """`validate` in a thread: a slow or dead disk keeps only the graph waiting that names a file on it."""

    @functools.wraps(validate)
    async def validated(*arguments: Any, **inputs: Any) -> Answer:
        return await asyncio.to_thread(validate, *arguments, **inputs)

    # ComfyUI hands over the inputs that it finds among the parameters.
    validated.__signature__ = inspect.signature(validate)  # type: ignore[attr-defined]  # functions have the attribute
    return validated
