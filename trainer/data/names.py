"""Names that mean the same file to people: in another Unicode form (macOS writes é as two characters), or in other capitals."""
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


def _as_it_is(name: str) -> str:
    return name


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _without_case(name: str) -> str:
    return unicodedata.normalize("NFC", _composed(name).casefold())


_FORMS: tuple[Callable[[str], str], ...] = (_as_it_is, _composed, _without_case)


class Names(Generic[T]):
    """Finds what is known by a name. A name that fits exactly wins over one that fits but for its form, and that over one in other capitals."""

    def __init__(self, known: Iterable[tuple[str, T]]) -> None:
        self._known: list[defaultdict[str, list[T]]] = [defaultdict(list) for _ in _FORMS]
        for name, what in known:
            for form, index in zip(_FORMS, self._known, strict=True):
                index[form(name)].append(what)

    def find(self, name: str) -> list[T]:
        """What fits `name` best; more than one where that is ambiguous, none where nothing fits."""
        for form, index in zip(_FORMS, self._known, strict=True):
            if found := index.get(form(name)):
                return list(dict.fromkeys(found))
        return []
