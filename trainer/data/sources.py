"""A folder on disk as a `Dataset`: which pictures, which captions, how often each.

Layout: pictures in the folder itself, and in subfolders named as in kohya's trainer, `N_name`: each picture there counts N times a pass.
"""
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from ..dataset import MAX_REPEATS, Dataset, DatasetImage, MissingCaptions
from ..messages import listed
from .captions import METADATA, SIDECAR_SUFFIXES, read_captions
from .images import SUFFIXES, ImageError, checked_sha256

_REPEATS = re.compile(r"(\d{1,4})_(.+)")


class DatasetError(ValueError):
    """The folder cannot be trained on. The message names every file concerned."""


def _listing(folder: Path) -> list[tuple[Path, int, str]]:
    """(folder, repeats, class name) of `folder` and its `N_name` subfolders."""
    places = []
    for place in [folder, *sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))]:
        match = _REPEATS.fullmatch(place.name)
        if place == folder or match:
            places.append((place, int(match[1]) if match else 1, match[2].strip() if match else ""))
    return places


def _files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _is_utf8(name: str) -> bool:
    return name.encode("utf-8", "replace").decode() == name


def signature(folder: Path) -> str:
    """Hex digest that changes when a picture or a caption does: names, sizes and times, no file is opened."""
    digest = hashlib.sha256()
    for place, _, _ in _listing(folder):
        for name in _files(place):
            if _is_picture(name) or name.lower().endswith(SIDECAR_SUFFIXES) or name == METADATA:
                stat = (place / name).stat()
                digest.update(f"{place.name}/{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def scan_folder(
    folder: Path,
    name: str,
    *,
    repeats: int = 1,
    trigger_word: str = "",
    missing_captions: MissingCaptions = "refuse",
    caption_lines: bool = False,
    masks: Path | Literal["alpha"] | None = None,
) -> Dataset:
    """Read a folder as a dataset. Every picture is decoded once, so that a broken one is found now.

    `repeats` multiplies those of `N_name` folders. With `missing_captions` "use the trigger word", a picture without a caption gets
    `trigger_word`, or the `name` of its `N_name` folder if there is no trigger word. `caption_lines`: every line of a caption file is a caption
    of its own. `masks`: the pictures' alpha channel, or a folder with a picture of the same name (whatever its ending) for each, laid out as
    `folder` or flat.

    Raises:
        DatasetError: no pictures, broken pictures, two pictures of one name, captions or masks that are wrong; all of them in one message.
    """
    trigger_word = trigger_word.strip()
    images: list[DatasetImage] = []
    problems: list[str] = []
    unnamed: list[str] = []
    mask_files = _masks(masks, problems) if isinstance(masks, Path) else {}
    for place, times, class_name in _listing(folder):
        files = _files(place)
        pictures = [f for f in files if _is_picture(f)]
        label = "" if place == folder else f"{place.name}/"
        if not 1 <= times * repeats <= MAX_REPEATS:
            problems.append(f"{label or place.name} would repeat {times * repeats} times: from 1 to {MAX_REPEATS} are possible")
            continue
        odd = [f for f in [place.name, *pictures] if not _is_utf8(f)]
        if odd:
            problems += [f"{name!a} is not a UTF-8 name: rename it" for name in odd]
            continue
        stems: dict[str, str] = {}
        for picture in pictures:
            other = stems.setdefault(Path(picture).stem, picture)
            if other != picture:
                problems.append(f"{label}{other} and {label}{picture} have one name, so their captions cannot be told apart: rename one")
        captions = read_captions(place, pictures, files, caption_lines=caption_lines)
        problems += [label + problem for problem in captions.problems]
        hashes = _check_all([place / picture for picture in pictures])
        for picture, checked in zip(pictures, hashes, strict=True):
            if isinstance(checked, ImageError):
                problems.append(f"{label}{picture} cannot be read ({checked}): replace or remove it")
                continue
            caption, *more = captions.by_file.get(picture, (None,))
            if caption is None and missing_captions == "use the trigger word" and not trigger_word:
                caption = class_name or None
                if not caption:
                    unnamed.append(label + picture)
            mask, mask_sha256 = None, ""
            if isinstance(masks, Path):
                stem = Path(picture).stem
                found = mask_files.get((place.name if label else "", stem)) or mask_files.get(("", stem))
                if found is None:
                    problems.append(f"{label}{picture} has no mask {stem}.png in {masks.name}: add one, white where it is to be trained")
                    continue
                mask, mask_sha256 = found
            images.append(
                DatasetImage(
                    path=str(place / picture),
                    sha256=checked,
                    caption=caption,
                    more_captions=tuple(filter(None, more)),
                    repeats=times * repeats,
                    mask=mask,
                    mask_sha256=mask_sha256,
                )
            )
    if unnamed:
        problems.append(f"the trigger word is to stand in for missing captions, and it is empty: {listed(unnamed)} would have no caption")
    if problems:
        raise DatasetError(f"{name}: {listed(problems, '; ')}.")
    if not images:
        raise DatasetError(f"{name}: no pictures in it ({', '.join(SUFFIXES)}), nor in subfolders named like 10_name.")
    return Dataset(
        name=name,
        images=tuple(images),
        trigger_word=trigger_word,
        missing_captions=missing_captions,
        mask_from_alpha=masks == "alpha",
    )


def _masks(folder: Path, problems: list[str]) -> dict[tuple[str, str], tuple[str, str]]:
    """The masks of a folder by (`N_name` folder or nothing, name without ending): path and sha256."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for place, _, _ in _listing(folder):
        pictures = [place / name for name in _files(place) if _is_picture(name) and _is_utf8(name)]
        for path, checked in zip(pictures, _check_all(pictures), strict=True):
            if isinstance(checked, ImageError):
                problems.append(f"the mask {path.name} cannot be read ({checked}): replace it")
            else:
                found[place.name if place != folder else "", path.stem] = (str(path), checked)
    return found


def _check_all(paths: list[Path]) -> list[str | ImageError]:
    # Pillow's decoders release the GIL, so threads help.
    def check(path: Path) -> str | ImageError:
        try:
            stat = path.stat()
            return checked_sha256(str(path), stat.st_mtime_ns, stat.st_size)
        except OSError as error:
            return ImageError(error.strerror or str(error))
        except ImageError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(check, paths))


def check_captions(dataset: Dataset) -> None:
    """Refuse pictures without a caption, by name, and say what can be done. Raises DatasetError."""
    missing = dataset.without_caption()
    if missing:
        names = listed([Path(image.path).name for image in missing])
        raise DatasetError(
            f"{dataset.name}: {len(missing)} of {len(dataset.images)} pictures have no caption: {names}. Write a .txt beside each, put a "
            'Caption Dataset node before the training, or set missing_captions to "use the trigger word" on the dataset node.'
        )
