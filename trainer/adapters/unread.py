"""Kinds of adapters that are not read, told by the names of their tensors, so that a sound file is never called a damaged one.

Names are those that the programs write: OneTrainer and peft (https://github.com/huggingface/peft, the `prefix` of each of its tuners), LyCORIS
(T-LoRA https://arxiv.org/abs/2507.05964), XLabs (https://github.com/XLabs-AI/x-flux), kohya's sd-scripts, AnimateDiff.
"""
import re
from collections.abc import Iterable, Mapping

# Each: what names begin with or end in, and what has such names. What is beside an understood tensor in one module changes what that means.
_LONGEST = 120
_BEGINNINGS: tuple[tuple[str, str], ...] = (
    ("oft_unet_", "an OFT of kohya's sd-scripts (oft_unet_), which ComfyUI does not read either"),
    ("oft_te", "an OFT of kohya's sd-scripts (oft_te), which ComfyUI does not read either"),
    ("lllite_", "a ControlNet-LLLite (lllite_), which has nodes of its own"),
)
_ENDINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(rf"(?:^|\.)(?:{pattern})$"), what)
    for pattern, what in (
        (r"oft_[Rrs](?:\.\w+)*|oft_embedding_R", "an OFT of OneTrainer or peft (oft_R)"),
        (r"boft_[Rs](?:\.\w+)*", "a BOFT of peft (boft_R)"),
        (r"(?:q_layer|p_layer)\.weight|lambda_layer", "a T-LoRA (q_layer, p_layer, lambda_layer)"),
        (r"processor\.(?:qkv|proj)_lora\d?\.(?:down|up)\.weight", "an XLabs LoRA for FLUX (processor.qkv_lora)"),
        (r"lora_E(?:\.\w+)*|ranknum", "an AdaLoRA (lora_E)"),
        (r"(?:vera_lambda|pvera_lambda)_[bd](?:\.\w+)*|p?vera_[AB](?:\.\w+)*", "a VeRA (vera_lambda)"),
        (r"ia3_l(?:\.\w+)*", "an (IA)^3 of peft (ia3_l)"),
        (r"hra_u(?:\.\w+)*", "an HRA (hra_u)"),
        (r"vblora_\w+(?:\.\w+)*", "a VB-LoRA (vblora_)"),
        (r"glora_\w+(?:\.\w+)*", "a GLoRA of peft (glora_)"),
        (r"bm\.weight", "a GLoRA with a core of its own (bm)"),
        (r"(?:bone_block|miss_block|bone_\w+)(?:\.\w+)*", "a MiSS or Bone adapter (miss_block)"),
        (
            r"(adamss|beft|c3a|deft|delora|fourierft|frod|gralora|hira|lily|ln_tuning|osf|peanut|poly|psoft|randlora|road|shadow|shira|"
            r"supertuning|tinylora|trainable_tokens|unilora|waveft)_\w+(?:\.\w+)*",
            "an adapter of one of peft's other kinds ({0}_)",
        ),
    )
)
_INSIDE = (
    ("motion_modules.", "a motion LoRA of AnimateDiff (motion_modules), which goes to models/animatediff_motion_lora"),
    ("reft_", "a ReFT (reft_), which changes no weights"),
)
_MODULES = (".processor.qkv", ".processor.proj")
"""How modules end whose tensors have endings that are understood, and are of XLabs' LoRA all the same."""


def unread_kind(names: Iterable[str], layers: Mapping[str, Iterable[str]]) -> str | None:
    """What kind that is not read a file is of, for `FILE is ...`; None if none is seen.

    `names`: those of its tensors that are not understood; `layers`: the names of those that are, by layer. A file of which some layers are
    understood is of such a kind only where a layer's own tensors go on among `names`: without them it would mean something else.
    """
    modules = {_module(name) for tensors in layers.values() for name in tensors}
    for name in names:
        what = _kind(name)
        if what and (not modules or _module(name) in modules):
            return what
    return None


def is_unread_module(module: str) -> bool:
    """Whether a module's name is one of a kind that is not read, whatever its tensors are called."""
    begins = module.startswith(tuple(beginning for beginning, _ in _BEGINNINGS)) or module.endswith(_MODULES)
    return begins or any(part in module[:_LONGEST] for part, _ in _INSIDE)


def _kind(name: str) -> str | None:
    end = name[-_LONGEST:]
    for beginning, what in _BEGINNINGS:
        if name.startswith(beginning):
            return what
    for part, what in _INSIDE:
        if part in name[:_LONGEST]:
            return what
    for pattern, what in _ENDINGS:
        if found := pattern.search(end):
            return what.format(*found.groups())
    return None


def _module(name: str) -> str:
    """What is before the tensor's own name: `X` of `X.lora_A.weight` and of `X.lora_E`."""
    words = name.removesuffix(".weight").removesuffix(".default")
    return words.rpartition(".")[0]
