"""Picture files: whether they are whole, and how they become the rectangle that is trained on."""
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

from .framing import Cut

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")
_ORIENTATION = 0x0112
_ON_ITS_SIDE = (5, 6, 7, 8)


class ImageError(ValueError):
    """The picture cannot be used; the message says why, without its name."""


@lru_cache(maxsize=100_000)
def checked_sha256(path: str, mtime_ns: int, size: int) -> str:
    """sha256 of the file, after every pixel has been decoded once, so that a truncated picture is found before training.

    `mtime_ns` and `size` make the memory of earlier checks safe: a changed file is another call. Raises ImageError.
    """
    data = Path(path).read_bytes()
    try:
        with Image.open(BytesIO(data)) as image:
            image.load()
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, struct.error, DecompressionBombError...: each means the same to the user.
        raise ImageError(str(error).split("\n")[0].replace(f"{path!r}", "").strip() or type(error).__name__) from error
    return sha256(data).hexdigest()


def open_rgb(path: Path) -> Image.Image:
    """The picture upright (EXIF) and in RGB; transparent parts become white."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        return image.convert("RGB")


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of the picture upright, from its header."""
    with Image.open(path) as file:
        turned = file.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE
        return (file.height, file.width) if turned else file.size


def alpha_of(path: Path) -> Image.Image | None:
    """How opaque each part of the picture is (mode L), upright; None where it has no transparency."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
            return None
        return image.convert("RGBA").getchannel("A")


def cut_out(image: Image.Image, cut: Cut, size: tuple[int, int], resampling: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """What `cut` takes of the picture, at `size` (width, height). The picture may have another size than the one `cut` was made for."""
    across, down = image.width / cut.scaled[0], image.height / cut.scaled[1]
    box = cut.left * across, cut.top * down, (cut.left + cut.size[0]) * across, (cut.top + cut.size[1]) * down
    # Rounding must not reach over the edge.
    part = image.resize(size, resampling, box=(box[0], box[1], min(box[2], image.width), min(box[3], image.height)))
    return ImageOps.mirror(part) if cut.flip else part
