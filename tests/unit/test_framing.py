"""Which rectangle of a picture is trained: buckets, crops and mirrors."""
import random

import pytest
from PIL import Image

from trainer.data.batches import Batches
from trainer.data.framing import Cut, bucket, cuts
from trainer.data.images import cut_out, upright_size
from trainer.dataset import Framing


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((512, 512), (512, 512)),
        ((4000, 4000), (512, 512)),
        ((1920, 1080), (640, 384)),
        ((1080, 1920), (384, 640)),
        ((1500, 1000), (640, 384)),
        ((3000, 100), (256, 64)),  # as long as a bucket of this height may be
        ((300, 200), (256, 192)),  # smaller than the resolution, and not enlarged
        ((40, 40), (64, 64)),
    ],
)
def test_the_bucket_of_a_picture_at_512(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert bucket(*size, Framing(resolution=512)) == wanted


def test_a_small_picture_is_enlarged_where_that_is_asked_for() -> None:
    assert bucket(300, 200, Framing(resolution=512, upscale=True)) == bucket(3000, 2000, Framing(resolution=512)) == (640, 384)


@pytest.mark.parametrize("step", [8, 32, 64, 128])
@pytest.mark.parametrize("resolution", [64, 256, 520, 1024])
def test_buckets_hold_what_they_promise(resolution: int, step: int) -> None:
    chance = random.Random(resolution + step)
    for _ in range(200):
        width, height = chance.randint(1, 3000), chance.randint(1, 3000)
        w, h = bucket(width, height, Framing(resolution=resolution, bucket_step=step))
        unit = min(step, resolution)
        assert w % unit == h % unit == 0
        assert w * h <= resolution**2
        assert max(w, h) <= 4 * min(w, h)
        assert (w <= width and h <= height) or (w, h) == (unit, unit)
        # A picture on its side has the bucket on its side.
        assert bucket(height, width, Framing(resolution=resolution, bucket_step=step)) == (h, w)


def test_without_buckets_every_picture_is_a_square() -> None:
    (cut,) = cuts(300, 100, "", Framing(resolution=128, buckets=False))
    assert (cut.size, cut.scaled, cut.left, cut.top, cut.enlarged) == ((128, 128), (384, 128), 128, 0, True)


def test_random_crops_are_the_same_every_time_and_inside() -> None:
    framing = Framing(resolution=128, buckets=False, crop="random", crops=6, flip=True)
    found = cuts(500, 260, "a picture", framing)
    assert found == cuts(500, 260, "a picture", framing)
    assert [cut.left for cut in found] != [cut.left for cut in cuts(500, 260, "another", framing)]
    assert len(found) == 12 and len({cut.left for cut in found}) > 2
    assert all(0 <= cut.left <= cut.scaled[0] - 128 and cut.top == 0 for cut in found)
    assert [cut.flip for cut in found] == [False, True] * 6


def test_crops_that_are_the_same_place_are_one() -> None:
    assert len(cuts(256, 256, "a", Framing(resolution=128, crop="random", crops=8))) == 1


def test_the_sizes_of_a_mirrored_crop_are_counted_in_the_mirrored_picture() -> None:
    straight, mirrored = Cut((400, 200), (200, 100), (100, 100), 30, 0), Cut((400, 200), (200, 100), (100, 100), 30, 0, flip=True)
    assert straight.conditioning == (200, 400, 0, 30, 100, 100)
    assert mirrored.conditioning == (200, 400, 0, 70, 100, 100)


def test_a_cut_takes_its_part_of_the_picture() -> None:
    # Four vertical stripes: red, green, blue, white.
    picture = Image.new("RGB", (400, 100))
    for number, colour in enumerate(("red", "lime", "blue", "white")):
        picture.paste(colour, (100 * number, 0, 100 * number + 100, 100))
    cut = Cut((400, 100), (200, 50), (100, 50), 50, 0)
    part = cut_out(picture, cut, cut.size)
    assert part.size == (100, 50)
    assert [part.getpixel((x, 25)) for x in (10, 90)] == [(0, 255, 0), (0, 0, 255)]
    mirrored = cut_out(picture, Cut((400, 100), (200, 50), (100, 50), 50, 0, flip=True), cut.size)
    assert [mirrored.getpixel((x, 25)) for x in (10, 90)] == [(0, 0, 255), (0, 255, 0)]
    # A mask of half the size is cut at the same place.
    assert cut_out(picture.resize((200, 50)), cut, (10, 5), Image.Resampling.BOX).getpixel((1, 2)) == (0, 255, 0)


def test_the_size_of_a_picture_that_its_camera_turned(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert upright_size(tmp_path / "a.jpg") == (20, 30)


SIZES = ["a"] * 7 + ["b"] * 4 + ["c"]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 8])
def test_batches_are_full_and_of_one_size_and_everything_is_visited(batch_size: int) -> None:
    batches = Batches(SIZES, batch_size, seed=3)
    drawn = [batches[number] for number in range(12 * 10)]
    assert all(len(batch) == batch_size and len({SIZES[visit] for visit in batch}) == 1 for batch in drawn)
    # After as many passes as a batch has pictures, each bucket has come out even.
    even = [visit for batch in drawn[: len(SIZES)] for visit in batch]
    assert sorted(even) == sorted([*range(len(SIZES))] * batch_size)
    assert [batches[number] for number in reversed(range(50))] == drawn[:50][::-1]


def test_buckets_take_turns_in_an_order_of_the_seed() -> None:
    def order(seed: int) -> list[str]:
        batches = Batches(SIZES, 2, seed)
        return [SIZES[batches[number][0]] for number in range(24)]

    assert order(1) == order(1) != order(2)
    assert order(1)[:6] != sorted(order(1)[:6])
