"""Options nodes chain: each adds its group to those that come in."""
from typing import Any

from comfy_api.latest import io
from pydantic import ValidationError

from ..trainer.messages import explain
from ..trainer.options import Options
from ..trainer.typed import Model

CATEGORY = "LoRA Loom/training"


def chained(options: Options | None, kind: str, node: str, model: type[Model], values: dict[str, Any]) -> io.NodeOutput:
    """`options` with one group more. Raises ValueError if the group is there already, or its values are wrong."""
    options = options or Options()
    if getattr(options, kind) is not None:
        raise ValueError(f"two {node} nodes are chained to one training: keep one of them.")
    try:
        return io.NodeOutput(options.model_copy(update={kind: model(**values)}))
    except ValidationError as error:
        raise ValueError(explain(error)) from error
