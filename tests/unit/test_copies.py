"""Images that are in a dataset more than once."""
from trainer.dataset import Dataset, DatasetImage


def test_copies_are_found_among_any_number_of_images() -> None:
    images = tuple(DatasetImage(path=f"/{number}.png", sha256=str(number // 2)) for number in range(40_000))
    others = tuple(DatasetImage(path=f"/once {number}.png", sha256=f"once {number}") for number in range(20_000))
    # Comparing each with each would outlast the test's time limit.
    assert Dataset(name="many", images=(*others, *images)).copies() == list(images)
