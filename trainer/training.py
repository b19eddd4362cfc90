"""One training, from spec to file, whatever its method. Parts are loaded one at a time: when the UNet comes, the text encoder has gone if it can."""
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .adapters.files import FileError, write_bytes
from .adapters.metadata import training_metadata
from .assembly import assemble, check_hardware
from .channel import Channel
from .checkpoint import Best, State, latest_state, load_state, remove_states, save_state, state_at
from .class_images import draw_class_images
from .data.examples import Example
from .data.order import generator
from .data.prepare import Preparation, Prepared
from .data.visits import Visits
from .dataset import Dataset
from .denoising import Denoising, loss_by_dataset
from .ema import Ema
from .events import Checkpoint, Event, Finished, Phase, Sample, Started, Stop, Validation, Warned
from .families import load_family
from .history import EVENTS_FILE, history, read_events
from .loop import Loop, Position, TrainingError
from .memory import check_memory
from .methods import load_method
from .objective import check, prediction_kind
from .optim import in_use
from .patience import bytes_of
from .placing import is_taken, number_note, placed
from .plot import save_loss
from .precision import accelerator, choose, peak_memory
from .remarks import remarks
from .room import check_disk
from .sampling import Sampler, save_png
from .schedule import factor
from .spec import SPEC_FILE, Result, TrainingSpec, step_output
from .start import first_state
from .trackers import TensorBoard


