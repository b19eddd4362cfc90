"""Where the layers that adapters name are in a single-file checkpoint of SD 1.x, SD 2.x and SDXL: canonical keys to tensors, or parts of them."""
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..families.detect import UNET, Checkpoint, TextShape
from ..families.open_clip import pieces
from ..messages import shown
from .extract import Pair
from .files import FileError
from .ldm import Path as Words
from .ldm import path_of, to_diffusers
from .soundness import FLOATS

# LDM's paths are numbered by the blocks a level; `to_diffusers` knows them for two residual blocks and a down-sampling.
_USUAL = 3
_ADAPTABLE = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_SCALES = ("scaled_fp8", ".scale_weight", ".weight_scale")
BIAS = ".bias"
"""Ends the key of a layer's bias."""


@dataclass(frozen=True)
class Place:
    """Where one layer's weight or bias is in the file.

    `shape`: of the weight as a module has it. `part`: which of how many equal parts along the first axis of the tensor `name` it is.
    `transposed`: whether the file has the matrix the other way round. `adaptable`: whether readers know the layer by its key; ComfyUI knows
    none for norms and embeddings of text encoders.
    """

    name: str
    shape: tuple[int, ...]
    part: tuple[int, int] = (0, 1)
    transposed: bool = False
    adaptable: bool = True

    def of(self, tensor: Tensor) -> Tensor:
        """The layer's weight in `tensor`, which is the whole of `name`: a view that writes into it."""
        number, count = self.part
        size = tensor.shape[0] // count
        view = tensor.narrow(0, number * size, size) if count > 1 else tensor
        return view.T if self.transposed else view


def checkpoint_layers(checkpoint: Checkpoint, file: str) -> dict[str, Place]:
    """Places by canonical key, in the order of the file; a bias by its layer's key and BIAS.

    `file`: for errors. Tensors that are in no layer (the VAE, a schedule) are left out. Raises FileError for a UNet whose layers have no
    canonical names (more than two residual blocks a level), or for weights that are quantised.
    """
    scaled = next((name for name in checkpoint.header.tensors if name.endswith(_SCALES)), None)
    if scaled:
        raise FileError(f"{file} holds weights with scales beside them ({shown(scaled)}): a quantised checkpoint. Use one in fp16, bf16 or fp32.")
    found: dict[str, Place] = {}
    encoders = list(zip(checkpoint.texts, _prefixes(checkpoint), strict=True))
    for name, entry in checkpoint.header.tensors.items():
        places: Iterator[tuple[str, Place]] = iter(())
        if name.startswith(UNET):
            places = _unet_place(name, entry.shape, checkpoint, file)
        else:
            text = next(((text, prefix) for text, prefix in encoders if name.startswith(text.prefix)), None)
            if text:
                places = _text_places(name, entry.shape, *text)
        for key, place in places:
            if entry.dtype not in FLOATS:
                raise FileError(f"{file}: {shown(name)} holds {shown(str(entry.dtype))}: a quantised checkpoint. Use one in fp16, bf16 or fp32.")
            found[key] = place
    return found


def pairs(base: Path, tuned: Path, places: Mapping[str, tuple[Place, Place]]) -> Iterator[Pair]:
    """Both models' tensors of each layer, one pair in memory at a time. `places`: by key, of the base and of the tuned checkpoint.

    Raises FileError if a file cannot be read.
    """
    with reading(base) as first, reading(tuned) as second:
        for key, (one, other) in places.items():
            yield Pair(key, one.of(first.get_tensor(one.name)), other.of(second.get_tensor(other.name)))


def reading(path: Path) -> Any:
    """The file's tensors, one at a time. Raises FileError."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path.name} cannot be read: {shown(str(error))}. Download it again.") from error


def _prefixes(checkpoint: Checkpoint) -> tuple[str, ...]:
    return ("lora_te1", "lora_te2") if len(checkpoint.texts) == 2 else ("lora_te",)


def _unet_place(name: str, shape: tuple[int, ...], checkpoint: Checkpoint, file: str) -> Iterator[tuple[str, Place]]:
    module, _, kind = name.removeprefix(UNET).rpartition(".")
    path = path_of(module, ".")
    if path is None or kind not in ("weight", "bias"):
        return
    blocks = checkpoint.unet.blocks_per_level
    if blocks > _USUAL - 1:
        raise FileError(f"{file} has a UNet with {blocks} residual blocks a level; adapters have names for two at most. Choose another checkpoint.")
    words = to_diffusers(_renumbered(path, blocks), checkpoint.family)
    if words is not None:
        yield "_".join(("lora_unet", *words)) + (BIAS if kind == "bias" else ""), Place(name, shape)


def _renumbered(path: Words, blocks: int) -> Words:
    """The path's number as it would be with two residual blocks a level."""
    if path[0] not in ("input_blocks", "output_blocks") or not path[1].isdigit():
        return path
    number = int(path[1])
    if path[0] == "output_blocks":
        level, inside = divmod(number, blocks + 1)
        # An up-sampling is in the last block of its level, whatever its number.
        last = inside == blocks and path[2:] in (("1", "conv"), ("2", "conv"))
        return (path[0], str(level * _USUAL + (_USUAL - 1 if last else inside)), *path[2:])
    if number == 0:
        return path
    level, inside = divmod(number - 1, blocks + 1)
    return (path[0], str(1 + level * _USUAL + (_USUAL - 1 if inside == blocks else inside)), *path[2:])


def _text_places(name: str, shape: tuple[int, ...], text: TextShape, prefix: str) -> Iterator[tuple[str, Place]]:
    own = name.removeprefix(text.prefix)
    if not text.open_clip:
        yield from _text_place(own, prefix, Place(name, shape))
        return
    for piece in pieces(own):
        held = shape[::-1] if piece.transposed else (shape[0] // piece.part[1], *shape[1:])
        yield from _text_place(piece.name, prefix, Place(name, held, piece.part, piece.transposed))


def _text_place(own: str, prefix: str, place: Place) -> Iterator[tuple[str, Place]]:
    """`own`: transformers' name of the tensor, without the text_model. level."""
    module, _, kind = own.rpartition(".")
    projection = module == "text_projection"
    path = path_of(module if projection else f"text_model.{module}", ".")
    if path is None or kind not in ("weight", "bias"):
        return
    adaptable = path[-1] in _ADAPTABLE or (projection and prefix == "lora_te2")
    yield "_".join((prefix, *path)) + (BIAS if kind == "bias" else ""), replace(place, adaptable=adaptable)
