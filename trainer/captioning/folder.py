"""Whether a folder holds a BLIP captioning model, told from its files. Light: the standard library only, no torch."""
import json
import os
from pathlib import Path
from typing import Any

from ..messages import system_reason
from ..typed import SpecError

WEIGHTS = "model.safetensors"
ARCHITECTURE = "BlipForConditionalGeneration"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# The base model's main branch holds a pickle only, so naming it without its revision would send people round in circles.
WHERE = (
    "Put all files of the Hugging Face model Salesforce/blip-image-captioning-large there, or those of "
    "Salesforce/blip-image-captioning-base at revision refs/pr/38 (its main branch has no .safetensors)."
)


def check_captioner(folder: Path) -> None:
    """Check that `folder` is a BLIP captioning model as transformers' `save_pretrained` or the hub gives it.

    That is: `config.json` with model_type "blip"; `model.safetensors`; a tokenizer (`tokenizer.json` or `vocab.txt`); and how pictures
    are prepared: `preprocessor_config.json`, or since transformers 5 the `image_processor` part of `processor_config.json`.

    Raises:
        SpecError: a file is missing or says something else. Every missing file is named, and where to get it.
    """
    if not os.path.isdir(folder):
        raise SpecError(f"There is no captioning model folder at {folder}. {WHERE}")
    try:
        files = [Path(name) for name in sorted(os.listdir(folder))]
    except OSError as error:
        raise SpecError(f"{folder} cannot be read ({system_reason(error)}): make it readable for the user that ComfyUI runs as.") from error
    missing = _missing_files(folder)
    pickles = [file.name for file in files if file.suffix.lower() in PICKLES]
    if WEIGHTS in missing and pickles:
        raise SpecError(
            f"{folder}: {', '.join(pickles)} is a pickle, which can run code when it is opened; only .safetensors is read. "
            f"Missing: {', '.join(missing)}. {WHERE}"
        )
    others = [file.name for file in files if file.suffix == ".safetensors"]
    if WEIGHTS in missing and others:
        raise SpecError(f"{folder}: the weights must be one file named {WEIGHTS}; found {', '.join(others)}. {WHERE}")
    if missing:
        raise SpecError(f"{folder} is not a whole BLIP captioning model. Missing: {', '.join(missing)}. {WHERE}")
    _check_config(folder)


def _missing_files(folder: Path) -> list[str]:
    def there(name: str) -> bool:
        return os.path.isfile(folder / name)

    missing = [name for name in ("config.json", WEIGHTS) if not there(name)]
    if not (there("tokenizer.json") or there("vocab.txt")):
        missing.append("tokenizer.json (or vocab.txt)")
    if not (there("preprocessor_config.json") or (there("processor_config.json") and _prepares_pictures(folder))):
        missing.append("preprocessor_config.json")
    return missing


def _prepares_pictures(folder: Path) -> bool:
    return isinstance(_read_object(folder / "processor_config.json").get("image_processor"), dict)


def _check_config(folder: Path) -> None:
    config = _read_object(folder / "config.json")
    kind = config.get("model_type")
    if kind != "blip":
        raise SpecError(f"{folder}: config.json says model_type {kind!r}; this captioner reads 'blip' models. {WHERE}")
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures and ARCHITECTURE not in architectures:
        named = ", ".join(map(str, architectures))
        raise SpecError(f"{folder}: config.json describes {named}, a BLIP for another task; captioning needs {ARCHITECTURE}. {WHERE}")


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise SpecError(f"{file} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise SpecError(f"{file} is not JSON: the download went wrong. {WHERE}") from error
    if not isinstance(content, dict):
        raise SpecError(f"{file} is not a JSON object: the download went wrong. {WHERE}")
    return content
