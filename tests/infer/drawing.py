"""Digits as a hand draws them, and photos of these: what the tests classify."""

from __future__ import annotations

import itertools

import numpy as np

Points = list[tuple[float, float]]

#: Strokes in a square of 0..1, x to the right and y down.
STROKES: dict[int, Points] = {
    0: [(0.5, 0.05), (0.25, 0.15), (0.15, 0.5), (0.25, 0.85), (0.5, 0.95), (0.75, 0.85), (0.85, 0.5), (0.75, 0.15), (0.5, 0.05)],
    1: [(0.3, 0.25), (0.55, 0.05), (0.55, 0.95)],
    2: [(0.2, 0.25), (0.35, 0.08), (0.6, 0.05), (0.8, 0.2), (0.75, 0.4), (0.2, 0.95), (0.85, 0.95)],
    3: [(0.2, 0.1), (0.6, 0.05), (0.8, 0.2), (0.7, 0.4), (0.45, 0.48), (0.75, 0.58), (0.82, 0.78), (0.6, 0.95), (0.2, 0.9)],
    4: [(0.65, 0.95), (0.65, 0.05), (0.15, 0.65), (0.9, 0.65)],
    5: [(0.8, 0.05), (0.3, 0.05), (0.25, 0.45), (0.6, 0.42), (0.82, 0.65), (0.6, 0.93), (0.2, 0.9)],
    7: [(0.15, 0.05), (0.85, 0.05), (0.4, 0.95)],
}


def photo(digit: int, *, pen: float = 20.0, tall: int = 220, dark: bool = True, size: tuple[int, int] = (400, 300)) -> np.ndarray:
    """`[height, width, 3] uint8`: the digit on paper (or chalk on a board), lit from the left, with a sensor's noise."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width].astype(float)
    nearest = np.full((height, width), np.inf)
    points = [(width / 2 + (x - 0.5) * tall * 0.7, height / 2 + (y - 0.5) * tall) for x, y in STROKES[digit]]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        along = np.clip(((columns - x0) * (x1 - x0) + (rows - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2), 0, 1)
        nearest = np.minimum(nearest, np.hypot(columns - x0 - along * (x1 - x0), rows - y0 - along * (y1 - y0)))
    ink = np.clip(pen / 2 - nearest + 0.5, 0, 1)[..., None]
    paper, colour = np.array([235.0, 230.0, 220.0]), np.array([40.0, 45.0, 90.0])
    ground, drawn = (paper, colour) if dark else (colour, paper)
    lit = (ground + (drawn - ground) * ink) * (1 - 0.3 * columns / width)[..., None]
    noisy = lit + np.random.default_rng(digit).normal(0, 5, lit.shape)
    return np.asarray(np.clip(noisy, 0, 255), np.uint8)
