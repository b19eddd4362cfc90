"""Datasets: which pictures and captions, and how they are used. A LOOM_DATASET is a tuple of them, one for each folder."""
import logging
from typing import Any

from comfy_api.latest import io
from pydantic import ValidationError

from ..trainer.data.sources import MaskSource, scan_folder, signature
from ..trainer.dataset import CaptionUse, Dataset, Framing
from ..trainer.messages import explain
from .off_loop import off_loop
from .paths import PathError, dataset_choices, dataset_folder
from .sockets import LoomDataset

_CATEGORY = "LoRA Loom/dataset"
_BESIDE, _NO_MASKS, _ALPHA = "beside the images", "none", "alpha channel"
_COMBINED = 6

Datasets = tuple[Dataset, ...]


class LoomDatasetFromFolder(io.ComfyNode):
    """A folder of pictures with captions beside them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomDatasetFromFolder",
            display_name="Dataset From Folder",
            category=_CATEGORY,
            description="Reads a folder of images and their captions (.txt, .caption, metadata.jsonl or metadata.csv), and tells what it leaves out.",
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
                io.Boolean.Input(
                    "caption_lines",
                    default=False,
                    optional=True,
                    tooltip="Each line of a caption file is a caption of its own, and a visit takes one of them. Off: the file is one caption.",
                ),
                io.Combo.Input(
                    "masks",
                    options=[_BESIDE, _NO_MASKS, _ALPHA, *dataset_choices()],
                    default=_BESIDE,
                    optional=True,
                    tooltip="What of an image is trained: what is white in NAME-masklabel.png beside it, or in a folder; its alpha channel; all.",
                ),
                io.Boolean.Input(
                    "recursive",
                    default=False,
                    optional=True,
                    tooltip="Also train the images of subfolders that have no number, however deep they lie. Off: they are left out.",
                ),
                io.Boolean.Input(
                    "large_repeats",
                    default=False,
                    optional=True,
                    tooltip="Numbers of subfolders beyond 100 are repeats too. Off: 2024_photos is a year, and its images count once.",
                ),
            ],
            outputs=[LoomDataset.Output(display_name="dataset", tooltip="What is trained on; no pixels are held.")],
        )

    @classmethod
    @off_loop
    def validate_inputs(cls, folder: str) -> bool | str:
        # ComfyUI reports what this gives on every input that it asks about. So it asks about one, and masks are looked at when the node runs.
        try:
            dataset_folder(folder)
        except PathError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str, masks: str = _BESIDE, **_: Any) -> list[str]:
        return [signature(dataset_folder(name)) for name in (folder, masks) if name not in (_BESIDE, _NO_MASKS, _ALPHA)]

    @classmethod
    def execute(
        cls,
        folder: str,
        repeats: int,
        trigger_word: str,
        missing_captions: Any,
        caption_lines: bool = False,
        masks: str = _BESIDE,
        recursive: bool = False,
        large_repeats: bool = False,
    ) -> io.NodeOutput:
        path = dataset_folder(folder)
        sources: dict[str, MaskSource] = {_BESIDE: "beside", _NO_MASKS: None, _ALPHA: "alpha"}
        dataset = scan_folder(
            path,
            path.name,
            repeats=repeats,
            trigger_word=trigger_word,
            missing_captions=missing_captions,
            caption_lines=caption_lines,
            masks=sources[masks] if masks in sources else dataset_folder(masks),
            recursive=recursive,
            large_repeats=large_repeats,
        )
        for note in dataset.notes:
            logging.warning("LoRA Loom: %s: %s", dataset.name, note)
        visits = sum(image.repeats for image in dataset.images)
        return io.NodeOutput((dataset,), ui={"text": [f"{len(dataset.images):,} images, {visits:,} visits a pass", *dataset.notes]})


class LoomResolution(io.ComfyNode):
    """At which sizes a dataset is trained, and which part of its pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomResolution",
            display_name="Resolution",
            category=_CATEGORY,
            description="Sets the sizes that pictures are trained at: buckets by shape or squares, crop and flip.",
            inputs=[
                LoomDataset.Input("dataset", tooltip="The dataset to set the size of."),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=4096,
                    step=8,
                    tooltip="Pixels: pictures have at most the area of a square of this side. SD 1.x was made for 512, SDXL for 1024.",
                ),
                io.Boolean.Input(
                    "buckets",
                    default=True,
                    optional=True,
                    tooltip="Pictures keep their shape, and a batch holds pictures of one shape. Off: the shorter side is scaled, a square is taken.",
                ),
                io.Int.Input(
                    "bucket_step", default=64, min=8, max=512, step=8, optional=True, tooltip="Sides of buckets are multiples of this, in pixels."
                ),
                io.Boolean.Input(
                    "upscale", default=False, optional=True, tooltip="Enlarge small pictures to the resolution. Off: buckets are no larger than they."
                ),
                io.Combo.Input(
                    "crop",
                    options=["center", "random"],
                    default="center",
                    optional=True,
                    tooltip="Where what does not fit is cut off: evenly, or at places drawn once, of which a visit takes one.",
                ),
                io.Int.Input("crops", default=4, min=1, max=64, optional=True, tooltip="Places for each picture with random crop."),
                io.Boolean.Input(
                    "flip", default=False, optional=True, tooltip="Half of the visits see the picture mirrored. Not for faces and lettering."
                ),
            ],
            outputs=[LoomDataset.Output(display_name="dataset", tooltip="The same pictures at this size.")],
        )

    @classmethod
    def execute(cls, dataset: Datasets, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(_changed(dataset, framing=_made(Framing, values)))


class LoomCaptionUse(io.ComfyNode):
    """What becomes of captions while training."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomCaptionUse",
            display_name="Caption Use",
            category=_CATEGORY,
            description="Shuffles and drops tags and captions while training. The caption files stay as they are.",
            inputs=[
                LoomDataset.Input("dataset", tooltip="The dataset whose captions these are."),
                io.Boolean.Input("shuffle", default=False, tooltip="At each visit the tags (what commas separate) come in another order."),
                io.Int.Input(
                    "keep_tokens", default=1, min=0, max=1000, tooltip="Tags at the beginning that stay where they are; a trigger word is one."
                ),
                io.Float.Input(
                    "dropout", default=0.0, min=0.0, max=1.0, step=0.05, tooltip="Share of the visits without any caption, e.g. 0.1. 0: none."
                ),
                io.Float.Input("tag_dropout", default=0.0, min=0.0, max=0.99, step=0.05, tooltip="Share of the tags left out at a visit. 0: none."),
            ],
            outputs=[LoomDataset.Output(display_name="dataset", tooltip="The same pictures with captions used so.")],
        )

    @classmethod
    def execute(cls, dataset: Datasets, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(_changed(dataset, caption_use=_made(CaptionUse, values)))


class LoomCombineDatasets(io.ComfyNode):
    """Several datasets as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomCombineDatasets",
            display_name="Combine Datasets",
            category=_CATEGORY,
            description="Trains several datasets in one run; each keeps its own resolution, captions, masks and repeats.",
            inputs=[
                LoomDataset.Input("dataset_1", tooltip="The first dataset; its resolution is that of the sample pictures."),
                LoomDataset.Input("dataset_2", tooltip="Another dataset."),
                LoomDataset.Input("dataset_3", optional=True, tooltip="Another dataset."),
                LoomDataset.Input("dataset_4", optional=True, tooltip="Another dataset."),
                LoomDataset.Input("dataset_5", optional=True, tooltip="Another dataset."),
                LoomDataset.Input("dataset_6", optional=True, tooltip="Another dataset; for more, chain these nodes."),
            ],
            outputs=[LoomDataset.Output(display_name="dataset", tooltip="All of them.")],
        )

    @classmethod
    def execute(cls, **datasets: Datasets) -> io.NodeOutput:
        given = (datasets.get(f"dataset_{number}") for number in range(1, _COMBINED + 1))
        return io.NodeOutput(tuple(dataset for combined in given if combined for dataset in combined))


def _changed(datasets: Datasets, **values: Any) -> Datasets:
    return tuple(dataset.model_copy(update=values) for dataset in datasets)


def _made(model: Any, values: dict[str, Any]) -> Any:
    try:
        return model(**values)
    except ValidationError as error:
        raise ValueError(explain(error)) from error
