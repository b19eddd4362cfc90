"""A folder on disk as a `Dataset`: which images, which captions and masks, how often each, and what of it is left out."""
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..dataset import MAX_REPEATS, Dataset, DatasetImage, MissingCaptions, Reading
from ..messages import listed, shown, system_reason
from .captions import Captions, read_sidecars
from .folders import Folder, Layout, look
from .image_formats import SUFFIXES, how_to_read_name
from .images import Checked, ImageError, check_images
from .left_out import layout_notes, mask_notes, remark_notes, stray_notes
from .masks import Mask, MaskSource, find_masks, fitting_masks, masks_beside, masks_in
from .metadata_files import read_metadata
from .names import Names

__all__ = ["DatasetError", "MaskSource", "check_captions", "scan_folder", "signature"]


_LONGEST_PROBLEM = 300


class DatasetError(ValueError):
    """The folder cannot be trained on. The message names every file concerned, or the first of many."""


@dataclass(frozen=True)
class _Source:
    """An image that is to be trained: `name` in `folder`, which counts `repeats` times."""

    folder: Folder
    name: str
    repeats: int

    @property
    def key(self) -> str:
        """Its way from the dataset's folder."""
        return self.folder.label + self.name

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.folder.path / self.name


def signature(folder: Path) -> str:
    """Hex digest that changes when what `scan_folder` finds does: names, sizes and times, no file is opened."""
    digest = hashlib.sha256()
    try:
        layout = look(folder)
    except OSError as error:
        return f"{folder}: {system_reason(error)}"
    for place in layout.folders:
        for name in (*place.images, *place.companions, *place.sidecars, *place.metadata):
            try:
                stat = (place.path / name).stat()
                told = f"{place.label}{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            except OSError as error:
                told = f"{place.label}{name}\0{system_reason(error)}\n"
            digest.update(told.encode("utf-8", "surrogateescape"))
    digest.update(repr((folder.name, layout_notes(layout, ()))).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def scan_folder(
    folder: Path,
    name: str,
    *,
    repeats: int = 1,
    trigger_word: str = "",
    missing_captions: MissingCaptions = "refuse",
    caption_lines: bool = False,
    masks: MaskSource = "beside",
    recursive: bool = False,
    large_repeats: bool = False,
) -> Dataset:
    """Read a folder as a dataset. Every image is decoded once, so that a broken one is found now. Nothing is written.

    `repeats` multiplies those of `N_name` folders. With `missing_captions` "use the trigger word", an image without a caption gets
    `trigger_word`, or the `name` of its `N_name` folder if there is no trigger word. `caption_lines`: every line of a caption file is a caption
    of its own. `masks`: a folder has one for each image; beside them those that have none are trained whole. `recursive` and `large_repeats`: see
    `folders.look`. What is left out is told in the dataset's `notes`.

    Raises:
        DatasetError: no images, broken images, captions or masks that are wrong; all of them in one message.
    """
    trigger_word = trigger_word.strip()
    try:
        elsewhere = masks if isinstance(masks, Path) and masks != folder else None
        layout = look(folder, recursive=recursive, large_repeats=large_repeats, without=elsewhere)
    except OSError as error:
        raise DatasetError(f"{shown(name)}: the folder cannot be read ({system_reason(error)}).") from error
    captions, named = folder_captions(layout, caption_lines)
    problems = captions.problems
    sources = _sources(layout, named, repeats, problems)
    checked = _checked(sources, problems)
    fitting, about_masks = _masks(masks, sources, checked, layout, problems)
    images = []
    unnamed: list[str] = []
    for source in sources:
        if source.key not in checked:
            continue
        caption, *more = captions.by_image.get(source.key, (None,))
        if caption is None and missing_captions == "use the trigger word" and not trigger_word:
            caption = source.folder.class_name or None
            unnamed += [] if caption else [shown(source.key)]
        images.append(_image(source, checked[source.key], caption, more, fitting.get(source.key)))
    if unnamed:
        problems.append(f"the trigger word is to stand in for missing captions, and it is empty: {listed(unnamed)} would have no caption")
    if problems:
        raise DatasetError(f"{shown(name)}: {listed([shown(problem, _LONGEST_PROBLEM) for problem in problems], '; ')}.")
    notes = [*layout_notes(layout, named), *stray_notes(captions.strays), *about_masks]
    if not images:
        raise DatasetError(f"{shown(name)}: no pictures in it ({', '.join(SUFFIXES)}), nor in subfolders named like 10_name.{_instead(notes)}")
    return Dataset(
        name=name,
        images=tuple(images),
        trigger_word=trigger_word,
        missing_captions=missing_captions,
        mask_from_alpha=masks == "alpha",
        reading=Reading(folder=str(folder), recursive=recursive, caption_lines=caption_lines) if _is_utf8(str(folder)) else None,
        notes=(*notes, *remark_notes({key: found.remarks for key, found in checked.items()})),
    )


def _instead(notes: list[str]) -> str:
    return f" What is there: {listed(notes, '; ')}." if notes else ""


def _image(source: _Source, checked: Checked, caption: str | None, more: list[str], mask: Mask | None) -> DatasetImage:
    return DatasetImage(
        path=str(source.path),
        sha256=checked.sha256,
        caption=caption,
        more_captions=tuple(more),
        repeats=source.repeats,
        mask=str(mask.path) if mask else None,
        mask_sha256=mask.sha256 if mask else "",
        size=checked.size,
    )


def _is_utf8(name: str) -> bool:
    return name.encode("utf-8", "replace").decode() == name


def folder_captions(layout: Layout, caption_lines: bool) -> tuple[Captions, set[str]]:
    """All captions of a folder, and the images that a metadata file names: those are trained in folders too that are not."""
    captions = Captions()
    usable = [folder for folder in layout.folders if folder.use != "repeats 0"]
    names = Names([(folder.label + name, folder.label + name) for folder in layout.folders for name in folder.images])
    named: set[str] = set()
    for folder in layout.trained:
        named |= read_metadata(folder, names, captions)
    named &= {folder.label + name for folder in usable for name in folder.images}
    for folder in usable:
        images = captioned_images(folder, named)
        strays = read_sidecars(folder, images, captions, caption_lines=caption_lines) if images or folder.use == "trained" else []
        captions.strays += strays if folder.use == "trained" else []
    return captions, named


def captioned_images(folder: Folder, named: set[str]) -> list[str]:
    """The images of a folder that can have caption files. `named`: see `folder_captions`."""
    return [name for name in folder.images if folder.use == "trained" or folder.label + name in named]


def _sources(layout: Layout, named: set[str], repeats: int, problems: list[str]) -> list[_Source]:
    """The images to train, as often as their folders say times `repeats`."""
    sources = []
    for folder in layout.folders:
        images = [name for name in folder.images if _is_read(name) and (folder.use == "trained" or folder.label + name in named)]
        times = folder.repeats * repeats
        # Files on a Linux disk may have names that are no text, which no JSON can hold.
        odd = [entry for entry in (str(folder.path), *images) if not _is_utf8(entry)]
        if images and times > MAX_REPEATS:
            problems.append(f"{shown(folder.label or folder.path.name)} would repeat {times} times: from 1 to {MAX_REPEATS} are possible")
        elif images and odd:
            problems += [f"{shown(repr(Path(entry).name))} is not a UTF-8 name: rename it" for entry in odd]
        else:
            sources += [_Source(folder, name, times) for name in images]
    return sources


def _is_read(name: str) -> bool:
    """False: a package is missing that reads images of this name; they are told by the package."""
    return not how_to_read_name(name)


def _checked(sources: list[_Source], problems: list[str]) -> dict[str, Checked]:
    """What is known of each whole image; adds to `problems` the others."""
    found = {}
    for source, checked in zip(sources, check_images([source.path for source in sources]), strict=True):
        if isinstance(checked, ImageError):
            problems.append(f"{shown(source.key)} cannot be read ({checked}): replace or remove it")
        else:
            found[source.key] = checked
    return found


def _masks(
    masks: MaskSource, sources: list[_Source], checked: Mapping[str, Checked], layout: Layout, problems: list[str]
) -> tuple[dict[str, Mask], list[str]]:
    """The masks by their image's key, and notes on those that are not used; adds to `problems` what is wrong with them."""
    own_folder = isinstance(masks, Path)
    folders = layout.folders
    if isinstance(masks, Path):
        try:
            folders = look(masks, recursive=True).folders
        except OSError as error:
            problems.append(f"the masks in {shown(masks.name)} cannot be read ({system_reason(error)})")
            return {}, []
    available = masks_in(folders) if own_folder else masks_beside(folders) if masks == "beside" else {}
    found, doubts = find_masks([(source.folder.label, source.name) for source in sources], available, flat=own_folder)
    problems += doubts.values()
    if isinstance(masks, Path):
        problems += [
            f"{shown(source.key)} has no mask {shown(source.path.stem)}.png in {shown(masks.name)}: add one, white where it is to be trained"
            for source in sources
            if source.key in checked and source.key not in found and source.key not in doubts
        ]
    notes = mask_notes(folders, set(found.values()), layout.trained, masks)
    return fitting_masks(found, checked, problems), notes


def check_captions(dataset: Dataset) -> None:
    """Refuse pictures without a caption, by name, and say what can be done. Raises DatasetError."""
    missing = dataset.without_caption()
    if missing:
        names = listed([shown(Path(image.path).name) for image in missing])
        raise DatasetError(
            f"{dataset.name}: {len(missing)} of {len(dataset.images)} pictures have no caption: {names}. Write a .txt beside each, put a "
            'Caption Dataset node before the training, or set missing_captions to "use the trigger word" on the dataset node.'
        )
