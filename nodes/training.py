"""What all training nodes share: from a node's inputs to a spec, to a run, to its outputs."""
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from pydantic import ValidationError

from ..trainer.adapters.files import replacing, sha256_of, write_bytes
from ..trainer.data.sources import check_captions
from ..trainer.dataset import Dataset
from ..trainer.events import Event, Finished, Phase, Progress, Sample, Started
from ..trainer.file_names import check_file_name
from ..trainer.history import History
from ..trainer.messages import explain
from ..trainer.options import Checkpointing, Hardware, Objective, OptimizerOptions, Options, Sampling, TextOptions
from ..trainer.placing import number_note, placed
from ..trainer.spec import SPEC_FILE, Base, TrainingSpec, read_spec, run_id
from ..trainer.typed import SpecError
from . import stamps
from .dataset import Datasets
from .jobs import execute
from .paths import cache_folder, run_folder
from .runs import finished_history, remember
from .sockets import TrainingResult

# One step's loss says next to nothing, since its timestep decides it: results tell the mean of this many steps at either end.
_LOSS_STEPS = 50

_Spec = TypeVar("_Spec", bound=TrainingSpec)


@dataclass(frozen=True)
class Trained:
    """A run that ended with something to go on with."""

    spec: TrainingSpec
    folder: Path
    history: History

    @property
    def losses(self) -> list[float]:
        """Every step's, in order."""
        return [loss for _, loss in sorted(self.history.losses.items())]

    @property
    def last_samples(self) -> list[Sample]:
        """The pictures of the last step that has some."""
        samples = self.history.samples
        return [sample for sample in samples if sample.step == samples[-1].step]

    def samples(self) -> Any:
        """The last sample pictures as an IMAGE; what hangs on it does not run where there are none, and nothing is wrong."""
        return torch.cat([_picture(self.folder / sample.file) for sample in self.last_samples]) if self.last_samples else ExecutionBlocker(None)

    def loss_plot(self) -> torch.Tensor:
        """The loss curve as an IMAGE."""
        return _picture(self.folder / "loss.png")

    def result(self, word: str) -> TrainingResult:
        """What a table of methods tells. `word`: by which prompts call what was trained."""
        told = self.history
        started = next((event for event in reversed(told.events) if isinstance(event, Started)), None)
        pace = told.seconds_per_step()
        steps = told.end.step if isinstance(told.end, Finished) else 0
        return TrainingResult(
            task=self.spec.task,
            name=Path(self.spec.output).stem,
            word=word,
            files=tuple(result.output for result in self.spec.results),
            base=Path(self.spec.base.checkpoint),
            steps=steps,
            parameters=started.parameters if started else 0,
            seconds=pace * steps if pace else None,
            peak_memory=told.end.peak_memory if isinstance(told.end, Finished) else 0,
            validation=tuple(sorted(told.validation.items())),
        )

    def ui(self, name: str) -> dict[str, Any]:
        """What the history and the page get. `name`: of the file, as ComfyUI's lists have it."""
        told, losses = self.history, self.losses
        subfolder = f"lora_loom/runs/{self.folder.name}"
        images = [{"filename": Path(s.file).name, "subfolder": f"{subfolder}/samples", "type": "output"} for s in self.last_samples]
        loss_plot = {"filename": "loss.png", "subfolder": subfolder, "type": "output"}
        result = {
            "run": self.folder.name,
            "adapter": name,
            "steps": told.end.step if isinstance(told.end, Finished) else 0,
            "first_loss": _mean(losses[:_LOSS_STEPS]),
            "last_loss": _mean(losses[-_LOSS_STEPS:]),
            "seconds_per_step": told.seconds_per_step(),
            "validation": sorted(told.validation.items()),
            "validation_by_dataset": {name: sorted(losses.items()) for name, losses in told.validation_by_dataset.items()},
            "buckets": [bucket.model_dump() for bucket in told.data.buckets] if told.data else [],
            "loss_plot": loss_plot,
        }
        note = number_note(self.spec)
        return {"images": [*images, loss_plot], "lora_loom": [result], **({"text": [note]} if note else {})}


def training_spec(
    kind: type[_Spec],
    base: Base,
    dataset: Datasets,
    options: Options,
    validation: Datasets | None = None,
    class_dataset: Datasets | None = None,
    checkpointing: Checkpointing | None = None,
    hardware: Hardware | None = None,
    **settings: Any,
) -> _Spec:
    """The spec of a node's inputs. `checkpointing` and `hardware`: where no options node speaks of them. Raises ValueError."""
    # What is only looked at is framed as what is trained, without chance.
    framing = dataset[0].framing.plain()
    held_out = tuple(part.model_copy(update={"framing": framing}) for part in validation or ())
    for part in (*dataset, *held_out, *(class_dataset or ())):
        check_captions(part)
    try:
        return kind(
            base=base,
            datasets=dataset,
            validation=held_out,
            class_images=class_dataset or (),
            cache=str(cache_folder()),
            optimizer=options.optimizer or OptimizerOptions(),
            objective=options.objective or Objective(),
            text=options.text or TextOptions(),
            prior=options.prior,
            checkpointing=options.checkpointing or checkpointing or Checkpointing(),
            hardware=options.hardware or hardware or Hardware(),
            sampling=_sampling(options.sampling, dataset[0], settings["steps"]),
            **settings,
        )
    except ValidationError as error:
        raise ValueError(explain(error)) from error


