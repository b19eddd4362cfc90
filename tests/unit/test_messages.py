"""One place where findings become a message that can be read."""
import os

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.messages import explain, listed, shown, system_reason


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int


def explained(values: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(values)
    return explain(caught.value)


def test_of_many_names_the_first_are_told_and_the_rest_counted() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(number) for number in range(1200)], most=2) == "0, 1, and 1,198 more"


def test_a_long_name_is_cut_and_stays_on_one_line() -> None:
    assert shown("a\nb") == "a b"
    assert len(shown("x" * 10_000_000)) < 110


def test_pydantic_is_told_in_words_without_its_address() -> None:
    assert explained({"steps": "many"}) == "steps: Input should be a valid integer, unable to parse string as an integer (got 'many')"
    assert "http" not in explained(None)


def test_a_million_wrong_keys_make_a_short_message() -> None:
    message = explained({f"key{number}": 1 for number in range(1_000)})
    assert len(message) < 500
    assert message.endswith("and 996 more")  # with `steps`, which is missing


def test_an_object_is_not_shown_by_its_address() -> None:
    assert "0x" not in explained({"steps": object()})


def test_what_the_system_refused_is_told_without_a_number() -> None:
    with pytest.raises(OSError) as caught:
        os.stat("nowhere/at all")
    assert system_reason(caught.value) == "No such file or directory"
    assert system_reason(OSError("the tape is torn")) == "the tape is torn"
