"""A grid shows every picture whole and unscaled, and labels that stay out of them."""
import pytest
from PIL import Image, ImageFont

from trainer.grid import labelled_grid, wrapped

COLOURS = ["#ff0000", "#00ff00", "#0000ff", "#ffff00", "#ff00ff", "#00ffff"]


def places(grid: Image.Image, colour: str) -> tuple[int, int, int, int]:
    """The box that is filled with a colour."""
    wanted = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    pixels = grid.load()
    found = [(x, y) for x in range(grid.width) for y in range(grid.height) if pixels[x, y] == wanted]
    xs, ys = [x for x, _ in found], [y for _, y in found]
    box = min(xs), min(ys), max(xs) + 1, max(ys) + 1
    assert len(found) == (box[2] - box[0]) * (box[3] - box[1])
    return box


@pytest.mark.parametrize("size", [(64, 48), (130, 200)])
@pytest.mark.parametrize("label", ["", "weight 0.5", "a/very_long_name_of_a_file_without_any_space_in_it " * 20, "猫\x00"])
def test_pictures_are_whole_and_in_their_places(size: tuple[int, int], label: str) -> None:
    cells = [[Image.new("RGB", size, COLOURS[row * 3 + column]) for column in range(3)] for row in range(2)]
    grid = labelled_grid(cells, [label] * 3, [label] * 2, label)
    boxes = [[places(grid, COLOURS[row * 3 + column]) for column in range(3)] for row in range(2)]
    assert all((box[2] - box[0], box[3] - box[1]) == size for line in boxes for box in line)
    for line in boxes:
        assert len({box[1] for box in line}) == 1 and [box[0] for box in line] == sorted({box[0] for box in line})
    assert boxes[0][0][3] <= boxes[1][0][1] and boxes[0][0][0] == boxes[1][0][0]


def test_labels_are_drawn_beside_what_they_name() -> None:
    cells = [[Image.new("RGB", (64, 64), "#00ff00"), Image.new("RGB", (64, 64), "#0000ff")]]
    plain = labelled_grid(cells, ["", ""], [""])
    above, beside = labelled_grid(cells, ["", "word"], [""]), labelled_grid(cells, ["", ""], ["word"])

    def dark(grid: Image.Image) -> list[int]:
        return [x for x in range(grid.width) for y in range(grid.height) if max(grid.getpixel((x, y))) < 120]

    left, _, right, _ = places(above, "#0000ff")
    assert dark(above) and all(left <= x < right for x in dark(above))
    assert dark(beside) and all(x < places(beside, "#00ff00")[0] for x in dark(beside))
    assert not dark(plain) and plain.width == above.width < beside.width


def test_a_grid_of_nothing_or_of_different_sizes_is_refused() -> None:
    picture = Image.new("RGB", (8, 8))
    for cells, columns, rows in (([], [], []), ([[]], [], [""]), ([[picture]], ["a", "b"], [""]), ([[picture]], ["a"], [])):
        with pytest.raises(ValueError, match="at least one picture"):
            labelled_grid(cells, columns, rows)
    with pytest.raises(ValueError, match="one size"):
        labelled_grid([[picture, Image.new("RGB", (9, 8))]], ["a", "b"], [""])


def test_text_is_wrapped_into_its_room() -> None:
    font = ImageFont.load_default(size=14)
    for text in ("one two three four five six seven", "x" * 300, "short", ""):
        lines = wrapped(text, font, 80, 3)
        assert len(lines) <= 3 and all(font.getlength(line) <= 80 for line in lines)
    assert wrapped("one two", font, 500, 3) == ["one two"]
    assert wrapped("x" * 300, font, 80, 3)[-1].endswith("…")
