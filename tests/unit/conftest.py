"""Fixtures of the unit tests."""
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """See tests/workshop.py."""
    if sys.platform == "win32":
        pytest.skip("a process cannot be forked on Windows")
    from workshop import opened

    with opened(tmp_path_factory.mktemp("workshop")) as made:
        yield made
