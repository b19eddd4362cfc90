"""Captions of many images in one file, the Hugging Face imagefolder layout (https://huggingface.co/docs/datasets/image_dataset).

`metadata.jsonl` has a JSON object a line, `metadata.csv` a header and a row a line: `file_name`, the image's way from the file's own folder, and
the caption in the column `text`, `caption` or `prompt`; in JSON a list of captions is several. Other columns are allowed and left alone.
"""
import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..messages import listed, shown
from .captions import Captions, Place
from .folders import Folder, file_label
from .names import Names, T

COLUMNS = ("text", "caption", "prompt")
"""Those that hold captions."""


def read_metadata(folder: Folder, names: Names[str], captions: Captions) -> set[str]:
    """Add the captions that the metadata files of `folder` hold, and give the images that they name.

    `names` knows all images of the dataset by their labels and names.
    """
    named: set[str] = set()
    for name in folder.metadata:
        label = file_label(folder.label, name)
        text = captions.text_of(folder.path / name, label)
        if text is None:
            continue
        for line, row in _rows(text, name.endswith(".csv")):
            where = f"{label} line {line}"
            problem = row if isinstance(row, str) else _take(folder.label, row, folder.path / name, where, names, named, captions)
            captions.problems += [f"{where}{problem}"] if problem else []
    return named


def _rows(text: str, is_csv: bool) -> Iterator[tuple[int, dict[Any, Any] | str]]:
    """(number of the line, row, or what is wrong with it)."""
    if is_csv:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            yield reader.line_num, f" is not CSV ({shown(str(error))})"
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
                yield number, row if isinstance(row, dict) else {}
            except (ValueError, RecursionError) as error:
                yield number, f" is not JSON ({shown(str(error))})"


def _take(label: str, row: dict[Any, Any], file: Path, where: str, names: Names[str], named: set[str], captions: Captions) -> str:
    """Add what a row says; what is wrong with it, or nothing."""
    file_name = row.get("file_name")
    if not isinstance(file_name, str):
        return ' has no "file_name"'
    found = images_named(label, file_name, names)
    if not found:
        return f": there is no image {shown(repr(file_name))} in this folder"
    if len(found) > 1:
        return f": {shown(repr(file_name))} may be {listed([shown(image) for image in found], ' or ', most=3)}: write it as the file is named"
    column = caption_column(row)
    filled = row[column] if column else 0
    texts = [] if filled in (None, "") else [filled] if isinstance(filled, str) else filled
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        return ' has no caption: it wants "text" (or "caption" or "prompt"), a string or a list of strings'
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return ": its caption holds half of a character (a lone surrogate, as \\ud83d): write that character again"
    named.add(found[0])
    captions.add(found[0], texts, Place(file, file_name), where)
    return ""


def caption_column(row: Mapping[Any, Any]) -> str | None:
    """The column of a row's caption, None if it has none: the first that holds something, as a table put together from several has empty cells."""
    there = [column for column in COLUMNS if column in row]
    return next((column for column in there if row[column] not in (None, "", [])), there[0] if there else None)


def images_named(label: str, file_name: str, names: Names[T]) -> list[T]:
    """The images that a metadata file in the folder `label` may mean."""
    # A backslash divides folders on Windows, and is a character of a name elsewhere.
    for name in dict.fromkeys((file_name, file_name.replace("\\", "/"))):
        path = PurePosixPath(name)
        if not path.is_absolute() and ".." not in path.parts and (found := names.find(label + "/".join(path.parts))):
            return found
    return []
