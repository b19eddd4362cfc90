"""What an adapter's file is, in words and in numbers, from its tensors and from what its metadata says."""
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..spec import METADATA_KEY
from .embedding import read_embedding
from .files import read_header, sha256_of
from .hypernetwork import read_hypernetwork
from .kinds import AdapterFacts, FileKind
from .layers import Layer, layer_rank
from .norms import Norm, block_norms, embedding_norms, hypernetwork_norms
from .pickles import is_pickle
from .reading import Adapter, describe_file, read_adapter
from .soundness import foreign_hashes
from .stack import trigger_words
from .words import counted

_MOST_TAGS = 20
_SHOWN = 200
_FORMATS = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8 (e4m3)", "F8_E5M2": "fp8 (e5m2)"}
_NOTHING = ("", "None", "none", "null")

# What a line of the report is called, and the metadata that it shows. The first of the keys that says something counts.
_OF_THE_BASE = (
    ("base model", ("ss_sd_model_name", "sshs_model_name")),
    ("base version", ("ss_base_model_version",)),
    ("architecture", ("modelspec.architecture",)),
    ("prediction", ("modelspec.prediction_type",)),
)
_OF_THE_TRAINING = (
    ("steps", ("ss_steps", "ss_max_train_steps")),
    ("epochs", ("ss_epoch", "ss_num_epochs")),
    ("batch size", ("ss_total_batch_size", "ss_batch_size_per_device")),
    ("gradient accumulation", ("ss_gradient_accumulation_steps",)),
    ("learning rate", ("ss_learning_rate",)),
    ("UNet learning rate", ("ss_unet_lr",)),
    ("text encoder learning rate", ("ss_text_encoder_lr",)),
    ("optimizer", ("ss_optimizer",)),
    ("schedule", ("ss_lr_scheduler",)),
    ("warm-up steps", ("ss_lr_warmup_steps",)),
    ("resolution", ("ss_resolution", "modelspec.resolution")),
    ("training pictures", ("ss_num_train_images",)),
    ("class pictures", ("ss_num_reg_images",)),
    ("clip skip", ("ss_clip_skip",)),
    ("noise offset", ("ss_noise_offset",)),
    ("min-SNR gamma", ("ss_min_snr_gamma",)),
    ("precision", ("ss_mixed_precision",)),
    ("seed", ("ss_seed",)),
    ("network module", ("ss_network_module",)),
    ("network arguments", ("ss_network_args",)),
)
_OF_THE_FILE = (
    ("title", ("modelspec.title", "ss_output_name")),
    ("author", ("modelspec.author",)),
    ("description", ("modelspec.description",)),
    ("license", ("modelspec.license",)),
    ("comment", ("ss_training_comment",)),
    ("usage", ("modelspec.usage_hint",)),
)
_DATES = ("modelspec.date", "ss_training_finished_at", "ss_training_started_at")
# From the spec that LoRA Loom's own trainings leave: where in it, and what it is called.
_OF_THE_SPEC = (
    (("network", "kind"), "network"),
    (("network", "targets"), "adapted layers"),
    (("text", "learning_rate"), "text encoder learning rate"),
    (("optimizer", "ema_decay"), "EMA decay"),
    (("objective", "weighting"), "loss weighting"),
)


@dataclass(frozen=True)
class Inspection:
    """`text`: the report. `norms`: what a chart shows; `measured`: what their numbers are."""

    kind: FileKind
    family: str | None
    text: str
    norms: tuple[Norm, ...]
    measured: str


def inspect_file(path: Path, progress: Callable[[int, int], None] | None = None) -> Inspection:
    """Look at a LoRA of any kind, an embedding or a hypernetwork; all of it is read and checked. `progress` as in `block_norms`.

    Raises FileError as `read_adapter`, `read_embedding` and `read_hypernetwork` do.
    """
    facts = describe_file(path)
    metadata = {} if is_pickle(path) else read_header(path).metadata
    lines: list[str] = []
    if facts.kind == "embedding":
        embedding = read_embedding(path)
        norms, measured = embedding_norms(embedding), "the length of each vector"
        tables = ", ".join(f"{encoder} {table.shape[1]}" for encoder, table in sorted(embedding.vectors.items()))
        lines.append(f"vectors: {facts.vectors} ({tables})")
        if embedding.token:
            lines.append(f"its name in the file: {_plain(embedding.token)}")
    elif facts.kind == "hypernetwork":
        hypernetwork = read_hypernetwork(path)
        norms, measured = hypernetwork_norms(hypernetwork), "the norm of each network's weights"
        lines.append(f"widths: {', '.join(map(str, facts.widths))}; activation: {hypernetwork.activation}")
        if hypernetwork.name:
            lines.append(f"its name in the file: {_plain(hypernetwork.name)}")
    else:
        adapter = read_adapter(path)
        found = block_norms(adapter.layers, adapter.family, progress)
        norms, measured = found.blocks, "the norm of each block's change at weight 1"
        lines += _network(facts, adapter)
        if found.decomposed:
            measured += " (DoRA's without its magnitudes)"
        if found.unmeasured:
            lines.append(f"not measured: {counted(found.unmeasured, 'layer')}, whose change depends on the model's own weights")
        lines += [
            f"{key} in its metadata is not the sha256 of its tensors: many programs write the hash of something else there, so this says nothing of "
            "the file"
            for key in foreign_hashes(path, metadata)
        ]
    text = [path.name, *_what(facts), *lines, *_numbers(facts, path), *_said(metadata)]
    return Inspection(facts.kind, facts.family, "\n".join(text), norms, measured)


