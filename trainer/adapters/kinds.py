"""What an adapter's file is, from its header alone: kind, family, naming scheme, ranks, parts; and what a file that is no adapter is instead."""
import math
from collections import Counter
from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import Field

from ..messages import shown
from ..typed import Model
from .embedding import Embedding, embedding_family, embedding_parts, is_whole_in_comfyui
from .family import STABLE_DIFFUSION
from .files import FileError, Header
from .hypernetwork import Hypernetwork
from .layers import LayerKind, Shape, Shapes, is_wide_convolution, layer_kind, layer_problem, layer_rank
from .naming import Contents, Naming, sort_names
from .soundness import checked_shapes
from .unread import unread_kind

AdapterKind = Literal["LoRA", "LoCon", "DoRA", "LoHa", "LoKr", "GLoRA", "OFT", "BOFT", "IA3", "full difference", "mixed"]
FileKind = AdapterKind | Literal["embedding", "hypernetwork"]

_SHOWN_NAMES = 5
_PARTS = {
    "lora_te_": "text encoder",
    "lora_te1_": "text encoder 1",
    "lora_te2_": "text encoder 2",
    "lora_te3_": "text encoder 3",
    "lora_prior_te_": "text encoder",
    "text_encoder.": "text encoder",
    "text_encoder_2.": "text encoder 2",
    "text_encoders.": "text encoder",
}
# Each: how a name begins or what it holds, and what has such names. In this order: a checkpoint has what its parts have.
_FOREIGN: tuple[tuple[tuple[str, ...], str], ...] = (
    (("lora_controlnet", "control_model.", "input_hint_block.", "zero_convs.", "controlnet_"), "a ControlNet: it goes to models/controlnet"),
    (("image_proj.", "ip_adapter."), "an IP-Adapter, which LoRA Loom does not read"),
    (("model.diffusion_model.",), "a whole checkpoint: it goes to models/checkpoints"),
    (("cond_stage_model.", "conditioner.", "first_stage_model."), "a part of a whole checkpoint: it goes to models/checkpoints"),
    (("double_blocks.", "joint_blocks.", "transformer_blocks.", "single_transformer_blocks."), "a diffusion transformer: models/diffusion_models"),
    (("down_blocks.", "input_blocks.", "mid_block."), "a UNet alone: it goes to models/diffusion_models"),
    (("text_model.", "transformer.resblocks.", "encoder.block.", "shared.weight"), "a text encoder alone: it goes to models/text_encoders"),
    (("encoder.", "decoder.", "quant_conv."), "a VAE: it goes to models/vae"),
    (("vision_model.", "visual."), "an image encoder: it goes to models/clip_vision"),
)


class AdapterFacts(Model):
    """What a file says of itself.

    `ranks`: how many layers have each rank. `alpha`: the network's alpha as the metadata states it (the tensors hold each layer's own).
    `layers_with_alpha`: those that have one; the others' scale is 1. `parts`: layers by UNet, text encoder, transformer. `dtypes`: tensors by
    number type. `decomposed`: layers with a DoRA magnitude. `not_understood`: tensors that are not applied, with the first names of them.
    For an embedding: `vectors`, their `widths`, and whether all of them are read by ComfyUI's CLIPTextEncode (`whole_in_comfyui`); for a
    hypernetwork its `widths`. `bundled`: embeddings inside a LoRA's file.
    """

    kind: FileKind
    family: str | None = None
    naming: Naming | None = None
    ranks: dict[int, int] = Field(default_factory=dict)
    alpha: float | None = None
    layers_with_alpha: int = 0
    parts: dict[str, int] = Field(default_factory=dict)
    dtypes: dict[str, int] = Field(default_factory=dict)
    parameters: int = 0
    decomposed: int = 0
    vectors: int = 0
    widths: tuple[int, ...] = ()
    whole_in_comfyui: bool = True
    bundled: tuple[str, ...] = ()
    not_understood: int = 0
    not_understood_names: tuple[str, ...] = ()


def describe_adapter(header: Header, file: str) -> AdapterFacts:
    """Describe the file named `file` by its header.

    Raises:
        FileError: it is no adapter (the error names what it is), the header has nonsense in it, or a layer's tensors do not fit together.
    """
    shapes = checked_shapes(header, file)
    embedding = embedding_parts(shapes)
    if embedding is not None:
        first = shapes[next(iter(embedding.values()))]
        return AdapterFacts(
            kind="embedding",
            family=embedding_family(embedding),
            vectors=first[0] if len(first) == 2 else 1,
            widths=tuple(shapes[name][-1] for name in embedding.values()),
            whole_in_comfyui=is_whole_in_comfyui(embedding),
            dtypes=_dtypes(header),
            parameters=sum(map(math.prod, shapes.values())),
        )
    contents = contents_of(header, shapes, file)
    layers = {key: contents.shapes(key, shapes) for key in contents.layers}
    ranks = Counter(rank for layer in layers.values() if (rank := layer_rank(layer)) is not None)
    return AdapterFacts(
        kind=adapter_kind(layers),
        family=contents.family,
        naming=contents.naming,
        ranks=dict(sorted(ranks.items())),
        alpha=_stated_alpha(header.metadata),
        layers_with_alpha=sum("alpha" in layer for layer in layers.values()),
        parts=dict(Counter(part_of(key, contents.family) for key in layers)),
        dtypes=_dtypes(header),
        parameters=sum(math.prod(shape) for layer in layers.values() for suffix, shape in layer.items() if suffix != "alpha"),
        decomposed=sum("dora_scale" in layer for layer in layers.values()),
        bundled=tuple(dict.fromkeys(shown(name) for name, _ in contents.bundled.values())),
        not_understood=len(contents.not_understood),
        not_understood_names=tuple(map(shown, contents.not_understood[:_SHOWN_NAMES])),
    )


