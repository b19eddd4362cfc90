"""One LoRA training, from spec to file. Parts are loaded one at a time: when the UNet comes, the text encoder has gone."""
import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from .adapters.files import FileError, write_safetensors
from .adapters.metadata import lora_metadata
from .channel import Channel
from .checkpoint import State, latest_state, load_state, save_state
from .data.encode import Encoded, encode_captions, encode_pictures, encoded
from .denoising import Denoising
from .ema import Ema
from .events import Checkpoint, Finished, Phase, Sample, Started, Stop, Validation
from .families import load_family
from .families.protocol import Conditioning
from .history import history, read_events
from .loop import Loop, Position, TrainingError
from .methods import lora
from .objective import check, prediction_kind
from .optim import build, in_use
from .plot import save_loss
from .precision import accelerator, choose
from .room import check_disk
from .sampling import draw, save_png
from .schedule import factor
from .spec import Dataset, TrainLoRASpec

_SAVE_FORMATS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class LoRATraining:
    """`run()` carries out the spec in the folder `folder` and gives whether it ended early because it was asked to.

    Raises (from `run`):
        SpecError: the spec cannot be carried out here.
        TrainingError: training broke.
        FileError: the numbers to be saved are broken.
    """

    def __init__(self, spec: TrainLoRASpec, folder: Path, channel: Channel) -> None:
        self.spec = spec
        self.folder = folder
        self.channel = channel
        self.formats = choose(spec.precision, torch.cuda.is_available())
        self.accelerator = accelerator(self.formats)
        self.family = load_family(spec.base)
        check(spec.objective, prediction_kind(spec.objective, self.family.prediction), self.family.alphas_cumprod)
        # What cannot be adapted, or does not fit on the disk, is told before pictures are encoded.
        check_disk(spec, folder, sum(parameter.numel() for parameter in lora.inject(self.family.empty_unet(), spec.network, spec.seed)))
        self.state: State | None = latest_state(folder)

    def run(self) -> bool:
        """See the class."""
        spec, channel, device = self.spec, self.channel, self.accelerator.device
        resumed_from = self.state.step if self.state else 0
        channel.emit(Started(run=self.folder.name, pid=os.getpid(), task=spec.task, total_steps=spec.steps, resumed_from=resumed_from))
        data, held_out, prompts = self._encode()
        channel.emit(Phase(name="loading UNet"))
        unet = self.family.load_unet(self.formats.weights, device)
        parameters = lora.inject(unet, spec.network, spec.seed)
        self.unet, optimizer = self.accelerator.prepare(unet, build(spec.optimizer, parameters, spec.learning_rate))
        self.optimizer = optimizer
        self.ema = Ema([parameter.data for parameter in parameters], spec.optimizer.ema_decay) if spec.optimizer.ema_decay else None
        position = Position()
        if self.state:
            load_state(self.state, lora.parameters_by_name(self.unet), optimizer.optimizer, self.accelerator.scaler, self.ema)
            position = Position(self.state.step, self.state.draws)
        self.held_out, self.prompts = held_out, prompts
        self.denoising = Denoising(
            self.family, self.unet, data, spec.objective, spec.batch_size, spec.seed, device, lora.trained_with_dropout(spec.network)
        )
        self.loop = Loop(
            loss_of=self.denoising.loss,
            names_of=self.denoising.names,
            parameters=parameters,
            optimizer=optimizer,
            accelerator=self.accelerator,
            learning_rate=lambda step: spec.learning_rate * factor(spec.optimizer, step, spec.steps),
            emit=channel.emit,
            should_stop=channel.stop_requested,
            due=self._due,
            after_step=self._after_step,
            total=spec.steps,
            gradient_accumulation_steps=spec.optimizer.gradient_accumulation_steps,
            max_grad_norm=spec.optimizer.max_grad_norm,
            ema=self.ema,
            position=position,
        )
        channel.something_to_save()
        if not resumed_from:
            with self._as_saved():
                self._validate(0)
                self._draw(0)
        channel.emit(Phase(name="training"))
        self._saved_at = time.monotonic()
        self.unet.train(lora.trained_with_dropout(spec.network))
        try:
            self.loop.run()
        except TrainingError:
            with contextlib.suppress(FileError):  # the weights themselves are no numbers any more: the state before stays
                self._save_state()
            raise
        return self._finish()

    @contextlib.contextmanager
    def _as_saved(self) -> Iterator[None]:
        """The weights as they are given out: the average where there is one, schedule-free's own point; afterwards as they were."""
        was_training = self.unet.training
        self.unet.eval()
        try:
            with in_use(self.optimizer.optimizer), self.ema.swapped() if self.ema else contextlib.nullcontext():
                yield
        finally:
            self.unet.train(was_training)

    def _encode(self) -> tuple[Encoded, Encoded | None, Conditioning]:
        """The data to train on, the held-out data, and the text of the sample prompts with the negative prompt first."""
        spec, emit, device = self.spec, self.channel.emit, self.accelerator.device
        datasets: list[Dataset] = [spec.dataset, *([spec.validation] if spec.validation else [])]
        emit(Phase(name="loading VAE"))
        self.vae = self.family.load_vae(device)
        pictures = [encode_pictures(self.family, self.vae, dataset, device, emit, "encoding pictures") for dataset in datasets]
        # It comes back to the device for each sample picture's moment of decoding.
        self.vae.to("cpu")
        emit(Phase(name="loading text encoder"))
        parts = self.family.load_text_parts(self.formats.weights, device)
        captions = [[dataset.training_caption(image) for image in dataset.images] for dataset in datasets]
        prompts = [spec.sampling.negative, *spec.sampling.prompts]
        text = encode_captions(self.family, parts, [*itertools.chain(*captions), *prompts], emit)
        rows = torch.arange(len(text.hidden)).split([*map(len, captions), len(prompts)])
        data = [
            encoded(picture, text.rows(row), dataset, self.family.uses_sizes)
            for picture, row, dataset in zip(pictures, rows, datasets, strict=False)
        ]
        return data[0], data[1] if spec.validation else None, text.rows(rows[-1])

    def _due(self, step: int) -> bool:
        sampling, checkpointing = self.spec.sampling, self.spec.checkpointing
        every = (sampling.every_steps, checkpointing.every_steps, checkpointing.validate_every_steps)
        return self.channel.sample_waiting() or self._minutes_are_over() or any(_is_multiple(step, number) for number in every)

    def _minutes_are_over(self) -> bool:
        minutes = self.spec.checkpointing.every_minutes
        return bool(minutes) and time.monotonic() - self._saved_at >= 60 * minutes

    def _after_step(self, step: int) -> None:
        spec, channel = self.spec, self.channel
        last = step == spec.steps
        if channel.sample_requested() or (_is_multiple(step, spec.sampling.every_steps) and not last):
            with self._as_saved():
                self._draw(step)
            channel.emit(Phase(name="training"))
        if self.held_out and _is_multiple(step, spec.checkpointing.validate_every_steps) and not last:
            with self._as_saved():
                self._validate(step)
            channel.emit(Phase(name="training"))
        if not last and (_is_multiple(step, spec.checkpointing.every_steps) or self._minutes_are_over()):
            self._save_state()

    def _validate(self, step: int) -> None:
        if self.held_out:
            self.channel.emit(Phase(name="validating"))
            self.channel.emit(Validation(step=step, loss=self.denoising.validation_loss(self.held_out)))

    def _draw(self, step: int) -> None:
        sampling, device = self.spec.sampling, self.accelerator.device
        for index, prompt in enumerate(sampling.prompts):
            self.channel.emit(Phase(name="drawing samples", done=index, total=len(sampling.prompts), detail=prompt))
            text = self.prompts.rows(torch.tensor([0, index + 1]))
            latents = draw(self.denoising, text, sampling, index, self.channel.stop_requested)
            if latents is None:
                return
            pixels = self.family.decode_latents(self.vae.to(device), latents)[0]
            self.vae.to("cpu")
            file = f"samples/step-{step:08d}-{index}.png"
            save_png(pixels, self.folder / file)
            self.channel.emit(Sample(step=step, prompt=prompt, file=file))

    def _save_state(self) -> None:
        position, scaler = self.loop.position, self.accelerator.scaler
        tensors = lora.parameters_by_name(self.unet)
        numbers, keep = scaler.state_dict() if scaler else None, self.spec.checkpointing.keep_last
        saved = save_state(self.folder, position.step, position.draws, tensors, self.optimizer.optimizer, numbers, self.ema, keep)
        self._saved_at = time.monotonic()
        self.channel.emit(Checkpoint(step=position.step, folder=str(saved.relative_to(self.folder))))

    def _finish(self) -> bool:
        spec, step = self.spec, self.loop.position.step
        stop: Stop | None = self.channel.stop
        early = stop is not None and step < spec.steps
        self.channel.emit(Phase(name="saving"))
        self._save_state()
        adapter, sha256 = "", ""
        with self._as_saved():
            if not early or (stop is not None and stop.save == "adapter"):
                adapter, sha256 = Path(spec.output).name, self._write_adapter(step)
            if not early:
                self._validate(step)
                self._draw(step)
        self._plot()
        self.channel.emit(Finished(step=step, stopped=early, adapter=adapter, sha256=sha256))
        return early

    def _write_adapter(self, step: int) -> str:
        tensors = lora.adapter_tensors(self.unet, self.spec.network, dtype=_SAVE_FORMATS[self.spec.network.save_format])
        metadata = lora_metadata(self.spec, tensors, step, self.formats.name, self.denoising.prediction)
        # The run keeps its own copy: a later training under the same name replaces the other one.
        write_safetensors(self.folder / "adapter.safetensors", tensors, metadata)
        return write_safetensors(Path(self.spec.output), tensors, metadata)

    def _plot(self) -> None:
        told = history(read_events(self.folder / "events.jsonl"))
        steps = sorted(told.losses)
        if steps:
            losses = [told.losses[step] for step in steps]
            save_loss(self.folder / "loss.png", losses, sorted(told.validation.items()), steps[0], f"loss of {self.spec.name}")


def _is_multiple(step: int, number: int) -> bool:
    """Whether something that comes every `number` steps (0: never) comes at `step`."""
    return bool(number) and step % number == 0
