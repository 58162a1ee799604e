"""The digits task: scikit-learn's 1,797 real handwritten digits, 32x32 RGB or larger, distorted in five severities. NumPy only.

The data set names no writers, but its file keeps the order in which they wrote, so the split is **contiguous** and made before
any distortion: train 1,000, calibration 200, test 597 digits. It mostly separates writers; a shuffled split scores about a
point higher for that reason alone (measured in a trial).

Source: load_digits = test part of the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin and Kaynak, 1998).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Evaluation
from zpipe.errors import BackendUnavailable, ConfigError
from zpipe.models.task import Task

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

#: Digits in each split, in the file's order.
TRAIN_DIGITS, CALIBRATION_DIGITS, TEST_DIGITS = 1000, 200, 597

#: Units of drawing: the image, and the glyph that is centred in it. A unit is one pixel of a 32x32 image and `size / 32` pixels
#: of a larger one, noise and occlusion included: the same scene with a finer sensor, so that severities mean the same.
IMAGE_UNITS, GLYPH_UNITS = 32, 24

#: Rounds over the calibration digits, each round in another severity: 200 digits alone would make the thresholds noisy.
CALIBRATION_ROUNDS = 15

#: Rounds over the test digits: once in each severity. Images of 96x96 are nine times as large: one round (4.4 MB) keeps such a
#: bundle as small as the others.
TEST_ROUNDS, TEST_ROUNDS_OF_LARGE_IMAGES = 5, 1

#: Seeds of the held-out draws. Fixed, so that bundles trained with other seeds are measured on the same images.
CALIBRATION_SEED, TEST_SEED = 1, 2

#: Grey levels per channel are multiples of this: noise hardly compresses, and eight bits of it would double the bundle.
GREY_STEP = 4

#: Colours 0..255 per channel, before contrast: one of ink and ground is dark, the other light.
DARK_BELOW, LIGHT_ABOVE = 90, 165


@dataclass(frozen=True, slots=True)
class Severity:
    """Bounds of the distortions; each sample draws uniformly below them (contrast: above).

    Attributes:
        rotation: degrees, either way.
        shift: units, either way, per axis.
        scale: fraction, either way.
        shear: units per unit, either way.
        blur: standard deviation in units.
        noise: standard deviation in grey levels, one value per unit and channel.
        contrast: least remaining contrast, 1 = all of it.
        square: side of an occluding square in units.
        line_chance: probability of a line drawn across.
        intruder_chance: probability that a neighbour digit of the same split reaches into the image.
    """

    rotation: float
    shift: float
    scale: float
    shear: float
    blur: float
    noise: float
    contrast: float
    square: float
    line_chance: float
    intruder_chance: float


SEVERITIES = (
    Severity(0.0, 0.0, 0.00, 0.00, 0.0, 0.0, 1.00, 0.0, 0.0, 0.0),
    Severity(6.0, 1.0, 0.06, 0.06, 0.5, 8.0, 0.80, 3.0, 0.1, 0.1),
    Severity(11.0, 2.0, 0.11, 0.11, 0.8, 16.0, 0.65, 5.0, 0.2, 0.25),
    Severity(16.0, 3.0, 0.16, 0.16, 1.1, 24.0, 0.50, 7.0, 0.35, 0.4),
    Severity(22.0, 4.0, 0.22, 0.22, 1.4, 34.0, 0.38, 9.0, 0.5, 0.55),
)


def digits_task(size: int = IMAGE_UNITS) -> Task:
    """The task as a recipe trains on it, in images of `size` x `size` pixels.

    Drawing the calibration split at 96 pixels takes about 3 GB of memory.

    Raises:
        ConfigError: `size` is no multiple of 32.
        BackendUnavailable: scikit-learn is absent.
    """
    if size < IMAGE_UNITS or size % IMAGE_UNITS:
        raise ConfigError(f"digits: found images of {size} pixels, expected a multiple of {IMAGE_UNITS}; change the recipe")
    glyphs, labels = load_glyphs(size)
    calibration_end = TRAIN_DIGITS + CALIBRATION_DIGITS
    train = slice(0, TRAIN_DIGITS)
    rounds = TEST_ROUNDS if size == IMAGE_UNITS else TEST_ROUNDS_OF_LARGE_IMAGES

    def draw_epoch(rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], Ints]:
        digits = rng.permutation(TRAIN_DIGITS)
        severity = rng.integers(0, len(SEVERITIES), TRAIN_DIGITS)
        return distort(glyphs[train], digits, severity, rng), labels[train][digits]

    shown = "once in each of the severities 0-4" if rounds == len(SEVERITIES) else "once, in the severities 0-4 by turns"
    return Task(
        name="digits",
        classes=tuple(str(digit) for digit in range(10)),
        note=(
            "scikit-learn load_digits, split contiguously before augmentation: 1000 train, 200 calibration, 597 test digits. "
            "The file's order mostly separates writers; the data set names none. Calibration draws each digit 3 times and "
            f"test {shown}; the draws do not depend on the seed of the training."
        ),
        draw_epoch=draw_epoch,
        calibration=held_out(glyphs, labels, range(TRAIN_DIGITS, calibration_end), CALIBRATION_ROUNDS, CALIBRATION_SEED),
        test=held_out(glyphs, labels, range(calibration_end, calibration_end + TEST_DIGITS), rounds, TEST_SEED),
        epochs=None,
    )


def load_glyphs(size: int = IMAGE_UNITS) -> tuple[Floats, Ints]:
    """All digits as ink masks `[1797, size, size] float32` in 0..1 (8x8 enlarged to 3/4 of the side, centred), and their labels.

    Raises:
        BackendUnavailable: scikit-learn is absent.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as exc:
        raise BackendUnavailable("found no scikit-learn, expected it for the digits; run: pip install 'zpipe[train]'") from exc
    small, labels = load_digits(return_X_y=True)
    small = (small.reshape(-1, 8, 8) / 16.0).astype(np.float32)
    glyph_size = GLYPH_UNITS * size // IMAGE_UNITS
    enlarge = _bicubic_matrix(8, glyph_size)
    glyphs = np.clip(enlarge @ small @ enlarge.T, 0.0, 1.0)
    margin = (size - glyph_size) // 2
    padded = np.pad(glyphs, ((0, 0), (margin, margin), (margin, margin)))
    return padded.astype(np.float32), labels.astype(np.int64)


