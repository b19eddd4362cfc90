"""Training methods side by side, as a table in markdown."""
from collections.abc import Sequence
from dataclasses import dataclass

_NOTHING = "–"
_HEADS = ("method", "trained parameters", "file", "steps", "training", "peak memory", "validation loss")


@dataclass(frozen=True)
class MethodRow:
    """One method. `parameters`: how many numbers were trained; `file_bytes`: of all files that it left; `seconds`: of its steps; `peak_memory`:
    bytes, of the trainer; `validation`: the loss before and after. None: not known, or there is none.
    """

    label: str
    parameters: int | None = None
    file_bytes: int | None = None
    steps: int | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    validation: tuple[float, float] | None = None


def method_table(rows: Sequence[MethodRow]) -> str:
    """A line for each of `rows`."""
    lines = [_HEADS, ("---",) * len(_HEADS), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: MethodRow) -> tuple[str, ...]:
    return (
        row.label,
        _NOTHING if row.parameters is None else _counted(row.parameters),
        _NOTHING if row.file_bytes is None else _size(row.file_bytes),
        _NOTHING if row.steps is None else f"{row.steps:,}",
        _NOTHING if row.seconds is None else _duration(row.seconds),
        _NOTHING if not row.peak_memory else _size(row.peak_memory),
        _NOTHING if row.validation is None else f"{row.validation[0]:.4f} → {row.validation[1]:.4f}",
    )


def _counted(number: int) -> str:
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:,}"


def _size(size: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}" if size < 1000 * unit else f"{size / unit:.0f} {name}"
    return f"{size / 2**10:.3g} KiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
