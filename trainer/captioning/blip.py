"""Captions by BLIP (Li et al. 2022, https://arxiv.org/abs/2201.12086): a vision transformer, and a text decoder that attends to it."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor

from ..adapters.files import FileError, read_header
from ..data.colors import on_white
from ..data.images import ImageError, open_image
from ..events import Caption, Event, Phase, Warned
from ..spec import CaptionSpec, Precision
from ..typed import SpecError
from .folder import WEIGHTS, check_captioner
from .store import CaptionStore

BEAMS = 3  # the paper's beam size for captioning
_PRECISIONS = {"auto": torch.float16, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class BlipCaptioner:
    """Says in a few words what is in a picture. The same picture always gets the same words: beam search, no sampling.

    Args:
        folder: a folder that `check_captioner` accepts. Nothing is fetched and no code in it is run.
        device: where the model lives.
        dtype: its precision; without one, float16 on CUDA and float32 elsewhere.
        max_new_tokens: the longest caption, in tokens (about one per word).

    Raises:
        SpecError: the folder is not a BLIP captioning model, or its weights are damaged or not all there.
    """

    def __init__(self, folder: Path, device: torch.device | str, dtype: torch.dtype | None = None, max_new_tokens: int = 40) -> None:
        check_captioner(folder)
        try:
            read_header(folder / WEIGHTS)
        except FileError as error:
            raise SpecError(f"{folder}: {error}") from error
        self.device = torch.device(device)
        self.dtype = dtype or precision_on(self.device, "auto")
        self.max_new_tokens = max_new_tokens
        self._processor: Any = BlipProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        architecture: Any = BlipForConditionalGeneration  # its annotations do not know output_loading_info
        model, loaded = architecture.from_pretrained(folder, local_files_only=True, use_safetensors=True, output_loading_info=True)
        if loaded["missing_keys"]:
            # transformers fills these with random numbers and goes on.
            first, count = min(loaded["missing_keys"]), len(loaded["missing_keys"])
            raise SpecError(f"{folder}: {WEIGHTS} lacks {count} of the captioner's tensors, {first} among them. Download it again.")
        self._model: Any = model.to(device=self.device, dtype=self.dtype).eval()

    @torch.inference_mode()
    def caption(self, image: Image.Image, prompt: str = "") -> str:
        """One line about `image` (any size and mode; transparent parts count as white).

        `prompt` is how the sentence begins ("a photo of"); it steers the model and is not part of what comes back.
        May be empty: a model can have nothing to say.

        Raises:
            SpecError: the prompt leaves no room in the model's context.
        """
        prompt = _one_line(prompt)
        text = {"text": prompt} if prompt else {}
        inputs = self._processor(images=on_white(image), return_tensors="pt", **text).to(self.device)  # pixel_values: 1 x 3 x H x W
        # The tokenizer's closing [SEP] is dropped by `generate`; without a prompt the decoder starts from one token.
        used = inputs["input_ids"].shape[1] - 1 if prompt else 1
        room = self._model.config.text_config.max_position_embeddings - used
        if room < 1:
            raise SpecError(f"The captioner's prompt is too long: {used} tokens leave no room for a caption. Shorten it.")
        tokens = self._model.generate(**inputs, num_beams=BEAMS, do_sample=False, max_new_tokens=min(self.max_new_tokens, room))
        return without_prompt(self._text(tokens[0]), self._text(inputs["input_ids"][0]) if prompt else "")

    def _text(self, tokens: torch.Tensor) -> str:
        text = self._processor.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=True)
        return _one_line(str(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def without_prompt(text: str, prompt: str) -> str:
    """`text` without `prompt` at its start; whole words only, so "a draw" is not cut from "a drawing"."""
    rest = text[len(prompt) :]
    if not prompt or not text.lower().startswith(prompt.lower()) or (rest and rest[0].isalnum() and prompt[-1].isalnum()):
        return text
    return rest.strip()


def precision_on(device: torch.device, precision: Precision) -> torch.dtype:
    """The dtype to caption in: on CUDA as asked, float16 for "auto"; elsewhere float32, as half precision is slow or missing there."""
    return _PRECISIONS[precision] if device.type == "cuda" else torch.float32


def _open_picture(path: Path) -> Image.Image:
    try:
        return open_image(path)
    except ImageError as error:
        raise SpecError(f"{path} cannot be read as a picture ({error}). Replace it or take it out of the dataset.") from error


def run_captioning(spec: CaptionSpec, emit: Callable[[Event], None], stop_requested: Callable[[], bool]) -> int:
    """Caption `spec.images_to_caption()` and write each caption where the dataset keeps it (see `CaptionStore`); gives how many were made.

    The trigger word goes first, as it does in training. With "missing only", an image that has a caption by the time its turn comes is left
    alone: someone wrote it since, or this run did before it was stopped. `stop_requested` is asked between images.

    Raises:
        SpecError: a folder cannot be written, two images share a caption file, the captioner is wrong, or an image cannot be read.
        OSError: a caption cannot be written (the disk is full).
    """
    images = {Path(image.path): image for image in spec.images_to_caption()}
    if not images:
        return 0
    store = CaptionStore(spec.dataset, list(images.values()))
    labelled = spec.dataset.model_copy(update={"trigger_word": _one_line(spec.trigger_word)})

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = precision_on(device, spec.precision)
    if spec.precision not in ("auto", "fp32") and dtype is torch.float32:
        emit(Warned(message=f"There is no CUDA device, so captions are made in fp32 instead of {spec.precision}."))
    emit(Phase(name="loading captioner", detail=Path(spec.captioner).name))
    captioner = BlipCaptioner(Path(spec.captioner), device, dtype, spec.max_new_tokens)

    written = kept = 0
    try:
        for done, path in enumerate(images):
            if stop_requested():
                return written
            emit(Phase(name="captioning", done=done, total=len(images), detail=path.name))
            if spec.mode == "missing only" and store.has_caption(path):
                kept += 1
                continue
            text = captioner.caption(_open_picture(path))
            if not text:
                emit(Warned(message=f"{path}: the captioner has nothing to say about this picture, so no caption was written."))
                continue
            caption = labelled.training_caption(images[path].model_copy(update={"caption": text}))
            store.write(path, caption)
            emit(Caption(image=str(path), caption=caption))
            written += 1
    finally:
        store.save()
    emit(Phase(name="captioning", done=len(images), total=len(images)))
    if kept:
        emit(Warned(message=f"{kept} of {len(images)} pictures have a caption file by now; it was left as it is."))
    return written
