"""One written character in a photo, drawn as those of the digits' data set are.

1. The picture, grey, at most `_WORK` pixels a side; a plane fitted to it is its ground, uneven light included.
2. Ink is what differs from the ground, darker or lighter, by more than Otsu's threshold.
3. Its bounding square becomes GRID x GRID means, the darkest one full ink: a thin pen then weighs as much as a thick one.
4. Those, enlarged, fill three quarters of the image: dark on light.

Source: step 3 as in the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin and Kaynak, 1998: counts in 8x8 blocks of a
bitmap that the digit fills), step 4 as `zpipe.models.digits` trains on it; N. Otsu, IEEE Trans. SMC 9(1), 1979.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.errors import ConfigError

Floats = npt.NDArray[np.float64]

#: Means along each side of the character.
GRID = 8

_WORK = 256
#: Ink must differ from the ground by so many grey levels: below it lie shadows and the noise of a sensor.
_LEAST_CONTRAST = 25.0
#: Grey levels of what is drawn.
_GROUND, _PEN = 230, 40


def draw_ink(picture: Any, size: int, pillow: Any) -> npt.NDArray[np.uint8]:
    """The character in one of Pillow's RGB pictures, `[3, size, size]`.

    Raises:
        ConfigError: nothing stands out from the ground.
    """
    small = picture.convert("L")
    small.thumbnail((_WORK, _WORK), pillow.Resampling.BOX)
    contrast = _contrast(np.asarray(small, np.float64))
    threshold = _otsu(contrast)
    inked = contrast > threshold
    full = float(np.percentile(contrast[inked], 60)) if inked.any() else 0.0
    if full < _LEAST_CONTRAST:
        raise ConfigError("found nothing that stands out from its ground, expected one character on a plain ground")
    # What lies between paper and ink, along the edges of strokes, is part of the ink.
    soft = np.clip(contrast / full, 0, 1) * (contrast > threshold / 2)
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    side = max(np.ptp(rows), np.ptp(columns)) + 1
    top, left = (rows[0] + rows[-1] + 1 - side) / 2, (columns[0] + columns[-1] + 1 - side) / 2
    square = pillow.fromarray((255 * soft).astype(np.uint8)).crop([round(edge) for edge in (left, top, left + side, top + side)])
    means = np.asarray(square.resize((GRID, GRID), pillow.Resampling.BOX), np.float64)
    strengthened = pillow.fromarray((255 * means / means.max()).astype(np.uint8))
    drawn = size * 3 // 4
    margin = (size - drawn) // 2
    ink = np.zeros((size, size))
    ink[margin : margin + drawn, margin : margin + drawn] = strengthened.resize((drawn, drawn), pillow.Resampling.BICUBIC)
    grey = (_GROUND + (_PEN - _GROUND) * ink / 255).round().astype(np.uint8)
    return np.repeat(grey[None], 3, axis=0)


def _contrast(grey: Floats) -> Floats:
    """How far each pixel lies from the ground, a plane fitted to what is near it, again and again, until ink is left out."""
    height, width = grey.shape
    down, across = np.mgrid[0:height, 0:width]
    terms = np.stack([np.ones(grey.size), across.ravel() / width, down.ravel() / height], 1)
    flat, near = grey.ravel(), np.ones(grey.size, bool)
    off = np.zeros(grey.size)
    for _ in range(6):
        plane, *_ = np.linalg.lstsq(terms[near], flat[near], rcond=None)
        off = flat - terms @ plane
        near = np.abs(off) < 1.5 * off[near].std() + 1
    return np.abs(off).reshape(height, width)


def _otsu(contrast: Floats) -> float:
    """The value that parts two groups best: the variance between them is largest. 255 where there are no two."""
    histogram = np.bincount(np.clip(contrast, 0, 255).astype(np.int64).ravel(), minlength=256).astype(np.float64)
    below, sums = histogram.cumsum(), (histogram * np.arange(256)).cumsum()
    apart = below * (below[-1] - below)
    between = np.divide((sums[-1] * below / below[-1] - sums) ** 2, apart, out=np.zeros(256), where=apart > 0)
    return float(between.argmax()) if between.any() else 255.0
