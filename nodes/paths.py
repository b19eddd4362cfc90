"""The only code that turns a name from a graph or a request into a path.

Names come from strangers (a shared workflow, an HTTP client). A folder's real path must lie in the root it is named under; a model's name
must be one that ComfyUI itself lists.
"""
import os
from pathlib import Path, PurePosixPath

import folder_paths

from ..trainer.adapters.stack import EMBEDDING, HYPERNETWORK
from ..trainer.checkpoint import step_of
from ..trainer.data.sources import has_pictures
from ..trainer.spec import RUN_ID_PATTERN

_DEPTH = 4


class PathError(ValueError):
    """The name leads nowhere, or where it must not. The message says which."""


def register_folders() -> None:
    """Make `models/datasets` and `models/captioners` known, keeping what extra_model_paths.yaml has already added."""
    for kind in ("datasets", "captioners"):
        folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))


def _dataset_roots() -> list[tuple[str, Path]]:
    registered = [("datasets", Path(folder)) for folder in folder_paths.get_folder_paths("datasets")]
    return [("input", Path(folder_paths.get_input_directory())), *registered]


def dataset_choices() -> list[str]:
    """Folders with pictures, as `input/NAME` and `datasets/NAME`."""
    found: list[str] = []

    def walk(label: str, folder: Path, depth: int) -> None:
        if depth == 0 or not folder.is_dir():
            return
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            if entry.is_dir() and not entry.name.startswith("."):
                child = Path(entry.path)
                name = f"{label}/{entry.name}"
                if has_pictures(child):
                    found.append(name)
                walk(name, child, depth - 1)

    for label, root in _dataset_roots():
        walk(label, root, _DEPTH)
    return list(dict.fromkeys(found))


def dataset_folder(name: str) -> Path:
    """The folder that `dataset_choices` calls `name`. Raises PathError."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ":" in name:
        raise PathError(f"folder {name!r} is an absolute path: name a folder under input/ or datasets/.")
    if ".." in parts.parts:
        raise PathError(f"folder {name!r} contains '..': name a folder under input/ or datasets/.")
    roots = [root for label, root in _dataset_roots() if parts.parts[:1] == (label,)]
    if not roots or len(parts.parts) < 2:
        raise PathError(f"folder {name!r} does not start with input/ or datasets/: choose one from the list.")
    for root in roots:
        folder = root.joinpath(*parts.parts[1:])
        if folder.is_dir():
            if not folder.resolve().is_relative_to(root.resolve()):
                raise PathError(f"folder {name!r} is a link that leads out of {parts.parts[0]}/: copy the pictures there instead.")
            return folder.resolve()
    raise PathError(f"folder {name!r} does not exist: put your pictures in a subfolder of ComfyUI's {parts.parts[0]}/ folder.")


def model_choices(kind: str) -> list[str]:
    """The .safetensors files of one of ComfyUI's model folders."""
    return [name for name in folder_paths.get_filename_list(kind) if name.endswith((".safetensors", ".sft"))]


def model_file(kind: str, name: str) -> Path:
    """The path of a model that ComfyUI lists under `kind`. Raises PathError."""
    if name not in folder_paths.get_filename_list(kind):
        raise PathError(f"{name!r} is not in ComfyUI's {kind} folders: choose one from the list.")
    return Path(folder_paths.get_full_path_or_raise(kind, name))


def adapter_file(name: str) -> Path:
    """The file that a row of a stack names: in models/loras, or with a prefix in models/embeddings or models/hypernetworks. Raises PathError."""
    prefix, kind = _adapter_kind(name)
    return model_file(kind, _whole(kind, name.removeprefix(prefix)))


def adapter_name(name: str) -> str:
    """The whole name of what a row names, as ComfyUI lists it, with the row's prefix: prompts and other packs leave out the ending."""
    prefix, kind = _adapter_kind(name)
    return prefix + _whole(kind, name.removeprefix(prefix))


def _adapter_kind(name: str) -> tuple[str, str]:
    """The prefix of a row's name, and the kind of ComfyUI's model folders that it stands for."""
    known = ((EMBEDDING, "embeddings"), (HYPERNETWORK, "hypernetworks"))
    return next((one for one in known if name.startswith(one[0])), ("", "loras"))


def _whole(kind: str, name: str) -> str:
    """The listed name that is `name` with an ending, or `name` itself."""
    listed = folder_paths.get_filename_list(kind)
    return name if name in listed else next((known for known in listed if known.rpartition(".")[0] == name), name)


def captioner_choices() -> list[str]:
    """The folders under models/captioners that hold a model."""
    names = []
    for root in folder_paths.get_folder_paths("captioners"):
        if os.path.isdir(root):
            names += [entry.name for entry in sorted(os.scandir(root), key=lambda e: e.name) if os.path.isfile(os.path.join(entry, "config.json"))]
    return names


def captioner_folder(name: str) -> Path:
    """Raises PathError."""
    if name in captioner_choices():
        for root in folder_paths.get_folder_paths("captioners"):
            if os.path.isdir(os.path.join(root, name)):
                return Path(root, name)
    raise PathError(f"captioner {name!r} is not in models/captioners: put the model's files into a folder of that name there.")


def lora_output(name: str) -> Path:
    """Where the adapter `name` goes; `name` has passed the spec's own check for plain names."""
    return _output("loras", name)


def embedding_output(name: str) -> Path:
    """The same for an embedding."""
    return _output("embeddings", name)


def checkpoint_output(name: str) -> Path:
    """The same for a checkpoint."""
    return _output("checkpoints", name)


def _output(kind: str, name: str) -> Path:
    folder = Path(folder_paths.get_folder_paths(kind)[0])
    folder.mkdir(parents=True, exist_ok=True)  # a path of extra_model_paths.yaml need not be there yet
    return folder / f"{name}.safetensors"


def runs_root() -> Path:
    """`<output>/lora_loom/runs`."""
    return Path(folder_paths.get_output_directory(), "lora_loom", "runs")


def run_folder(run: str) -> Path:
    """The folder of a run id. Raises PathError for anything that is not one."""
    if not RUN_ID_PATTERN.fullmatch(run):
        raise PathError("that is not a run id.")
    return runs_root() / run


def cache_folder() -> Path:
    """Where trainings keep what they have encoded."""
    return Path(folder_paths.get_output_directory(), "lora_loom", "cache")


def state_choices() -> list[str]:
    """The saved states of all runs as `RUN @ STEP`, newest runs first."""
    found: list[tuple[float, str]] = []
    if runs_root().is_dir():
        for run in runs_root().iterdir():
            if RUN_ID_PATTERN.fullmatch(run.name):
                steps = sorted((step for step in map(step_of, (run / "state").glob("step-*")) if step), reverse=True)
                found += [(run.stat().st_mtime, f"{run.name} @ {step}") for step in steps]
    return [name for _, name in sorted(found, key=lambda item: -item[0])]


def state_folder(name: str) -> tuple[Path, int]:
    """The run's folder and the step of what `state_choices` calls `name`. Raises PathError."""
    run, _, step = name.partition(" @ ")
    if name not in state_choices():
        raise PathError(f"there is no saved state {name!r}: choose one from the list.")
    return run_folder(run), int(step)


def tokenizer_folder() -> Path:
    """CLIP's vocabulary, which ships with ComfyUI."""
    import comfy

    return Path(next(iter(comfy.__path__)), "sd1_tokenizer")
