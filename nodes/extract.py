"""An adapter out of two checkpoints: what a training of the whole model changed."""
from functools import partial
from typing import Any

from comfy_api.latest import io
from pydantic import ValidationError

from ..trainer.adapters.checkpoint_layers import BIAS, Place, checkpoint_layers, pairs
from ..trainer.adapters.extract import Extraction, extract
from ..trainer.adapters.merge import is_text_encoder
from ..trainer.adapters.plain import FORMATS
from ..trainer.families.detect import Checkpoint, describe_checkpoint
from ..trainer.messages import explain
from .choices import choice_problem
from .made import save_adapter, target, target_problem, watched
from .off_loop import off_loop
from .parts import blocks_of
from .paths import model_choices, model_file
from .sockets import LoomAdapters
from .stamps import named_stamp, redone


class LoomExtractAdapter(io.ComfyNode):
    """The difference of two checkpoints as a LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomExtractAdapter",
            display_name="Extract Adapter",
            category="LoRA Loom/adapters",
            description="Saves the difference of two checkpoints of one family as a LoRA, and reports how near that is.",
            inputs=[
                io.Combo.Input("tuned", options=model_choices("checkpoints"), tooltip="The checkpoint that the adapter is to turn the base into."),
                io.Combo.Input("base", options=model_choices("checkpoints"), tooltip="The checkpoint that it was trained from."),
                io.String.Input("name", default="my_extract", tooltip="The new file's name in models/loras, without .safetensors."),
                io.Int.Input("rank", default=32, min=0, max=4096, tooltip="The adapter's rank at most. 0: as energy says."),
                io.Float.Input(
                    "energy", default=0.0, min=0.0, max=1.0, step=0.01, round=0.0001, tooltip="Share of each layer's energy to keep. 0: no limit."
                ),
                io.Int.Input("conv_rank", default=0, min=0, max=4096, tooltip="Rank of 3x3 convolutions at most. 0: the same as rank."),
                io.Boolean.Input("others", default=False, tooltip="Also the differences of norms and biases, whole; few other programs read them."),
                io.Boolean.Input("text_encoder", default=True, tooltip="Also the text encoder's difference."),
                io.Combo.Input("save_format", options=list(FORMATS), default="fp16", tooltip="Number format of the file."),
            ],
            outputs=[
                LoomAdapters.Output(display_name="adapters", tooltip="The new adapter as a stack of one."),
                io.String.Output(display_name="adapter_name", tooltip="The file's name relative to models/loras."),
                io.String.Output(display_name="report", tooltip="Ranks, errors and energy, by block."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @off_loop
    def validate_inputs(
        cls,
        tuned: Any = None,
        base: Any = None,
        name: Any = None,
        rank: Any = None,
        energy: Any = None,
        conv_rank: Any = 0,
        save_format: Any = None,
    ) -> bool | str:
        problem = choice_problem(save_format=(save_format, list(FORMATS))) or target_problem("loras", name, "LoomExtractAdapter")
        if problem:
            return problem
        try:
            if None not in (rank, energy, conv_rank):
                _options(rank, energy, conv_rank, False)
            if isinstance(tuned, str) and isinstance(base, str):
                _described(tuned, base)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, tuned: Any = None, base: Any = None, name: Any = None, **_: Any) -> list[Any]:
        return [redone("LoomExtractAdapter", name), *(named_stamp(partial(model_file, "checkpoints"), checkpoint) for checkpoint in (tuned, base))]

    @classmethod
    def execute(
        cls,
        tuned: str,
        base: str,
        name: str,
        rank: int,
        energy: float,
        conv_rank: int,
        others: bool,
        text_encoder: bool,
        save_format: str,
    ) -> io.NodeOutput:
        output = target("loras", name, "LoomExtractAdapter")
        options = _options(rank, energy, conv_rank, others)
        first, second = _described(tuned, base)
        of_tuned, of_base = checkpoint_layers(first, tuned), checkpoint_layers(second, base)
        places = {key: (of_base[key], of_tuned[key]) for key in of_base if key in of_tuned and _wanted(key, of_base[key], others, text_encoder)}
        files = model_file("checkpoints", base), model_file("checkpoints", tuned)
        step = watched(cls.hidden.unique_id, len(places))
        result = extract(pairs(*files, places), options, block_of=blocks_of(second.family), dtype=FORMATS[save_format], progress=step)
        settings = {**options.model_dump(exclude_none=True), "text_encoder": text_encoder}
        told = [_told(role, file, checkpoint) for role, file, checkpoint in (("tuned", tuned, first), ("base", base, second))]
        return save_adapter(
            "LoomExtractAdapter", output, result, second.family, save_format, settings, told, {}, _left_out(of_base, of_tuned, text_encoder), base
        )


def _options(rank: int, energy: float, conv_rank: int, others: bool) -> Extraction:
    if not rank and not energy:
        raise ValueError("set rank or energy above 0: how much to keep.")
    try:
        return Extraction(rank=rank or None, energy=energy or None, conv_rank=conv_rank or None, others=others)
    except ValidationError as error:
        raise ValueError(explain(error)) from error


def _described(tuned: str, base: str) -> tuple[Checkpoint, Checkpoint]:
    """Both checkpoints. Raises FileError, FamilyError or PathError for one that cannot be read, ValueError for two that do not fit together."""
    if tuned == base:
        raise ValueError(f"tuned and base are both {base}: there is no difference to extract. Choose two checkpoints.")
    first, second = (describe_checkpoint(model_file("checkpoints", name)) for name in (tuned, base))
    if first.family != second.family:
        raise ValueError(f"{tuned} is {first.family} and {base} is {second.family}: choose two checkpoints of one family.")
    if first.unet != second.unet:
        raise ValueError(
            f"the UNets of {tuned} and {base} are built differently (channels {list(first.unet.widths)} and {list(second.unet.widths)}, transformers "
            f"{list(first.unet.depths)} and {list(second.unet.depths)}): choose the checkpoint that the first was trained from."
        )
    return first, second


def _wanted(key: str, place: Place, others: bool, text_encoder: bool) -> bool:
    if is_text_encoder(key) and not (text_encoder and place.adaptable):
        return False
    return others or (not key.endswith(BIAS) and len(place.shape) > 1)


def _left_out(base: dict[str, Place], tuned: dict[str, Place], text_encoder: bool) -> list[str]:
    """What the report says of tensors that only one of the checkpoints has, and of those that no adapter holds."""
    lines = []
    for role, own, other in (("tuned", tuned, base), ("base", base, tuned)):
        alone = [key for key in own if key not in other]
        if alone:
            lines.append(f"only in {role}, and so left out: {len(alone)} weights, the first is {alone[0]}")
    if text_encoder:
        lines.append("norms and embeddings of text encoders are left out: ComfyUI reads none from an adapter; the VAE is not compared")
    return lines


def _told(role: str, name: str, checkpoint: Checkpoint) -> dict[str, object]:
    path = model_file("checkpoints", name)
    return {"role": role, "name": name, "size": path.stat().st_size, "header_sha256": checkpoint.header.sha256}
