"""docs/what-is-read.md promises nothing that no test shows."""
import re
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
PAGE = PACK / "docs" / "what-is-read.md"
TEST = re.compile(r"`((?:unit|comfy|browser)/test_\w+\.py)` `(test_\w+)`")


def rows() -> list[str]:
    """The tables' rows, without their headings and the lines under those."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    under = [bool(line) and set(line) <= set("|-: ") for line in lines]
    places = [place for place, line in enumerate(lines) if line.startswith("|") and not under[place] and under[place + 1 : place + 2] != [True]]
    return [lines[place] for place in places]


@pytest.mark.parametrize("row", rows())
def test_every_row_names_a_test_that_there_is(row: str) -> None:
    named = TEST.findall(row)
    assert named, "the row names no test"
    for file, test in named:
        assert re.search(rf"^def {test}\(", (PACK / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE), f"{file} has no {test}"
