"""An adapter in other clothes: its tensors under another scheme's names and in another number format, and the metadata that goes with them."""
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..messages import shown
from .embedding import Embedding, embedding_tensors
from .layers import NOT_FACTORS, Layer
from .made_metadata import MADE_BY
from .metadata import HASH, KOHYA_HASH, tensors_sha256
from .peft_config import KEY, PLAIN_KEYS
from .plain import FORMATS, rounded
from .renaming import Scheme, renamed

AS_THE_FILE: dict[str, torch.dtype | None] = {"as the file": None, **FORMATS}
"""What something that comes from a file can be saved as."""

HASHES = (HASH, KOHYA_HASH, "sshs_legacy_hash")
"""Entries that say which tensors a file holds: those of other tensors are left out, and made anew where the rule is known."""
_PEFT_CONFIG = (KEY, *PLAIN_KEYS)
# The magnitudes are as large as the weights, and alpha is a number that readers divide: a rounded one changes more than a training does.
_KEPT = NOT_FACTORS | {"dora_scale"}


class MetadataError(ValueError):
    """The changes of the metadata are wrong. The message says which key and why."""


def saved_tensors(layers: Mapping[str, Layer], scheme: Scheme, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The file's tensors, with the factors in `dtype` (none: as they are), rounded once; alpha and DoRA's magnitudes keep their own.

    Raises NamingError as `renamed` does, AdapterMathError where a value does not fit `dtype`.
    """
    if dtype is None:
        return renamed(layers, scheme)
    # The wider format first: what the scheme folds into a factor is rounded with it.
    wide = {
        key: {suffix: tensor if suffix in _KEPT else tensor.double() for suffix, tensor in layer.items()} for key, layer in layers.items()
    }
    tensors = renamed(wide, scheme)
    return {name: rounded(name, tensor, dtype)[0] if tensor.dtype == torch.float64 else tensor for name, tensor in tensors.items()}


def saved_embedding(embedding: Embedding, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The same for an embedding, in the layout that all readers know. Raises AdapterMathError where a value does not fit `dtype`."""
    tensors = embedding_tensors(embedding)
    return tensors if dtype is None else {name: rounded(name, tensor.double(), dtype)[0] for name, tensor in tensors.items()}


def saved_metadata(metadata: Mapping[str, str], changes: str, tensors: Mapping[str, Tensor], made: str) -> dict[str, str]:
    """The header's metadata: `metadata` with `changes`, a JSON object whose values are set and whose nulls remove, and the hashes of `tensors`.

    `made`: the entry MADE_BY. Values that are no strings are written as JSON. peft's configuration goes, since alpha is in the tensors now.
    Raises MetadataError as `parse_changes` does.
    """
    found = {key: value for key, value in metadata.items() if key not in _PEFT_CONFIG}
    for key, value in parse_changes(changes).items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    had = {key for key in HASHES if found.pop(key, None) is not None}
    digest = tensors_sha256(tensors)
    found |= {HASH: f"0x{digest}", MADE_BY: made}
    return found | ({KOHYA_HASH: digest} if KOHYA_HASH in had else {})


def parse_changes(text: str) -> dict[str, Any]:
    """The changes as keys and values. Raises MetadataError: no JSON object, or a key that is not the user's to write."""
    try:
        found = json.loads(text.strip() or "{}")
    except (ValueError, RecursionError) as error:
        raise MetadataError(f'metadata is not JSON ({error}): write {{"key": "value"}}, or {{}} to keep all.') from error
    if not isinstance(found, dict):
        raise MetadataError('metadata is not a JSON object: write {"key": "value"}, or {} to keep all.')
    for key in found:
        if key in (*HASHES, MADE_BY, *_PEFT_CONFIG):
            raise MetadataError(f"metadata: {key} is written by LoRA Loom itself: leave it out.")
        if not key or not _is_utf8(key) or not _is_utf8(json.dumps(found[key], ensure_ascii=False)):
            raise MetadataError(f"metadata: {shown(repr(key))} or its value is not text that a file can hold: use other letters.")
    return found


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
