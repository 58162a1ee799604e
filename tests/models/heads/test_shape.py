"""What a head looks at: fine where that is cheap, whole planes covered, and one line for what no head fits."""

from __future__ import annotations

import numpy as np
import pytest

from zpipe.errors import ConfigError
from zpipe.model import TensorSpec
from zpipe.models.heads.shape import COST_SHARE, choose_shape, grid_shape


def shape_of(*shape: int, dtype: str = "float32", macs: int = 10**9, classes: int = 10):  # type: ignore[no-untyped-def]
    return choose_shape(TensorSpec(dtype, shape), classes=classes, macs_before=macs, tokens="mean", stage=1)


def test_grid_gets_coarser_until_the_head_is_cheap() -> None:
    assert shape_of(16, 32, 32).positions == 16
    fine = grid_shape(16, 32, 32, 4).macs(10)
    assert shape_of(16, 32, 32, macs=int(fine / COST_SHARE) + 1).positions == 16
    assert shape_of(16, 32, 32, macs=int(fine / COST_SHARE) - 1).positions == 4
    # Where nothing is cheap there is a head all the same.
    assert shape_of(16, 32, 32, macs=1).positions == 1


@pytest.mark.parametrize(("height", "width"), [(32, 32), (7, 7), (14, 9), (3, 1), (5, 4)])
@pytest.mark.parametrize("grid", [4, 2, 1])
def test_windows_cover_every_pixel(height: int, width: int, grid: int) -> None:
    shape = grid_shape(8, height, width, grid)
    covered = np.zeros((height, width), int)
    rows, columns = (
        (side - kernel) // step + 1 for side, kernel, step in zip((height, width), shape.kernel, shape.stride, strict=True)
    )
    for row in range(rows):
        for column in range(columns):
            top, left = row * shape.stride[0], column * shape.stride[1]
            covered[top : top + shape.kernel[0], left : left + shape.kernel[1]] += 1
    assert covered.min() == 1
    assert shape.positions == rows * columns


def test_tokens_and_vectors_have_heads_too() -> None:
    assert shape_of(64, 768).features == 2 * 768
    assert shape_of(100).pooling == "none"
    assert shape_of(16, 32, 32, dtype="float16") == shape_of(16, 32, 32)


@pytest.mark.parametrize(("shape", "dtype"), [((4, 8, 8, 8), "float32"), ((40_000,), "float32"), ((8, 8, 8), "int64")])
def test_what_no_head_fits_is_refused_in_one_line(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ConfigError, match=r"--at 1: found an activation .* expected .* put the head at another stage"):
        shape_of(*shape, dtype=dtype)
