"""What every boundary is made of: immutable models that reject unknown keys, and the error for a request that cannot be carried out."""
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class SpecError(ValueError):
    """The spec asks for something that cannot be done. The message is for the user: what, where, what to do."""


class Model(BaseModel):
    """Immutable, and unknown keys are errors: a misspelt setting must not be ignored in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _utf8(text: str) -> str:
    text.encode()  # UnicodeEncodeError is a ValueError, so pydantic tells it like any other.
    return text


Utf8 = Annotated[str, AfterValidator(_utf8)]
"""A string that JSON can hold: names on a disk need not be one."""
