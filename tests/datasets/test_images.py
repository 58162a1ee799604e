"""Pictures as stage 0 takes them: formats, EXIF, transparency, depth, and a character found in a photo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.infer.drawing import photo
from zpipe.datasets.images import is_picture, picture_of, read_image, read_picture, shape_picture, shape_pixels
from zpipe.errors import ConfigError

pillow: Any = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install 'zpipe[images]'")

RED, BLUE, WHITE = (200, 20, 20), (20, 20, 200), (255, 255, 255)


def halves(left: tuple[int, ...] = RED, right: tuple[int, ...] = BLUE, mode: str = "RGB") -> Any:
    """64 x 64: a left and a right half."""
    picture = pillow.new(mode, (64, 64), left)
    picture.paste(right, (32, 0, 64, 64))
    return picture


def corners(image: np.ndarray) -> list[tuple[int, ...]]:
    """Top left, top right, bottom left, bottom right of `[3, size, size]`."""
    return [tuple(int(value) for value in image[:, row, column]) for row in (0, -1) for column in (0, -1)]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".webp", ".tif", ".ppm"])
def test_a_picture_of_any_format_becomes_rgb_channels_first(tmp_path: Path, suffix: str) -> None:
    halves().save(tmp_path / f"a{suffix}")
    image = read_image(tmp_path / f"a{suffix}", 8)
    assert image.shape == (3, 8, 8)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    wanted = np.array([RED, BLUE, RED, BLUE])
    assert np.abs(np.array(corners(image)) - wanted).max() <= 12  # what JPEG and WebP may be off


def test_grey_and_palette_pictures_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "1", "P"):
        pillow.new("L", (16, 16), 255).convert(mode).save(tmp_path / f"{mode}.png")
        assert (read_image(tmp_path / f"{mode}.png", 4) == 255).all()


def test_what_is_transparent_shows_white_paper(tmp_path: Path) -> None:
    halves((0, 0, 0, 255), (0, 0, 0, 0), "RGBA").save(tmp_path / "a.png")
    assert corners(read_image(tmp_path / "a.png", 8)) == [(0, 0, 0), WHITE, (0, 0, 0), WHITE]
    halves((0, 255), (0, 0), "LA").save(tmp_path / "b.png")
    assert corners(read_image(tmp_path / "b.png", 8)) == [(0, 0, 0), WHITE, (0, 0, 0), WHITE]


def test_sixteen_bits_of_grey_keep_their_shades(tmp_path: Path) -> None:
    pillow.fromarray(np.full((8, 8), 0x80FF, np.uint16)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 4) == 0x80).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_held_any_way_gives_an_upright_picture(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30], upright[:20, 30:] = RED, BLUE
    # How a sensor turned so lays the picture down: the inverse of what the EXIF standard says undoes it.
    lay = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[::-1],
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    }
    exif = pillow.Exif()
    exif[0x0112] = orientation
    pillow.fromarray(np.ascontiguousarray(lay[orientation](upright))).save(tmp_path / "a.png", exif=exif)
    assert (np.asarray(read_picture(tmp_path / "a.png", least=8)) == upright).all()


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(tmp_path: Path) -> None:
    across = np.linspace(0, 255, 2048).astype(np.uint8)
    whole = pillow.fromarray(np.broadcast_to(across[None, :, None], (1024, 2048, 3)).copy())
    whole.save(tmp_path / "a.jpg", quality=95)
    assert read_picture(tmp_path / "a.jpg", least=32).size == (256, 128)
    difference = read_image(tmp_path / "a.jpg", 32).astype(int) - shape_picture(whole, 32)
    assert np.abs(difference).max() <= 2


def test_crop_takes_the_middle_and_stretch_takes_all() -> None:
    pixels = np.full((10, 30, 3), 50, np.uint8)
    pixels[:, 10:20] = 200
    assert (shape_pixels(pixels, 5, "crop") == 200).all()
    assert shape_pixels(pixels, 6, "stretch")[0, 0, 0] == 50


def test_pixels_of_the_right_size_pass_unchanged() -> None:
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    assert (shape_pixels(pixels, 8) == pixels.transpose(2, 0, 1)).all()
    assert (shape_pixels(pixels[..., 0], 8) == pixels[None, ..., 0]).all()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0 torn"])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.png: found no image that can be read") as caught:
        read_image(tmp_path / "a.png", 8)
    assert "\n" not in str(caught.value)


def test_a_torn_file_and_one_of_floating_point_are_refused(tmp_path: Path) -> None:
    pillow.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:1500])
    pillow.new("F", (8, 8)).save(tmp_path / "b.tif")
    for name, reason in (("a.jpg", "truncated"), ("b.tif", "floating-point")):
        with pytest.raises(ConfigError, match=reason):
            read_image(tmp_path / name, 8)


def test_hidden_files_and_others_are_no_pictures() -> None:
    assert is_picture("a.JPG")
    assert not is_picture(".a.png")
    assert not is_picture("a.txt")


# ---- ink ---------------------------------------------------------------------------------------


def bar(*, dark: bool, width: int, light: float = 0.0) -> np.ndarray:
    """A photo of an upright stroke left of the middle, on a ground that a lamp lights unevenly."""
    ground, pen = (220.0, 50.0) if dark else (40.0, 210.0)
    pixels = np.full((300, 400), ground)
    pixels[60:220, 100 : 100 + width] = pen
    pixels -= light * np.arange(400)[None, :] / 400
    return np.repeat(pixels[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("dark", [True, False])
def test_ink_of_either_polarity_is_centred_dark_on_light(dark: bool) -> None:
    image = shape_pixels(bar(dark=dark, width=20, light=30.0), 32, "ink")
    ink = image[0] < 135
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    assert (rows[0], rows[-1]) == (4, 27)
    assert abs(columns[0] + columns[-1] - 31) <= 1
    assert (image[:, 0, 0] == 230).all()


def test_a_thin_pen_weighs_as_much_as_a_thick_one() -> None:
    darkest = [int(shape_pixels(bar(dark=True, width=width), 32, "ink").min()) for width in (4, 12, 30)]
    assert max(darkest) < 60


def desk(paper: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The paper ends before the picture does."""
    paper[:, -25:] = (70, 50, 40)
    return paper


