"""Where captions come from: a `.txt` or `.caption` file beside the picture, or a `metadata.jsonl` in its folder.

`metadata.jsonl` is the Hugging Face imagefolder layout (https://huggingface.co/docs/datasets/image_dataset): one JSON object a line with
`file_name` and the caption as `text` (or `caption`), or a list of captions; further columns are allowed and left alone.
"""
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

SIDECAR_SUFFIXES = (".txt", ".caption")
METADATA = "metadata.jsonl"
CAPTION_COLUMNS = ("text", "caption")


@dataclass
class FolderCaptions:
    """Captions of one folder: by picture file name, at least one each, and what is wrong (each a sentence for the user)."""

    by_file: dict[str, tuple[str, ...]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_captions(folder: Path, pictures: Iterable[str], files: Iterable[str], *, caption_lines: bool = False) -> FolderCaptions:
    """Captions for `pictures` (file names in `folder`), from `files` (all file names there).

    An empty file is no caption. Two sources for one picture must agree. With `caption_lines` every line of a caption file is a caption of its
    own; otherwise the whole file is one.
    """
    pictures = list(pictures)
    by_stem = {Path(name).stem: name for name in pictures}
    found = FolderCaptions()
    sources: dict[str, str] = {}

    def add(picture: str, texts: Iterable[str], source: str) -> None:
        captions = tuple(dict.fromkeys(filter(None, (" ".join(text.split()) for text in texts))))
        if not captions:
            return
        known = found.by_file.setdefault(picture, captions)
        if known != captions:
            found.problems.append(f"{picture} has two captions that differ, in {sources[picture]} and in {source}: keep one")
        sources.setdefault(picture, source)

    for name in sorted(files):
        path = folder / name
        if path.suffix.lower() not in SIDECAR_SUFFIXES:
            continue
        picture = by_stem.get(path.stem)
        if picture is None:
            found.problems.append(f"{name} has no picture of that name: add the picture, or remove or rename the file")
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
            add(picture, text.splitlines() if caption_lines else [text], name)
        except UnicodeDecodeError:
            found.problems.append(f"{name} is not UTF-8 text: save it again as UTF-8")
    if METADATA in set(files):
        _read_metadata(folder / METADATA, set(pictures), add, found.problems)
    return found


def _read_metadata(path: Path, pictures: set[str], add: Callable[[str, Iterable[str], str], None], problems: list[str]) -> None:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        problems.append(f"{path.name} is not UTF-8 text: save it again as UTF-8")
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            problems.append(f"{where} is not JSON ({error})")
            continue
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            problems.append(f'{where} has no "file_name"')
            continue
        text = row.get("text", row.get("caption"))
        if row["file_name"] not in pictures:
            problems.append(f"{where}: there is no picture {row['file_name']!r} in this folder")
        elif not isinstance(text, str) and not (isinstance(text, list) and all(isinstance(one, str) for one in text)):
            problems.append(f'{where} has no caption: it wants "text" (or "caption"), a string or a list of strings')
        else:
            add(row["file_name"], [text] if isinstance(text, str) else text, where)
