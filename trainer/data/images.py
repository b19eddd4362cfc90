"""Picture files: whether they are whole, and how they become the square that is trained on."""
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")


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


def square(image: Image.Image, side: int) -> Image.Image:
    """Scale the shorter side to `side` pixels and take the middle square."""
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
