"""Pixels of sensor_msgs/Image messages, and of those that lie about themselves."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ros2.standin import Image
from zpipe.errors import ConfigError
from zpipe.ros2.images import ENCODINGS, pixels_of

#: `[2, 3, 3]` RGB.
RGB = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
GREY = RGB[..., 0]


def padded(rows: npt.NDArray[np.uint8], encoding: str, *, padding: int = 0, **fields: Any) -> Any:
    """A message of these bytes, `[height, bytes of a row]`, with `padding` bytes behind each row."""
    height = len(rows)
    flat = rows.reshape(height, -1)
    data = np.concatenate([flat, np.full((height, padding), 255, np.uint8)], 1)
    sizes = {"height": height, "width": 3, "step": data.shape[1], "data": array("B", data.tobytes())}
    return Image(encoding=encoding, **{**sizes, **fields})


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "rows"),
    [
        ("rgb8", RGB),
        ("bgr8", RGB[..., ::-1]),
        ("rgba8", np.dstack([RGB, np.zeros((2, 3), np.uint8)])),
        ("bgra8", np.dstack([RGB[..., ::-1], np.zeros((2, 3), np.uint8)])),
    ],
)
def test_colours_come_out_as_rgb_whatever_their_order_padding_and_alpha(
    encoding: str, rows: npt.NDArray[np.uint8], padding: int
) -> None:
    assert np.array_equal(pixels_of(padded(rows, encoding, padding=padding)), RGB)


@pytest.mark.parametrize("padding", [0, 5])
def test_grey_keeps_its_eight_bits_and_of_sixteen_the_upper_ones(padding: int) -> None:
    assert np.array_equal(pixels_of(padded(GREY, "mono8", padding=padding)), GREY)
    deep = GREY.astype(np.uint16) * 256 + 7
    for big, stored in ((0, deep.astype("<u2")), (1, deep.astype(">u2"))):
        rows = np.frombuffer(stored.tobytes(), np.uint8).reshape(2, 6)
        assert np.array_equal(pixels_of(padded(rows, "mono16", padding=padding, is_bigendian=big)), GREY)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"encoding": "yuv422_yuy2"}, "found encoding 'yuv422_yuy2', expected one of rgb8"),
        ({"encoding": "\x1b[2J" * 100}, r"found encoding '.x1b.2J"),
        ({"height": 0}, "found an image of 3x0 pixels"),
        ({"width": 0}, "found an image of 0x2 pixels"),
        ({"step": 8}, "found rows of 8 bytes, expected at least 9 for 3 pixels of rgb8"),
        ({"width": 4}, "found rows of 9 bytes, expected at least 12"),
        ({"height": 4_000_000_000}, "found 18 bytes, expected 36000000000"),
        ({"data": array("B", bytes(17))}, "found 17 bytes, expected 18"),
        ({"data": array("B")}, "found 0 bytes"),
    ],
)
def test_what_contradicts_itself_is_refused_in_a_line(fields: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found) as refused:
        pixels_of(padded(RGB, fields.pop("encoding", "rgb8"), **fields))
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 250


@given(
    encoding=st.sampled_from([*ENCODINGS, "8UC3", ""]),
    height=st.integers(0, 5),
    width=st.integers(0, 5),
    step=st.integers(0, 24),
    big=st.integers(0, 255),
    size=st.one_of(st.none(), st.integers(0, 120)),
)
def test_no_message_gets_past_its_bytes(encoding: str, height: int, width: int, step: int, big: int, size: int | None) -> None:
    data = array("B", bytes(step * height if size is None else size))
    image = Image(encoding=encoding, height=height, width=width, step=step, is_bigendian=big, data=data)
    try:
        pixels = pixels_of(image)
    except ConfigError:
        return
    assert pixels.shape[:2] == (height, width)
    assert pixels.dtype == np.uint8
    assert len(data) == step * height
