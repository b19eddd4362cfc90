"""docs/what-is-read.md promises nothing without a test."""
import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "what-is-read.md").read_text(encoding="utf-8")
SECTIONS = {title: text for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)}


def rows(text: str) -> list[str]:
    """The lines of the tables, without their heads."""
    tables = re.findall(r"^\|[-| ]+\|\n((?:\|.*\n?)+)", text, re.MULTILINE)
    return [line for table in tables for line in table.splitlines()]


ROWS = [(title, row) for title, text in SECTIONS.items() for row in rows(text)]


def test_every_section_has_a_table() -> None:
    assert SECTIONS and {title for title, _ in ROWS} == set(SECTIONS)


@pytest.mark.parametrize("row", [row for _, row in ROWS], ids=lambda row: row.split("|")[1].strip()[:60])
def test_a_row_names_a_test_that_is_there(row: str) -> None:
    named = re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", row.split("|")[-2])
    assert named, "the last column names no test"
    for path, test in named:
        tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path} has no {test}"