def held_out(glyphs: Floats, labels: Ints, digits: range, rounds: int, seed: int) -> Evaluation:
    """Every digit once a round, each time in the next severity; any five neighbours in the order show five severities.

    Samples are ordered in rounds over all digits, so that the first part of the set is a fair sample of the whole.
    """
    pool = glyphs[digits.start : digits.stop]
    count, levels = len(digits), len(SEVERITIES)
    index = np.tile(np.arange(count), rounds)
    severity = (index + np.repeat(np.arange(rounds), count)) % levels
    images = distort(pool, index, severity, np.random.default_rng(seed))
    return Evaluation(images, labels[digits.start + index], severity, digits.start + index)


def distort(pool: Floats, digits: Ints, severity: Ints, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw one image per sample.

    Args:
        pool: ink masks of one split `[digits, size, size]`; intruders come from here too.
        digits: `[samples]`, which mask to draw.
        severity: `[samples]`, index into SEVERITIES.
        rng: all randomness.

    Returns:
        `[samples, 3, size, size] uint8` RGB.
    """
    count, unit = len(digits), pool.shape[-1] // IMAGE_UNITS
    bounds = np.array([astuple(level) for level in SEVERITIES], np.float32)[severity]
    rotation, shift, scale, shear, blur, noise, contrast, square, line_chance, intruder_chance = bounds.T
    matrix = _affine(rotation, scale, shear, rng)
    moved = shift[:, None] * _either_way(rng, (count, 2))
    ink = _warp(pool[digits], matrix, moved * unit)
    ink = np.maximum(ink, _intruders(pool, matrix, moved, intruder_chance, rng))
    ink = _blur(ink, blur * rng.random(count, np.float32) * unit)
    images = _colour(ink, contrast, rng)
    _occlude(images, _square_mask(square, unit, rng), rng)
    _occlude(images, _line_mask(line_chance, unit, rng), rng)
    spread = noise * rng.random(count, np.float32)
    images += _enlarge(spread[:, None, None, None] * rng.standard_normal((count, 3, IMAGE_UNITS, IMAGE_UNITS), np.float32), unit)
    levels = np.clip(np.floor(images / GREY_STEP), 0, 255 // GREY_STEP)
    return (levels * GREY_STEP).astype(np.uint8)


# ---- geometry ----------------------------------------------------------------------------------


def _either_way(rng: np.random.Generator, shape: int | tuple[int, ...]) -> Floats:
    """Uniform in -1..1, `float32`."""
    return np.asarray(rng.random(shape, np.float32) * 2 - 1, np.float32)


def _affine(rotation: Floats, scale: Floats, shear: Floats, rng: np.random.Generator) -> Floats:
    """One matrix per sample `[samples, 2, 2]` from image offsets (row, column) to glyph offsets."""
    count = len(rotation)
    angle = np.deg2rad(rotation) * _either_way(rng, count)
    size = 1 + scale * _either_way(rng, count)
    slant = shear * _either_way(rng, count)
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    rows = [np.stack([cos, -sin], -1), np.stack([sin + slant * cos, cos - slant * sin], -1)]
    return np.stack(rows, 1).astype(np.float32)


def _warp(masks: Floats, matrix: Floats, moved: Floats) -> Floats:
    """Resample masks `[samples, size, size]` bilinearly, moved by `[samples, 2]` pixels; what lies outside is blank."""
    count, size, _ = masks.shape
    offsets = np.arange(size, dtype=np.float32) - (size - 1) / 2
    grid = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), 0).reshape(2, -1)
    source = matrix @ (grid[None] - moved[:, :, None]) + (size - 1) / 2
    # One blank pixel all round lets clipped coordinates read zero.
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1))).reshape(count, -1)
    source = np.clip(source + 1, 0, size + 0.999)
    corner = source.astype(np.int64)
    row, column = corner[:, 0], corner[:, 1]
    down, right = source[:, 0] - row, source[:, 1] - column
    stride = size + 2
    flat = row * stride + column

    def at(offset: int) -> Floats:
        return np.take_along_axis(padded, flat + offset, 1)

    top = at(0) * (1 - right) + at(1) * right
    bottom = at(stride) * (1 - right) + at(stride + 1) * right
    return np.asarray(top * (1 - down) + bottom * down, np.float32).reshape(count, size, size)


def _intruders(pool: Floats, matrix: Floats, moved: Floats, chance: Floats, rng: np.random.Generator) -> Floats:
    """The neighbour digits' ink `[samples, size, size]`: to the left or right, on the same slanted line; `moved` in units."""
    count, unit = len(chance), pool.shape[-1] // IMAGE_UNITS
    other = rng.integers(0, len(pool), count)
    side = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    beside = moved.copy()
    beside[:, 1] += side * rng.uniform(17.0, 22.0, count)
    present = rng.random(count) < chance
    return _warp(pool[other], matrix, beside * unit) * present[:, None, None]


def _blur(masks: Floats, sigma: Floats) -> Floats:
    """Gaussian blur with one standard deviation (pixels) per sample, as two products with a banded matrix."""
    distance = np.arange(masks.shape[1], dtype=np.float32)
    squared = (distance[:, None] - distance[None, :]) ** 2
    weights = np.exp(-squared[None] / (2 * np.maximum(sigma, 0.05) ** 2)[:, None, None])
    weights /= weights.sum(-1, keepdims=True)
    return np.asarray(weights @ masks @ weights.transpose(0, 2, 1), np.float32)


def _bicubic_matrix(small: int, large: int) -> Floats:
    """`[large, small]`: cubic convolution (Keys 1981, a = -0.5), pixel centres aligned, edges repeated."""
    centres = (np.arange(large) + 0.5) * small / large - 0.5
    matrix = np.zeros((large, small))
    for row, centre in enumerate(centres):
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[row, min(max(tap, 0), small - 1)] += _keys(abs(centre - tap))
    return matrix.astype(np.float32)


def _keys(x: float) -> float:
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


# ---- colour and occlusion ----------------------------------------------------------------------


def _colour(ink: Floats, contrast: Floats, rng: np.random.Generator) -> Floats:
    """Masks to RGB `[samples, 3, size, size] float32`: random colours, either polarity, contrast drawn above its bound."""
    count = len(ink)
    dark = rng.uniform(0, DARK_BELOW, (count, 3))
    light = rng.uniform(LIGHT_ABOVE, 255, (count, 3))
    inverted = rng.random((count, 1)) < 0.5
    pen, ground = np.where(inverted, light, dark), np.where(inverted, dark, light)
    middle = (pen + ground) / 2
    kept = rng.uniform(contrast, 1.0)[:, None]
    pen, ground = middle + (pen - middle) * kept, middle + (ground - middle) * kept
    images = ground[:, :, None, None] + (pen - ground)[:, :, None, None] * ink[:, None]
    return np.asarray(images, np.float32)


def _unit_grid(unit: int) -> npt.NDArray[np.float64]:
    """Centres of the pixels along one side, in units."""
    return np.asarray((np.arange(IMAGE_UNITS * unit) + 0.5) / unit)


def _enlarge(grain: Floats, unit: int) -> Floats:
    """Every value over `unit` x `unit` pixels."""
    return np.asarray(grain.repeat(unit, -2).repeat(unit, -1))


def _square_mask(side: Floats, unit: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """`[samples, size, size]`: a square of a drawn side, anywhere."""
    count = len(side)
    half = side * rng.random(count, np.float32) / 2
    centre = rng.uniform(4, IMAGE_UNITS - 4, (count, 2))
    pixels = _unit_grid(unit)
    inside = np.abs(pixels[None, None] - centre[:, :, None]) < half[:, None, None]
    return np.asarray(inside[:, 0, :, None] & inside[:, 1, None, :])


def _line_mask(chance: Floats, unit: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """`[samples, size, size]`: a straight line of 1 to 2.4 units through a point near the middle."""
    count = len(chance)
    angle = rng.uniform(0, np.pi, count)[:, None, None]
    through = rng.uniform(8, IMAGE_UNITS - 8, (count, 2))
    half = rng.uniform(0.5, 1.2, count)[:, None, None]
    present = (rng.random(count) < chance)[:, None, None]
    pixels = _unit_grid(unit)
    down = pixels[None, :, None] - through[:, 0, None, None]
    across = pixels[None, None, :] - through[:, 1, None, None]
    distance = np.abs(np.cos(angle) * down - np.sin(angle) * across)
    return np.asarray((distance < half) & present)


def _occlude(images: Floats, mask: npt.NDArray[np.bool_], rng: np.random.Generator) -> None:
    """Paint one random colour per sample where the mask says, in place."""
    colour = rng.uniform(0, 255, (len(images), 3)).astype(np.float32)
    np.copyto(images, colour[:, :, None, None], where=mask[:, None])
