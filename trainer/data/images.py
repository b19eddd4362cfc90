"""Image files: whether they are whole, what they show, and how they become the rectangle that is trained on.

`open_image` is the one way of opening an image, for training, captioning, checking and masks alike.
"""
import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import IO

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ..messages import shown, system_reason
from .colors import standard
from .framing import Cut
from .image_formats import format_of, how_to_read, readable_formats, without_texts

_ORIENTATION = 0x0112
_ON_ITS_SIDE = (5, 6, 7, 8)
# What brings an image upright, by EXIF's number for how it lies.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Their headers tell the size before EXIF turns them. Pillow turns a TIFF while it loads it, and from some version on its header's size too.
_TURNED_BY_EXIF = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "AVIF")
# An MPO's other frames are a depth or gain map of the first.
_CAN_BE_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")
_SIGNED = 2  # TIFF's SampleFormat, tag 339
_SAMPLE_FORMAT = 339
_WHITE_IS_ZERO = 0  # TIFF's PhotometricInterpretation, tag 262
_PHOTOMETRIC = 262

# Pillow's warning is about an attack; images beyond its limit are refused here in words of our own.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

NO_PROFILE = "a color profile that cannot be used, so that colors count as sRGB"
FRAMES = "more than one frame, of which the first one is used"


class ImageError(ValueError):
    """The image cannot be used; the message says why, without its name."""


@dataclass(frozen=True)
class Checked:
    """What is known of a whole image: `size` is (width, height) upright, `remarks` is what was found odd about it (`NO_PROFILE`, ...)."""

    sha256: str
    size: tuple[int, int]
    remarks: tuple[str, ...]


def open_image(path: Path) -> Image.Image:
    """The image upright (EXIF), 8 bits a channel, in sRGB: mode RGB, or RGBA where it can be transparent. Of several frames the first.

    Raises:
        ImageError: it is gone, damaged, too large, or of no kind that is read.
    """
    return _decoded(_bytes(path))[0]


@lru_cache(maxsize=100_000)
def checked_image(path: str, mtime_ns: int, size: int) -> Checked:
    """Decode every pixel once, so that a truncated image is found before training.

    `mtime_ns` and `size` make the memory of earlier checks safe: a changed file is another call. Raises as `open_image`.
    """
    data = _bytes(Path(path))
    image, remarks = _decoded(data)
    return Checked(sha256(data).hexdigest(), image.size, remarks)


