"""The pixels of a sensor_msgs/Image. Whatever it says of itself is counted before it is believed: it came over a network.

Source: sensor_msgs/msg/Image.msg (`data` is `step` times `height` bytes; `step` counts a row's padding), image_encodings.hpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.errors import ConfigError, one_line


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a pixel is stored.

    Attributes:
        channels: values of a pixel.
        rgb: which of them are red, green and blue; empty for grey.
        bytes_each: of a value.
    """

    channels: int
    rgb: tuple[int, ...] = ()
    bytes_each: int = 1


#: By the names of sensor_msgs. A camera's alpha says nothing, and some drivers leave it 0: it is dropped, as cv_bridge does.
ENCODINGS = {
    "rgb8": Encoding(3, (0, 1, 2)),
    "bgr8": Encoding(3, (2, 1, 0)),
    "rgba8": Encoding(4, (0, 1, 2)),
    "bgra8": Encoding(4, (2, 1, 0)),
    "mono8": Encoding(1),
    "mono16": Encoding(1, bytes_each=2),
}


def pixels_of(image: Any) -> npt.NDArray[np.uint8]:
    """The pixels of a sensor_msgs/Image: `[height, width, 3]` RGB, or `[height, width]` grey (of 16 bits the upper eight).

    They may lie in the message's own memory.

    Raises:
        ConfigError: an encoding that is not known here, no pixels, or sizes that contradict each other.
    """
    encoding = ENCODINGS.get(image.encoding)
    if encoding is None:
        found = one_line(str(image.encoding)[:40])
        raise ConfigError(f"found encoding '{found}', expected one of {', '.join(ENCODINGS)}; convert it (image_proc does)")
    height, width, step = int(image.height), int(image.width), int(image.step)
    if not height or not width:
        raise ConfigError(f"found an image of {width}x{height} pixels, expected some; see its driver")
    least = width * encoding.channels * encoding.bytes_each
    if step < least:
        raise ConfigError(
            f"found rows of {step} bytes, expected at least {least} for {width} pixels of {image.encoding}; see its driver"
        )
    data = np.frombuffer(image.data, np.uint8)
    if len(data) != step * height:
        raise ConfigError(f"found {len(data)} bytes, expected {step * height}: {height} rows of {step}; see its driver")
    rows = data.reshape(height, step)[:, :least]
    if encoding.bytes_each == 2:
        return rows[:, 0 if image.is_bigendian else 1 :: 2]
    if not encoding.rgb:
        return rows
    red, _, blue = encoding.rgb
    pixels = rows.reshape(height, width, encoding.channels)
    return pixels[..., :3] if red < blue else pixels[..., 2::-1]
