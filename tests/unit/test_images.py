"""What an image file shows once it is opened: formats, depths, colors, orientation; and what is said of one that cannot be."""
import hashlib
import json
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from color_profiles import ADOBE_RGB, DISPLAY_P3, cmyk_profile, grey_profile, rgb_profile
from PIL import Image, ImageCms

from trainer.data.colors import on_white
from trainer.data.images import ImageError, alpha_of, check_images, mask_of, open_image, upright_size

PACK = Path(__file__).resolve().parents[2]
RAMP = np.tile(np.linspace(0, 1, 96), (64, 1))
TURNS = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF's number, and Pillow's for what turns an upright image into such a one


def saved(path: Path, image: Image.Image, kind: str | None = None, **options: object) -> Path:
    image.save(path, kind, **options)
    return path


def close(image: Image.Image, color: tuple[int, ...], by: int = 2) -> bool:
    pixel = image.getpixel((image.width // 2, image.height // 2))
    return all(abs(a - b) <= by for a, b in zip(pixel, color, strict=True))


def is_a_ramp(path: Path) -> bool:
    grey = np.asarray(open_image(path).convert("L"), dtype=float)
    return bool(np.abs(grey / 255 - RAMP).max() < 0.02)


def reason(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".png", "PNG"),
        (".apng", "PNG"),
        *((suffix, "JPEG") for suffix in (".jpg", ".jpeg", ".jpe", ".jfif")),
        (".webp", "WEBP"),
        (".bmp", "BMP"),
        (".tif", "TIFF"),
        (".tiff", "TIFF"),
        (".gif", "GIF"),
        (".avif", "AVIF"),
        (".png", "JPEG"),
    ],
)
def test_every_format_is_read_for_what_it_is(tmp_path: Path, suffix: str, kind: str) -> None:
    path = saved(tmp_path / f"a{suffix}", Image.new("RGB", (40, 20), "red"), kind)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (40, 20)) == (image.mode, upright_size(path))
    assert close(image, (255, 0, 0), 3)


@pytest.mark.parametrize(("package", "suffix", "kind"), [("pillow_heif", ".heic", "HEIF"), ("pillow_jxl", ".jxl", "JXL")])
def test_a_format_with_a_package_of_its_own_is_read(tmp_path: Path, package: str, suffix: str, kind: str) -> None:
    module = pytest.importorskip(package)
    if package == "pillow_heif":
        module.register_heif_opener()
    path = saved(tmp_path / f"a{suffix}", Image.new("RGB", (64, 32), "red"), kind)
    assert close(open_image(path), (255, 0, 0), 4)
    assert upright_size(path) == (64, 32)