def name_problem(name: Any, check: Callable[[str], None] = check_file_name) -> str | None:
    """What is wrong with the name that a graph is queued with; one that comes by a link is looked at when the node runs."""
    try:
        if isinstance(name, str):
            check(name)
    except ValueError as error:
        return str(error)
    return None


def refuse_options(options: Options, method: str, **nodes: str) -> None:
    """Options that a method has no use for are an error, not ignored. `nodes`: titles of their nodes by group. Raises ValueError."""
    for group, title in nodes.items():
        if getattr(options, group) is not None:
            raise ValueError(f"{title} has no part in {method}: take it out of the chain of options.")


def train(node: str, unique_id: Any, spec: TrainingSpec) -> Trained:
    """Run the spec for `node`, or find it done; what it gives says where its files are (`placing`). Raises as `execute`."""
    folder = run_folder(run_id(spec))
    spec = placed(spec, _as_placed(folder))
    told = _finished(folder, spec)
    stopped = False
    if told is None:
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
        run = execute(spec, str(unique_id), spec.name, _Watcher(spec, folder, unique_id))
        spec = _as_placed(folder) or spec
        told = run.history
        stopped = run.state == "stopped"
    else:
        remember(spec, str(unique_id), spec.name, told)
    if not isinstance(told.end, Finished) or not told.end.adapter:
        raise ValueError(f"the training of {spec.name} was stopped before it had anything to go on with.")
    # What was stopped is to be gone on with when it is queued again: its stamp is never the same.
    stamps.remember(node, spec.name, object if stopped else lambda: stamps.stamp(Path(spec.output)))
    return Trained(spec, folder, told)


def trigger_word(dataset: Datasets) -> str:
    """By what prompts call what was trained on these: the first of their trigger words."""
    return next((part.trigger_word for part in dataset if part.trigger_word), "")


def _sampling(options: Sampling | None, dataset: Dataset, steps: int) -> Sampling:
    sampling = options or Sampling(every_steps=max(1, steps // 4))
    prompts = (sampling.prompts or (dataset.training_caption(dataset.images[0]),)) if sampling.draw else ()
    return sampling.model_copy(update={"prompts": prompts, "width": dataset.framing.resolution, "height": dataset.framing.resolution})


def _as_placed(folder: Path) -> TrainingSpec | None:
    """The spec that a run's folder holds, which names the files that it has made; None if there is none to be read."""
    try:
        spec = read_spec(folder / SPEC_FILE)
    except SpecError:
        return None
    return spec if isinstance(spec, TrainingSpec) else None


def _finished(folder: Path, spec: TrainingSpec) -> History | None:
    """The history of this very training if it is done already; files of which the run has a copy are put back in place if they are gone."""
    results = spec.results
    told = finished_history(folder)
    if told is None or not isinstance(told.end, Finished):
        return None
    main, *others = results
    sums = {main: told.end.sha256} | {other: _sha256(folder / other.copy) for other in others}
    if any(_sha256(folder / result.copy if result.kept else result.output) != sums[result] for result in results):
        return None
    for result in results:
        if _sha256(result.output) != sums[result]:
            with replacing(result.output) as file, (folder / result.copy).open("rb") as copy:
                shutil.copyfileobj(copy, file)
    write_bytes(folder / SPEC_FILE, spec.model_dump_json(indent=2).encode())
    return told


def _sha256(path: Path) -> str:
    """Of the file's bytes; empty if there is no file."""
    return sha256_of(path) if path.is_file() else ""


class _Watcher:
    """Moves ComfyUI's own progress bar, with the newest sample as its preview."""

    def __init__(self, spec: TrainingSpec, folder: Path, node: Any) -> None:
        self.bar = comfy.utils.ProgressBar(spec.steps, node_id=node)
        self.steps = spec.steps
        self.folder = folder

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.bar.update_absolute(event.step, event.total)
        elif isinstance(event, Sample):
            with Image.open(self.folder / event.file) as picture:
                self.bar.update_absolute(event.step, self.steps, ("JPEG", picture.convert("RGB"), 512))
        elif isinstance(event, Phase) and event.total:
            self.bar.update_absolute(0, self.steps)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _picture(path: Path) -> torch.Tensor:
    """As ComfyUI's IMAGE: (1, h, w, 3) in [0, 1]."""
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0).unsqueeze(0)
