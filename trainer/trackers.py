"""A run's events for TensorBoard, through accelerate's tracker (https://huggingface.co/docs/accelerate/usage_guides/tracking)."""
import importlib.util
from pathlib import Path

import numpy as np
from accelerate.tracking import TensorBoardTracker
from PIL import Image

from .events import Event, Progress, Sample, Validation
from .typed import SpecError

FOLDER = "tensorboard"


class TensorBoard:
    """Writes losses, learning rate, validation losses and sample pictures to `run`/tensorboard. Raises SpecError without the package."""

    def __init__(self, run: Path) -> None:
        if not any(map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))):
            raise SpecError("tensorboard is on and not installed: python -m pip install tensorboard, with the Python that trains, or turn it off.")
        self._run = run
        self._tracker = TensorBoardTracker(FOLDER, logging_dir=str(run))
        # Versions of accelerate that have it open the file there, others when they are made.
        if hasattr(self._tracker, "start"):
            self._tracker.start()

    def __call__(self, event: Event) -> None:
        """Write what the event says."""
        if isinstance(event, Progress):
            first = event.step - len(event.losses) + 1
            for step, loss in enumerate(event.losses, first):
                self._tracker.log({"loss": loss}, step=step)
            self._tracker.log({"learning_rate": event.learning_rate, "steps_per_second": event.steps_per_second}, step=event.step)
        elif isinstance(event, Validation):
            of_each = {f"validation_loss/{name}": loss for name, loss in event.by_dataset.items()}
            self._tracker.log({"validation_loss": event.loss, **of_each}, step=event.step)
        elif isinstance(event, Sample):
            with Image.open(self._run / event.file) as picture:
                self._tracker.log_images({event.prompt: np.asarray(picture.convert("RGB"))[None]}, step=event.step, dataformats="NHWC")

    def close(self) -> None:
        """Write what is still in memory."""
        self._tracker.finish()
