"""How peft scales an adapter, from the configuration that diffusers puts into the file: peft's tensors themselves carry no alpha."""
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..messages import shown
from .files import FileError
from .naming import Origin
from .soundness import LARGEST

KEY = "lora_adapter_metadata"
_WANTED = ("r", "lora_alpha", "alpha", "alpha_pattern", "rank_pattern", "use_rslora")


@dataclass(frozen=True)
class PeftScale:
    """Configuration values by component (unet, text_encoder, ...; empty for a file of one model)."""

    components: Mapping[str, Mapping[str, object]]
    file: str

    def alpha(self, origin: Origin, rank: int) -> float | None:
        """The alpha that a reader has to divide by `rank`; None: the configuration does not say, and the scale is 1.

        A layer's own entry in alpha_pattern counts before lora_alpha; under rsLoRA (https://arxiv.org/abs/2312.03732) the scale is
        alpha / sqrt(rank). Raises FileError.
        """
        config = self.components.get(origin.component) or self.components.get("")
        if not config:
            return None
        # peft's LoHa and LoKr say alpha.
        alpha = config.get("lora_alpha", config.get("alpha"))
        patterns = config.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise FileError(f"{self.file}: alpha_pattern in {KEY} is not a table of layers.")
        for pattern, value in patterns.items():
            if _matches(pattern, origin.module, self.file):
                alpha = value
                break
        if alpha is None:
            return None
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not -LARGEST <= alpha <= LARGEST:
            raise FileError(f"{self.file}: the alpha {shown(str(alpha))} in {KEY} is not a number that can be one.")
        return alpha * math.sqrt(rank) if config.get("use_rslora") else float(alpha)


def peft_scale(metadata: Mapping[str, str], file: str) -> PeftScale | None:
    """The configuration in a file's metadata; None if there is none. Raises FileError if it is not JSON."""
    if KEY not in metadata:
        return None
    try:
        config = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise FileError(f"{file}: {KEY} in its metadata is not JSON.") from error
    if not isinstance(config, dict):
        raise FileError(f"{file}: {KEY} in its metadata is not a table.")
    components: dict[str, dict[str, object]] = {}
    for name, value in config.items():
        component, _, option = name.rpartition(".")
        if option in _WANTED:
            components.setdefault(component, {})[option] = value
    return PeftScale(components, file)


def _matches(pattern: str, module: str, file: str) -> bool:
    """peft's patterns are regular expressions; from a stranger's file only names joined by | are taken, since matching those is always quick."""
    for name in pattern.split("|"):
        plain = name.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if not plain.replace(".", "").replace("_", "").isalnum():
            raise FileError(f"{file}: {shown(pattern)} in alpha_pattern is not a layer's name. Save the adapter with plain names there.")
        if module == plain or (not name.startswith("^") and module.endswith(f".{plain}")):
            return True
    return False
