"""Model families: how to tell, load, encode, predict and name. The rest of the trainer knows none of them by name."""
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..options import TextOptions
from ..spec import Base

_DEFAULT = TextOptions()

if TYPE_CHECKING:
    from .protocol import Family


def load_family(base: Base, text: TextOptions = _DEFAULT) -> "Family":
    """The family of the base, which reads captions as `text` says. Loads the heavy libraries.

    Raises FileError or FamilyError as `describe_checkpoint` does.
    """
    from .detect import Checkpoint, describe_checkpoint
    from .sd1 import StableDiffusion1
    from .sd2 import StableDiffusion2
    from .sdxl import StableDiffusionXL

    checkpoint = describe_checkpoint(Path(base.checkpoint))
    families: dict[str, Callable[[Base, Checkpoint, TextOptions], Family]] = {
        "SD 1.x": StableDiffusion1,
        "SD 2.x": StableDiffusion2,
        "SDXL": StableDiffusionXL,
    }
    return families[checkpoint.family](base, checkpoint, text)
