"""What of a dataset's folder is not trained, and why: sentences that the node, Check Dataset, the log and the run tell."""
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from ..messages import listed, shown
from .folders import MOST_REPEATS, Folder, Layout, file_label
from .image_formats import how_to_read_name, is_image_name
from .masks import MaskSource, is_mask, mask_files

_VIDEOS = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp")
_OTHER_IMAGES = (
    *(".psd", ".psb", ".xcf", ".kra", ".svg", ".eps", ".ai", ".pdf", ".ico", ".tga", ".dds", ".pcx", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
    *(".jpx", ".jxr", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".heics", ".avifs"),
)
_OTHER_TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".xlsx", ".tar", ".zip", ".7z", ".rar")


def layout_notes(layout: Layout, named: Collection[str]) -> list[str]:
    """What is left out by where it lies or what it is called. `named`: images that are trained because a metadata file names them."""
    notes = []
    large = [folder for folder in layout.trained if folder.label in layout.large and folder.images]
    if large:
        folders = listed([f"{shown(folder.label or folder.path.name)} ({layout.large[folder.label]})" for folder in large])
        notes.append(
            f"a number beyond {MOST_REPEATS} is taken for a year or a camera's, not for repeats, so these images count once: {folders}. "
            "Turn large_repeats on if it means repeats"
        )
    off = _counted(layout, "repeats 0", named)
    if off:
        notes.append(f"left out, because the number of the folder says 0 times: {off}")
    loose = _counted(layout, "not numbered", named)
    if loose:
        which = "images in subfolders that are not named like 10_name, or lie deeper, are left out"
        notes.append(f"{which}: {loose}. Rename these folders, or turn recursive on")
    if layout.unreadable:
        entries = listed([f"{shown(what)} ({why})" for what, why in layout.unreadable])
        notes.append(f"left out, because they cannot be read: {entries}")
    return notes + _kinds(layout.trained)


def _counted(layout: Layout, use: str, named: Collection[str]) -> str:
    """`dogs/ (3 images), cats/ (1 image)`: the folders of that use that hold images."""
    counts = {
        folder.label or folder.path.name: sum(folder.label + name not in named for name in folder.images)
        for folder in layout.folders
        if folder.use == use
    }
    return listed([f"{shown(label)} ({count:,} image{'s' if count > 1 else ''})" for label, count in counts.items() if count])


def _kinds(folders: Iterable[Folder]) -> list[str]:
    """Files that are not read for what they are."""
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for folder in folders:
        for name in folder.files:
            if name not in folder.metadata and (why := _why_not(name)):
                kinds[why].append(file_label(folder.label, name))
    return [f"{len(names):,} {'files are' if len(names) > 1 else 'file is'} left out ({why}): {listed(names)}" for why, names in kinds.items()]


def _why_not(name: str) -> str:
    lower = name.lower()
    if is_image_name(name):
        return how_to_read_name(name)
    if lower.endswith(_VIDEOS):
        return "videos are not read"
    if lower.endswith(_OTHER_IMAGES):
        return "images of this kind are not read: save them as PNG or JPEG"
    if lower.endswith(_OTHER_TABLES):
        return "captions are read from .txt, .caption, metadata.jsonl and metadata.csv"
    return ""


def mask_notes(folders: Iterable[Folder], used: Collection[Path], trained: Iterable[Folder], source: MaskSource) -> list[str]:
    """Masks that are not used: of `folders`, where masks were looked for in `source`, and those beside images if that is somewhere else."""
    notes = []
    beside = [folder.path / name for folder in trained for name in folder.companions]
    masks = [folder.path / name for folder in folders for name in mask_files(folder)] if isinstance(source, Path) else beside
    unused = [shown(path.name) for path in masks if path not in used and is_mask(path.name) | isinstance(source, Path)]
    if unused and (source == "beside" or isinstance(source, Path)):
        notes.append(f"{len(unused):,} mask{'s belong' if len(unused) > 1 else ' belongs'} to no image: {listed(unused)}")
    elsewhere = [shown(path.name) for path in beside if is_mask(path.name)] if source != "beside" else []
    if elsewhere:
        what = "masks beside images are" if len(elsewhere) > 1 else "mask beside an image is"
        notes.append(f"{len(elsewhere):,} {what} not used: {listed(elsewhere)}. Set masks to beside the images")
    others = [shown(path.name) for path in beside if not is_mask(path.name)]
    if others:
        notes.append(f"{len(others):,} {'images are' if len(others) > 1 else 'image is'} left out, which another is conditioned by: {listed(others)}")
    return notes


def stray_notes(strays: list[str]) -> list[str]:
    """Text files that caption nothing."""
    return [f"{len(strays):,} text file{'s' if len(strays) > 1 else ''} without an image of that name: {listed(strays)}"] if strays else []


def remark_notes(remarks: Mapping[str, Iterable[str]]) -> list[str]:
    """What was found odd about images. `remarks`: by the image's label and name."""
    odd: defaultdict[str, list[str]] = defaultdict(list)
    for image, found in remarks.items():
        for remark in found:
            odd[remark].append(shown(image))
    return [f"{len(names):,} image{'s have' if len(names) > 1 else ' has'} {remark}: {listed(names)}" for remark, names in odd.items()]
