"""Lists that threads read: whoever asks is never kept waiting, and what does not answer is left out."""
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from in_comfyui import import_pack

import_pack()
from lora_loom.nodes import listings  # noqa: E402 - the pack is a package only by then
from lora_loom.nodes.listings import Listing, Look  # noqa: E402


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "_ALL", [])


def test_a_short_list_is_soon_whole() -> None:
    listing = Listing(lambda look: iter(["a", "b"]))
    until(lambda: listing.names() == ["a", "b"])


def test_a_long_list_is_told_as_far_as_it_has_been_read_and_then_whole() -> None:
    go_on = threading.Event()

    def read(look: Look) -> Iterator[str]:
        yield "a"
        go_on.wait()
        yield "b"

    listing = Listing(read)
    until(lambda: listing.names() == ["a"])  # this comes while the list is still being read
    go_on.set()
    until(lambda: listing.names() == ["a", "b"])


def test_while_a_list_is_read_again_the_last_one_stands() -> None:
    slow, go_on, found = threading.Event(), threading.Event(), ["a", "b"]

    def read(look: Look) -> Iterator[str]:
        for name in list(found):
            if slow.is_set():
                go_on.wait()
            yield name

    listing = Listing(read)
    until(lambda: listing.names() == ["a", "b"])
    slow.set()
    found.append("c")
    for _ in range(3):
        time.sleep(0.05)
        assert listing.names() == ["a", "b"]
    go_on.set()
    until(lambda: listing.names() == ["a", "b", "c"])


def test_a_list_that_took_long_to_read_is_not_read_again_at_once() -> None:
    readings = []

    def read(look: Look) -> Iterator[str]:
        readings.append(1)
        time.sleep(0.1)
        yield "a"

    listing = Listing(read)
    until(lambda: listing.names() == ["a"])
    for _ in range(20):
        listing.names()
    assert len(readings) == 1


def test_a_folder_that_does_not_answer_hides_no_other_and_is_there_again_when_it_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listings, "_PATIENCE_SECONDS", 0.2)
    answers = threading.Event()

    def read(look: Look) -> Iterator[str]:
        for name in ("a", "dead", "z"):
            if look(name):
                if name == "dead":
                    answers.wait()
                yield name

    listing = Listing(read)
    until(lambda: listing.names() == ["a", "z"])
    assert "dead has not answered" in caplog.text
    answers.set()
    until(lambda: listing.names() == ["a", "dead", "z"])


def test_a_reader_that_fails_takes_nothing_down(caplog: pytest.LogCaptureFixture) -> None:
    def read(look: Look) -> Iterator[str]:
        yield "a"
        raise RuntimeError("of a kind that nobody thought of")

    listing = Listing(read)
    until(lambda: listing.names() == ["a"] and bool(caplog.text))
    assert "nobody thought of" in caplog.text
