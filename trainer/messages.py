"""How findings become one message: names cut to a readable length, the first few of many and a count of the rest, no library's raw text.

Every message that tells of many things, of a stranger's text or of another library's exception is put together here.
"""
import os
from collections.abc import Sequence

from pydantic import ValidationError

_LONGEST = 100
_MOST = 10
_MOST_FINDINGS = 5
_LONGEST_INPUT = 60


def shown(text: str, longest: int = _LONGEST) -> str:
    """`text` as a message may show it, on one line: a hostile name can be as long as its file, and need not be Unicode."""
    text = text.encode("utf-8", "backslashreplace").decode()
    line = " ".join(text.split()) if any(mark in text for mark in "\n\r\t") else text
    return line if len(line) <= longest else f"{line[:longest]}..."


def listed(items: Sequence[str], separator: str = ", ", most: int = _MOST) -> str:
    """`a, b, c`; of more than `most` the first ones, and how many more there are."""
    more = len(items) - most
    return separator.join(items[:most]) + (f"{separator}and {more:,} more" if more > 0 else "")


def explain(error: ValidationError) -> str:
    """Pydantic's findings on one line: `steps: Input should be greater than or equal to 1 (got 0); ...`."""
    found = error.errors(include_url=False)
    findings = []
    for item in found[:_MOST_FINDINGS]:
        where = ".".join(shown(str(part), _LONGEST_INPUT) for part in item["loc"]) or "spec"
        message = shown(item["msg"].removeprefix("Value error, "), 10 * _LONGEST)
        given = repr(item["input"]) if isinstance(item["input"], str | int | float | bool | None) else ""
        findings.append(f"{where}: {message}" + (f" (got {given})" if 0 < len(given) <= _LONGEST_INPUT else ""))
    return listed([*findings, *[""] * (len(found) - len(findings))], "; ", _MOST_FINDINGS)


def system_reason(error: OSError) -> str:
    """Why the system refused, without the path that the caller names in its own way: `Permission denied`."""
    return error.strerror or os.strerror(error.errno or 0) if error.errno else shown(str(error)) or type(error).__name__
