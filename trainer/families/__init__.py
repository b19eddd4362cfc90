"""Model families: how to tell, load, encode, predict and name. The rest of the trainer knows none of them by name."""
from typing import TYPE_CHECKING

from ..spec import Base

if TYPE_CHECKING:
    from .protocol import Family


def load_family(base: Base) -> "Family":
    """The family of the base. Loads the heavy libraries."""
    from .sd import StableDiffusion1

    return StableDiffusion1(base)