def _what(facts: AdapterFacts) -> Iterator[str]:
    yield f"kind: {facts.kind}"
    yield f"base family: {facts.family or 'not told by its layers'}"
    if facts.naming:
        yield f"names: {facts.naming}"


def _network(facts: AdapterFacts, adapter: Adapter) -> Iterator[str]:
    ranks = [f"{rank} in {counted(count, 'layer')}" for rank, count in sorted(facts.ranks.items(), key=lambda item: -item[1])]
    without = sum(facts.parts.values()) - sum(facts.ranks.values())
    ranks += [f"none in {counted(without, 'layer')}"] if without else []
    yield f"rank: {', '.join(ranks)}"
    yield f"alpha: {', '.join(_alphas(adapter.layers))}" + (f"; as {adapter.alpha_from} says" if adapter.alpha_from else "")
    yield "parts: " + ", ".join(f"{part} {counted(count, 'layer')}" for part, count in facts.parts.items())
    if facts.decomposed:
        yield f"DoRA magnitudes: in {counted(facts.decomposed, 'layer')}"
    if facts.bundled:
        yield f"embeddings inside: {', '.join(facts.bundled)}"
    if facts.not_understood:
        more = facts.not_understood - len(facts.not_understood_names)
        beyond = f" and {more:,} more" if more else ""
        yield f"not understood, and not applied: {counted(facts.not_understood, 'tensor')}: {', '.join(facts.not_understood_names)}{beyond}"


def _alphas(layers: Mapping[str, Layer]) -> Iterator[str]:
    """Each layer's own alpha and the scale that comes of it: what the metadata says of alpha is applied by nobody."""
    told: Counter[str] = Counter()
    for layer in layers.values():
        rank = layer_rank({name: tuple(tensor.shape) for name, tensor in layer.items()})
        if rank is None:
            continue
        alpha = float(layer["alpha"].float()) if "alpha" in layer else None
        told["none (scale 1)" if alpha is None else f"{alpha:g} (scale {alpha / rank:.3g})"] += 1
    for words, count in told.most_common(8):
        yield f"{words} in {counted(count, 'layer')}"
    if not told:
        yield "none"


def _numbers(facts: AdapterFacts, path: Path) -> Iterator[str]:
    if facts.dtypes:
        yield "number format: " + ", ".join(f"{_FORMATS.get(name, name)} in {counted(count, 'tensor')}" for name, count in facts.dtypes.items())
    size = path.stat().st_size
    yield f"parameters: {facts.parameters:,}"
    yield f"size on disk: {size / 2**20:.3g} MiB ({size:,} bytes)"
    yield f"sha256: {sha256_of(path)}"


def _said(metadata: Mapping[str, str]) -> Iterator[str]:
    """What the metadata says; anyone can write anything there, so it is cut, put on one line and never trusted to be what it should."""
    if not metadata:
        yield "metadata: none"
        return
    words = trigger_words(dict(metadata))
    if words:
        yield f"trained words: {_plain(', '.join(words))}"
    tags = _tags(metadata)
    if tags:
        yield f"most frequent tags: {', '.join(f'{_plain(tag, 60)} {count}' for tag, count in tags.most_common(_MOST_TAGS))}"
    spec = _json(metadata.get(METADATA_KEY, ""))
    made = _json(metadata.get("lora_loom.made_by", ""))
    if isinstance(spec, dict):
        yield "made by: a training of LoRA Loom"
    if isinstance(made, dict):
        yield f"made by LoRA Loom: {_plain(', '.join(f'{name} {_value(value)}' for name, value in made.items()), 2 * _SHOWN)}"
    for heading, of in (("the file", _OF_THE_FILE), ("the base", _OF_THE_BASE), ("the training", _OF_THE_TRAINING)):
        found = {name: value for name, keys in of if (value := next((metadata[key] for key in keys if metadata.get(key, "") not in _NOTHING), ""))}
        if heading == "the file" and (date := _date(metadata)):
            found["date"] = date
        if heading == "the training" and isinstance(spec, dict):
            found |= {name: value for name, value in _of_the_spec(spec) if name not in found}
        if found:
            yield f"what its metadata says of {heading}:"
            yield from (f"  {name}: {_plain(value)}" for name, value in found.items())


def _of_the_spec(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for (group, name), told in _OF_THE_SPEC:
        settings = spec.get(group)
        value = settings.get(name) if isinstance(settings, dict) else None
        if isinstance(value, str | int | float) and value not in (0, "none"):
            yield told, str(value)


def _tags(metadata: Mapping[str, str]) -> Counter[str]:
    """Counts by tag over all folders of the training."""
    found: Counter[str] = Counter()
    folders = _json(metadata.get("ss_tag_frequency", ""))
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if type(count) is int and abs(count) < 2**53:
                found[tag.strip()] += count
    return found


def _date(metadata: Mapping[str, str]) -> str:
    """The day of the training: ModelSpec has ISO 8601, kohya seconds since 1970."""
    for key in _DATES:
        said = metadata.get(key, "").strip()
        try:
            if said.replace(".", "", 1).isdecimal():
                return f"{datetime.fromtimestamp(float(said), UTC):%Y-%m-%d}"
            if said:
                return f"{datetime.fromisoformat(said):%Y-%m-%d}"
        except (ValueError, OverflowError, OSError):
            continue
    return ""


def _json(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


def _value(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(text: str, most: int = _SHOWN) -> str:
    one_line = " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 2 * most]).split())
    return one_line if len(one_line) <= most else f"{one_line[:most]}…"
