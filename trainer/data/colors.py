"""From whatever numbers an image file holds to what a model is shown: 8 bits a channel in sRGB, with or without transparency."""
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

# What color spaces of ICC profiles are called in Pillow.
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
# cmsFLAGS_BLACKPOINTCOMPENSATION of lcms2.h: black stays black from paper to screen.
_BLACK_POINT_COMPENSATION = 0x2000
# Profiles that differ from sRGB by no more are sRGB by another name, of which there are dozens.
_SAME = 2
# The values that mean white, for numbers up to the first of a pair. Floats are known to be 0 to 1, and highlights reach beyond.
_WHITES_OF_INTEGERS = ((255, 255), (65535, 65535), (2**31 - 1, 2**31 - 1), (2**32 - 1, 2**32 - 1))
_WHITES_OF_FLOATS = ((16, 1), (255, 255), (65535, 65535))


def standard(image: Image.Image, *, white: int | None = None, unsigned: bool = False) -> tuple[Image.Image, bool]:
    """The image in mode RGB or RGBA, and whether its color profile could be used, if it has one; if not, it counts as sRGB.

    `white` is the value that means white in mode I, where that is known; `unsigned`: its numbers have no sign.
    """
    profile = image.info.get("icc_profile")
    image = eight_bit(image, white=white, unsigned=unsigned)
    alpha = None
    if image.has_transparency_data:
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode))
        layers = image.convert("RGBA")
        alpha = layers.getchannel("A")
        image = image.getchannel("L") if image.mode in ("L", "LA") else layers.convert("RGB")
    elif image.mode not in ("L", "CMYK", "LAB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    image, usable = _in_srgb(image, profile)
    image.info = {}  # a profile is not to be applied twice
    if alpha:
        image.putalpha(alpha)
    return image, usable


def eight_bit(image: Image.Image, *, white: int | None = None, unsigned: bool = False) -> Image.Image:
    """Grey of 16 bits, 32 bits or floats as grey of 8 bits (mode L, or LA where a value means transparent), by its range; others as they are.

    Pillow's own conversion cuts everything above 255 off. See `standard` for the arguments.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values: Any = np.asarray(image)
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=0.0)
        top = _white(float(values.max(initial=0.0, where=np.isfinite(values))), _WHITES_OF_FLOATS)
    elif image.mode == "I":
        values = values.view(np.uint32) if unsigned else values
        top = white or _white(float(values.max()), _WHITES_OF_INTEGERS)
    else:
        top = 65535
    grey = Image.fromarray(np.clip(values.astype(np.float32) * (255.0 / top) + 0.5, 0, 255).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _white(largest: float, whites: tuple[tuple[int, int], ...]) -> float:
    return next((float(white) for limit, white in whites if largest <= limit), largest)


def on_white(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB, laid on white where it is transparent."""
    image, _ = standard(image)
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _in_srgb(color: Image.Image, profile: bytes | None) -> tuple[Image.Image, bool]:
    """`color` (L, RGB, CMYK or LAB) in RGB, and whether the profile could be used."""
    usable = True
    if profile:
        try:
            mode, transform = _transform(profile, color.mode)
            converted = color.convert(mode) if mode != color.mode else color
            return (_applied(converted, transform) if transform else converted.convert("RGB")), True
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError):
            usable = False
    if color.mode == "LAB":
        return _applied(color, _lab_transform()), usable
    return color.convert("RGB"), usable


def _applied(image: Image.Image, transform: Any) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it would be None in place alone
    return converted


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> tuple[str, Any]:
    """The mode that an image of `mode` has to be in for its profile, and lcms's transform to sRGB; None: it is sRGB.

    Raises:
        ValueError: the profile is one of another kind of image.
        ImageCms.PyCMSError, OSError: the profile is broken.
    """
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    wanted = _SPACES.get(source.profile.xcolor_space.strip(), "")
    # Grey images are often given the profile of the screen that they were made on.
    if wanted != mode and (mode, wanted) != ("L", "RGB"):
        raise ValueError(f"a profile for {wanted} in an image of {mode}")
    flags: Any = _BLACK_POINT_COMPENSATION
    transform = ImageCms.buildTransform(source, _srgb(), wanted, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, flags)
    if wanted in ("RGB", "L"):
        colors = _colors(wanted)
        difference = np.asarray(_applied(colors, transform), dtype=int) - np.asarray(colors.convert("RGB"), dtype=int)
        if np.abs(difference).max() <= _SAME:
            return wanted, None
    return wanted, transform


def _colors(mode: str) -> Image.Image:
    """Colors from all over the space."""
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(steps[None])
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3))


@lru_cache(maxsize=1)
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


@lru_cache(maxsize=1)
def _lab_transform() -> Any:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _srgb(), "LAB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
