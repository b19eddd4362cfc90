"""A look at a dataset before it is trained."""
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image, ImageDraw, ImageFont

from ..trainer.data.colors import on_white
from ..trainer.data.framing import Cut, cuts
from ..trainer.data.images import ImageError, cut_out, open_image, upright_size
from ..trainer.dataset import Dataset, DatasetImage
from ..trainer.messages import listed
from .dataset import Datasets
from .sockets import LoomDataset

_SIDE, _TEXT, _COLUMNS, _SHOWN = 192, 40, 6, 60


class LoomCheckDataset(io.ComfyNode):
    """What will be trained: a report, and the pictures as they are cut."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomCheckDataset",
            display_name="Check Dataset",
            category="LoRA Loom/dataset",
            description="Tells how a dataset will be trained, and shows its pictures as they are cut.",
            inputs=[
                LoomDataset.Input("dataset", tooltip="The dataset to look at."),
                io.Int.Input("batch_size", default=1, min=1, max=1024, tooltip="The training's, to tell how many batches a pass has."),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="Pictures, captions, buckets, and what is odd."),
                io.Image.Output(display_name="contact_sheet", tooltip="The first sixty pictures as they are trained, with their captions."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, dataset: Datasets, batch_size: int) -> io.NodeOutput:
        text = report(dataset, batch_size)
        return io.NodeOutput(text, _sheet(dataset), ui={"text": [text]})


def report(datasets: Datasets, batch_size: int) -> str:
    """Lines for people: what is there, in which buckets, and what is odd."""
    lines: list[str] = []
    buckets: Counter[tuple[int, int]] = Counter()
    visits: Counter[tuple[int, int]] = Counter()
    for dataset in datasets:
        enlarged, cropped = [], []
        for image in dataset.images:
            cut = _first_cut(dataset, image)
            buckets[cut.size] += 1
            visits[cut.size] += image.repeats
            enlarged += [Path(image.path).name] if cut.enlarged else []
            kept = cut.size[0] * cut.size[1] / (cut.scaled[0] * cut.scaled[1])
            cropped += [f"{Path(image.path).name} ({1 - kept:.0%})"] if kept < 0.75 else []
        lines += _about(dataset)
        lines += [f"  {len(enlarged)} are smaller than they are trained at and are enlarged: {listed(enlarged)}"] if enlarged else []
        lines += [f"  {len(cropped)} lose more than a quarter to the crop: {listed(cropped)}"] if cropped else []
    lines.append("buckets (width x height: pictures, visits a pass, batches a pass):")
    for (width, height), count in visits.most_common():
        lines.append(f"  {width} x {height}: {buckets[width, height]}, {count}, {count / batch_size:g}")
    return "\n".join(lines)


def _first_cut(dataset: Dataset, image: DatasetImage) -> Cut:
    return cuts(*(image.size or upright_size(Path(image.path))), image.sha256, dataset.framing)[0]


def _about(dataset: Dataset) -> list[str]:
    captions = [caption for image in dataset.images for caption in dataset.captions(image)]
    missing = [Path(image.path).name for image in dataset.without_caption()]
    lines = [
        f"{dataset.name}: {len(dataset.images)} pictures, {sum(image.repeats for image in dataset.images)} visits a pass, "
        f"{len(set(captions))} different captions, resolution {dataset.framing.resolution}"
    ]
    lines += [f"  {len(missing)} have no caption: {listed(missing)}"] if missing else []
    twice = [Path(image.path).name for image in dataset.copies()]
    lines += [f"  the same picture more than once: {listed(twice)}"] if twice else []
    return lines + [f"  {note}" for note in dataset.notes]


def _sheet(datasets: Datasets) -> torch.Tensor:
    """(1, h, w, 3) in [0, 1]."""
    shown = [(dataset, image) for dataset in datasets for image in dataset.images][:_SHOWN]
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * _SIDE, rows * (_SIDE + _TEXT)), "white")
    for number, (dataset, image) in enumerate(shown):
        place = number % columns * _SIDE, number // columns * (_SIDE + _TEXT)
        _paste(sheet, place, dataset, image)
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255.0).unsqueeze(0)


def _paste(sheet: Image.Image, place: tuple[int, int], dataset: Dataset, image: DatasetImage) -> None:
    cut = _first_cut(dataset, image)
    scale = (_SIDE - 8) / max(cut.size)
    size = (max(1, round(cut.size[0] * scale)), max(1, round(cut.size[1] * scale)))
    try:
        picture = cut_out(on_white(open_image(Path(image.path))), cut, size)
    except ImageError as error:
        raise ValueError(f"{image.path} cannot be read any more ({error}): put it back, or queue the dataset again.") from error
    sheet.paste(picture, (place[0] + (_SIDE - size[0]) // 2, place[1] + (_SIDE - size[1]) // 2))
    draw: Any = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    words = [f"{cut.size[0]} x {cut.size[1]}  {Path(image.path).name}", dataset.training_caption(image)]
    for line, text in enumerate(words):
        while text and draw.textlength(text, font=font) > _SIDE - 8:
            text = text[:-2].rstrip("…") + "…"
        draw.text((place[0] + 4, place[1] + _SIDE + 3 + 17 * line), text, fill="black", font=font)