def describe_embedding(embedding: Embedding) -> AdapterFacts:
    """The same for an embedding that was read, as pickled ones have to be."""
    tables = tuple(embedding.vectors.values())
    return AdapterFacts(
        kind="embedding",
        family=embedding.family,
        vectors=tables[0].shape[0],
        widths=tuple(table.shape[1] for table in tables),
        whole_in_comfyui=embedding.whole_in_comfyui,
        parameters=sum(table.numel() for table in tables),
    )


def describe_hypernetwork(hypernetwork: Hypernetwork) -> AdapterFacts:
    """The same for a hypernetwork that was read."""
    states = [state for pair in hypernetwork.layers.values() for state in pair]
    return AdapterFacts(
        kind="hypernetwork",
        family=hypernetwork.family,
        widths=tuple(sorted(hypernetwork.layers)),
        parameters=sum(tensor.numel() for state in states for tensor in state.values()),
    )


def contents_of(header: Header, shapes: Mapping[str, Shape], file: str, family: str | None = None) -> Contents:
    """A file's tensors sorted into layers whose shapes fit together. `shapes`: from `checked_shapes`; `family`: see `sort_names`.

    Raises FileError as `describe_adapter`.
    """
    contents = sort_names(shapes, header.metadata, family)
    acting = {key: names for key, names in contents.layers.items() if layer_kind(contents.shapes(key, shapes))}
    unread = unread_kind(contents.not_understood, {key: names.values() for key, names in acting.items()})
    if unread:
        raise FileError(
            f"{file} is {unread}. That is a kind of adapter that LoRA Loom does not read; nothing is wrong with the file. Use it in the program that "
            "it was made for, or another version of it as LoRA, LoHa or LoKr."
        )
    if not contents.layers:
        raise FileError(f"{file} {_instead(list(shapes), bool(contents.bundled))}")
    for key in contents.layers:
        problem = layer_problem(contents.shapes(key, shapes))
        if problem:
            raise FileError(f"{file}: the layer {shown(key)} {problem}. Use another version of it, or save it anew where it was made.")
    return contents


def adapter_kind(layers: Mapping[str, Shapes]) -> AdapterKind:
    """The kind of a whole adapter. Differences of norms and biases beside layers of another kind, as LyCORIS trains them, do not count."""
    kinds: set[LayerKind | None] = {layer_kind(layer) for layer in layers.values()}
    if len(kinds) > 1:
        kinds.discard("full difference")
    kind = kinds.pop()
    if kinds or kind is None:
        return "mixed"
    if kind == "LoRA":
        if any("dora_scale" in layer for layer in layers.values()):
            return "DoRA"
        return "LoCon" if any(is_wide_convolution(layer) for layer in layers.values()) else "LoRA"
    return kind


def _instead(names: list[str], bundle: bool) -> str:
    if bundle:
        return "holds embeddings only, bundled as OneTrainer does for a LoRA. Save them as embeddings there."
    for beginnings, what in _FOREIGN:
        if any(name.startswith(beginnings) for name in names):
            return f"is not an adapter but {what}."
    if not names:
        return "holds no tensors. Use another version of it."
    first = ", ".join(map(shown, names[:_SHOWN_NAMES]))
    kinds = ", ".join(get_args(AdapterKind)[:-1])
    return f"is not an adapter that LoRA Loom knows ({kinds}). It holds {len(names)} tensors, the first are {first}. Choose another file."


def part_of(key: str, family: str | None) -> str:
    """Which part of a model (UNet, transformer, text encoder, text encoder 1, ...) the layer with this canonical key is in."""
    for beginning, part in _PARTS.items():
        if key.startswith(beginning):
            return part
    return "UNet" if family in STABLE_DIFFUSION or key.startswith(("lora_unet_down", "lora_unet_up", "lora_unet_mid")) else "transformer"


def _dtypes(header: Header) -> dict[str, int]:
    return dict(Counter(entry.dtype for entry in header.tensors.values()).most_common())


def _stated_alpha(metadata: Mapping[str, str]) -> float | None:
    try:
        alpha = float(metadata.get("ss_network_alpha", ""))
    except ValueError:
        return None
    return alpha if math.isfinite(alpha) else None

