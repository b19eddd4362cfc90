"""What becomes of captions at a visit."""
from collections import Counter

from trainer.data.caption_draws import drawn, possible
from trainer.data.order import generator
from trainer.dataset import CaptionUse, Dataset, DatasetImage

IMAGE = DatasetImage(path="/a.png", sha256="a", caption="a cat, red, on a table,  small", more_captions=("another",))


def dataset(image: DatasetImage = IMAGE, **use: object) -> Dataset:
    return Dataset(name="d", images=(image,), trigger_word="sks", caption_use=CaptionUse(**use))


def visits(of: Dataset, count: int = 400) -> list[str]:
    return [drawn(of, of.images[0], generator(0, "test", number)) for number in range(count)]


def test_each_visit_has_one_of_the_captions() -> None:
    found = Counter(visits(dataset()))
    assert set(found) == {"sks, a cat, red, on a table,  small", "sks, another"} == set(possible(dataset(), IMAGE))
    assert min(found.values()) > 120


def test_captions_are_dropped_as_often_as_asked_for() -> None:
    found = Counter(visits(dataset(dropout=0.25)))
    assert 60 < found[""] < 140
    assert set(found) == set(possible(dataset(dropout=0.25), IMAGE))
    assert set(visits(dataset(dropout=1.0), 20)) == {""}


def test_tags_are_shuffled_behind_those_that_are_kept() -> None:
    image = IMAGE.model_copy(update={"more_captions": ()})
    found = visits(dataset(image, shuffle=True, keep_tokens=2))
    assert len(set(found)) == 6
    assert all(caption.startswith("sks, a cat, ") for caption in found)
    assert {tuple(sorted(caption.split(", "))) for caption in found} == {("a cat", "on a table", "red", "sks", "small")}
    assert possible(dataset(image, shuffle=True), image) is None


def test_tags_are_dropped_but_those_that_are_kept() -> None:
    image = IMAGE.model_copy(update={"more_captions": ()})
    found = visits(dataset(image, tag_dropout=0.5, keep_tokens=1))
    tags = Counter(tag for caption in found for tag in caption.split(", "))
    assert tags["sks"] == len(found)
    assert all(140 < tags[tag] < 260 for tag in ("a cat", "red", "on a table", "small"))
    assert all(caption.split(", ") == sorted(caption.split(", "), key=["sks", "a cat", "red", "on a table", "small"].index) for caption in found)
