"""Captioning with a real BLIP of toy size: what it says, where it is written, and what is said when something is wrong."""
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_blip import COLOURS, SILENT, WORDS, make_tiny_blip
from transformers import BlipProcessor
from unreadable import open_place, unprivileged

from trainer.captioning.blip import BlipCaptioner, on_white, precision_on, run_captioning, without_prompt
from trainer.captioning.folder import check_captioner
from trainer.events import Caption, Event, Phase, Warned
from trainer.spec import CaptionSpec, Dataset, DatasetImage
from trainer.typed import SpecError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioners") / "tiny-blip"
    make_tiny_blip(folder)
    return folder


@pytest.fixture(scope="module")
def captioner(tiny: Path) -> BlipCaptioner:
    return BlipCaptioner(tiny, "cpu")


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the captioner for a test to spoil."""
    return Path(shutil.copytree(tiny, tmp_path / "captioner"))


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (40, 50)) -> Image.Image:
    return Image.new("RGB", size, colour)


def dataset(folder: Path, **captions: str | None) -> Dataset:
    """One picture a keyword, of the colour that its name begins with (`red`, `red_2`)."""
    folder.mkdir(exist_ok=True)
    images = []
    for name, caption in captions.items():
        path = folder / f"{name}.png"
        picture({**COLOURS, "yellow": SILENT}[name.split("_")[0]]).save(path)
        images.append(DatasetImage(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest(), caption=caption))
    return Dataset(name="colours", images=tuple(images))


def run(tiny: Path, data: Dataset, stop: Callable[[], bool] = lambda: False, **options: Any) -> tuple[int, list[Event]]:
    events: list[Event] = []
    written = run_captioning(CaptionSpec(captioner=str(tiny), dataset=data, **options), events.append, stop)
    return written, events


def warnings(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Warned)]


@pytest.mark.parametrize("name", COLOURS)
def test_it_says_what_it_sees(captioner: BlipCaptioner, name: str) -> None:
    assert captioner.caption(picture(COLOURS[name])) == f"a {name} picture"


def test_the_same_picture_gets_the_same_words(tiny: Path, captioner: BlipCaptioner) -> None:
    odd = Image.radial_gradient("L").resize((64, 48))
    again = BlipCaptioner(tiny, "cpu")
    assert {captioner.caption(odd), captioner.caption(odd), again.caption(odd)} == {captioner.caption(odd)}


def test_a_prompt_steers_and_is_not_repeated(captioner: BlipCaptioner) -> None:
    assert captioner.caption(picture(COLOURS["red"]), "A") == "red picture"
    assert captioner.caption(picture(COLOURS["blue"]), " a \n blue ") == "picture"


def test_captions_stay_within_the_limits(tiny: Path, captioner: BlipCaptioner) -> None:
    assert BlipCaptioner(tiny, "cpu", max_new_tokens=2).caption(picture(COLOURS["red"])) == "a red"
    full = BlipCaptioner(tiny, "cpu", max_new_tokens=500)
    assert full.caption(picture(COLOURS["red"]), " ".join(["circle"] * 30)).count(" ") <= 1
    with pytest.raises(SpecError, match="prompt is too long"):
        captioner.caption(picture(COLOURS["red"]), " ".join(["circle"] * 40))


def test_only_whole_words_of_the_prompt_are_cut() -> None:
    assert without_prompt("a drawing of a cat", "a draw") == "a drawing of a cat"
    assert without_prompt("a drawing of a cat", "A drawing of") == "a cat"
    assert without_prompt("a cat", "") == "a cat"


def test_transparent_parts_are_white(captioner: BlipCaptioner) -> None:
    assert captioner.caption(Image.new("RGBA", (40, 50), (0, 0, 0, 0))) == "a white picture"
    assert on_white(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert on_white(Image.new("RGBA", (1, 1), (255, 0, 0, 255))).getpixel((0, 0)) == (255, 0, 0)


def test_sixteen_bit_grey_is_scaled() -> None:
    assert on_white(Image.new("I;16", (1, 1), 257 * 100)).getpixel((0, 0)) == (100, 100, 100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_precision_captions(tiny: Path, dtype: torch.dtype) -> None:
    assert BlipCaptioner(tiny, "cpu", dtype).caption(picture(COLOURS["green"])) == "a green picture"


def test_half_precision_is_for_cuda() -> None:
    assert precision_on(torch.device("cuda"), "auto") is torch.float16
    assert precision_on(torch.device("cuda"), "bf16") is torch.bfloat16
    assert precision_on(torch.device("cpu"), "fp16") is torch.float32


def test_sidecars_are_written_beside_pictures_that_lack_a_caption(tiny: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", red=None, green="mine", blue="")
    written, events = run(tiny, data)
    assert written == 2
    assert (tmp_path / "data/red.txt").read_bytes() == b"a red picture\n"
    assert (tmp_path / "data/blue.txt").read_text() == "a blue picture\n"
    assert sorted(file.suffix for file in (tmp_path / "data").iterdir()) == [".png", ".png", ".png", ".txt", ".txt"]
    assert [event.caption for event in events if isinstance(event, Caption)] == ["a red picture", "a blue picture"]
    phases = [(event.name, event.done, event.total, event.detail) for event in events if isinstance(event, Phase)]
    assert phases == [
        ("loading captioner", 0, 0, "tiny-blip"),
        ("captioning", 0, 2, "red.png"),
        ("captioning", 1, 2, "blue.png"),
        ("captioning", 2, 2, ""),
    ]


def test_all_images_replaces_captions(tiny: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path, red="mine")
    (tmp_path / "red.txt").write_text("mine")
    assert run(tiny, data, mode="all images")[0] == 1
    assert (tmp_path / "red.txt").read_text() == "a red picture\n"


def test_a_caption_written_since_is_kept(tiny: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path, red=None, green=None)
    (tmp_path / "red.txt").write_text("written by hand while the run was queued")
    (tmp_path / "green.txt").write_text(" \n")
    written, events = run(tiny, data)
    assert written == 1
    assert (tmp_path / "red.txt").read_text() == "written by hand while the run was queued"
    assert (tmp_path / "green.txt").read_text() == "a green picture\n"
    assert ["1 of 2" in message for message in warnings(events)] == [True]


def test_a_caption_file_is_written_where_it_is(tiny: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path, red="mine", green="mine")
    (tmp_path / "red.caption").write_text("mine")
    (tmp_path / "green.caption").write_text("mine")
    (tmp_path / "green.txt").write_text("mine")
    assert run(tiny, data, mode="all images")[0] == 2
    assert (tmp_path / "red.caption").read_text() == "a red picture\n"
    assert not (tmp_path / "red.txt").exists()
    assert (tmp_path / "green.txt").read_text() == "a green picture\n"


@pytest.mark.parametrize(
    ("trigger", "caption"),
    [("sks", "sks, a red picture"), ("pic", "pic, a red picture"), ("Red", "a red picture"), ("  zażółć ", "zażółć, a red picture")],
)
def test_the_trigger_word_goes_first_once(tiny: Path, tmp_path: Path, trigger: str, caption: str) -> None:
    _, events = run(tiny, dataset(tmp_path, red=None), trigger_word=trigger)
    assert (tmp_path / "red.txt").read_text(encoding="utf-8") == f"{caption}\n"
    assert [event.caption for event in events if isinstance(event, Caption)] == [caption]


def test_stop_ends_between_pictures_and_the_rest_follows_later(tiny: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path, red=None, green=None, blue=None)
    assert run(tiny, data, stop=lambda: (tmp_path / "red.txt").exists())[0] == 1
    assert [file.name for file in tmp_path.glob("*.txt")] == ["red.txt"]
    assert run(tiny, data)[0] == 2
    assert {file.name for file in tmp_path.glob("*.txt")} == {"red.txt", "green.txt", "blue.txt"}


def test_a_picture_listed_twice_is_captioned_once(tiny: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path, red=None)
    assert run(tiny, data.model_copy(update={"images": data.images * 2}), mode="all images")[0] == 1


def test_nothing_to_do_loads_nothing(tmp_path: Path) -> None:
    assert run(tmp_path / "no captioner", dataset(tmp_path, red="mine")) == (0, [])


def test_no_words_no_file(tiny: Path, tmp_path: Path) -> None:
    written, events = run(tiny, dataset(tmp_path, yellow=None, red=None), trigger_word="sks")
    assert written == 1
    assert not (tmp_path / "yellow.txt").exists()
    assert ["yellow.png" in message for message in warnings(events)] == [True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="on CUDA fp16 is used as asked")
def test_a_precision_that_cannot_be_had_is_said(tiny: Path, tmp_path: Path) -> None:
    _, events = run(tiny, dataset(tmp_path, red=None), precision="fp16")
    assert ["instead of fp16" in message for message in warnings(events)] == [True]


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n and no more", "cut"])
def test_an_unreadable_picture_is_named(tiny: Path, tmp_path: Path, content: bytes | str) -> None:
    data = dataset(tmp_path, red=None, green=None)
    whole = (tmp_path / "green.png").read_bytes()
    (tmp_path / "green.png").write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    with pytest.raises(SpecError, match=r"green\.png cannot be read as a picture"):
        run(tiny, data)
    assert not (tmp_path / "green.txt").exists()


def test_pictures_that_would_share_a_sidecar_are_refused(tiny: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path, red=None)
    twin = data.images[0].model_copy(update={"path": str(tmp_path / "red.jpg")})
    with pytest.raises(SpecError, match=r"share the caption file red\.txt"):
        run(tiny, data.model_copy(update={"images": (*data.images, twin)}))


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="POSIX permissions")
def test_a_read_only_folder_is_named_before_the_model_is_loaded(tiny: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "locked", red=None)
    (tmp_path / "locked").chmod(0o555)
    events: list[Event] = []
    with unprivileged(), pytest.raises(SpecError, match=r"cannot be written to .*locked \(Permission denied\)"):
        run_captioning(CaptionSpec(captioner=str(tiny), dataset=data), events.append, lambda: False)
    assert events == []


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="POSIX permissions")
def test_a_captioner_that_may_not_be_read_is_named() -> None:
    with open_place() as place:
        (place / "secret").mkdir(mode=0o111)
        with unprivileged(), pytest.raises(SpecError, match=r"secret cannot be read \(Permission denied\)"):
            check_captioner(place / "secret")


def test_a_missing_folder_is_named(tiny: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "gone", red=None)
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(SpecError, match=r"cannot be written to .*gone"):
        run(tiny, data)


def test_a_whole_captioner_is_accepted(tiny: Path) -> None:
    check_captioner(tiny)


def test_the_hubs_layout_is_accepted_and_loads(broken: Path) -> None:
    """The hub's BLIPs were saved by transformers 4: `preprocessor_config.json` and `vocab.txt`."""
    BlipProcessor.from_pretrained(broken).image_processor.save_pretrained(broken)
    (broken / "processor_config.json").unlink()
    (broken / "tokenizer.json").unlink()
    (broken / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    (broken / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    check_captioner(broken)
    assert BlipCaptioner(broken, "cpu").caption(picture(COLOURS["blue"]), "A") == "blue picture"


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("config.json", r"config\.json"),
        ("model.safetensors", r"model\.safetensors"),
        ("tokenizer.json", r"vocab\.txt"),
        ("processor_config.json", r"preprocessor_config\.json"),
    ],
)
def test_a_missing_file_is_named_and_where_to_get_it(broken: Path, file: str, named: str) -> None:
    (broken / file).unlink()
    with pytest.raises(SpecError, match=rf"Missing: .*{named}.*Salesforce/blip-image-captioning"):
        check_captioner(broken)


