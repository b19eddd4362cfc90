"""What of a spec can be carried out and is worth a warning before it is."""
from pathlib import Path

from .messages import listed, shown
from .schedule import factor, warmup_steps
from .spec import TrainingSpec


def remarks(spec: TrainingSpec) -> list[str]:
    """Sentences for the user: what the datasets leave out, and settings that do not do what they are meant for."""
    datasets = (*spec.datasets, *spec.validation, *spec.class_images)
    notes = [f"{shown(dataset.name)}: {note}" for dataset in datasets for note in dataset.notes]
    return list(dict.fromkeys([*notes, *_validation_on_training_images(spec), *_endless_warmup(spec)]))


def _validation_on_training_images(spec: TrainingSpec) -> list[str]:
    trained = {image.sha256 for dataset in spec.datasets for image in dataset.images}
    held_out = [image for dataset in spec.validation for image in dataset.images]
    both = [shown(Path(image.path).name) for image in held_out if image.sha256 in trained]
    if not both:
        return []
    return [
        f"{len(both):,} of {len(held_out):,} validation images are trained on as well, so the validation loss says nothing about images that the "
        f"model has never seen: {listed(both)}. Validate on other images"
    ]


def _endless_warmup(spec: TrainingSpec) -> list[str]:
    warmup = warmup_steps(spec.optimizer, spec.steps)
    if warmup < spec.steps:
        return []
    reached = factor(spec.optimizer, spec.steps - 1, spec.steps)
    return [
        f"the warm-up takes {warmup:,} steps and the training {spec.steps:,}, so the learning rate never gets beyond {reached:.0%} of what it is set "
        "to: shorten the warm-up"
    ]
