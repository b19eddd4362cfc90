"""What graphs and other packs give a stack: rows without a name are skipped, and what is wrong is told shortly, by its place."""
import json
from typing import Any

import pytest

from trainer.adapters.stack import Row, StackError, from_lora_stack, parse_rows, to_lora_stack


def told(stack: Any) -> str:
    with pytest.raises(StackError) as caught:
        from_lora_stack(stack)
    message = str(caught.value)
    assert "lora_stack is not a list of (name, model strength, clip strength)" in message
    assert len(message) < 900 and "http" not in message and "pydantic" not in message and "0x" not in message
    return message


@pytest.mark.parametrize("name", ["", "  ", "None", None])
def test_a_row_without_a_name_is_off_and_in_no_lora_stack(name: str | None) -> None:
    rows = parse_rows(json.dumps([{"on": True, "name": name}, {"name": "a.safetensors"}, {"on": True, "lora": name, "strength": 0.5}]))
    assert [row.on for row in rows] == [False, True, False]
    assert to_lora_stack(rows) == [("a.safetensors", 1.0, 1.0)]
    assert from_lora_stack([(name, 1.0, 1.0), ("b", 0.5, 0.25)]) == (Row(name="b", model=0.5, clip=0.25),)


def test_a_lora_stack_of_lists_or_tuples_is_read() -> None:
    assert from_lora_stack([["a", 1, 0.5], ("b.safetensors", -1.0, 0)]) == (
        Row(name="a", model=1, clip=0.5),
        Row(name="b.safetensors", model=-1.0, clip=0.0),
    )
    assert from_lora_stack(()) == ()


@pytest.mark.parametrize(
    ("stack", "says"),
    [
        ("a.safetensors", "it is of the type str"),
        (object(), "it is of the type object"),
        ({"a": 1}, "it is of the type dict"),
        (["a.safetensors"], "entry 1 is 'a.safetensors'"),
        ([("a", 1.0, 1.0), ("b", 1.0)], "entry 2 is of the type tuple"),
        ([("a", 1.0, 1.0), object()], "entry 2 is of the type object"),
        ([("a", 1.0, 1.0), ("b", "strong", 1.0)], "1.model: Input should be a valid number"),
        ([("a", 1.0, float("nan"))], "0.clip"),
        ([("a", 1000.0, 1.0)], "0.model: Input should be less than or equal to 100 (got 1000.0)"),
        ([(object(), 1.0, 1.0)], "0.name: Input should be a valid string"),
    ],
)
def test_a_lora_stack_that_is_none_is_told_by_the_entry(stack: Any, says: str) -> None:
    assert says in told(stack)


def test_a_hundred_thousand_bad_rows_make_a_short_message() -> None:
    told([("x" * 1000, "y" * 1000, 1.0)] * 100_000)
    for rows in ("[" + ",".join(['{"nane": "a"}'] * 100_000) + "]", "[" + ",".join(["1"] * 100_000) + "]", "x" * 1_000_000, "[" * 100_000):
        with pytest.raises(StackError) as caught:
            parse_rows(rows)
        assert len(str(caught.value)) < 900 and str(caught.value).startswith("rows: ")