def test_without_its_package_a_format_is_told_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic")
    (tmp_path / "b.jxl").write_bytes(b"\xff\x0a\0\0\0\0")
    code = (
        "import json, sys; sys.modules['pillow_heif'] = sys.modules['pillow_jxl'] = None\n"
        "from pathlib import Path; from trainer.data.images import check_images\n"
        f"print(json.dumps([str(found) for found in check_images([Path({str(tmp_path)!r}, name) for name in ('a.jpg', 'b.jxl')])]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True, timeout=120, check=True)
    heic, jxl = json.loads(done.stdout)
    assert heic == f'HEIC images need the package pillow-heif: run "{sys.executable}" -m pip install "pillow-heif"'
    assert "JXL images need the package pillow-jxl-plugin" in jxl


def test_nothing_but_the_formats_that_are_read_is_tried(tmp_path: Path) -> None:
    # Pillow starts Ghostscript for PostScript, whatever the file is called.
    postscript = tmp_path / "a.png"
    postscript.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    told = [reason(postscript)]
    for kind in ("TGA", "PCX", "PPM", "ICO", "JPEG2000", "EPS", "PDF"):
        told.append(reason(saved(tmp_path / f"{kind}.png", Image.new("RGB", (32, 32)), kind)))
    assert all(text.startswith("it is not an image of a kind that is read (PNG, JPEG,") for text in told)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_grey_of_sixteen_bits_keeps_its_greys(tmp_path: Path, suffix: str) -> None:
    assert is_a_ramp(saved(tmp_path / f"a{suffix}", Image.fromarray((RAMP * 65535).astype(np.uint16))))


def test_big_endian_grey_of_sixteen_bits_keeps_its_greys(tmp_path: Path) -> None:
    assert is_a_ramp(saved(tmp_path / "a.tiff", Image.fromarray((RAMP * 65535).astype(">u2"))))


@pytest.mark.parametrize("white", [255, 65535, 2**31 - 1])
def test_grey_of_thirty_two_bits_is_scaled_by_its_range(tmp_path: Path, white: int) -> None:
    assert is_a_ramp(saved(tmp_path / "a.tiff", Image.fromarray((RAMP * white).astype(np.int32), "I")))


def test_grey_that_counts_from_white_is_no_negative(tmp_path: Path) -> None:
    # As some scanners write it: tag 262 is 0.
    path = saved(tmp_path / "a.tiff", Image.fromarray(np.full((8, 8), 30000, np.uint16)), "TIFF")
    data = path.read_bytes()
    entry = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    assert entry in data
    path.write_bytes(data.replace(entry, struct.pack("<HHIHH", 262, 3, 1, 0, 0)))
    assert close(open_image(path), (138, 138, 138))


def test_grey_without_a_sign_is_not_wrapped_around(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    values = (RAMP * (2**32 - 1)).astype(np.uint32)
    saved(path, Image.fromarray(values.view(np.int32), "I"))
    # Pillow always writes that there is a sign: the tag's number, type, count and value.
    signed, unsigned = (struct.pack("<HHIH", 339, 3, 1, value) for value in (2, 1))
    assert path.read_bytes().count(signed) == 1
    path.write_bytes(path.read_bytes().replace(signed, unsigned))
    assert is_a_ramp(path)


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_grey_of_floats_is_scaled_by_its_range(tmp_path: Path, white: int) -> None:
    assert is_a_ramp(saved(tmp_path / "a.tiff", Image.fromarray((RAMP * white).astype(np.float32), "F")))


def test_floats_that_are_no_numbers_do_no_harm(tmp_path: Path) -> None:
    values = RAMP.astype(np.float32)
    values[0, 0], values[1, 95], values[2, 95] = np.nan, 3.0, np.inf
    image = open_image(saved(tmp_path / "a.tiff", Image.fromarray(values, "F")))
    assert image.getpixel((0, 0)) == (0, 0, 0)
    assert image.getpixel((95, 1)) == image.getpixel((95, 2)) == image.getpixel((95, 3)) == (255, 255, 255)
    assert 120 < image.getpixel((48, 8))[0] < 136


def png(bits: int, color: int, rows: bytes, width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of a kind that Pillow does not write. `rows`: each begins with a zero."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("behind", [False, True])
def test_a_png_may_hold_long_texts(tmp_path: Path, behind: bool) -> None:
    whole = saved(tmp_path / "a.png", Image.new("RGB", (5, 7), (1, 2, 3))).read_bytes()
    content = b"workflow\0\0" + zlib.compress(b"x" * 2_000_000)
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    place = len(whole) - 12 if behind else 8 + 25  # before IEND, or behind the header
    (tmp_path / "a.png").write_bytes(whole[:place] + chunk + whole[place:])
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (1, 2, 3)
    assert upright_size(tmp_path / "a.png") == (5, 7)


def test_colors_of_sixteen_bits_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(16, 2, b"\0" + struct.pack(">6H", 65535, 32896, 0, 0, 0, 65535), 2, 1))
    assert [open_image(path).getpixel((x, 0)) for x in (0, 1)] == [(255, 128, 0), (0, 0, 255)]


def test_a_grey_that_means_transparent_is_so_at_sixteen_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(16, 0, b"\0" + struct.pack(">2H", 5000, 40000), 2, 1, (b"tRNS", struct.pack(">H", 5000))))
    image = open_image(path)
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(19, 19, 19, 0), (156, 156, 156, 255)]


@pytest.mark.parametrize(
    ("mode", "color", "kind"),
    [
        ("1", 1, "PNG"),
        ("L", 255, "PNG"),
        ("P", 0, "PNG"),
        ("CMYK", (0, 0, 0, 0), "JPEG"),
        ("YCbCr", (255, 128, 128), "TIFF"),
        ("LAB", (255, 128, 128), "TIFF"),
    ],
)
def test_white_is_white_in_every_mode(tmp_path: Path, mode: str, color: object, kind: str) -> None:
    image = Image.new(mode, (16, 16), color)
    if mode == "P":
        image.putpalette([255, 255, 255])
    assert close(open_image(saved(tmp_path / f"a.{kind.lower()}", image)), (255, 255, 255), 1)


