"""From the names in an adapter's file, whatever scheme they follow, to canonical keys.

Canonical are kohya's names with diffusers' paths for SD 1.x, SD 2.x and SDXL (`lora_unet_down_blocks_0_..._to_q`, `lora_te_...`, for SDXL
`lora_te1_...` and `lora_te2_...`), and for other families the names that ComfyUI matches (comfy/lora.py of 0.3.75). Schemes: kohya's sd-scripts
(diffusers' paths for SD 1.x, LDM's for SDXL), diffusers (`.lora.down`, `.lora_linear_layer.`, `.processor.`), peft (`base_model.model.`,
`.lora_A`), ComfyUI's own (`diffusion_model.`), SimpleTuner's LyCORIS (`lycoris_`), OneTrainer (`lora_transformer_`, `bundle_emb.`).
"""
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .family import STABLE_DIFFUSION, family_of
from .layers import SUFFIXES, Shape, Shapes, kinds_in, layer_kind, layer_problem
from .ldm import DIFFUSERS_ROOTS, LDM_ROOTS, TEXT_ROOTS, Path, is_usual_layout, path_of, to_diffusers, to_ldm
from .unread import is_unread_module

Naming = Literal["kohya", "kohya, LDM paths", "LyCORIS", "OneTrainer", "diffusers", "PEFT", "ComfyUI", "mixed"]

_ENDINGS = {
    **{suffix: suffix for suffix in SUFFIXES if suffix != "weight"},
    **{f"{old}.{end}": f"lora_{end}" for old in ("lora", "lora_linear_layer") for end in ("up.weight", "down.weight")},
    **{f"{old}{end}": f"lora_{new}.weight" for old, new in (("lora_A", "down"), ("lora_B", "up")) for end in (".weight", ".default.weight", "")},
    **{f"lora_magnitude_vector{end}": "dora_scale" for end in ("", ".weight", ".default.weight")},
    "lora_B.bias": "diff_b",
}
_ENDING = re.compile(rf"(?:\.|_(?=lora\.))({'|'.join(re.escape(ending) for ending in sorted(_ENDINGS, key=len, reverse=True))})$")
_LONGEST = max(map(len, _ENDINGS)) + 1
_BUNDLED = re.compile(r"bundle_emb\.(.+)\.(string_to_param\.\*|clip_l|clip_g|t5xxl|t5)")

_KOHYA: tuple[tuple[str, str, Naming], ...] = (
    ("lora_unet_", "unet", "kohya"),
    ("lora_te_", "te", "kohya"),
    ("lora_te1_", "te1", "kohya"),
    ("lora_te2_", "te2", "kohya"),
    ("lycoris_", "unet", "LyCORIS"),
)
# ComfyUI matches these for families whose paths are not known here.
_KEPT: tuple[tuple[str, Naming], ...] = (
    ("lora_transformer_", "OneTrainer"),
    ("lora_prior_unet_", "kohya"),
    ("lora_prior_te_", "kohya"),
    ("lora_te3_", "OneTrainer"),
)
_DOTTED = (
    ("base_model.model.", ""),
    ("unet.", "unet"),
    ("text_encoder.", "te"),
    ("text_encoder_2.", "te2"),
    ("text_encoders.clip_l.transformer.", "te"),
    ("text_encoders.clip_h.transformer.", "te"),
    ("text_encoders.clip_g.transformer.", "te2"),
    ("transformer.", "transformer"),
    ("model.diffusion_model.", "diffusion_model"),
    ("diffusion_model.", "diffusion_model"),
)
_OTHER_ROOTS = frozenset({"transformer_blocks", "single_transformer_blocks", "double_blocks", "single_blocks", "joint_blocks", "blocks", "layers"})
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Origin:
    """Where a layer came from in a file of dotted names: the model's component as diffusers calls it, and the module's name in it."""

    component: str
    module: str


