"""Blocks of a UNet, as people weight a LoRA by them: IN00 ... M00 ... OUT11, and BASE for the text encoders.

Names, vectors of 12, 17, 20 and 26 numbers and presets are those of https://github.com/hako-mikan/sd-webui-lora-block-weight, which the
ecosystem shares. The short vectors leave out blocks that a plain LoRA has no layers in.
"""
import math
import re

_FULL = {
    "SD 1.x": ("BASE", *(f"IN{i:02}" for i in range(12)), "M00", *(f"OUT{i:02}" for i in range(12))),
    "SDXL": ("BASE", *(f"IN{i:02}" for i in range(9)), "M00", *(f"OUT{i:02}" for i in range(9))),
}
_FULL["SD 2.x"] = _FULL["SD 1.x"]
_SHORT = {
    "SD 1.x": tuple(name for name in _FULL["SD 1.x"] if name not in {"IN00", "IN03", "IN06", "IN09", "IN10", "IN11", "OUT00", "OUT01", "OUT02"}),
    "SDXL": tuple(name for name in _FULL["SDXL"] if name not in {"IN00", "IN01", "IN02", "IN03", "IN06", "OUT06", "OUT07", "OUT08"}),
}
_SHORT["SD 2.x"] = _SHORT["SD 1.x"]
# How far a preset's shallow blocks go: (the first deep IN, the first shallow OUT). SDXL's levels of the same resolutions.
_DEEP = {"SD 1.x": ("IN05", "OUT07"), "SD 2.x": ("IN05", "OUT07"), "SDXL": ("IN06", "OUT03")}
PRESETS = ("ALL", "NONE", "INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL")
"""What `parse_block_weights` takes by name: S is the shallow, D the deep half of a side, MIDD the deep middle; BASE is in all but NONE."""

_LARGEST = 100.0
_MODULE = re.compile(r"lora_unet_(down|up)_blocks_(\d{1,2})_(attentions|resnets|downsamplers|upsamplers)_(\d{1,2})_")
_LDM = re.compile(r"lora_unet_(input|output)_blocks_(\d{1,2})_")
_TEXT = re.compile(r"lora_te[12]?_")


class BlockError(ValueError):
    """The weights for blocks are wrong; the message says what is expected."""


def block_names(family: str, full: bool = True) -> tuple[str, ...]:
    """The blocks in the order of a vector: 26 (SD 1.x, SD 2.x) or 20 (SDXL); not `full`: 17 or 12. Raises BlockError for another family."""
    if family not in _FULL:
        raise BlockError(f"there are no block weights for {family}: they exist for {', '.join(sorted(_FULL))}. Leave them empty.")
    return (_FULL if full else _SHORT)[family]


def has_blocks(family: str | None) -> bool:
    """Whether blocks of the family can be weighted."""
    return family in _FULL


def block_of(key: str, family: str | None) -> str | None:
    """The block, of the full set, that the layer with this canonical key is in.

    None: in no block, as the time embedding, the last convolution and every layer of other families.
    """
    if family not in _FULL:
        return None
    name = _block(key)
    return name if name in _FULL[family] else None


def _block(key: str) -> str | None:
    if _TEXT.match(key):
        return "BASE"
    if key.startswith(("lora_unet_mid_block_", "lora_unet_middle_block_")):
        return "M00"
    if key == "lora_unet_conv_in":
        return "IN00"
    ldm = _LDM.match(key)
    if ldm:
        return f"{'IN' if ldm[1] == 'input' else 'OUT'}{int(ldm[2]):02}"
    found = _MODULE.match(key)
    if not found:
        return None
    # Two residual blocks and a down-sampling make three IN blocks a level, three residual blocks three OUT blocks.
    first, number = 3 * int(found[2]), int(found[4])
    if found[1] == "down":
        return f"IN{first + (3 if found[3] == 'downsamplers' else 1 + number):02}"
    return f"OUT{first + (2 if found[3] == 'upsamplers' else number):02}"


def parse_block_weights(text: str, family: str) -> dict[str, float]:
    """Weights for all blocks of the full set, from a preset's name or numbers with commas between them.

    A short vector (17 or 12 numbers) gives the blocks that it leaves out 0, as in sd-webui-lora-block-weight. A layer in no block keeps the
    adapter's whole weight.

    Raises:
        BlockError: an unknown name, a number of weights that fits no vector of the family, or one that is no number from -100 to 100.
    """
    names = block_names(family)
    words = [word.strip() for word in text.split(",")]
    if len(words) == 1 and words[0].upper() in PRESETS:
        return _preset(words[0].upper(), family)
    vectors = {len(order): order for order in (names, block_names(family, full=False))}
    if len(words) not in vectors:
        counts = " or ".join(str(count) for count in sorted(vectors))
        got = f"{words[0][:40]!r}" if len(words) == 1 else f"{len(words)} numbers"
        raise BlockError(f"block weights for {family} are {counts} numbers with commas between them or one of {', '.join(PRESETS)}; got {got}.")
    given = {name: _number(word, name) for name, word in zip(vectors[len(words)], words, strict=True)}
    return {name: given.get(name, 0.0) for name in names}


def _number(word: str, name: str) -> float:
    try:
        weight = float(word)
    except ValueError:
        weight = math.nan
    if not -_LARGEST <= weight <= _LARGEST:
        raise BlockError(f"the weight of block {name} has to be a number from -100 to 100; got {word[:40]!r}.")
    return weight


def _preset(preset: str, family: str) -> dict[str, float]:
    first_deep, first_shallow = _DEEP[family]

    def chosen(name: str) -> bool:
        if preset in ("ALL", "NONE") or name == "BASE":
            return preset != "NONE"
        deep = name >= first_deep if name.startswith("IN") else name < first_shallow
        if name.startswith("IN"):
            return preset == "INALL" or (preset == "INS" and not deep) or (preset in ("IND", "MIDD") and deep)
        if name == "M00":
            return preset == "MIDD"
        return preset == "OUTALL" or (preset in ("OUTD", "MIDD") and deep) or (preset == "OUTS" and not deep)

    return {name: float(chosen(name)) for name in _FULL[family]}
