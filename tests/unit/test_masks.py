"""Which mask belongs to which image of a dataset, and which masks are refused."""
from pathlib import Path

import pytest
from PIL import Image

from trainer.data.sources import DatasetError, scan_folder
from trainer.dataset import Dataset


def picture(path: Path, size: tuple[int, int] = (16, 12), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path, **options)
    return path


def masks(dataset: Dataset) -> dict[str, str | None]:
    return {Path(image.path).name: image.mask and Path(image.mask).name for image in dataset.images}


def refusal(folder: Path, where: Path | str = "beside") -> str:
    with pytest.raises(DatasetError) as caught:
        scan_folder(folder, "things", masks=where)
    return str(caught.value)


def test_a_mask_beside_its_image_is_used_and_never_trained(tmp_path: Path) -> None:
    for name in ("a.png", "a-masklabel.png", "b.jpg", "B-MaskLabel.PNG", "c.png", "3_dog/a.png", "3_dog/c-masklabel.png", "a-condlabel.png"):
        picture(tmp_path / name)
    dataset = scan_folder(tmp_path, "things")
    assert masks(dataset) == {"a.png": None, "b.jpg": "B-MaskLabel.PNG", "c.png": None}
    assert (dataset.images[0].path, dataset.images[0].mask) == (str(tmp_path / "a.png"), str(tmp_path / "a-masklabel.png"))
    unused, conditions = dataset.notes
    assert unused == "1 mask belongs to no image: c-masklabel.png"
    assert "a-condlabel.png" in conditions


@pytest.mark.parametrize("source", [None, "alpha"])
def test_masks_beside_images_that_are_not_asked_for_are_told(tmp_path: Path, source: str | None) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "a-masklabel.png")
    dataset = scan_folder(tmp_path, "things", masks=source)
    assert masks(dataset) == {"a.png": None}
    assert dataset.notes == ("1 mask beside an image is not used: a-masklabel.png. Set masks to beside the images",)


def test_a_folder_of_masks_is_laid_out_as_the_images_or_flat(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "2_dog/c.jpg", "2_dog/d.jpg"):
        picture(tmp_path / name)
    for name in ("a.png", "B.PNG", "2_dog/c.webp", "d-masklabel.png", "z.png"):
        picture(tmp_path / "masks" / name)
    for recursive in (False, True):
        dataset = scan_folder(tmp_path, "things", masks=tmp_path / "masks", recursive=recursive)
        assert masks(dataset) == {"a.jpg": "a.png", "b.jpg": "B.PNG", "c.jpg": "c.webp", "d.jpg": "d-masklabel.png"}
        assert dataset.notes == ("1 mask belongs to no image: z.png",)


def test_a_mask_named_in_full_serves_one_of_two_images_of_a_name(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "masks/a.jpg", "masks/a.png"):
        picture(tmp_path / name)
    assert masks(scan_folder(tmp_path, "things", masks=tmp_path / "masks")) == {"a.jpg": "a.jpg", "a.png": "a.png"}
    (tmp_path / "masks" / "a.jpg").unlink()
    assert "a.jpg shares its name with another image, so its mask cannot be told" in refusal(tmp_path, tmp_path / "masks")


def test_two_masks_for_an_image_are_named(tmp_path: Path) -> None:
    for name in ("a.jpg", "masks/a.webp", "masks/a.png"):
        picture(tmp_path / name)
    assert "a.jpg has two masks, a.png and a.webp" in refusal(tmp_path, tmp_path / "masks")


def test_an_image_without_a_mask_and_a_broken_mask_are_named(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "masks/b.png"):
        picture(tmp_path / name)
    (tmp_path / "masks" / "b.png").write_bytes(b"nonsense")
    message = refusal(tmp_path, tmp_path / "masks")
    assert "a.jpg has no mask a.png in masks" in message
    assert "the mask b.png cannot be read (it is not an image" in message


def test_a_mask_has_its_image_s_shape_at_any_size(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (200, 133))
    for size in ((200, 133), (400, 266), (50, 33), (51, 34), (100, 67)):
        picture(tmp_path / "a-masklabel.png", size)
        assert masks(scan_folder(tmp_path, "things")) == {"a.png": "a-masklabel.png"}
    for size in ((133, 200), (200, 100), (64, 64)):
        picture(tmp_path / "a-masklabel.png", size)
        assert f"the mask a-masklabel.png is {size[0]} x {size[1]} and its image a.png 200 x 133" in refusal(tmp_path)


def test_a_mask_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    picture(tmp_path / "a.jpg", (40, 20), exif=exif)
    picture(tmp_path / "a-masklabel.png", (40, 20))
    assert "is 40 x 20 and its image a.jpg 20 x 40" in refusal(tmp_path)
    picture(tmp_path / "a-masklabel.png", (40, 20), exif=exif)
    assert masks(scan_folder(tmp_path, "things")) == {"a.jpg": "a-masklabel.png"}


def test_a_folder_of_masks_that_is_gone_is_called_that(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"the masks in gone cannot be read \(No such file or directory\)"):
        scan_folder(tmp_path, "set", masks=tmp_path / "gone")
