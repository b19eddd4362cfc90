"""What an adapter that was made of others, or of checkpoints, says of itself: the words of metadata.py without those of a training.

There is no date in it: the same files and settings give the same file, byte for byte.
"""
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from ..spec import METADATA_KEY
from .layers import Layer, is_wide_convolution, layer_rank
from .metadata import ARCHITECTURES, BASE_VERSIONS, HASH, tensors_sha256
from .stack import trigger_words

MADE_BY = "lora_loom.made_by"
"""JSON: the node, its settings, and the files that it read, by name and sha256."""
TRAINING = "LoomTrainLoRA"
"""The node whose files hold the entry METADATA_KEY instead, as those of other trainings do."""
_TRAININGS = {"train_lora": TRAINING, "textual_inversion": "LoomTrainTextualInversion", "fine_tune": "LoomFineTune"}
# What holds for the new file if it holds for all that it was made of.
_SHARED = (
    *("ss_base_model_version", "ss_sd_model_name", "ss_clip_skip", "ss_resolution"),
    *("modelspec.architecture", "modelspec.resolution", "modelspec.prediction_type"),
)


def is_ours(metadata: Mapping[str, str]) -> bool:
    """Whether LoRA Loom wrote the file."""
    return maker(metadata) is not None


def maker(metadata: Mapping[str, str]) -> str | None:
    """The node that wrote the file: "" if its entry cannot be read, None if it was not LoRA Loom."""
    entry = MADE_BY if MADE_BY in metadata else METADATA_KEY
    if entry not in metadata:
        return None
    try:
        told = json.loads(metadata[entry])
    except (ValueError, RecursionError):
        return ""
    said = told.get("node" if entry == MADE_BY else "task") if isinstance(told, dict) else None
    node = said if entry == MADE_BY else _TRAININGS.get(str(said))
    return node if isinstance(node, str) else ""


def made_by(node: str, settings: Mapping[str, object], sources: Sequence[Mapping[str, object]]) -> str:
    """The entry MADE_BY."""
    return json.dumps({"node": node, "settings": dict(settings), "files": [dict(source) for source in sources]}, sort_keys=True, ensure_ascii=False)


def made_metadata(
    name: str,
    family: str | None,
    layers: Mapping[str, Layer],
    tensors: Mapping[str, Tensor],
    made: str,
    sources: Mapping[str, Mapping[str, str]],
    base_model: str | None = None,
) -> dict[str, str]:
    """The header's metadata. `tensors`: the file's, of `layers`; `made`: see `made_by`; `sources`: metadata of the adapters that went in, by name.

    `base_model`: the checkpoint's file name, where one was read. Trigger words and tags of all sources are kept.
    """
    metadata = _of_family(family) | _agreed(list(sources.values())) | ({"ss_sd_model_name": base_model} if base_model else {})
    metadata |= _network(layers) | {
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": name,
        HASH: "0x" + tensors_sha256(tensors),
        MADE_BY: made,
    }
    words = dict.fromkeys(word for source in sources.values() for word in trigger_words(dict(source)))
    if words:
        metadata["modelspec.trigger_phrase"] = ", ".join(words)
    tags = _tags(sources.values())
    if tags:
        metadata["ss_tag_frequency"] = json.dumps(tags, sort_keys=True, ensure_ascii=False)
    if sources:
        metadata["modelspec.merged_from"] = ", ".join(sources)
    return metadata


def _of_family(family: str | None) -> dict[str, str]:
    if family not in BASE_VERSIONS:
        return {}
    return {"ss_base_model_version": BASE_VERSIONS[family], "modelspec.architecture": ARCHITECTURES[family]}


def _agreed(sources: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {key: sources[0][key] for key in _SHARED if sources and len({source.get(key) for source in sources}) == 1 and key in sources[0]}


def _network(layers: Mapping[str, Layer]) -> dict[str, str]:
    """kohya's words for the network; "Dynamic", as kohya's resizing writes it, where layers have different ranks. alpha is the rank."""
    plain, wide = Counter[int](), Counter[int]()
    for layer in layers.values():
        shapes = {suffix: tuple(tensor.shape) for suffix, tensor in layer.items()}
        rank = layer_rank(shapes)
        if rank is not None:
            (wide if is_wide_convolution(shapes) else plain)[rank] += 1
    whole = any("lora_up.weight" not in layer for layer in layers.values())
    arguments = {"conv_dim": _one(wide), "conv_alpha": _one(wide)} if wide else {}
    found = {"ss_network_module": "lycoris.kohya" if whole else "networks.lora", "ss_network_args": json.dumps(arguments)}
    return found | ({"ss_network_dim": _one(plain or wide), "ss_network_alpha": _one(plain or wide)} if plain or wide else {})


def _one(ranks: Counter[int]) -> str:
    return str(next(iter(ranks))) if len(ranks) == 1 else "Dynamic"


def _tags(sources: Iterable[Mapping[str, str]]) -> dict[str, dict[str, int]]:
    """Tag counts by dataset, added up; what other programs wrote there in another form is left out."""
    found: dict[str, Counter[str]] = {}
    for source in sources:
        try:
            told = json.loads(source.get("ss_tag_frequency", "{}"))
        except (ValueError, RecursionError):
            continue
        for dataset, counts in told.items() if isinstance(told, dict) else ():
            for tag, count in counts.items() if isinstance(counts, dict) else ():
                if type(count) is int:
                    found.setdefault(dataset, Counter())[tag] += count
    return {dataset: dict(counts) for dataset, counts in found.items()}
