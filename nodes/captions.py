"""Captions written by a model."""
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.utils
from comfy_api.latest import io
from server import PromptServer

from ..trainer.captioning.store import CaptionStore
from ..trainer.dataset import Dataset
from ..trainer.events import Caption, Event
from ..trainer.spec import CaptionSpec
from .dataset import Datasets
from .jobs import execute
from .off_loop import off_loop
from .paths import captioner_choices, captioner_folder
from .sockets import LoomDataset

_UNDO = "undo"


class LoomCaptionDataset(io.ComfyNode):
    """Writes captions for the images of a dataset, and takes them back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomCaptionDataset",
            display_name="Caption Dataset",
            category="LoRA Loom/dataset",
            description="Captions images with a BLIP model from models/captioners. What a caption replaces is kept, and undo puts it back.",
            inputs=[
                LoomDataset.Input("dataset", tooltip="The pictures to caption."),
                io.Combo.Input("captioner", options=captioner_choices(), tooltip="A folder with a BLIP model under models/captioners."),
                io.Combo.Input(
                    "mode",
                    options=["missing only", "all images", _UNDO],
                    default="missing only",
                    tooltip="Caption only images without a caption, or replace all captions; undo puts back those that captioning replaced.",
                ),
                io.String.Input("trigger_word", default="", tooltip="Put first in every caption that is written."),
            ],
            outputs=[
                LoomDataset.Output(display_name="dataset", tooltip="The dataset with its captions."),
                io.String.Output(display_name="captions", is_output_list=True, tooltip="Every picture's caption, in order."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @off_loop
    def validate_inputs(cls, captioner: str, mode: str) -> bool | str:
        if mode == _UNDO:
            return True  # needs no model
        try:
            captioner_folder(captioner)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, dataset: Datasets, captioner: str, mode: Any, trigger_word: str) -> io.NodeOutput:
        if mode == _UNDO:
            return cls._undo(dataset)
        specs = [
            CaptionSpec(captioner=str(captioner_folder(captioner)), dataset=part, mode=mode, trigger_word=trigger_word.strip()) for part in dataset
        ]
        total = sum(len(spec.images_to_caption()) for spec in specs)
        bar = comfy.utils.ProgressBar(max(1, total), node_id=cls.hidden.unique_id)
        written: dict[str, str] = {}
        run_name = ""

        def on_event(event: Event) -> None:
            if isinstance(event, Caption):
                written[event.image] = event.caption
                bar.update_absolute(len(written), max(1, total))

        for spec in specs:
            if spec.images_to_caption():
                run_name = execute(spec, str(cls.hidden.unique_id), spec.dataset.name, on_event).id
        captioned = tuple(_with_captions(part, {path: [caption] for path, caption in written.items()}) for part in dataset)
        return _output(captioned, {"run": run_name, "written": len(written)})

    @classmethod
    def _undo(cls, dataset: Datasets) -> io.NodeOutput:
        # By path for all parts: some may hold the same images, at another resolution.
        undone = {path: captions for part in dataset for path, captions in CaptionStore(part).undo().items()}
        restored = tuple(_with_captions(part, undone) for part in dataset)
        count = sum(one != other for old, new in zip(dataset, restored, strict=True) for one, other in zip(old.images, new.images, strict=True))
        told = f"Captions put back: {count}." if count else "Nothing to undo: no caption is one that captioning wrote."
        PromptServer.instance.send_progress_text(told, cls.hidden.unique_id)
        return _output(restored, {"run": "", "written": 0, "undone": count})


def _output(dataset: Datasets, result: dict[str, Any]) -> io.NodeOutput:
    captions = [part.training_caption(image) for part in dataset for image in part.images]
    return io.NodeOutput(dataset, captions, ui={"text": captions, "lora_loom": [result]})


def _with_captions(dataset: Dataset, captions: Mapping[str, Sequence[str]]) -> Dataset:
    """The dataset with other captions for some of its images, by path; an image may have none."""
    changed = [
        image.model_copy(update={"caption": next(iter(captions[image.path]), None), "more_captions": tuple(captions[image.path][1:])})
        if image.path in captions
        else image
        for image in dataset.images
    ]
    return dataset.model_copy(update={"images": tuple(changed)})
