"""Captions written by a model."""
from typing import Any

import comfy.utils
from comfy_api.latest import io

from ..trainer.events import Caption, Event, Phase
from ..trainer.spec import CaptionSpec, Dataset
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
    def execute(cls, dataset: Dataset, captioner: str, mode: Any, trigger_word: str) -> io.NodeOutput:
        spec = CaptionSpec(captioner=str(captioner_folder(captioner)), dataset=dataset, mode=mode, trigger_word=trigger_word.strip())
        todo = spec.images_to_caption()
        written: dict[str, str] = {}
        run_name = ""
        if todo:
            bar = comfy.utils.ProgressBar(len(todo), node_id=cls.hidden.unique_id)

            def on_event(event: Event) -> None:
                if isinstance(event, Caption):
                    written[event.image] = event.caption
                elif isinstance(event, Phase) and event.name == "captioning":
                    bar.update_absolute(event.done, max(1, event.total))

            run_name = execute(spec, str(cls.hidden.unique_id), dataset.name, on_event).id
        images = tuple(
            image.model_copy(update={"caption": written[image.path]}) if image.path in written else image for image in dataset.images
        )
        captioned = dataset.model_copy(update={"images": images})
        captions = [captioned.training_caption(image) for image in images]
        return io.NodeOutput(captioned, captions, ui={"text": captions, "lora_loom": [{"run": run_name, "written": len(written)}]})
