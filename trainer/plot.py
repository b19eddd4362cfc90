"""The loss curve as a picture: raw faint, smoothed strong."""
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_SIZE = (960, 480)
_MARGIN = (70, 40, 20, 50)  # left, top, right, bottom
_RAW, _SMOOTH, _AXIS, _GRID, _HELD_OUT = "#b9cdea", "#1f5fbf", "#333333", "#e4e4e4", "#d9822b"


def smoothed(values: Sequence[float], half_life_steps: float | None = None) -> list[float]:
    """Exponential moving average without the pull towards its start (Adam's bias correction, https://arxiv.org/abs/1412.6980)."""
    half_life = half_life_steps or max(3.0, len(values) / 20)
    keep = 0.5 ** (1 / half_life)
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = keep * average + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        result.append(average / weight)
    return result


def draw_loss(losses: Sequence[float], validation: Sequence[tuple[int, float]] = (), first_step: int = 1, title: str = "loss") -> Image.Image:
    """An RGB picture, 960 x 480. `losses[i]` is that of step `first_step + i`; `validation`: (step, loss) pairs, drawn as dots."""
    image = Image.new("RGB", _SIZE, "white")
    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=14)
    left, top, right, bottom = _MARGIN[0], _MARGIN[1], _SIZE[0] - _MARGIN[2], _SIZE[1] - _MARGIN[3]
    values = [*losses, *(loss for _, loss in validation)] or [0.0]
    low, high = min(values), max(values)
    if high - low < 1e-12:
        # A constant loss has no height of its own: give it one, in the middle.
        low, high = low - 0.5, high + 0.5
    last_step = max([first_step + len(losses) - 1, *(step for step, _ in validation), first_step + 1])
    start = min([first_step, *(step for step, _ in validation)])

    def point(step: float, loss: float) -> tuple[float, float]:
        return left + (step - start) / (last_step - start) * (right - left), bottom - (loss - low) / (high - low) * (bottom - top)

    for i in range(5):
        level = low + (high - low) * i / 4
        y = point(start, level)[1]
        canvas.line([(left, y), (right, y)], fill=_GRID)
        canvas.text((left - 8, y), f"{level:.3g}", fill=_AXIS, font=font, anchor="rm")
    for i in range(5):
        step = round(start + (last_step - start) * i / 4)
        canvas.text((point(step, low)[0], bottom + 8), str(step), fill=_AXIS, font=font, anchor="ma")
    canvas.line([(left, top), (left, bottom), (right, bottom)], fill=_AXIS)
    for series, colour, width in ((losses, _RAW, 1), (smoothed(losses), _SMOOTH, 3)):
        points = [point(first_step + i, loss) for i, loss in enumerate(series)]
        if len(points) > 1:
            canvas.line(points, fill=colour, width=width, joint="curve")
    for step, loss in validation:
        x, y = point(step, loss)
        canvas.ellipse([x - 4, y - 4, x + 4, y + 4], fill=_HELD_OUT)
    canvas.text((left, 12), title, fill=_AXIS, font=font)
    if validation:
        canvas.text((right, 12), "● held-out pictures", fill=_HELD_OUT, font=font, anchor="ra")
    canvas.text(((left + right) / 2, _SIZE[1] - 8), "step", fill=_AXIS, font=font, anchor="mb")
    return image


def save_loss(path: Path, losses: Sequence[float], validation: Sequence[tuple[int, float]], first_step: int, title: str) -> None:
    """Write `draw_loss` as a PNG."""
    draw_loss(losses, validation, first_step, title).save(path)
