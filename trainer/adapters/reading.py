"""Reading an adapter from a file that a stranger made: every way in which it can be wrong is an error that names the file and the key."""
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..messages import shown
from .embedding import embedding_of, embedding_parts
from .files import FileError, Header, read_header, sha256_of
from .hypernetwork import hypernetwork_of
from .kinds import AdapterFacts, AdapterKind, adapter_kind, contents_of, describe_adapter, describe_embedding, describe_hypernetwork
from .layers import NOT_FACTORS, Layer, layer_rank
from .naming import Contents, Naming, Origin
from .peft_config import PeftScale, peft_scale
from .pickles import is_pickle, load_pickle
from .soundness import FLOATS, check_recorded_hash, check_values, checked_shapes

_PICKLE_LIMIT_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory.

    `layers`: by canonical key (see naming.py), tensors on the CPU as stored, by canonical suffix (see layers.py). A layer without `alpha` has
    scale 1. `embeddings`: those that OneTrainer bundled with it, vectors (count, width) by name and text encoder ("" where the file has one).
    `not_understood`: names of tensors in the file that are in no layer. `alpha_from`: where alphas come from that are not in the file's tensors.
    """

    kind: AdapterKind
    family: str | None
    naming: Naming
    layers: dict[str, Layer]
    metadata: dict[str, str]
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    not_understood: tuple[str, ...] = ()
    alpha_from: str | None = None


def describe_file(path: Path) -> AdapterFacts:
    """What the file is: a LoRA of any kind, an embedding or a hypernetwork. A .safetensors file's tensors are not read; a pickle has to be.

    Raises:
        FileError: as `describe_adapter`, `read_embedding` and `read_hypernetwork` do.
    """
    if not is_pickle(path):
        return describe_adapter(read_header(path), path.name)
    content = load_pickle(path, _PICKLE_LIMIT_BYTES)
    hypernetwork = hypernetwork_of(content, path.name)
    if hypernetwork:
        return describe_hypernetwork(hypernetwork)
    embedding = embedding_of(content, path.name)
    if embedding:
        return describe_embedding(embedding)
    raise FileError(f"{path.name} is a pickle that is neither an embedding nor a hypernetwork. Use the .safetensors version of it.")


def read_adapter(path: Path, sha256: str | None = None, *, recorded_hash: bool = True, family: str | None = None) -> Adapter:
    """Read a LoRA (of any kind, in any naming scheme) whole into memory, once everything about it has been checked.

    `sha256`: of the whole file in hex, if it is known from elsewhere. `recorded_hash`: also compare with the hash that LoRA Loom wrote into the
    file's metadata; without it, a file whose tensors another program changed can be read. `family`: see `sort_names`.

    Raises:
        FileError: not there, not .safetensors, truncated, changed; no adapter (an embedding, a checkpoint, ...: the error names it); a number
            type that is not known; shapes that do not fit together; NaN, infinite or absurd values.
    """
    header = read_header(path)
    shapes = checked_shapes(header, path.name)
    if embedding_parts(shapes):
        raise FileError(f"{path.name} is an embedding, not a LoRA: it goes to models/embeddings, and prompts name it.")
    contents = contents_of(header, shapes, path.name, family)
    _check_types(header, contents, path.name)
    _check_sha256(path, sha256)
    if recorded_hash:
        check_recorded_hash(path, header.metadata)
    scale = peft_scale(header.metadata, path)
    scaled = False
    layers: dict[str, Layer] = {}
    embeddings: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:

            def read(name: str, used: bool = True) -> Tensor:
                # A copy: the library's tensor is the file itself, which may be replaced while the adapter is in use.
                tensor = file.get_tensor(name).clone()
                if used:
                    check_values(tensor, name, path.name)
                return tensor

            for key, names in contents.layers.items():
                # LoKr of two whole factors has no use for alpha, and some programs write 1e10 there.
                whole = "lokr_w1" in names and "lokr_w2" in names
                layer = {suffix: read(name, used=not (whole and suffix == "alpha")) for suffix, name in names.items()}
                layer = _as_kohya_shapes(layer, names)
                origin = contents.origins.get(key)
                if scale and origin and "alpha" not in layer:
                    layer, has_alpha = _as_peft_scales(layer, names, origin, scale)
                    scaled |= has_alpha
                layers[key] = layer
            for name, (embedding, encoder) in contents.bundled.items():
                embeddings.setdefault(embedding, {})[encoder] = read(name)
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path.name} cannot be read: {shown(str(error))}. Download it again.") from error
    kind = adapter_kind({key: contents.shapes(key, shapes) for key in layers})
    alpha_from = scale.source if scale and scaled else None
    return Adapter(kind, contents.family, contents.naming, layers, header.metadata, embeddings, contents.not_understood, alpha_from)


def _as_kohya_shapes(layer: dict[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Give magnitudes of peft's the shape that kohya's files have."""
    if "lora_magnitude_vector" in names.get("dora_scale", ""):
        layer["dora_scale"] = layer["dora_scale"].reshape(-1, *[1] * (layer["lora_down.weight"].dim() - 1))
    return layer


def _as_peft_scales(layer: dict[str, Tensor], names: Mapping[str, str], origin: Origin, scale: PeftScale) -> tuple[dict[str, Tensor], bool]:
    """Give a layer of peft's the alpha of its configuration, and tell whether there is one. Raises FileError."""
    rank = layer_rank({suffix: tuple(tensor.shape) for suffix, tensor in layer.items()})
    # Two whole factors have no rank, so nobody else scales them; peft does, by its configuration's.
    whole = "lokr_w1" in layer and rank is None
    divisor = scale.rank(origin) if whole else rank
    alpha = scale.alpha(origin, divisor) if divisor else None
    if alpha is None or not divisor:
        return layer, False
    if whole:
        return layer | {"lokr_w1": (layer["lokr_w1"].double() * (alpha / divisor)).to(layer["lokr_w1"].dtype)}, True
    layer = layer | {"alpha": torch.tensor(alpha, dtype=torch.float32)}
    if names.get("diff_b", "").endswith("lora_B.bias"):
        # peft scales the bias with the matrices.
        layer["diff_b"] = layer["diff_b"] * (alpha / divisor)
    return layer, True


def _check_types(header: Header, contents: Contents, file: str) -> None:
    for names in contents.layers.values():
        for suffix, name in names.items():
            dtype = header.tensors[name].dtype
            if suffix not in NOT_FACTORS and dtype not in FLOATS:
                raise FileError(f"{file}: {shown(name)} holds whole numbers ({dtype}): a quantised adapter. Use one in fp16, bf16 or fp32.")


def _check_sha256(path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    wanted = sha256.strip().lower().removeprefix("0x")
    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise FileError(f"{path.name}: the sha256 to compare with is not one: {shown(sha256)}. It has 64 hex digits.")
    found = sha256_of(path)
    if found != wanted:
        raise FileError(f"{path.name} is not the file that is wanted: its sha256 is {found}, not {wanted}. Download or copy it again.")
