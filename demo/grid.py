"""A labelled grid of pictures."""
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP, _BAND, _MARGIN = 8, 30, 150


def labelled_grid(rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str], side: int = 128) -> Image.Image:
    """`rows` of (label, pictures) under the labels `columns`; each picture is fitted into `side` pixels, small ones without smoothing."""
    font = ImageFont.load_default(size=15)
    width = _MARGIN + len(columns) * (side + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _BAND + len(rows) * (side + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(columns):
        draw.text((_left(column, side) + side / 2, _BAND / 2 + 3), label, fill="black", font=font, anchor="mm")
    for row, (label, pictures) in enumerate(rows):
        top = _BAND + row * (side + _GAP) + _GAP // 2
        draw.multiline_text((_GAP, top + side / 2), _wrapped(label, font), fill="black", font=font, anchor="lm", spacing=3)
        for column, picture in enumerate(pictures):
            sheet.paste(_fitted(picture, side), (_left(column, side), top))
    return sheet


def _left(column: int, side: int) -> int:
    return _MARGIN + column * (side + _GAP)


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    rgba = picture.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    scale = side / max(flat.size)
    size = (max(1, round(flat.width * scale)), max(1, round(flat.height * scale)))
    fitted = flat.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    square = Image.new("RGB", (side, side), "white")
    square.paste(fitted, ((side - fitted.width) // 2, (side - fitted.height) // 2))
    return square


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > _MARGIN - 2 * _GAP:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines[:5])