def test_transparent_parts_are_white_whatever_holds_them(tmp_path: Path) -> None:
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([200, 0, 0, 0, 200, 0])
    palette.putpixel((4, 4), 1)
    images = [
        saved(tmp_path / "palette.png", palette, transparency=1),
        saved(tmp_path / "part.png", palette, transparency=bytes([255, 0])),
        saved(tmp_path / "a.gif", palette, transparency=1),
        saved(tmp_path / "grey.png", Image.new("LA", (8, 8), (0, 0))),
        saved(tmp_path / "color.webp", Image.new("RGBA", (8, 8), (0, 0, 0, 0)), lossless=True, exact=True),
    ]
    for path in images:
        image = open_image(path)
        assert on_white(image).getpixel((4, 4)) == (255, 255, 255), path.name
        assert alpha_of(image).getpixel((4, 4)) == 0, path.name
    assert on_white(open_image(images[0])).getpixel((1, 1)) == (200, 0, 0)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("number", TURNS)
def test_an_image_that_its_camera_turned_is_upright(tmp_path: Path, kind: str, number: int) -> None:
    upright = Image.new("RGB", (60, 20), "white")
    upright.paste("black", (0, 0, 30, 10))
    lies = upright if TURNS[number] is None else upright.transpose(Image.Transpose(TURNS[number]))
    exif = Image.Exif()
    exif[274] = number
    path = saved(tmp_path / f"a.{kind.lower()}", lies, kind, exif=exif)
    assert upright_size(path) == open_image(path).size == (60, 20)
    assert np.abs(np.asarray(open_image(path), dtype=int) - np.asarray(upright)).mean() < 6


@pytest.mark.parametrize("entry", [b"\x01\x12\0\x02\0\0\0\x01\0\x06", b"\x01\x12\0\x03\0\0\0\x01\0\x09"], ids=["text", "9"])
def test_exif_data_that_makes_no_sense_does_no_harm(tmp_path: Path, entry: bytes) -> None:
    exif = Image.Exif()
    exif[274] = 6
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (60, 20), "red"), exif=exif)
    path.write_bytes(path.read_bytes().replace(b"\x01\x12\0\x03\0\0\0\x01\0\x06", entry))
    assert open_image(path).size == upright_size(path) == (60, 20)


@pytest.mark.parametrize(
    ("primaries", "stored"), [(DISPLAY_P3, (234, 52, 38)), (ADOBE_RGB, (219, 0, 0))], ids=["Display P3", "Adobe RGB"]
)
def test_another_color_space_is_converted(tmp_path: Path, primaries: tuple, stored: tuple[int, int, int]) -> None:
    profile = rgb_profile(primaries)
    for kind in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        path = saved(tmp_path / f"a.{kind.lower()}", Image.new("RGB", (8, 8), stored), icc_profile=profile, **options)
        assert close(open_image(path), (255, 0, 0), 6), kind
    clear = saved(tmp_path / "clear.png", Image.new("RGBA", (8, 8), (*stored, 100)), icc_profile=profile)
    assert close(open_image(clear), (255, 0, 0, 100), 6)