@dataclass(frozen=True)
class Contents:
    """A file's tensors sorted into layers.

    `layers`: by canonical key, from canonical suffix to the tensor's name in the file. `origins`: for layers of dotted names. `bundled`:
    embeddings inside the file, from the tensor's name to (embedding, text encoder). `not_understood`: every other name, in the file's order; that of
    a lone alpha beside layers too, which would change nothing.
    """

    naming: Naming
    family: str | None
    layers: dict[str, dict[str, str]]
    origins: dict[str, Origin]
    bundled: dict[str, tuple[str, str]]
    not_understood: tuple[str, ...]

    def shapes(self, key: str, shapes: Mapping[str, Shape]) -> Shapes:
        """Shapes of the layer `key` by suffix, from the shapes by name."""
        return {suffix: shapes[name] for suffix, name in self.layers[key].items()}


@dataclass(frozen=True)
class _Place:
    """A module's part (unet, te, te1, te2) and path in it; for other families no part and the key that ComfyUI matches."""

    naming: Naming
    part: str
    path: Path
    key: str
    origin: Origin | None = None


def sort_names(shapes: Mapping[str, Shape], metadata: Mapping[str, str], family: str | None = None) -> Contents:
    """Sort a file's tensors into layers, by their names, shapes and the file's metadata. Nothing is left out: see `not_understood`.

    `family`: where it is known from elsewhere, as that of the model which the layers are wanted for.
    """
    modules: dict[str, dict[str, str]] = {}
    bundled: dict[str, tuple[str, str]] = {}
    for name in shapes:
        embedding = _BUNDLED.fullmatch(name)
        if embedding:
            bundled[name] = (embedding[1], "" if "*" in embedding[2] else embedding[2])
            continue
        module, suffix = _split(name, shapes)
        if suffix:
            modules.setdefault(module, {})[suffix] = name
    places = {module: place for module, tensors in modules.items() if (place := _place(module, tensors))}
    of_modules = {module: {suffix: shapes[name] for suffix, name in modules[module].items()} for module in places}
    sound = {module for module, layer in of_modules.items() if layer_problem(layer) is None}
    family = family or family_of({_key_for_family(places[module]): of_modules[module] for module in places if module in sound}, metadata)
    usual = all(is_usual_layout(place.path) for place in places.values() if place.part == "unet")
    layers: dict[str, dict[str, str]] = {}
    origins: dict[str, Origin] = {}
    schemes: list[tuple[str, Naming]] = []
    for module, place in places.items():
        key = _key(place, family, usual) or (place.key if module in sound else None)
        if key is None or layers.get(key, {}).keys() & modules[module].keys():
            # The second of two descriptions of one layer: which of them counts is not ours to guess.
            continue
        layers[key] = layers.get(key, {}) | modules[module]
        schemes.append((key, place.naming))
        if place.origin:
            origins[key] = place.origin
    acting = {key for key, tensors in layers.items() if layer_kind({suffix: shapes[name] for suffix, name in tensors.items()})}
    if acting:
        layers = {key: tensors for key, tensors in layers.items() if key in acting}
    namings = Counter(naming for key, naming in schemes if key in layers)
    understood = set(bundled).union(*(tensors.values() for tensors in layers.values()))
    if bundled:
        namings["OneTrainer"] += 1
    return Contents(_one(namings), family, layers, origins, bundled, tuple(name for name in shapes if name not in understood))


def _split(name: str, shapes: Mapping[str, Shape]) -> tuple[str, str]:
    """(module, canonical suffix); no suffix if there is none that is known."""
    found = _ENDING.search(name, max(0, len(name) - _LONGEST))
    if found:
        return name[: found.start()], _ENDINGS[found[1]]
    module, _, last = name.rpartition(".")
    return (module, "weight") if last == "weight" and f"{module}.on_input" in shapes else (name, "")


def _place(module: str, tensors: Mapping[str, str]) -> _Place | None:
    # Wan's official control models have their LoRAs' names so, and ComfyUI reads them.
    module = module.replace("lora_unet__", "lora_unet_", 1) if module.startswith("lora_unet__") else module
    if is_unread_module(module):
        return None
    for prefix, part, naming in _KOHYA:
        if module.startswith(prefix):
            text = module.removeprefix(prefix)
            if part != "unet" and text.startswith("encoder_"):
                text = "text_model_" + text
            path = path_of(text)
            if path is None or (path[0] in TEXT_ROOTS) == (part == "unet"):
                return _Place(naming, "", (), module)
            return _Place("kohya, LDM paths" if naming == "kohya" and path[0] in LDM_ROOTS else naming, part, path, module)
    for prefix, naming in _KEPT:
        if module.startswith(prefix):
            return _Place(naming, "", (), module)
    return _dotted_place(module, tensors)


