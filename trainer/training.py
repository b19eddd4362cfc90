"""One LoRA training, from spec to file. Parts are loaded one at a time: when the UNet comes, the text encoder has gone."""
import itertools
import os
from pathlib import Path

import torch
from torch import Tensor

from .adapters.files import write_safetensors
from .adapters.metadata import lora_metadata
from .channel import Channel
from .checkpoint import State, latest_state, load_state, save_state
from .data.encode import Encoded, encode_captions, encode_pictures, visits
from .events import Checkpoint, Finished, Phase, Sample, Started, Stop, Validation
from .families.sd import StableDiffusion1
from .history import history, read_events
from .loop import Loop, Position, validation_loss
from .methods import lora
from .optim import adamw
from .plot import save_loss
from .precision import accelerator, choose
from .sampling import draw, save_png
from .spec import Dataset, TrainLoRASpec


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
        self.family = StableDiffusion1(spec.base)
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
        self.unet, optimizer = self.accelerator.prepare(unet, adamw(parameters, spec.learning_rate))
        self.optimizer = optimizer
        position = Position()
        if self.state:
            load_state(self.state, lora.parameters_by_name(self.unet), optimizer.optimizer, self.accelerator.scaler)
            position = Position(self.state.step, self.state.draws)
        self.held_out, self.prompts = held_out, prompts
        self.loop = Loop(
            family=self.family,
            unet=self.unet,
            parameters=parameters,
            data=data,
            optimizer=optimizer,
            accelerator=self.accelerator,
            emit=channel.emit,
            should_stop=channel.stop_requested,
            after_step=self._after_step,
            batch_size=spec.batch_size,
            total=spec.steps,
            seed=spec.seed,
            max_grad_norm=spec.max_grad_norm,
            position=position,
        )
        if not resumed_from:
            self._validate(0)
        channel.something_to_save()
        channel.emit(Phase(name="training"))
        self.loop.run()
        return self._finish()

    def _encode(self) -> tuple[Encoded, Encoded | None, Tensor]:
        """The data to train on, the held-out data, and the embeddings of the sample prompts with the negative prompt first."""
        spec, emit, device = self.spec, self.channel.emit, self.accelerator.device
        datasets: list[Dataset] = [spec.dataset, *([spec.validation] if spec.validation else [])]
        emit(Phase(name="loading VAE"))
        self.vae = self.family.load_vae(device)
        latents = [encode_pictures(self.family, self.vae, dataset, device, emit, "encoding pictures") for dataset in datasets]
        # It comes back to the device for each sample picture's moment of decoding.
        self.vae.to("cpu")
        emit(Phase(name="loading text encoder"))
        encoder = self.family.load_text_encoder(self.formats.weights, device)
        captions = [[dataset.training_caption(image) for image in dataset.images] for dataset in datasets]
        prompts = [spec.sampling.negative, *spec.sampling.prompts]
        tokenizer = self.family.load_tokenizer()
        text = encode_captions(self.family, encoder, tokenizer, [*itertools.chain(*captions), *prompts], emit)
        parts = text.split([*map(len, captions), len(prompts)])
        encoded = [
            Encoded(pictures, embeddings, visits(dataset))
            for pictures, embeddings, dataset in zip(latents, parts, datasets, strict=False)
        ]
        return encoded[0], encoded[1] if spec.validation else None, parts[-1]

    def _after_step(self, step: int) -> None:
        spec, channel = self.spec, self.channel
        last = step == spec.steps
        if channel.sample_requested() or (spec.sampling.every_steps and step % spec.sampling.every_steps == 0 and not last):
            self._draw(step)
            channel.emit(Phase(name="training"))
        if spec.save_every_steps and step % spec.save_every_steps == 0 and not last:
            self._save_state()

    def _validate(self, step: int) -> None:
        if self.held_out:
            self.channel.emit(Phase(name="validating"))
            loss = validation_loss(self.family, self.unet, self.held_out, self.accelerator.device, self.spec.seed)
            self.channel.emit(Validation(step=step, loss=loss))

    def _draw(self, step: int) -> None:
        sampling, device = self.spec.sampling, self.accelerator.device
        for index, prompt in enumerate(sampling.prompts):
            self.channel.emit(Phase(name="drawing samples", done=index, total=len(sampling.prompts), detail=prompt))
            text, negative = self.prompts[index + 1 : index + 2], self.prompts[:1]
            latents = draw(self.family, self.unet, text, negative, sampling, index, device, self.channel.stop_requested)
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
        saved = save_state(
            self.folder, position.step, position.draws, tensors, self.optimizer.optimizer, scaler.state_dict() if scaler else None
        )
        self.channel.emit(Checkpoint(step=position.step, folder=str(saved.relative_to(self.folder))))

    def _finish(self) -> bool:
        spec, step = self.spec, self.loop.position.step
        stop: Stop | None = self.channel.stop
        early = stop is not None and step < spec.steps
        self.channel.emit(Phase(name="saving"))
        self._save_state()
        adapter, sha256 = "", ""
        if not early or (stop is not None and stop.save == "adapter"):
            adapter, sha256 = Path(spec.output).name, self._write_adapter(step)
        if not early:
            self._validate(step)
            self._draw(step)
        self._plot()
        self.channel.emit(Finished(step=step, stopped=early, adapter=adapter, sha256=sha256))
        return early

    def _write_adapter(self, step: int) -> str:
        tensors = lora.adapter_tensors(self.unet, self.spec.network, self.family)
        metadata = lora_metadata(self.spec, tensors, step, self.formats.name)
        # The run keeps its own copy: a later training under the same name replaces the other one.
        write_safetensors(self.folder / "adapter.safetensors", tensors, metadata)
        return write_safetensors(Path(self.spec.output), tensors, metadata)

    def _plot(self) -> None:
        told = history(read_events(self.folder / "events.jsonl"))
        steps = sorted(told.losses)
        if steps:
            losses = [told.losses[step] for step in steps]
            save_loss(self.folder / "loss.png", losses, sorted(told.validation.items()), steps[0], f"loss of {self.spec.name}")