def test_srgb_stays_as_it_is_to_the_bit(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert open_image(saved(tmp_path / "a.png", noise, icc_profile=profile)).tobytes() == noise.tobytes()


def test_grey_is_converted_by_a_grey_profile_and_by_that_of_a_screen(tmp_path: Path) -> None:
    dark = saved(tmp_path / "dark.png", Image.new("L", (8, 8), 128), icc_profile=grey_profile(1.0))
    assert close(open_image(dark), (188, 188, 188))
    screen = saved(tmp_path / "screen.png", Image.new("L", (8, 8), 128), icc_profile=rgb_profile(DISPLAY_P3, 1.0))
    assert close(open_image(screen), (188, 188, 188))
    with_alpha = saved(tmp_path / "alpha.png", Image.new("LA", (8, 8), (128, 7)), icc_profile=grey_profile(1.0))
    assert close(open_image(with_alpha), (188, 188, 188, 7))


def test_print_colors_are_converted_by_their_profile(tmp_path: Path) -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    profile = cmyk_profile({(1, 0, 0, 0): (140, 108, 88)})
    lab = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    wanted = ImageCms.applyTransform(Image.new("LAB", (1, 1), (140, 108, 88)), lab).getpixel((0, 0))
    assert close(open_image(saved(tmp_path / "a.tiff", cyan, icc_profile=profile)), wanted, 8)
    assert close(open_image(saved(tmp_path / "b.tiff", cyan)), (0, 255, 255))


@pytest.mark.parametrize(
    "profile", [b"no profile", rgb_profile(DISPLAY_P3)[:200], cmyk_profile({})], ids=["no profile", "cut off", "of another kind"]
)
def test_a_profile_that_cannot_be_used_is_ignored_and_remarked(tmp_path: Path, profile: bytes) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (8, 8), (10, 200, 30)), icc_profile=profile)
    assert open_image(path).getpixel((4, 4)) == (10, 200, 30)
    (checked,) = check_images([path])
    assert ["profile" in remark for remark in checked.remarks] == [True]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames_is_used_and_this_is_remarked(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    path = saved(tmp_path / f"a.{kind.lower()}", frames[0], kind, save_all=True, append_images=frames[1:])
    assert close(open_image(path), (255, 0, 0), 3)
    (checked,) = check_images([path])
    assert ["more than one frame" in remark for remark in checked.remarks] == [True]


def test_an_mpo_of_a_phone_is_a_jpeg(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (16, 16), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16), "blue")])
    assert close(open_image(path), (255, 0, 0), 3)
    (checked,) = check_images([path])
    assert checked.remarks == ()


def test_a_mask_is_its_brightness_or_what_of_it_is_transparent(tmp_path: Path) -> None:
    sixteen = mask_of(open_image(saved(tmp_path / "a.png", Image.fromarray((RAMP * 65535).astype(np.uint16)))))
    assert np.abs(np.asarray(sixteen, dtype=float) / 255 - RAMP).max() < 0.02
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 0, 255))
    cut = mask_of(open_image(saved(tmp_path / "b.png", clear)))
    assert [cut.getpixel((x, 0)) for x in (0, 1)] == [0, 255]
    opaque = mask_of(open_image(saved(tmp_path / "c.png", Image.new("RGBA", (2, 1), (90, 90, 90, 255)))))
    assert opaque.getpixel((0, 0)) == 90


def test_an_image_is_known_by_its_bytes_and_its_upright_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 8
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (60, 20)), exif=exif)
    (checked,) = check_images([path])
    assert (checked.sha256, checked.size) == (hashlib.sha256(path.read_bytes()).hexdigest(), (20, 60))


def test_what_cannot_be_decoded_is_told_in_few_words(tmp_path: Path) -> None:
    whole = BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(whole, "PNG")
    contents = {
        "empty.png": (b"", "it is empty"),
        "text.png": (b"this is not an image", "not an image of a kind that is read"),
        "half.png": (whole.getvalue()[:2000], "truncated"),
        "head.png": (whole.getvalue()[:12], "begins like PNG and is damaged"),
        "zeros.png": (whole.getvalue()[:400] + bytes(3000), ""),
    }
    for name, (content, wanted) in contents.items():
        (tmp_path / name).write_bytes(content)
        told = reason(tmp_path / name)
        assert wanted in told and len(told) < 200 and "object at" not in told and "\n" not in told, told


def test_an_image_that_is_too_large_is_told_by_its_megapixels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1, 0, b"", 30_000, 30_000))
    told = reason(tmp_path / "a.png")
    assert told.startswith("it has 900 megapixels, and at most 179 megapixels are read")
    assert "bomb" not in told
    (tmp_path / "b.png").write_bytes(png(1, 0, (b"\0" + bytes(1250)) * 10_000, 10_000, 10_000))
    code = f"from pathlib import Path; from trainer.data.images import open_image; print(open_image(Path({str(tmp_path / 'b.png')!r})).size)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "(10000, 10000)" and done.stderr == ""


def test_a_file_that_cannot_be_read_is_told_by_the_system_s_reason(tmp_path: Path) -> None:
    (missing,) = check_images([tmp_path / "none.png"])
    assert str(missing) == reason(tmp_path / "none.png") == "No such file or directory"
    with pytest.raises(ImageError, match="No such file or directory"):
        upright_size(tmp_path / "none.png")
