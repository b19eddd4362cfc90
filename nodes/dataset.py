"""Datasets: which pictures and captions, and how they are used."""
from typing import Any

from comfy_api.latest import io

from ..trainer.data.sources import scan_folder, signature
from ..trainer.spec import Dataset
from .paths import PathError, dataset_choices, dataset_folder
from .sockets import LoomDataset


class LoomDatasetFromFolder(io.ComfyNode):
    """A folder of pictures with captions beside them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomDatasetFromFolder",
            display_name="Dataset From Folder",
            category="LoRA Loom/dataset",
            description="Reads a folder of pictures and their captions (.txt, .caption or metadata.jsonl).",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=dataset_choices(),
                    tooltip="A folder with pictures under ComfyUI's input/ or models/datasets. Subfolders named like 10_name count 10 times.",
                ),
                io.Int.Input("repeats", default=1, min=1, max=1000, tooltip="How often each picture is visited in one pass."),
                io.String.Input(
                    "trigger_word", default="", tooltip="Put first in every caption that does not hold it. Empty: captions stay as they are."
                ),
                io.Combo.Input(
                    "missing_captions",
                    options=["refuse", "use the trigger word"],
                    default="refuse",
                    tooltip="What training does with a picture that has no caption: refuse and name it, or train it on the trigger word.",
                ),
            ],
            outputs=[LoomDataset.Output(display_name="dataset", tooltip="What is trained on; no pixels are held.")],
        )

    @classmethod
    def validate_inputs(cls, folder: str) -> bool | str:
        try:
            dataset_folder(folder)
        except PathError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str, **_: Any) -> str:
        return signature(dataset_folder(folder))

    @classmethod
    def execute(cls, folder: str, repeats: int, trigger_word: str, missing_captions: Any) -> io.NodeOutput:
        path = dataset_folder(folder)
        dataset = scan_folder(path, path.name, repeats=repeats, trigger_word=trigger_word, missing_captions=missing_captions)
        return io.NodeOutput(dataset)


class LoomResolution(io.ComfyNode):
    """At which size a dataset is trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomResolution",
            display_name="Resolution",
            category="LoRA Loom/dataset",
            description="Sets the size that pictures are trained at.",
            inputs=[
                LoomDataset.Input("dataset", tooltip="The dataset to set the size of."),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=4096,
                    step=8,
                    tooltip="Pixels. The shorter side is scaled to it and the middle square is taken. SD 1.x was made for 512, SDXL for 1024.",
                ),
            ],
            outputs=[LoomDataset.Output(display_name="dataset", tooltip="The same pictures at this size.")],
        )

    @classmethod
    def execute(cls, dataset: Dataset, resolution: int) -> io.NodeOutput:
        return io.NodeOutput(dataset.model_copy(update={"resolution": resolution}))