def _dotted_place(module: str, tensors: Mapping[str, str]) -> _Place | None:
    names = "".join(tensors.values())
    rest, component, peft = module, "", False
    for _ in range(3):
        prefix, part = next(((prefix, part) for prefix, part in _DOTTED if rest.startswith(prefix)), ("", ""))
        rest, component, peft = rest.removeprefix(prefix), part or component, peft or prefix == "base_model.model."
    naming: Naming = "PEFT" if peft or "lora_A" in names or "lora_B" in names else "diffusers"
    if component == "diffusion_model" or module.startswith("text_encoders."):
        naming = "ComfyUI"
    words = [word for word in rest.split(".") if word != "processor"] or [""]
    if words[0] == "encoder" and component in ("", "te", "te2"):
        words.insert(0, "text_model")
    if words[-1] == "to_out" and words[0] != "text_model":
        words.append("0")
    if words[0] == "text_model" and words[-1] in _OLD_TEXT:
        words[-1] = _OLD_TEXT[words[-1]]
    path = path_of(".".join(words), ".")
    if path and path[0] in TEXT_ROOTS and component in ("", "te", "te2"):
        part = component or "te"
        return _Place(naming, part, path, module, Origin({"te": "text_encoder", "te2": "text_encoder_2"}[part], rest))
    if path and path[0] in DIFFUSERS_ROOTS | LDM_ROOTS and component in ("", "unet", "diffusion_model"):
        return _Place(naming, "unet", path, module, Origin("unet", rest))
    if component in ("transformer", "diffusion_model"):
        return _Place(naming, "", (), f"{component}.{rest}", Origin("transformer", rest))
    if component or module.startswith("text_encoders."):
        return _Place(naming, "", (), module)
    other = rest and not words[0].isdigit() and kinds_in(frozenset(tensors))
    if words[0] in _OTHER_ROOTS or other:
        own = "transformer" if words[0].endswith("transformer_blocks") else "diffusion_model"
        return _Place(naming, "", (), f"{own}.{rest}", Origin("transformer", rest))
    return None


def _key_for_family(place: _Place) -> str:
    return f"lora_{place.part}_{'_'.join(place.path)}" if place.part else place.key


def _key(place: _Place, family: str | None, usual: bool) -> str | None:
    """The canonical key; None where the family has no layer of such a name."""
    if not place.part:
        return None if family in STABLE_DIFFUSION else place.key
    if place.part == "unet":
        path: Path | None = place.path
        if place.path[0] in LDM_ROOTS and usual:
            path = to_diffusers(place.path, family)
        elif place.path[0] in DIFFUSERS_ROOTS and family in STABLE_DIFFUSION and not to_ldm(place.path, family):
            # Known words, but not in an order that any layer of the family has.
            path = None
        return f"lora_unet_{'_'.join(path)}" if path else None
    prefix = place.part
    if family == "SDXL" and prefix == "te":
        prefix = "te1"
    elif family in ("SD 1.x", "SD 2.x"):
        # diffusers' conversion to kohya's names writes lora_te1 for SD 1.5.
        prefix = {"te1": "te"}.get(prefix, prefix)
    return f"lora_{prefix}_{'_'.join(place.path)}"


def _one(namings: Counter[Naming]) -> Naming:
    found = set(namings)
    if found == {"diffusers", "PEFT"}:
        # diffusers itself writes .lora.down for attention and .lora_A for the rest.
        return "diffusers"
    if found == {"kohya", "kohya, LDM paths"}:
        # sd-scripts' SDXL files: LDM's paths in the UNet, the text encoders as ever.
        return "kohya, LDM paths"
    return found.pop() if len(found) == 1 else "mixed"
