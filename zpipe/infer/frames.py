"""Raw frames from a pipe: `ffmpeg ... -f rawvideo -pix_fmt rgb24 - | zpipe infer --size 640x480 -`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zpipe.infer.items import Item, Shaper, Skipped, Wanted

#: {how a pixel is stored, as ffmpeg names it: bytes of it}.
PIXELS = {"rgb24": 3, "bgr24": 3, "gray8": 1}


@dataclass(frozen=True, slots=True)
class RawFormat:
    """What stands in a stream of frames without any header.

    Attributes:
        width, height: in pixels.
        pixel: one of PIXELS.
    """

    width: int
    height: int
    pixel: str = "rgb24"

    @property
    def frame_bytes(self) -> int:
        """Of one frame."""
        return self.width * self.height * PIXELS[self.pixel]

    def pixels(self, content: bytes | bytearray) -> npt.NDArray[np.uint8]:
        """One frame, `[height, width]` if grey, else `[height, width, 3]` RGB."""
        frame = np.frombuffer(content, np.uint8).reshape(self.height, self.width, -1)
        return frame[..., 0] if self.pixel == "gray8" else frame[..., ::-1] if self.pixel == "bgr24" else frame


class RawFrames:
    """Frames from a file descriptor, which it owns.

    It is read without Python's buffer, whose lock a reader that still waits would hold when the process ends.
    """

    def __init__(self, descriptor: int, raw: RawFormat, shaper: Shaper, *, live: bool) -> None:
        self.live = live
        self._descriptor = descriptor
        self._raw = raw
        self._shaper = shaper
        self._count = None if live else os.fstat(descriptor).st_size // raw.frame_bytes

    def count(self) -> int | None:
        return self._count

    def items(self, wanted: Wanted) -> Iterator[Item | Skipped]:
        frame = filled = 0
        began: float | None = None
        with os.fdopen(self._descriptor, "rb", buffering=0) as stream:
            while True:
                content = bytearray(self._raw.frame_bytes)
                view = memoryview(content)
                filled = 0
                while filled < len(content) and (count := stream.readinto(view[filled:])):
                    filled += count
                if filled < len(content):
                    break
                now = time.monotonic()
                began = now if began is None else began
                if wanted("-", frame):
                    pixels = self._raw.pixels(content)
                    yield self._shaper.from_pixels(pixels, "-", frame, now - began if self.live else None)
                frame += 1
        if filled:
            raw = self._raw
            yield Skipped(
                f"-: found {filled} bytes after {frame} frames, expected {raw.frame_bytes} for each of {raw.width}x{raw.height} "
                f"{raw.pixel}; see --size and --pixel"
            )
        elif not frame:
            yield Skipped("-: found nothing on standard input, expected raw frames; pipe some in")
