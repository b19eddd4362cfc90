"""Textual-inversion embeddings (https://arxiv.org/abs/2208.01618): a few vectors that a prompt names and that stand for words.

Layouts: A1111's and kohya's `emb_params`, `clip_l` with `clip_g` for SDXL, diffusers' one tensor under the token's own name (learned_embeds),
A1111's pickle with `string_to_param`, and `text_encoders_0` with `text_encoders_1` as diffusers' advanced DreamBooth scripts wrote them.
ComfyUI reads them in comfy/sd1_clip.py: by the encoder's name, or else the first tensor for every encoder.
"""
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..messages import shown
from .files import FileError, read_header
from .layers import Shape
from .pickles import is_pickle, load_pickle, plain_tensor
from .soundness import check_values, checked_shapes

_BY_WIDTH = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
_NAMED = frozenset({"clip_l", "clip_g", "clip_h", "t5xxl"})
ENCODER_WIDTHS = {"SD 1.x": frozenset({768}), "SD 2.x": frozenset({1024}), "SDXL": frozenset({768, 1280})}
"""How many numbers the vectors of a family's text encoders have."""
_FAMILIES = {"clip_l": "SD 1.x", "clip_h": "SD 2.x", "clip_g": "SDXL"}
_NUMBERED = re.compile(r"text_encoders_\d")
_MOST_VECTORS = 1000  # A prompt has room for 75.
_PICKLE_LIMIT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Embedding:
    """Vectors (count, width) by text encoder (`clip_l`, `clip_h`, `clip_g`, `t5xxl`), as stored.

    `token`: the name in the file, if any. `whole_in_comfyui`: whether ComfyUI gives every text encoder its part of the file.
    """

    vectors: Mapping[str, Tensor]
    family: str | None
    token: str | None = None
    whole_in_comfyui: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)


def embedding_parts(shapes: Mapping[str, Shape]) -> dict[str, str] | None:
    """Which tensor belongs to which text encoder, if names and shapes are those of an embedding; None if they are not."""
    if not shapes or not all(_is_vectors(shape) for shape in shapes.values()):
        return None
    if shapes.keys() <= _NAMED:
        return {name: name for name in shapes}
    if all(map(_NUMBERED.fullmatch, shapes)):
        parts = {_BY_WIDTH.get(shape[-1], ""): name for name, shape in shapes.items()}
        return parts if len(parts) == len(shapes) and "" not in parts else None
    if "emb_params" in shapes or len(shapes) == 1:
        name = "emb_params" if "emb_params" in shapes else next(iter(shapes))
        encoder = _BY_WIDTH.get(shapes[name][-1])
        return {encoder: name} if encoder and len(shapes) == 1 else None
    return None


def is_whole_in_comfyui(parts: Mapping[str, str]) -> bool:
    """Whether ComfyUI gives each text encoder its part, of `embedding_parts`."""
    return len(parts) == 1 or all(encoder == name for encoder, name in parts.items())


def embedding_family(encoders: Mapping[str, object]) -> str | None:
    """The family that has these text encoders; None where several have."""
    if "t5xxl" in encoders:
        return None
    families = {_FAMILIES[encoder] for encoder in encoders}
    if "SDXL" in families:
        return "SDXL"
    return families.pop() if len(families) == 1 else None


def read_embedding(path: Path) -> Embedding:
    """Read an embedding from .safetensors, or from a pickle (.pt, .bin) under the conditions of `load_pickle`.

    Raises:
        FileError: not readable, not an embedding, or its numbers are NaN, infinite or absurd.
    """
    if is_pickle(path):
        embedding = embedding_of(load_pickle(path, _PICKLE_LIMIT_BYTES), path.name)
        if embedding is None:
            raise FileError(f"{path.name} is not an embedding: there is no string_to_param and no vector under a token's name in it.")
        return embedding
    header = read_header(path)
    parts = embedding_parts(checked_shapes(header, path.name))
    if parts is None:
        raise FileError(
            f"{path.name} is not an embedding: the first of its {len(header.tensors)} tensors is {shown(next(iter(header.tensors), 'missing'))}."
        )
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name).clone() for name in parts.values()}
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path.name} cannot be read: {shown(str(error))}. Download it again.") from error
    tables = {encoder: found[name] for encoder, name in parts.items()}
    return _checked(tables, path.name, _token(found), is_whole_in_comfyui(parts), header.metadata)


def embedding_of(content: Any, file: str) -> Embedding | None:
    """The embedding in a pickle's content; None if it holds something else. Raises FileError as `read_embedding`."""
    if not isinstance(content, dict):
        return None
    vectors = content.get("string_to_param", content)
    if not isinstance(vectors, dict):
        return None
    tensors = {name: tensor for name, tensor in vectors.items() if isinstance(tensor, Tensor)}
    if len(tensors) != len(vectors) or not all(isinstance(name, str) for name in tensors):
        return None
    parts = embedding_parts({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if parts is None:
        return None
    said = content.get("name")
    token = said if isinstance(said, str) else _token(tensors)
    tables = {encoder: plain_tensor(tensors[name], name, file) for encoder, name in parts.items()}
    return _checked(tables, file, token, is_whole_in_comfyui(parts), {})


def embedding_tensors(embedding: Embedding) -> dict[str, Tensor]:
    """The file's tensors in the layout that ComfyUI, A1111, Forge and diffusers read: one table as `emb_params`, several by their encoders."""
    tables = dict(embedding.vectors)
    return {"emb_params": tables.popitem()[1]} if len(tables) == 1 and tables.keys() <= {"clip_l", "clip_h"} else tables


def _token(names: Iterable[str]) -> str | None:
    """The first name that is a word's, not a layout's."""
    return next((name for name in names if name not in _NAMED | {"*", "emb_params"} and not _NUMBERED.fullmatch(name)), None)


def _checked(vectors: dict[str, Tensor], file: str, token: str | None, whole: bool, metadata: Mapping[str, str]) -> Embedding:
    for encoder, tensor in vectors.items():
        if not tensor.is_floating_point():
            raise FileError(f"{file}: the vectors for {encoder} are whole numbers ({tensor.dtype}). Convert the file.")
        check_values(tensor, token or encoder, file)
    tables = {encoder: tensor.reshape(-1, tensor.shape[-1]) for encoder, tensor in vectors.items()}
    return Embedding(tables, embedding_family(tables), token, whole, dict(metadata))


def _is_vectors(shape: Shape) -> bool:
    if len(shape) not in (1, 2) or 0 in shape:
        return False
    return shape[-1] in (*_BY_WIDTH, 4096) and (len(shape) == 1 or shape[0] <= _MOST_VECTORS)