class Training:
    """`run()` carries out the spec in the folder `folder` and gives whether it ended early because it was asked to.

    Raises (from `run`):
        SpecError: the spec cannot be carried out here.
        TrainingError: training broke.
        FileError: the numbers to be saved are broken.
    """

    def __init__(self, spec: TrainingSpec, folder: Path, channel: Channel) -> None:
        self.spec = spec
        self.folder = folder
        self.channel = channel
        self.formats = choose(spec.precision, torch.cuda.is_available())
        self.accelerator = accelerator(self.formats)
        check_hardware(spec)
        self.family = load_family(spec.base, spec.text)
        check(spec.objective, prediction_kind(spec.objective, self.family.prediction), self.family.alphas_cumprod)
        self.method = load_method(spec, self.family)
        # What cannot be trained, or does not fit into memory or on the disk, is told before pictures are encoded.
        self.numbers = self.method.trained_numbers()
        check_disk(spec, folder, self.numbers, self.method.result_bytes())
        check_memory(spec, self.method, self.family, self.formats.weights, self.accelerator.device)
        self.state: State | None = latest_state(folder) or first_state(spec)
        self.best = self.state.best if self.state else None
        self.tracker = TensorBoard(folder) if spec.checkpointing.tensorboard and self.accelerator.is_main_process else None

    def run(self) -> bool:
        """See the class."""
        spec = self.spec
        resumed_from = self.state.step if self.state else 0
        self._emit(
            Started(
                run=self.folder.name,
                pid=os.getpid(),
                task=spec.task,
                total_steps=spec.steps,
                resumed_from=resumed_from,
                parameters=self.numbers,
                precision="fp32" if self.formats.name == "no" else self.formats.name,
            )
        )
        self._tell_of_number()
        for remark in remarks(spec):
            self._emit(Warned(message=remark))
        self.data = self._prepare()
        self._emit(Phase(name="loading UNet"))
        self.models = assemble(spec, self.method, self.family, self.accelerator, self.formats.weights, self.data.texts)
        for warning in self.method.warnings if not resumed_from else ():
            self._emit(Warned(message=warning))
        self.ema = self._average()
        position = Position()
        if self.state:
            self._load(self.state)
            position = Position(self.state.step, self.state.draws)
        self.denoising = Denoising(
            self.family,
            self.models.unet,
            self._visits(self.data.train, spec.seed),
            spec.objective,
            spec.seed,
            self.accelerator.device,
            prior=self._visits(self.data.prior, generator(spec.seed, "prior").initial_seed()) if self.data.prior else None,
            prior_weight=spec.prior.weight if spec.prior else 1.0,
            dropout=self.method.drops_out,
            share=self._share,
        )
        self.loop = Loop(
            models=self.models.prepared,
            loss_of=self.denoising.loss,
            names_of=self.denoising.names,
            parameters=self.models.parameters,
            rates=self.models.rates,
            optimizer=self.models.optimizer,
            accelerator=self.accelerator,
            factor=lambda step: factor(spec.optimizer, step, spec.steps),
            emit=self._emit,
            should_stop=self.channel.stop_requested,
            due=self._due,
            after_step=self._after_step,
            total=spec.steps,
            gradient_accumulation_steps=spec.optimizer.gradient_accumulation_steps,
            max_grad_norm=spec.optimizer.max_grad_norm,
            ema=self.ema,
            position=position,
        )
        self.channel.something_to_save(lambda: bytes_of(self.folder, [result.output for result in self.spec.results]))
        if not resumed_from:
            with self._as_saved():
                self._validate(0)
                self._draw(0)
        elif self._lacks_validation(resumed_from):
            with self._as_saved():
                improved = self._validate(resumed_from)
            if improved and self._keeps_best:
                self._save_state()
        self._emit(Phase(name="training"))
        self._saved_at = time.monotonic()
        self._train_mode(True)
        try:
            self.loop.run()
        except TrainingError:
            with contextlib.suppress(FileError):  # the weights themselves are no numbers any more: the state before stays
                self._save_state()
            raise
        except Exception:
            with contextlib.suppress(Exception):  # what broke the run may break this too; what it was is told by the first error
                if self.loop.broke_between_steps():
                    self._save_state()
            raise
        return self._finish()

    def _average(self) -> Ema | None:
        options = self.spec.optimizer
        device = torch.device("cpu") if options.ema_device == "cpu" else None
        return Ema(list(self.method.tensors().values()), options.ema_decay, device) if options.ema_decay else None

    def _emit(self, event: Event) -> None:
        self.channel.emit(event)
        if self.tracker:
            self.tracker(event)

    def _load(self, state: State) -> None:
        scaler, optimizer = self.accelerator.scaler, self.models.optimizer.optimizer
        load_state(state, self.method.tensors(), optimizer, scaler, self.ema)

    def _train_mode(self, on: bool) -> None:
        # Only dropout and gradient checkpointing ask for it.
        self.models.train(on and (self.method.drops_out or self.spec.hardware.gradient_checkpointing))

    @contextlib.contextmanager
    def _as_saved(self) -> Iterator[None]:
        """The weights as they are given out: the average where there is one, schedule-free's own point; afterwards as they were."""
        self._train_mode(False)
        # Pictures and validation have shapes of their own, for which compiling would take longer than they do.
        gives_average = self.spec.optimizer.save_average
        eager = torch.compiler.set_stance("force_eager") if self.spec.hardware.compile else contextlib.nullcontext()
        try:
            with eager, in_use(self.models.optimizer.optimizer), self.ema.swapped() if gives_average and self.ema else contextlib.nullcontext():
                yield
        finally:
            self._train_mode(True)

    def _prepare(self) -> Prepared:
        spec, device, formats = self.spec, self.accelerator.device, self.formats
        _, text_format = self.method.formats(formats.weights)
        self.preparation = Preparation(spec, self.family, device, text_format, self.method.trains_text, self._emit)
        # The others find in the cache what the first process has encoded.
        with self.accelerator.main_process_first():
            class_images: tuple[Dataset, ...] = ()
            # What counts for nothing is not looked at.
            if spec.prior and spec.prior.weight:
                # They are kept where they serve other trainings too.
                folder = Path(spec.cache or self.folder) / "class_images"
                drawn = draw_class_images(spec, self.family, self.preparation, self.accelerator, formats.weights, folder, self._emit)
                class_images = (*spec.class_images, *([drawn] if drawn else []))
            return self.preparation.prepared(class_images)

    def _visits(self, examples: list[Example], seed: int) -> Visits:
        return Visits(examples, self.data.texts, self.spec.batch_size, seed, self.family.uses_sizes, self._share)

    @property
    def _share(self) -> tuple[int, int]:
        """Which process this is, of how many."""
        return self.accelerator.process_index, self.accelerator.num_processes

    def _due(self, step: int) -> bool:
        sampling, checkpointing = self.spec.sampling, self.spec.checkpointing
        every = (sampling.every_steps, checkpointing.every_steps, checkpointing.validate_every_steps, checkpointing.adapter_every_steps)
        return self.channel.sample_waiting() or self._minutes_are_over() or any(_is_multiple(step, number) for number in every)

    def _minutes_are_over(self) -> bool:
        minutes = self.spec.checkpointing.every_minutes
        return bool(minutes) and time.monotonic() - self._saved_at >= 60 * minutes

    def _after_step(self, step: int) -> None:
        if not self.accelerator.is_main_process:
            return
        spec, channel = self.spec, self.channel
        last = step == spec.steps
        improved = False
        if channel.sample_requested() or (_is_multiple(step, spec.sampling.every_steps) and not last):
            with self._as_saved():
                self._draw(step)
            self._emit(Phase(name="training"))
        if self.data.held_out and _is_multiple(step, spec.checkpointing.validate_every_steps) and not last:
            with self._as_saved():
                improved = self._validate(step)
            self._emit(Phase(name="training"))
        if _is_multiple(step, spec.checkpointing.adapter_every_steps) and not last:
            with self._as_saved():
                self._write(step, lambda result: step_output(result.output, step))
        keeps = improved and self._keeps_best
        if not last and (keeps or _is_multiple(step, spec.checkpointing.every_steps) or self._minutes_are_over()):
            self._emit(Phase(name="saving"))
            self._save_state()
            self._emit(Phase(name="training"))

    @property
    def _keeps_best(self) -> bool:
        return self.spec.checkpointing.keep_best or self.spec.checkpointing.adapter == "best"

    def _validate(self, step: int) -> bool:
        """Whether the loss is the lowest of all steps so far."""
        if not self.data.held_out:
            return False
        self._emit(Phase(name="validating"))

        def should_stop() -> bool:  # the last one decides what is the best, and its state is saved already
            return step < self.spec.steps and self.channel.stop_requested()

        losses = self.denoising.validation_losses(self.models.bare_unet, self.data.held_out, self.data.texts, should_stop)
        if losses is None:
            return False
        loss = float(losses.mean())
        names = [example.dataset.name for example in self.data.held_out]
        self._emit(Validation(step=step, loss=loss, by_dataset=loss_by_dataset(losses, names)))
        if not step or (self.best and self.best.loss <= loss):
            return False
        self.best = Best(step=step, loss=loss)
        return True

    def _lacks_validation(self, step: int) -> bool:
        """Whether the run was stopped while it validated after `step`, which it makes up for when it is resumed."""
        due = bool(self.data.held_out) and _is_multiple(step, self.spec.checkpointing.validate_every_steps) and step < self.spec.steps
        return due and self.accelerator.is_main_process and step not in history(read_events(self.folder / EVENTS_FILE)).validation

    def _draw(self, step: int) -> None:
        sampling, device = self.spec.sampling, self.accelerator.device
        sampler = Sampler(self.family, self.models.bare_unet, device, self.denoising.prediction, self.spec.objective.zero_terminal_snr)
        for index, prompt in enumerate(sampling.prompts):
            self._emit(Phase(name="drawing samples", done=index, total=len(sampling.prompts), detail=prompt))
            with torch.no_grad():
                text = self.data.texts([sampling.negative, prompt])
            latents = sampler.draw(text, sampling, index, self.channel.stop_requested)
            if latents is None:
                return
            file = f"samples/step-{step:08d}-{index}.png"
            save_png(self.preparation.pixels(latents), self.folder / file)
            self._emit(Sample(step=step, prompt=prompt, file=file))

    def _save_state(self) -> None:
        if not self.accelerator.is_main_process:
            return
        position, scaler = self.loop.position, self.accelerator.scaler
        saved = save_state(
            self.folder,
            position.step,
            position.draws,
            self.method.tensors(),
            self.models.optimizer.optimizer,
            scaler.state_dict() if scaler else None,
            self.ema,
            self.spec.checkpointing.keep_last,
            self.best if self._keeps_best else None,
        )
        self._saved_at = time.monotonic()
        self._emit(Checkpoint(step=position.step, folder=str(saved.relative_to(self.folder))))

    def _finish(self) -> bool:
        spec, step = self.spec, self.loop.position.step
        early = step < spec.steps
        if not self.accelerator.is_main_process:
            return early
        stop: Stop | None = self.channel.stop
        self._emit(Phase(name="saving"))
        self._save_state()
        if not early:
            with self._as_saved():
                improved = self._validate(step)
            if improved and self._keeps_best:
                self._save_state()
        if not early and spec.checkpointing.adapter == "best" and self.best and self.best.step != step:
            self._load(state_at(self.folder, self.best.step))
            step = self.best.step
        adapter, sha256 = "", ""
        with self._as_saved():
            if not early or (stop is not None and stop.save == "adapter"):
                sha256 = self._write_last(step)
                adapter = Path(self.spec.output).name
            if not early:
                self._draw(spec.steps)
        self._plot()
        if not early and not spec.checkpointing.keep_last:
            remove_states(self.folder)
        memory = peak_memory(self.accelerator.device)
        self._emit(Finished(step=self.loop.position.step, stopped=early, adapter=adapter, sha256=sha256, peak_memory=memory))
        if self.tracker:
            self.tracker.close()
        return early

    def _write_last(self, step: int) -> str:
        self._write(step, lambda result: self.folder / result.copy if result.kept else None)
        return self._write(step, lambda result: result.output)

    def _write(self, step: int, place: Callable[[Result], Path | None]) -> str:
        """Write all results that have a place, as the models are now; gives the sha256 of the main one, if it was written."""
        self._keep_off_others()
        sums = []
        for result in self.spec.results:
            path = place(result)
            if path is not None:
                metadata = training_metadata(self.spec, result.name, step, self.formats.name, self.denoising.prediction)
                sums.append(self.method.write(result.name, path, metadata))
        return sums[0] if sums else ""

    def _keep_off_others(self) -> None:
        """Go elsewhere if somebody has put a file where one of this run goes while it trained, and keep that with the run."""
        if is_taken(self.spec):
            self.spec = placed(self.spec)
            write_bytes(self.folder / SPEC_FILE, self.spec.model_dump_json(indent=2).encode())
            self._tell_of_number()

    def _tell_of_number(self) -> None:
        if note := number_note(self.spec):
            self._emit(Warned(message=note))

    def _plot(self) -> None:
        told = history(read_events(self.folder / EVENTS_FILE))
        steps = sorted(told.losses)
        if steps:
            losses = [told.losses[step] for step in steps]
            save_loss(self.folder / "loss.png", losses, sorted(told.validation.items()), steps[0], f"loss of {self.spec.name}")


def _is_multiple(step: int, number: int) -> bool:
    """Whether something that comes every `number` steps (0: never) comes at `step`."""
    return bool(number) and step % number == 0
