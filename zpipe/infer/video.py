"""Video files and cameras, through OpenCV (the extra `video`)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zpipe.datasets.images import import_pillow
from zpipe.errors import BackendUnavailable, ConfigError
from zpipe.infer.items import Item, Shaper, Skipped, Wanted

#: Files with one of these endings are videos; every other file is a picture.
SUFFIXES = (".avi", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


def import_cv2() -> Any:
    """OpenCV, told to leave the terminal alone: what it has to say we say in one line.

    Raises:
        BackendUnavailable: it is absent.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    try:
        import cv2
    except ImportError as exc:
        raise BackendUnavailable("found no OpenCV, expected it for videos and cameras; run: pip install 'zpipe[video]'") from exc
    import_pillow()  # scales the frames
    return cv2


class Video:
    """The frames of a video file."""

    live = False

    def __init__(self, path: Path, shaper: Shaper) -> None:
        self._cv2 = import_cv2()
        self._path = path
        self._shaper = shaper

    def count(self) -> int | None:
        capture = self._cv2.VideoCapture(str(self._path))
        try:
            count = int(capture.get(self._cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        finally:
            capture.release()
        return count if count > 0 else None

    def items(self, wanted: Wanted) -> Iterator[Item | Skipped]:
        capture = self._cv2.VideoCapture(str(self._path))
        frame = 0
        try:
            while capture.isOpened():
                if not capture.grab():
                    break
                seconds = capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000
                if wanted(str(self._path), frame):
                    fine, pixels = capture.retrieve()
                    if not fine:
                        break
                    yield self._shaper.from_pixels(pixels[..., ::-1], str(self._path), frame, seconds)
                frame += 1
        finally:
            capture.release()
        if not frame:
            yield Skipped(f"{self._path}: found no video that OpenCV can read, expected one; remove or convert it")


class Camera:
    """A camera's frames, until it has no more."""

    live = True

    def __init__(self, name: str, number: int, shaper: Shaper) -> None:
        cv2 = import_cv2()
        self._name = name
        self._shaper = shaper
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise ConfigError(f"{name}: found no camera {number} that can be opened, expected one; see `ls -l /dev/video*`")
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # a frame that waited in the driver is an old one

    def count(self) -> int | None:
        return None

    def items(self, wanted: Wanted) -> Iterator[Item | Skipped]:
        frame = 0
        began: float | None = None
        try:
            while True:
                fine, pixels = self._capture.read()
                if not fine:
                    break
                now = time.monotonic()
                began = now if began is None else began
                if wanted(self._name, frame):
                    yield self._shaper.from_pixels(pixels[..., ::-1], self._name, frame, now - began)
                frame += 1
        finally:
            self._capture.release()
        yield Skipped(f"{self._name}: found no further frame after {frame}, expected the camera to go on; see its cable")
