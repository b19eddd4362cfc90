"""Captions written by a model."""
from typing import Any

import comfy.utils
from comfy_api.latest import io

from ..trainer.dataset import Dataset
from ..trainer.events import Caption, Event
from ..trainer.spec import CaptionSpec
from .dataset import Datasets
from .jobs import execute
from .paths import captioner_choices, captioner_folder
from .sockets import LoomDataset


class LoomCaptionDataset(io.ComfyNode):
    """Writes a caption file beside each picture of a dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomCaptionDataset",
            display_name="Caption Dataset",
            category="LoRA Loom/dataset",
            description="Captions pictures with a BLIP model from models/captioners and writes a .txt beside each.",
            inputs=[
                LoomDataset.Input("dataset", tooltip="The pictures to caption."),
                io.Combo.Input("captioner", options=captioner_choices(), tooltip="A folder with a BLIP model under models/captioners."),
                io.Combo.Input(
                    "mode",
                    options=["missing only", "all images"],
                    default="missing only",
                    tooltip="Caption only pictures without a caption, or replace all captions.",
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
    def validate_inputs(cls, captioner: str) -> bool | str:
        try:
            captioner_folder(captioner)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, dataset: Datasets, captioner: str, mode: Any, trigger_word: str) -> io.NodeOutput:
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
        captioned = tuple(_with_captions(part, written) for part in dataset)
        captions = [part.training_caption(image) for part in captioned for image in part.images]
        return io.NodeOutput(captioned, captions, ui={"text": captions, "lora_loom": [{"run": run_name, "written": len(written)}]})


def _with_captions(dataset: Dataset, written: dict[str, str]) -> Dataset:
    images = tuple(
        image.model_copy(update={"caption": written[image.path], "more_captions": ()}) if image.path in written else image
        for image in dataset.images
    )
    return dataset.model_copy(update={"images": images})
