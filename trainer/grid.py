"""A table of pictures with labels above its columns and beside its rows."""
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_GAP, _PAD = 8, 6
_SMALLEST, _LARGEST = 13, 40  # font sizes, px
_MOST_LINES = 4


def labelled_grid(cells: Sequence[Sequence[Image.Image]], columns: Sequence[str], rows: Sequence[str], note: str = "") -> Image.Image:
    """An RGB picture of `cells` (rows of pictures, all of one size), unscaled, on white; `note` is a line below.

    Labels are wrapped, and cut where they have no room; a column of empty row labels takes none. Raises ValueError if there is nothing to draw,
    or rows, columns and labels do not agree.
    """
    if not cells or not columns or len(rows) != len(cells) or any(len(line) != len(columns) for line in cells):
        raise ValueError("a grid needs at least one picture, a label for each row and column, and rows of one length")
    width, height = cells[0][0].size
    if any(picture.size != (width, height) for line in cells for picture in line):
        raise ValueError("the pictures of a grid have to be of one size")
    font = ImageFont.load_default(size=min(_LARGEST, max(_SMALLEST, width // 22)))
    step = sum(font.getmetrics()) if isinstance(font, ImageFont.FreeTypeFont) else _SMALLEST
    heads = [wrapped(label, font, width, _MOST_LINES) for label in columns]
    margin = (max(130, min(width, 420)) + _PAD) if any(rows) else 0
    sides = [wrapped(label, font, margin - 2 * _PAD, max(1, height // step)) for label in rows] if margin else [[] for _ in rows]
    top = max(map(len, heads)) * step + 2 * _PAD
    total = margin + _GAP + len(columns) * (width + _GAP)
    below = wrapped(note, font, total - 2 * _PAD, _MOST_LINES) if note else []
    sheet = Image.new("RGB", (total, top + len(rows) * (height + _GAP) + len(below) * step + _PAD), "white")
    draw = ImageDraw.Draw(sheet)

    def lines(text: Sequence[str], x: float, y: float, anchor: str) -> None:
        for number, line in enumerate(text):
            draw.text((x, y + number * step), line, fill="black", font=font, anchor=anchor)

    for column, head in enumerate(heads):
        lines(head, margin + _GAP + column * (width + _GAP) + width / 2, top - _PAD - len(head) * step, "ma")
    for row, (side, line) in enumerate(zip(sides, cells, strict=True)):
        y = top + row * (height + _GAP)
        lines(side, _PAD, y + (height - len(side) * step) / 2, "la")
        for column, picture in enumerate(line):
            sheet.paste(picture.convert("RGB"), (margin + _GAP + column * (width + _GAP), y))
    lines(below, _PAD, top + len(rows) * (height + _GAP), "la")
    return sheet


def wrapped(text: str, font: Font, width: float, most: int) -> list[str]:
    """`text` in at most `most` lines no wider than `width` pixels; what has no room ends in an ellipsis."""
    lines = [""]
    for word in text[: 200 * most].split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:  # a file's name can be wider than the line
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) <= most:
        return [line for line in lines if line]
    last = lines[most - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*lines[: most - 1], last + "…"]
