"""Looking at an adapter, and saving one in other clothes."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from comfy_api.latest import io, ui

from ..trainer.adapters.embedding import read_embedding
from ..trainer.adapters.files import sha256_of, write_safetensors
from ..trainer.adapters.made_metadata import made_by
from ..trainer.adapters.norm_chart import draw_norms
from ..trainer.adapters.reading import read_adapter
from ..trainer.adapters.report import inspect_file
from ..trainer.adapters.saving import AS_THE_FILE, MetadataError, parse_changes, saved_embedding, saved_metadata, saved_tensors
from ..trainer.adapters.stack import EMBEDDING, HYPERNETWORK, Row
from ..trainer.file_names import check_word_name
from ..trainer.messages import shown
from .choices import choice_problem
from .made import refuse_own_source, target, target_problem, watched
from .matching import some
from .off_loop import off_loop
from .paths import adapter_file, model_choices, model_names
from .pictures import as_image
from .sockets import LoomAdapters
from .stamps import named_stamp, redone, remember, stamp

_NAMINGS = ["kohya", "diffusers", "PEFT"]


class LoomInspectAdapter(io.ComfyNode):
    """What an adapter's file is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomInspectAdapter",
            display_name="Inspect Adapter",
            category="LoRA Loom/adapters",
            description="Tells what an adapter's file is, how it was trained, and how much it changes each block of a model.",
            inputs=[
                io.Combo.Input(
                    "adapter",
                    options=_choices(),
                    optional=True,
                    tooltip="A file of models/loras, an embedding or a hypernetwork.",
                ),
                LoomAdapters.Input("adapters", optional=True, tooltip="A stack whose last row is looked at instead, e.g. the adapter just trained."),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="Kind, family, ranks, size, words, training settings, and what is not understood."),
                io.Image.Output(display_name="picture", tooltip="A bar for each block: how much the adapter changes it."),
                io.String.Output(display_name="kind", tooltip="LoRA, LoCon, DoRA, LoHa, LoKr, ..., embedding or hypernetwork."),
                io.String.Output(display_name="family", tooltip="The family of models that it was made for; empty if the file does not tell."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str | None = None, **_: Any) -> list[Any]:
        return [named_stamp(adapter_file, adapter), redone("LoomInspectAdapter", None) if adapter is None else 0]

    @classmethod
    def execute(cls, adapter: str | None = None, adapters: tuple[Row, ...] | None = None) -> io.NodeOutput:
        name = adapters[-1].name if adapters else adapter
        if not name:
            raise ValueError("there is no adapter to look at: choose one, or connect adapters.")
        file = adapter_file(name)
        found = inspect_file(file, watched(cls.hidden.unique_id, 1))
        remember("LoomInspectAdapter", str(cls.hidden.unique_id), lambda: stamp(file))
        picture = as_image(draw_norms(found.norms, f"{name}: {found.measured}"))
        preview = ui.PreviewImage(picture, cls=cls).as_dict()
        return io.NodeOutput(found.text, picture, found.kind, found.family or "", ui={"text": [found.text], "images": preview["images"]})


