"""One written character in a photo, drawn as those of the digits' data set are.

1. The picture, grey, at most `_WORK` pixels a side. Ink is thinner than `_WIDEST` of it: morphological closing (opening, where ink
   is lighter) by a square of that size leaves the ground alone, with its shadows, uneven light and edges.
2. Ink is what differs from the ground by more than Otsu's threshold and by more than `_FAINT` of what full ink does, which leaves
   out the lines of ruled paper.
3. Of its connected pieces the one with most ink counts, and those beside it that are no specks; what touches the edge of the
   picture is an edge of the paper or what lies beside it, as long as there is anything else.
4. It is sheared upright, so that its rows' centres of ink lie above each other as nearly as they can.
5. Its bounding square becomes GRID x GRID means, the darkest one full ink: a thin pen then weighs as much as a thick one.
6. Those, enlarged, fill three quarters of the image: dark on light.

Source: step 5 as in the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin and Kaynak, 1998: counts in 8x8 blocks of a
bitmap that the digit fills), step 6 as `zpipe.models.digits` trains on it; N. Otsu, IEEE Trans. SMC 9(1), 1979; step 4 is the
"deslanting" of LeCun et al., Proc. IEEE 86(11), 1998.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.errors import ConfigError

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Means along each side of the character.
GRID = 8

_WORK = 256
#: Pixels a side on which the ground is looked for.
_COARSE = 64
#: No stroke is wider than this share of the picture's longer side.
_WIDEST = 0.22
#: Ink must differ from the ground by so many grey levels, of 255 on white: below it lies the noise of a sensor.
_LEAST_CONTRAST = 25.0
#: What differs less, as a share of full ink, is a line of the paper or a stain.
_FAINT = 0.45
#: Of the largest piece: the ink of another one that belongs to the character, and how far from it, in its own longer side.
_SPECK, _BESIDE = 0.05, 0.3
#: No hand slants more: columns per row.
_SLANT = 0.6
#: What is darker belongs to the character's bounding square, of 255.
_EDGE = 100
#: Grey levels of what is drawn.
_GROUND, _PEN = 230, 40


def draw_ink(picture: Any, size: int, pillow: Any) -> npt.NDArray[np.uint8]:
    """The character in one of Pillow's RGB pictures, `[3, size, size]`.

    Raises:
        ConfigError: nothing stands out from the ground.
    """
    small = picture.convert("L")
    small.thumbnail((_WORK, _WORK), pillow.Resampling.BOX)
    contrast = _contrast(small, pillow)
    threshold = _otsu(contrast)
    inked = contrast > threshold
    full = float(np.percentile(contrast[inked], 60)) if inked.any() else 0.0
    if full < _LEAST_CONTRAST:
        raise ConfigError("found nothing that stands out from its ground, expected one character on a plain ground")
    inked &= contrast > _FAINT * full
    character = _character(inked, contrast)
    # What lies between paper and ink, along the edges of strokes, is part of the ink.
    soft = np.clip(contrast / full, 0, 1) * (contrast > threshold / 2) * _grown(character)
    upright = _upright(soft, pillow)
    rows, columns = (np.flatnonzero((np.asarray(upright) > _EDGE).any(axis)) for axis in (1, 0))
    side = max(np.ptp(rows), np.ptp(columns)) + 1
    top, left = (rows[0] + rows[-1] + 1 - side) / 2, (columns[0] + columns[-1] + 1 - side) / 2
    square = upright.crop([round(edge) for edge in (left, top, left + side, top + side)])
    means = np.asarray(square.resize((GRID, GRID), pillow.Resampling.BOX), np.float64)
    strengthened = pillow.fromarray((255 * means / means.max()).astype(np.uint8))
    drawn = size * 3 // 4
    margin = (size - drawn) // 2
    ink = np.zeros((size, size))
    ink[margin : margin + drawn, margin : margin + drawn] = strengthened.resize((drawn, drawn), pillow.Resampling.BICUBIC)
    grey = (_GROUND + (_PEN - _GROUND) * ink / 255).round().astype(np.uint8)
    return np.repeat(grey[None], 3, axis=0)


# ---- the ground --------------------------------------------------------------------------------


def _contrast(small: Any, pillow: Any) -> Floats:
    """How far each pixel lies from the ground, 0..255: as it would on white paper, or with white chalk."""
    coarse = small.copy()
    coarse.thumbnail((_COARSE, _COARSE), pillow.Resampling.BOX)
    grey = np.asarray(coarse, np.float64)
    reach = max(1, round(_WIDEST * max(grey.shape) / 2))
    # Light that falls off goes on falling off beyond the picture: else its corners would be taken for ink.
    within = [min(2 * reach, length - 1) for length in grey.shape]
    wide = np.pad(grey, [(each, each) for each in within], "reflect", reflect_type="odd")
    lighter = _light_on_dark(grey)
    wide = 255 - wide if lighter else wide
    closed = _slid(_slid(wide, reach, np.max), reach, np.min)[within[0] : -within[0] or None, within[1] : -within[1] or None]
    ground = np.asarray(pillow.fromarray(closed.astype(np.float32)).resize(small.size, pillow.Resampling.BILINEAR), np.float64)
    fine = np.asarray(small, np.float64)
    fine = 255 - fine if lighter else fine
    if lighter:
        return np.clip(ground - fine, 0, 255)
    return np.clip(255 * (1 - fine / np.maximum(ground, 32)), 0, 255)


def _light_on_dark(grey: Floats) -> bool:
    """Whether the few pixels that stick out of their neighbourhood are lighter: edges and shadows stick out both ways alike."""
    reach = max(1, max(grey.shape) // 6)
    wide = np.pad(grey, reach, "reflect", reflect_type="odd") if min(grey.shape) > reach else np.pad(grey, reach, "edge")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (2 * reach + 1, 2 * reach + 1))[::2, ::2]
    off = grey[::2, ::2] - np.median(windows.reshape(*windows.shape[:2], -1)[..., ::3], axis=2)
    return bool((off**3).sum() > 0)


def _slid(values: Floats, reach: int, of: Any) -> Floats:
    """The largest or smallest value within `reach` of each, in a square."""
    for axis in (0, 1):
        ends = [(reach, reach) if each == axis else (0, 0) for each in (0, 1)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, ends, "edge"), 2 * reach + 1, axis)
        values = of(windows, axis=2)
    return values


def _otsu(contrast: Floats) -> float:
    """The value that parts two groups best: the variance between them is largest. 255 where there are no two."""
    histogram = np.bincount(np.clip(contrast, 0, 255).astype(np.int64).ravel(), minlength=256).astype(np.float64)
    below, sums = histogram.cumsum(), (histogram * np.arange(256)).cumsum()
    apart = below * (below[-1] - below)
    between = np.divide((sums[-1] * below / below[-1] - sums) ** 2, apart, out=np.zeros(256), where=apart > 0)
    return float(between.argmax()) if between.any() else 255.0


# ---- the character -----------------------------------------------------------------------------


def _character(inked: Mask, contrast: Floats) -> Mask:
    """The pieces that belong to the character."""
    pieces = _pieces(inked)
    count = int(pieces.max())
    ink = np.bincount(pieces.ravel(), contrast.ravel(), count + 1)
    ink[0] = 0
    at_edge = np.unique(np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]]))
    inner = ink.copy()
    inner[at_edge] = 0
    if inner.max() > _SPECK * ink.max():
        ink = inner
    main = int(ink.argmax())
    rows, columns = np.nonzero(pieces == main)
    reach = _BESIDE * (max(np.ptp(rows), np.ptp(columns)) + 1)
    found: Mask = pieces == main
    for piece in np.flatnonzero(ink > _SPECK * ink[main]):
        down, across = np.nonzero(pieces == piece)
        apart = max(down.min() - rows.max(), rows.min() - down.max(), across.min() - columns.max(), columns.min() - across.max())
        if apart <= reach:
            found |= pieces == piece
    return found


def _upright(soft: Floats, pillow: Any) -> Any:
    """The ink, 0..1, as one of Pillow's grey pictures, sheared about its centre by the slope of its moments."""
    down, across = np.mgrid[0 : soft.shape[0], 0 : soft.shape[1]]
    weight = soft.sum()
    middle = (soft * down).sum() / weight
    below = down - middle
    slope = (soft * below * (across - (soft * across).sum() / weight)).sum() / max((soft * below**2).sum(), 1e-9)
    slope = min(_SLANT, max(-_SLANT, slope))
    aside = round(_SLANT * soft.shape[0])  # what is sheared out of the picture is still there
    size = (soft.shape[1] + 2 * aside, soft.shape[0])
    picture = pillow.fromarray((255 * soft).astype(np.uint8))
    shear = (1, slope, -slope * middle - aside, 0, 1, 0)
    return picture.transform(size, pillow.Transform.AFFINE, shear, pillow.Resampling.BILINEAR)


def _pieces(inked: Mask) -> npt.NDArray[np.int64]:
    """{pixel: which connected piece it is in, from 1; 0: none}; corners connect."""
    labels = np.where(inked, np.arange(1, inked.size + 1).reshape(inked.shape), 0)
    while True:
        wide = np.pad(labels, 1)
        best = labels
        for down in (0, 1, 2):
            for across in (0, 1, 2):
                best = np.maximum(best, wide[down : down + labels.shape[0], across : across + labels.shape[1]])
        best = np.where(inked, best, 0)
        best = np.where(inked, np.append(0, best.ravel())[best], 0)  # as far as the one it points at got
        if np.array_equal(best, labels):
            known = np.unique(best[inked])
            return np.where(inked, np.searchsorted(known, best) + 1, 0)
        labels = best


def _grown(mask: Mask) -> Mask:
    """With the soft edges of its strokes."""
    return _slid(mask.astype(np.float64), 2, np.max) > 0
