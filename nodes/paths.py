"""The only code that turns a name from a graph or a request into a path.

Names come from strangers (a shared workflow, an HTTP client). A folder's real path must lie in the root it is named under; a model's name
must be one that ComfyUI itself lists.
"""
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath, PurePosixPath
from stat import S_ISDIR

import folder_paths

from ..trainer.adapters.stack import EMBEDDING, HYPERNETWORK
from ..trainer.checkpoint import saved_steps, step_of
from ..trainer.data.image_folders import image_folders, is_inside, leads_out
from ..trainer.data.image_formats import SUFFIXES
from ..trainer.folder_memory import Contents, FolderMemory, readable, say_once
from ..trainer.messages import shown, system_reason
from ..trainer.spec import RUN_ID_PATTERN
from .listings import Listing, Look


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
    """FolderMemory with images, as `input/NAME` and `datasets/NAME`."""
    return _DATASETS.names()


def _datasets(look: Look) -> Iterator[str]:
    roots = [(label, str(root)) for label, root in _dataset_roots() if look(str(root))]
    inside = [os.path.realpath(root) for _, root in roots]
    names = (name for label, root in roots for name in image_folders(label, root, _reader(_IMAGE_FOLDERS, look), inside))
    yield from dict.fromkeys(names)
    _IMAGE_FOLDERS.forget_unread()


def _reader(memory: FolderMemory, look: Look) -> Callable[[str], Contents | None]:
    return lambda path: memory.read(path) if look(path) else None


def dataset_folder(name: str) -> Path:
    """The folder that `dataset_choices` calls `name`. Raises PathError."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    called = f"folder {shown(repr(name))}"
    if parts[:1] == ("/",) or (os.name == "nt" and ":" in name):
        raise PathError(f"{called} is an absolute path: name a folder under input/ or datasets/.")
    if ".." in parts:
        raise PathError(f"{called} contains '..': name a folder under input/ or datasets/.")
    all_roots = _dataset_roots()
    roots = [root for label, root in all_roots if parts[:1] == (label,)]
    if not roots or len(parts) < 2:
        raise PathError(f"{called} does not start with input/ or datasets/: choose one from the list.")
    # Where a folder's name may hold a backslash, it need not stand between two names.
    spellings = [parts] if os.name == "nt" else [PurePosixPath(name).parts, parts]
    for folder in (root.joinpath(*spelling[1:]) for root in roots for spelling in spellings if spelling[0] == parts[0]):
        if _is_folder(folder, called):
            if not is_inside(str(folder), [os.path.realpath(root) for _, root in all_roots]):
                raise PathError(leads_out(name, str(folder)))
            return folder.resolve()
    raise PathError(f"{called} does not exist: put your images in a subfolder of ComfyUI's {parts[0]}/ folder.")


def _is_folder(path: Path, called: str) -> bool:
    """Whether there is such a folder. Raises PathError where that cannot be told."""
    try:
        return S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        reason = system_reason(error) if isinstance(error, OSError) else str(error)
        raise PathError(f"{called} cannot be read ({reason}): choose another one, or make it readable.") from error


def model_choices(kind: str) -> list[str]:
    """The .safetensors files of one of ComfyUI's model folders."""
    return [name for name in model_names(kind) if name.endswith((".safetensors", ".sft"))]


def model_names(kind: str) -> list[str]:
    """All files of one of ComfyUI's model folders, as its lists name them."""
    try:
        return folder_paths.get_filename_list(kind)
    except OSError as error:
        # ComfyUI gives up the whole list for one folder whose time it cannot be told.
        say_once(f"{readable(error.filename or kind)} cannot be read ({system_reason(error)}) and is left out of the list of {kind}.")
        found = {
            os.path.relpath(os.path.join(place, name), root)
            for root in folder_paths.get_folder_paths(kind)
            for place, _, names in os.walk(root, followlinks=True)
            for name in names
        }
        return folder_paths.filter_files_extensions(found, folder_paths.folder_names_and_paths[folder_paths.map_legacy(kind)][1])


def model_file(kind: str, name: str) -> Path:
    """The path of a model that ComfyUI lists under `kind`. Raises PathError."""
    if name not in model_names(kind):
        raise PathError(f"{shown(repr(name))} is not in ComfyUI's {kind} folders: choose one from the list.")
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        raise PathError(f"{shown(repr(name))} is a link in ComfyUI's {kind} folders that leads to no file: put the file back, or choose another.")
    return Path(path)


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
    listed = model_names(kind)
    return name if name in listed else next((known for known in listed if known.rpartition(".")[0] == name), name)


def captioner_choices() -> list[str]:
    """The folders under models/captioners that hold a model."""
    return _CAPTIONERS.names()


def _captioners(look: Look) -> Iterator[str]:
    read = _reader(FolderMemory(), look)
    found = [(name, os.path.join(root, name)) for root in folder_paths.get_folder_paths("captioners") for name in _folders_in(read(root))]
    yield from dict.fromkeys(name for name, path in found if look(path) and _holds_model(path))


def _folders_in(folder: Contents | None) -> tuple[str, ...]:
    return folder.folders if folder else ()


def _holds_model(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "config.json"))


def captioner_folder(name: str) -> Path:
    """The folder that `captioner_choices` calls `name`. Raises PathError."""
    if isinstance(name, str) and PurePath(name).name == name != ".." and not (os.name == "nt" and ":" in name):
        for root in folder_paths.get_folder_paths("captioners"):
            if _holds_model(os.path.join(root, name)):
                return Path(root, name)
    raise PathError(f"captioner {shown(repr(name))} is not in models/captioners: put the model's files into a folder of that name there.")


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
    """The saved states of all runs as `RUN @ STEP`, those of the run that was last written to first."""
    return _STATES.names()


def _states(look: Look) -> Iterator[str]:
    read = _reader(_RUN_FOLDERS, look)
    found: list[tuple[float, str]] = []
    for run in filter(RUN_ID_PATTERN.fullmatch, _folders_in(read(str(runs_root())))):
        states = _folders_in(read(os.path.join(runs_root(), run, "state")))
        steps = {step for step in map(step_of, map(Path, states)) if step}
        if steps:
            written = os.path.getmtime(os.path.join(runs_root(), run))
            found += [(written, f"{run} @ {step}") for step in sorted(steps, reverse=True)]
    yield from (name for _, name in sorted(found, key=lambda item: -item[0]))
    _RUN_FOLDERS.forget_unread()


def state_folder(name: str) -> tuple[Path, int]:
    """The run's folder and the step of what `state_choices` calls `name`. Raises PathError."""
    run, _, step = name.partition(" @ ")
    if RUN_ID_PATTERN.fullmatch(run) and step.isdecimal() and int(step) in saved_steps(run_folder(run)):
        return run_folder(run), int(step)
    raise PathError(f"there is no saved state {shown(repr(name))}: choose one from the list.")


def tokenizer_folder() -> Path:
    """CLIP's vocabulary, which ships with ComfyUI."""
    import comfy

    return Path(next(iter(comfy.__path__)), "sd1_tokenizer")


_IMAGE_FOLDERS, _RUN_FOLDERS = FolderMemory(SUFFIXES), FolderMemory()
_DATASETS, _CAPTIONERS, _STATES = Listing(_datasets), Listing(_captioners), Listing(_states)
