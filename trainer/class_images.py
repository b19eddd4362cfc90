"""Pictures of the class that the base draws for prior preservation (https://arxiv.org/abs/2208.12242, section 3.2), kept for the next training."""
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import torch
from accelerate import Accelerator

from .data.cache import key_of
from .data.prepare import Preparation
from .dataset import Dataset, DatasetImage, Framing
from .events import Event, Phase
from .families.protocol import Family
from .objective import prediction_kind
from .options import Sampling
from .sampling import Sampler, save_png
from .spec import TrainingSpec


def draw_class_images(
    spec: TrainingSpec,
    family: Family,
    preparation: Preparation,
    accelerator: Accelerator,
    weights: torch.dtype,
    folder: Path,
    emit: Callable[[Event], None],
) -> Dataset | None:
    """The pictures that the class dataset lacks, drawn by the base at the training's resolution; those drawn before are found in `folder`.

    None if none is wanted. `weights`: the number format of the base.
    """
    prior, side = spec.prior, spec.datasets[0].framing.resolution
    if prior is None or not prior.class_prompt:
        return None
    count = prior.num_class_images - sum(len(dataset.images) for dataset in spec.class_images)
    if count <= 0:
        return None
    sampling = Sampling(prompts=(prior.class_prompt,), steps=prior.steps, guidance_scale=prior.guidance_scale, width=side, height=side)
    prediction, zero_terminal_snr = prediction_kind(spec.objective, family.prediction), spec.objective.zero_terminal_snr
    base = (spec.base.header_sha256, spec.base.size, family.text_digest(), family.vae_digest())
    place = folder / key_of(*base, prediction, zero_terminal_snr, sampling.model_dump_json())[:16]
    files = [place / f"{index:05d}.png" for index in range(count)]
    missing = [index for index, file in enumerate(files) if not file.is_file()]
    if missing:
        text = preparation.encoded(["", prior.class_prompt])[0](["", prior.class_prompt])
        emit(Phase(name="loading UNet"))
        unet = family.load_unet(weights, accelerator.device)
        sampler = Sampler(family, unet, accelerator.device, prediction, zero_terminal_snr)
        for done, index in enumerate(missing):
            emit(Phase(name="drawing class images", done=done, total=len(missing), detail=prior.class_prompt))
            with accelerator.autocast():
                latents = sampler.draw(text, sampling, index, lambda: False)
            assert latents is not None
            unfinished = files[index].with_suffix(".unfinished.png")
            save_png(preparation.pixels(latents), unfinished)
            os.replace(unfinished, files[index])
    images = tuple(DatasetImage(path=str(file), sha256=sha256(file.read_bytes()).hexdigest(), caption=prior.class_prompt) for file in files)
    return Dataset(name="class images", images=images, framing=Framing(resolution=side, buckets=False))
