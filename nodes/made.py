"""Files that nodes make out of other files: their names, what is never overwritten, and how they are saved."""
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from ..trainer.adapters.files import FileError, read_header, sha256_of, write_safetensors
from ..trainer.adapters.made_metadata import TRAINING, made_by, made_metadata, maker
from ..trainer.adapters.merge_report import MergeResult
from ..trainer.adapters.renaming import renamed
from ..trainer.adapters.stack import Row
from ..trainer.file_names import check_file_name
from ..trainer.messages import shown
from .parts import Part
from .paths import checkpoint_output, embedding_output, lora_output
from .stamps import remember, stamp

_OUTPUTS = {"loras": lora_output, "checkpoints": checkpoint_output, "embeddings": embedding_output}


def target(kind: str, name: str, node: str) -> Path:
    """Where `node` puts a new file of models/`kind`. Raises ValueError for a name that is none, and as `refuse_others`."""
    check_file_name(name)
    output = _OUTPUTS[kind](name)
    refuse_others(kind, output, node)
    return output


def refuse_others(kind: str, output: Path, node: str) -> None:
    """A file is overwritten only by the kind of node that made it. Raises ValueError that says who did."""
    if not output.exists():
        return
    try:
        made = maker(read_header(output).metadata)
    except FileError:
        made = None
    if made == node:
        return
    if made is None:
        who = "was not made by LoRA Loom"
    elif made == TRAINING:
        who = "is a training's adapter"
    else:
        who = f"was made by {shown(made)}" if made else "was made by another node"
    raise ValueError(f"models/{kind}/{output.name} exists and {who}: choose another name, or move that file away.")


def target_problem(kind: str, name: Any, node: str) -> str | None:
    """The same when the graph is queued: what is wrong. A name that comes by a link is looked at when the node runs."""
    try:
        if isinstance(name, str):
            target(kind, name, node)
    except ValueError as error:
        return str(error)
    return None


def refuse_own_source(output: Path, sources: Iterable[Path]) -> None:
    """What is read is not overwritten: a second run would start from its own result. Raises ValueError."""
    if output.exists() and any(source.exists() and source.samefile(output) for source in sources):
        raise ValueError(f"{output.name} is one of the files that this is made of: choose another name.")


def watched(node: Any, total: int) -> Callable[..., None]:
    """Moves ComfyUI's progress bar of the node, and raises its interrupt: call it with what is done."""
    bar = comfy.utils.ProgressBar(total, node_id=node)

    def step(done: int, of: int = total) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, of)

    return step


def sources_of(parts: Sequence[Part]) -> list[dict[str, object]]:
    """The files that rows name, for the new file's metadata."""
    return [{**part.row.model_dump(include={"name", "model", "clip", "blocks"}), "sha256": sha256_of(part.file)} for part in parts]


def save_adapter(
    node: str,
    output: Path,
    result: MergeResult,
    family: str | None,
    save_format: str,
    settings: Mapping[str, object],
    files: Sequence[Mapping[str, object]],
    metadata: Mapping[str, Mapping[str, str]],
    more: Sequence[str] = (),
    base_model: str | None = None,
) -> io.NodeOutput:
    """Write the adapter `result` to `output`; gives the node's outputs: a stack of it, its name, the report, which ends in the lines `more`.

    `settings`, `files`: see `made_by`; `metadata`: of the adapters that went in, by name. Raises FileError.
    """
    name = output.stem
    tensors = renamed(result.layers, "kohya")
    made = made_by(node, {**settings, "save_format": save_format}, files)
    write_safetensors(output, tensors, made_metadata(name, family, result.layers, tensors, made, metadata, base_model))
    remember(node, name, lambda: stamp(output))
    text = "\n".join([result.report.text(), *more, f"saved as models/loras/{output.name}"])
    return io.NodeOutput((Row(name=output.name),), output.name, text, ui={"text": [text]})
