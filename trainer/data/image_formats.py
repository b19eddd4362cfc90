"""Which image formats are read. A file's first bytes say what it is, not its name, and Pillow never tries any other: some start programs."""
import importlib
import sys
from functools import lru_cache

from PIL import features

_SUFFIXES = {
    ".png": "PNG",
    ".apng": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".avif": "AVIF",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".hif": "HEIF",
    ".jxl": "JXL",
}
SUFFIXES = tuple(_SUFFIXES)

# Formats that not every Pillow reads by itself: what pip installs for them.
_PACKAGES = {"AVIF": "pillow>=11.3", "HEIF": "pillow-heif", "JXL": "pillow-jxl-plugin"}
_ALWAYS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")

_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_BEGINNINGS = (
    (_PNG, "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II\0*", "TIFF"),
    (b"MM*\0", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\xff\x0a", "JXL"),
    (b"\0\0\0\x0cJXL ", "JXL"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image, even if the package that would read it is missing."""
    return name.lower().endswith(SUFFIXES)


@lru_cache(maxsize=1)
def readable_formats() -> tuple[str, ...]:
    """The formats that are read here, by Pillow's names. Packages that add some are looked for once in a process."""
    found = list(_ALWAYS)
    if features.check("avif"):
        found.append("AVIF")
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
        found.append("HEIF")
    except ImportError:
        pass
    try:
        importlib.import_module("pillow_jxl")  # registers itself
        found.append("JXL")
    except ImportError:
        pass
    return tuple(found)


def format_of(data: bytes) -> str:
    """What the first bytes of a file say it is, by Pillow's names; empty if it is nothing that is ever read."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        if b"avif" in data[8:64] or b"avis" in data[8:64]:
            return "AVIF"
        return "HEIF" if data[8:12] in _HEIF_BRANDS else ""
    return next((name for beginning, name in _BEGINNINGS if data.startswith(beginning)), "")


def how_to_read(name: str) -> str:
    """`HEIC images need the package pillow-heif: run ...` for a format, by Pillow's name, that is not read here; empty for one that is."""
    if name in readable_formats() or name not in _PACKAGES:
        return ""
    package = _PACKAGES[name]
    return f'{"HEIC" if name == "HEIF" else name} images need the package {package}: run "{sys.executable}" -m pip install "{package}"'


def how_to_read_name(file_name: str) -> str:
    """The same for a file by its name's ending."""
    return how_to_read(_SUFFIXES.get(f".{file_name.rpartition('.')[2].lower()}", ""))


def without_texts(data: bytes) -> bytes:
    """A PNG without its chunks of text (https://www.w3.org/TR/png-3/#11textinfo), which have no say in what it shows; anything else as it is."""
    if not data.startswith(_PNG):
        return data
    kept, place = [_PNG], len(_PNG)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        kept += [] if data[place + 4 : place + 8] in _TEXTS else [data[place:end]]
        place = end
    return b"".join([*kept, data[place:]])