def check_images(paths: Sequence[Path]) -> list[Checked | ImageError]:
    """What is known of each image, or why it cannot be used."""

    def check(path: Path) -> Checked | ImageError:
        try:
            stat = path.stat()
            return checked_image(str(path), stat.st_mtime_ns, stat.st_size)
        except OSError as error:
            return ImageError(system_reason(error))
        except ImageError as error:
            return error

    # Pillow's decoders release the GIL, so threads help.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(check, paths))


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of `open_image(path)`, from the header where that tells it. Raises as `open_image`."""
    try:
        with path.open("rb") as stream:
            file = _opened(stream)
            orientation = _orientation(file)
            if file.format in _TURNED_BY_EXIF or orientation not in _TURNS:
                return (file.height, file.width) if orientation in _ON_ITS_SIDE else file.size
    except OSError as error:
        raise ImageError(system_reason(error)) from error
    except ImageError:
        pass  # the whole file tells why, or can be read after all
    return open_image(path).size


def alpha_of(image: Image.Image) -> Image.Image | None:
    """How opaque each part of what `open_image` gave is (mode L); None where it has no transparency."""
    return image.getchannel("A") if image.mode == "RGBA" else None


def mask_of(image: Image.Image) -> Image.Image:
    """What `open_image` gave as a mask (mode L): its alpha channel if any part is transparent, else its brightness."""
    alpha = alpha_of(image)
    return alpha if alpha and alpha.getextrema() != (255, 255) else image.convert("L")


def cut_out(image: Image.Image, cut: Cut, size: tuple[int, int], resampling: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """What `cut` takes of the picture, at `size` (width, height). The picture may have another size than the one `cut` was made for."""
    across, down = image.width / cut.scaled[0], image.height / cut.scaled[1]
    box = cut.left * across, cut.top * down, (cut.left + cut.size[0]) * across, (cut.top + cut.size[1]) * down
    # Rounding must not reach over the edge.
    part = image.resize(size, resampling, box=(box[0], box[1], min(box[2], image.width), min(box[3], image.height)))
    return ImageOps.mirror(part) if cut.flip else part


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(system_reason(error)) from error


def _opened(stream: IO[bytes]) -> ImageFile.ImageFile:
    """The file with its header read. Raises ImageError."""
    beginning = stream.read(64)
    stream.seek(0)
    name = format_of(beginning)
    if not beginning:
        raise ImageError("it is empty")
    if not name:
        raise ImageError(f"it is not an image of a kind that is read ({', '.join(readable_formats())})")
    if name not in readable_formats():
        raise ImageError(how_to_read(name))
    try:
        return Image.open(stream, formats=(name,))
    except UnidentifiedImageError as error:
        raise ImageError(f"it begins like {name} and is damaged, or of a variant that is not read") from error
    except Exception as error:
        raise ImageError(_reason(error)) from error


def _decoded(data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    """The image as `open_image` gives it, and what is odd about it."""
    try:
        return _decoded_as_it_is(data)
    except ImageError:
        bare = without_texts(data)
        if len(bare) == len(data):
            raise
        # Pillow refuses a PNG for texts that are longer than it holds, as a workflow or what an editor knows of an image may be.
        return _decoded_as_it_is(bare)


def _decoded_as_it_is(data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    remarks = []
    with _opened(BytesIO(data)) as file:
        if _has_frames(file):
            remarks.append(FRAMES)
        try:
            file.load()
        except Exception as error:
            # Pillow's decoders raise OSError, SyntaxError, struct.error, DecompressionBombError...: each means the same to the user.
            raise ImageError(_reason(error)) from error
        white = 65535 if file.format == "PNG" else None  # before Pillow 11, 16 bits of a PNG came in a mode of 32
        unsigned = file.format == "TIFF" and _SIGNED not in (getattr(file, "tag_v2", {}).get(_SAMPLE_FORMAT) or ())
        orientation = _orientation(file)
        upright = file.transpose(_TURNS[orientation]) if orientation in _TURNS else file
        try:
            image, usable = standard(upright, white=white, unsigned=unsigned)
            if file.mode.startswith(("I", "F")) and getattr(file, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
                image = ImageOps.invert(image)  # Pillow does that itself for 8 bits
        except Exception as error:
            raise ImageError(_reason(error)) from error
    return image, tuple([*remarks, NO_PROFILE] if not usable else remarks)


def _has_frames(file: ImageFile.ImageFile) -> bool:
    try:
        return file.format in _CAN_BE_ANIMATED and bool(getattr(file, "is_animated", False))
    except Exception:
        return False  # what follows a first frame may be damaged without harm


def _orientation(file: ImageFile.ImageFile) -> int:
    """EXIF's number for how the image lies, 1: upright. EXIF data that makes no sense does no harm to the pixels, so it has no say."""
    if file.format == "JXL" and not getattr(file, "jpeg", False):
        return 1  # decoded upright; by the format's rules EXIF has no say then either
    try:
        found = file.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return found if isinstance(found, int) else 1


def _reason(error: Exception) -> str:
    """Why an image cannot be decoded, in one short line."""
    if isinstance(error, Image.DecompressionBombError):
        count = re.search(r"\d+", str(error))
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        has = f"it has {int(count[0]) / 1e6:,.0f} megapixels" if count else "it is too large"
        return f"{has}, and at most {limit / 1e6:,.0f} megapixels are read: scale it down"
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    text = shown(str(error))
    return text if text and " object at 0x" not in text else "it is damaged"
