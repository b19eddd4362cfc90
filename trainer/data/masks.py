"""Which mask belongs to which image, and whether it fits.

Masks lie beside their images (`cat-masklabel.png` for `cat.jpg`, as OneTrainer has them), or in a folder of their own that is laid out as the
images' or flat, each named as its image, whatever its suffix.
"""
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..messages import listed
from .folders import MASK_ENDING, Folder, file_label
from .images import Checked, ImageError, check_images
from .names import Names

MaskSource = Path | Literal["beside", "alpha"] | None
"""A folder of masks; those beside the images; the images' alpha channel; none."""


@dataclass(frozen=True)
class Mask:
    """A mask's file and the sha256 of its bytes."""

    path: Path
    sha256: str


def masks_beside(folders: Sequence[Folder]) -> dict[str, Names[Path]]:
    """By label the masks beside images, known by the names of these."""
    return {folder.label: Names([(_stem(name), folder.path / name) for name in folder.companions if is_mask(name)]) for folder in folders}


def masks_in(folders: Sequence[Folder]) -> dict[str, Names[Path]]:
    """By label the masks of a folder of masks, known by their full names and by those without suffix."""
    return {
        folder.label: Names([(known, folder.path / name) for name in mask_files(folder) for known in dict.fromkeys((name, _stem(name)))])
        for folder in folders
    }


def mask_files(folder: Folder) -> list[str]:
    """The files of a folder of masks that are masks."""
    return [*folder.images, *(name for name in folder.companions if is_mask(name))]


def is_mask(name: str) -> bool:
    """Whether an image is a mask by its name."""
    return name.rpartition(".")[0].lower().endswith(MASK_ENDING)


def _stem(name: str) -> str:
    stem = name.rpartition(".")[0]
    return stem[: -len(MASK_ENDING)] if is_mask(name) else stem


def find_masks(
    images: Sequence[tuple[str, str]], masks: Mapping[str, Names[Path]], *, flat: bool = False
) -> tuple[dict[str, Path], dict[str, str]]:
    """The mask of each image (label, name) that has one, and what leaves a doubt which one that is; both by label and name.

    `flat`: masks without a folder are for images in any.
    """
    stems = Counter((label, name.rpartition(".")[0]) for label, name in images)
    found: dict[str, Path] = {}
    doubts: dict[str, str] = {}
    for label, name in images:
        stem = name.rpartition(".")[0]
        for place in dict.fromkeys((label, "") if flat else (label,)):
            known = masks.get(place)
            fitting = known.find(name) if known else []
            if known and not fitting:
                fitting = known.find(stem)
                if fitting and stems[label, stem] > 1:
                    doubts[label + name] = f"{file_label(label, name)} shares its name with another image, so its mask cannot be told: rename one"
                    break
            if len(fitting) > 1:
                both = listed([file_label(place, path.name) for path in fitting], " and ")
                doubts[label + name] = f"{file_label(label, name)} has two masks, {both}: remove one"
                break
            if fitting:
                found[label + name] = fitting[0]
                break
    return found, doubts


def fitting_masks(masks: Mapping[str, Path], images: Mapping[str, Checked], problems: list[str]) -> dict[str, Mask]:
    """The masks by their image's label and name, each decoded once. Adds to `problems` those that are broken or have another shape."""
    owners: defaultdict[Path, list[str]] = defaultdict(list)
    for image, path in masks.items():
        owners[path].append(image)
    fitting: dict[str, Mask] = {}
    for path, checked in zip(owners, check_images(list(owners)), strict=True):
        if isinstance(checked, ImageError):
            problems.append(f"the mask {file_label('', path.name)} cannot be read ({checked}): replace it")
            continue
        for image in owners[path]:
            if image in images and not _same_shape(checked.size, images[image].size):
                sizes = (f"{width} x {height}" for width, height in (checked.size, images[image].size))
                problems.append(
                    f"the mask {file_label('', path.name)} is {next(sizes)} and its image {file_label('', image)} {next(sizes)}: make a mask of the "
                    "image's shape, whatever its size"
                )
            fitting[image] = Mask(path, checked.sha256)
    return fitting


def _same_shape(mask: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether both have one aspect ratio, but for the rounding of the smaller one to whole pixels."""
    small, large = sorted((mask, image))
    return abs(small[1] - small[0] * large[1] / large[0]) <= 1 or abs(small[0] - small[1] * large[0] / large[1]) <= 1
