"""How peft scales an adapter, from the configuration in its file or beside it: peft's tensors themselves carry no alpha.

diffusers puts it into the metadata as `lora_adapter_metadata`, some trainers put its entries there as they are, and peft's own `save_pretrained`
leaves `adapter_config.json` beside `adapter_model.safetensors`.
"""
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..messages import shown, system_reason
from .files import FileError
from .naming import Origin
from .soundness import LARGEST

KEY = "lora_adapter_metadata"
PLAIN_KEYS = ("lora_alpha", "alpha_pattern", "use_rslora")
"""Entries of peft's configuration that stand in the metadata by themselves."""
_MODEL, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_WANTED = ("r", "lora_alpha", "alpha", "alpha_pattern", "rank_pattern", "use_rslora")
_KINDS = ("LORA", "LOHA", "LOKR")
_MOST_BYTES = 10_000_000
_LONGEST_PATTERN, _LONGEST_MODULE = 300, 200
_MOST_REPEATED, _MOST_OPTIONAL = 3, 4


@dataclass(frozen=True)
class PeftScale:
    """Configuration values by component (unet, text_encoder, ...; empty for a file of one model). `source`: where they stand, for people."""

    components: Mapping[str, Mapping[str, object]]
    file: str
    source: str

    def alpha(self, origin: Origin, rank: int) -> float | None:
        """The alpha that a reader has to divide by `rank`; None: the configuration does not say, and the scale is 1.

        A layer's own entry in alpha_pattern counts before lora_alpha; under rsLoRA (https://arxiv.org/abs/2312.03732) the scale is
        alpha / sqrt(rank). Raises FileError.
        """
        config = self._of(origin)
        # peft's LoHa and LoKr say alpha.
        alpha = self._patterned("alpha_pattern", origin, config.get("lora_alpha", config.get("alpha")))
        if alpha is None:
            return None
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not -LARGEST <= alpha <= LARGEST:
            raise FileError(f"{self.file}: the alpha {shown(str(alpha))} in {self.source} is not a number that can be one.")
        return alpha * math.sqrt(rank) if config.get("use_rslora") else float(alpha)

    def rank(self, origin: Origin) -> int | None:
        """The rank by which peft divides a layer's alpha, for kinds whose tensors do not tell it. Raises FileError."""
        rank = self._patterned("rank_pattern", origin, self._of(origin).get("r"))
        return rank if type(rank) is int and rank > 0 else None

    def _of(self, origin: Origin) -> Mapping[str, object]:
        return self.components.get(origin.component) or self.components.get("") or {}

    def _patterned(self, name: str, origin: Origin, value: object) -> object:
        """The layer's own entry in a table of patterns, or `value`."""
        patterns = self._of(origin).get(name) or {}
        if not isinstance(patterns, dict):
            raise FileError(f"{self.file}: {name} in {self.source} is not a table of layers.")
        return next((own for pattern, own in patterns.items() if _matches(pattern, origin.module, f"{name} in {self.source}", self.file)), value)


def peft_scale(metadata: Mapping[str, str], path: Path) -> PeftScale | None:
    """The configuration in the metadata of the file `path`, or beside it; None if there is none.

    Raises FileError if `lora_adapter_metadata` or adapter_config.json is there and cannot be read.
    """
    if metadata.get(KEY, "").strip() not in ("", "null"):
        return PeftScale(_components(_table(metadata[KEY], f"{path.name}: {KEY} in its metadata")), path.name, f"{KEY} in its metadata")
    plain = {key: value for key in PLAIN_KEYS if (value := _plain(metadata.get(key, ""))) is not None}
    if isinstance(plain.get("lora_alpha"), int | float):
        return PeftScale({"": plain}, path.name, "lora_alpha in its metadata")
    config = _beside(path)
    if config is None or config.get("peft_type", _KINDS[0]) not in _KINDS:
        return None
    return PeftScale({"": {name: config[name] for name in _WANTED if name in config}}, path.name, f"{_CONFIG} beside it")


def _beside(path: Path) -> dict[str, Any] | None:
    """adapter_config.json of peft's own layout; None for a file of another name: a folder of many adapters may hold anyone's."""
    config = path.with_name(_CONFIG)
    if path.name != _MODEL or not config.is_file():
        return None
    where = f"{path.name}: {_CONFIG} beside it, which holds its alpha,"
    try:
        with config.open("rb") as file:
            text = file.read(_MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise FileError(f"{where} cannot be read: {system_reason(error)}.") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{where} is not JSON. Download that file again.") from error
    return _table(text, where)


def _table(text: str, where: str) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where} is not JSON.") from error
    if not isinstance(table, dict):
        raise FileError(f"{where} is not a table.")
    return table


def _plain(text: str) -> object:
    """The value of an entry that anyone may have written; None where it is no JSON."""
    try:
        value: object = json.loads(text[:_MOST_BYTES])
    except (ValueError, RecursionError):
        return None
    return value


def _components(config: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    components: dict[str, dict[str, object]] = {}
    for name, value in config.items():
        component, _, option = name.rpartition(".")
        if option in _WANTED:
            components.setdefault(component, {})[option] = value
    return components


def _matches(pattern: str, module: str, where: str, file: str) -> bool:
    """Whether peft takes an entry of a pattern's table for the layer `module`, as its `get_pattern_key` does."""
    if not _is_quick(pattern):
        raise FileError(f"{file}: {shown(pattern)} in {where} could take forever to match. Save the adapter with the names of layers there.")
    try:
        return len(module) <= _LONGEST_MODULE and re.match(rf"(?:.*\.)?(?:{pattern})$", module) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise FileError(f"{file}: {shown(pattern)} in {where} is no regular expression. Save the adapter with names of layers there.") from error


def _is_quick(pattern: str) -> bool:
    """Whether matching takes a time that a stranger's file may cost: a few repetitions, and none of a group.

    What may follow a group's end, or look back or ahead, is where regular expressions take exponential time.
    """
    bare = re.sub(r"\\.|\[[^\]]*\]", "x", pattern).replace("(?:", "(")
    few = len(re.findall(r"[*+{]", bare)) <= _MOST_REPEATED and bare.count("?") <= _MOST_OPTIONAL
    return len(pattern) <= _LONGEST_PATTERN and few and not re.search(r"\)[*+{]|\(\?", bare) and not re.search(r"\\[1-9]", pattern)
