"""The norms of blocks as a picture."""
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .norms import Norm

_WIDTH, _LINE, _HEADING, _TOP, _BOTTOM = 720, 18, 30, 44, 16
_LEFT, _RIGHT = 200, 90  # for labels and for numbers
_MOST = 150
_COLOURS = ("#1f5fbf", "#d9822b", "#3a8f5c", "#8a4fb0")
_TEXT, _FAINT, _GRID = "#222222", "#777777", "#e4e4e4"


def draw_norms(norms: Sequence[Norm], title: str) -> Image.Image:
    """An RGB picture, 720 pixels wide: a bar for each norm under a heading for each part; those beyond 150 are only counted."""
    shown, more = list(norms[:_MOST]), len(norms) - _MOST
    parts = list(dict.fromkeys(norm.part for norm in shown))
    height = _TOP + len(parts) * _HEADING + max(1, len(shown)) * _LINE + (_LINE if more > 0 else 0) + _BOTTOM
    image = Image.new("RGB", (_WIDTH, height), "white")
    canvas = ImageDraw.Draw(image)
    font, large = ImageFont.load_default(size=13), ImageFont.load_default(size=16)
    canvas.text((12, 12), _cut(title, _WIDTH - 24, large), fill=_TEXT, font=large)
    largest = max((norm.norm for norm in shown), default=0.0)
    room = _WIDTH - _LEFT - _RIGHT
    y = _TOP
    for number, part in enumerate(parts):
        canvas.text((12, y + _HEADING - 10), _cut(part, _WIDTH - 24, font), fill=_FAINT, font=font, anchor="ls")
        y += _HEADING
        for norm in (norm for norm in shown if norm.part == part):
            # A block of zeros has no bar, and neither has an adapter that was never trained.
            length = round(room * norm.norm / largest) if largest else 0
            canvas.text((_LEFT - 8, y + _LINE / 2), _cut(norm.block, _LEFT - 20, font), fill=_TEXT, font=font, anchor="rm")
            canvas.line([(_LEFT, y), (_LEFT, y + _LINE)], fill=_GRID)
            if length:
                canvas.rectangle([_LEFT + 1, y + 3, _LEFT + length, y + _LINE - 4], fill=_COLOURS[number % len(_COLOURS)])
            canvas.text((_LEFT + length + 6, y + _LINE / 2), f"{norm.norm:.3g}", fill=_TEXT, font=font, anchor="lm")
            y += _LINE
    if not shown:
        canvas.text((12, y), "nothing in this file can be measured without its model", fill=_FAINT, font=font)
    if more > 0:
        canvas.text((_LEFT, y), f"and {more} more", fill=_FAINT, font=font)
    return image


def _cut(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    text = text[:200]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