class LoomSaveAdapter(io.ComfyNode):
    """The same adapter under other names, in another number format, with other metadata."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomSaveAdapter",
            display_name="Save Adapter",
            category="LoRA Loom/adapters",
            description="Saves an adapter to models/loras with the names of another scheme, in another number format, or with other metadata.",
            inputs=[
                LoomAdapters.Input("adapters", tooltip="A stack with one adapter that is on, at weight 1."),
                io.String.Input("name", default="my_adapter", tooltip="The new file's name in models/loras, without .safetensors."),
                io.Combo.Input(
                    "naming",
                    options=_NAMINGS,
                    default="kohya",
                    tooltip="kohya: for ComfyUI, A1111 and Forge, and every kind. diffusers, PEFT: for those libraries; plain LoRA only.",
                ),
                io.Combo.Input("save_format", options=list(AS_THE_FILE), default="as the file", tooltip="Number format of the factors."),
                io.String.Input(
                    "metadata",
                    default="{}",
                    multiline=True,
                    tooltip="A JSON object of metadata to set; null removes a key. {} keeps all as it is.",
                ),
            ],
            outputs=[
                LoomAdapters.Output(display_name="adapters", tooltip="The new file as a stack of one."),
                io.String.Output(display_name="adapter_name", tooltip="The file's name relative to models/loras."),
            ],
            is_output_node=True,
        )

    @classmethod
    @off_loop
    def validate_inputs(cls, name: Any = None, naming: Any = None, save_format: Any = None, metadata: Any = None) -> bool | str:
        problem = choice_problem(naming=(naming, _NAMINGS), save_format=(save_format, list(AS_THE_FILE)))
        problem = problem or target_problem("loras", name, "LoomSaveAdapter")
        if problem is None and isinstance(metadata, str):
            try:
                parse_changes(metadata)
            except MetadataError as error:
                problem = str(error)
        return problem or True

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **_: Any) -> int:
        return redone("LoomSaveAdapter", name)

    @classmethod
    def execute(cls, adapters: tuple[Row, ...], name: str, naming: Any, save_format: str, metadata: str) -> io.NodeOutput:
        row = _the_one(adapters)
        embedding = row.name.startswith(EMBEDDING)
        kind = "embeddings" if embedding else "loras"
        output, file = target(kind, name, "LoomSaveAdapter"), adapter_file(row.name)
        refuse_own_source(output, [file])
        if embedding:
            check_word_name(name)
        read = _embedding_content if embedding else _lora_content
        content = read(row, file, naming, AS_THE_FILE[save_format])
        made = made_by("LoomSaveAdapter", {"naming": naming, "save_format": save_format}, [{"name": row.name, "sha256": sha256_of(file)}])
        write_safetensors(output, content.tensors, saved_metadata(content.metadata, metadata, content.tensors, made))
        remember("LoomSaveAdapter", name, lambda: stamp(output))
        told = f"models/{kind}/{output.name}: {output.stat().st_size:,} bytes, {content.told}"
        new = Row(name=f"{EMBEDDING}{output.name}" if embedding else output.name)
        return io.NodeOutput((new,), new.name, ui={"text": [told]})


class _Content(NamedTuple):
    """What goes into the new file."""

    tensors: dict[str, torch.Tensor]
    metadata: Mapping[str, str]
    told: str


def _lora_content(row: Row, file: Path, naming: Any, dtype: torch.dtype | None) -> _Content:
    adapter = read_adapter(file)
    if adapter.embeddings:
        inside = some(list(adapter.embeddings))
        raise ValueError(f"{row.name} has embeddings inside it ({inside}), for which no other scheme has names: it stays as it is.")
    told = f"{len(adapter.layers)} layers, {naming} names"
    if adapter.not_understood:
        told += f"\nleft out, since they are not understood: {len(adapter.not_understood)} tensors, the first is {shown(adapter.not_understood[0])}"
    return _Content(saved_tensors(adapter.layers, naming, dtype), adapter.metadata, told)


def _embedding_content(row: Row, file: Path, naming: Any, dtype: torch.dtype | None) -> _Content:
    if naming != _NAMINGS[0]:
        raise ValueError(f"{row.name} is an embedding, which all programs read in one form: set naming to {_NAMINGS[0]}.")
    embedding = read_embedding(file)
    tensors = saved_embedding(embedding, dtype)
    told = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    return _Content(tensors, embedding.metadata, f"an embedding: {told}")


def _choices() -> list[str]:
    """LoRAs, embeddings and hypernetworks, as the rows of a stack name them."""
    others = ((EMBEDDING, "embeddings"), (HYPERNETWORK, "hypernetworks"))
    return [*model_choices("loras"), *(f"{prefix}{name}" for prefix, kind in others for name in model_names(kind))]


def _the_one(rows: tuple[Row, ...]) -> Row:
    """The row that is on. Raises ValueError unless there is one, it is no hypernetwork, and nothing of it would be lost."""
    on = [row for row in rows if row.on]
    if len(on) != 1:
        raise ValueError(f"there are {len(on)} adapters that are on: one can be saved. Several are merged into one by Merge Adapters.")
    row = on[0]
    if row.name.startswith(HYPERNETWORK):
        raise ValueError(f"{row.name} is a hypernetwork: those have one form only.")
    if (row.model, row.clip) != (1.0, 1.0) or row.blocks or row.scheduled:
        raise ValueError(f"{row.name}: a file holds no weights, blocks or schedules. Set its weights to 1, or fold them in with Resize Adapter.")
    return row
