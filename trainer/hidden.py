"""Keeping libraries that are not used from being imported by those that are.

peft and transformers import whatever they could work with and find installed: bitsandbytes, which itself brings torch's compiler and looks for
kernels on the network, and scipy. Together they take as long to import as the rest.
"""
import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Inside, the packages `names` look as if they were not installed, but for those that have been imported already."""
    unseen = [name for name in names if name not in sys.modules]
    # None there makes `import` fail and importlib.util.find_spec answer that there is none: what libraries ask before they import.
    sys.modules.update(dict.fromkeys(unseen))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in unseen:
            del sys.modules[name]