def shadow(paper: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Somebody stands in the light."""
    across = np.arange(paper.shape[1]) - np.arange(paper.shape[0])[:, None]
    return paper * (1 - 0.5 / (1 + np.exp(-(across - 40) / 4)))[..., None]


def rules(paper: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Faint lines, as in a notebook."""
    paper[20::45] = 0.75 * paper[20::45]
    return paper


def specks(paper: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Crumbs, and the corner of another character."""
    paper[30:36, 30:36] = paper[280:284, 300:306] = paper[:20, 180:190] = 40
    return paper


def slanted(paper: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A hand that leans to the right."""
    return np.stack([np.roll(row, (len(paper) // 2 - index) // 4, axis=0) for index, row in enumerate(paper)])


@pytest.mark.parametrize("spoilt", [desk, shadow, rules, specks, slanted])
@pytest.mark.parametrize("digit", [0, 4, 5, 7])
def test_ink_is_drawn_nearly_the_same_on_bad_photos(digit: int, spoilt: Callable[[Any], Any]) -> None:
    good = photo(digit, tall=160)
    bad = np.asarray(np.clip(spoilt(good.astype(float)), 0, 255), np.uint8)
    one, other = (shape_pixels(each, 32, "ink")[0].astype(float) for each in (good, bad))
    assert np.abs(one - other).mean() < 0.1 * np.ptp(one)
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9


def test_a_photo_without_ink_says_so() -> None:
    noise = np.random.default_rng(0).normal(128, 5, (200, 200)).clip(0, 255).astype(np.uint8)
    for pixels in (noise, np.full((50, 50), 7, np.uint8)):
        with pytest.raises(ConfigError, match="found nothing that stands out"):
            shape_picture(picture_of(pixels), 32, "ink")