def test_a_pickle_is_refused_by_name(broken: Path) -> None:
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(SpecError, match=r"pytorch_model\.bin is a pickle.*only \.safetensors is read"):
        BlipCaptioner(broken, "cpu")


def test_weights_of_another_name_are_named(broken: Path) -> None:
    (broken / "model.safetensors").rename(broken / "model.fp16.safetensors")
    with pytest.raises(SpecError, match=r"one file named model\.safetensors; found model\.fp16\.safetensors"):
        check_captioner(broken)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "florence2"}', "model_type 'florence2'"),
        ('{"model_type": "blip", "architectures": ["BlipForQuestionAnswering"]}', "BlipForQuestionAnswering, a BLIP for another task"),
        ("[]", "not a JSON object"),
        ("<html>", "not JSON"),
    ],
)
def test_another_model_is_refused(broken: Path, content: str, message: str) -> None:
    (broken / "config.json").write_text(content)
    with pytest.raises(SpecError, match=message):
        check_captioner(broken)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no captioning model folder"):
        check_captioner(tmp_path / "nothing")


def test_truncated_weights_are_refused(broken: Path) -> None:
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SpecError, match=r"model\.safetensors is truncated"):
        BlipCaptioner(broken, "cpu")


def test_weights_that_lack_a_tensor_are_refused(broken: Path) -> None:
    """transformers would make the tensor up and caption nonsense."""
    tensors = load_file(broken / "model.safetensors")
    del tensors["vision_model.post_layernorm.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SpecError, match=r"lacks 1 of the captioner's tensors, vision_model\.post_layernorm\.weight"):
        BlipCaptioner(broken, "cpu")


def test_checking_a_folder_imports_nothing_heavy(tiny: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trainer.captioning.folder import check_captioner;"
        "check_captioner(Path(sys.argv[1])); assert not {'torch', 'transformers', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny)], cwd=Path(__file__).parents[2], check=True, timeout=60)
