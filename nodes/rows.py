"""The files that the rows of a stack name, read once and kept while a node uses them."""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..trainer.adapters.blocks import BlockError, block_of, has_blocks, parse_block_weights
from ..trainer.adapters.reading import Adapter, read_adapter
from ..trainer.adapters.stack import EMBEDDING, HYPERNETWORK, Row
from ..trainer.messages import shown
from .kept import Kept
from .paths import PathError, adapter_file, adapter_name

NOT_WHOLE = "has its parts under names that ComfyUI's prompts do not read. Save it with Save Adapter, and use that file."
"""What is wrong with an embedding that ComfyUI would read a part of."""

# What a node's last execution used. A file that changed is another one.
_READ: Kept[dict[tuple[str, int, int], Adapter]] = Kept()


@dataclass(frozen=True)
class Loaded:
    """A row that is on, with its LoRA. `family`: whose blocks the row's weights are for."""

    row: Row
    adapter: Adapter
    family: str | None

    @cached_property
    def blocks(self) -> dict[str, float]:
        """The row's weights by block; none if it has none. Raises BlockError that names the row's file."""
        if not self.row.blocks:
            return {}
        name = shown(self.row.name)
        if self.family is None:
            raise BlockError(f"{name}: the family of the adapter cannot be told, and so not its blocks: connect the model, or leave them empty.")
        try:
            return parse_block_weights(self.row.blocks, self.family)
        except BlockError as error:
            raise BlockError(f"{name}: {error}") from error

    def weight(self, key: str, text: bool) -> float:
        """The row's weight for a layer, without its schedule. Raises BlockError that names the row's file."""
        weight = self.row.clip if text else self.row.model
        return weight * self.blocks.get(block_of(key, self.family) or "", 1.0) if self.blocks else weight


def row_files(rows: Sequence[Row]) -> list[Path | None]:
    """The files of the rows, in order; None for a row that is off. Raises PathError that names the row."""
    files: list[Path | None] = []
    for number, row in enumerate(rows, 1):
        try:
            files.append(adapter_file(row.name) if row.on else None)
        except PathError as error:
            raise PathError(f"row {number}: {error}") from error
    return files


def completed(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows that name something, those that are on with their files' whole names: other packs find a file by nothing less.

    Raises PathError.
    """
    return tuple(row.model_copy(update={"name": adapter_name(row.name)}) if row.on else row for row in rows if row.name)


def is_lora(row: Row) -> bool:
    """Whether the row is a LoRA of some kind: what is no embedding and no hypernetwork."""
    return not row.name.startswith((EMBEDDING, HYPERNETWORK))


def load(rows: Sequence[Row], node: str, family: str | None = None) -> list[Loaded]:
    """The LoRAs of the rows that are on, for the node `node`. `family`: that of the model, for block weights where a file's own has no blocks.

    Raises PathError or FileError that names the row or the file.
    """
    known = {key: adapter for kept in _READ.values() for key, adapter in kept.items()}
    used: dict[tuple[str, int, int], Adapter] = {}
    found = []
    for row, file in zip(rows, row_files(rows), strict=True):
        if file is None or not is_lora(row):
            continue
        stat = file.stat()
        key = (str(file), stat.st_size, stat.st_mtime_ns)
        if key not in used:
            used[key] = known[key] if key in known else read_adapter(file)
        own = used[key].family
        found.append(Loaded(row, used[key], own if has_blocks(own) or not has_blocks(family) else family))
    _READ.put(node, used)
    return found
