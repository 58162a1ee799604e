"""Videos and cameras, where OpenCV is installed; a camera is a stand-in, as test machines have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zpipe.errors import BackendUnavailable
from zpipe.infer import Skipped, labelled
from zpipe.infer.items import Item, Shaper
from zpipe.infer.video import Camera, Video
from zpipe.model import TensorSpec

cv2: Any = pytest.importorskip("cv2", reason="needs OpenCV: pip install 'zpipe[video]'")
SHAPER = Shaper(TensorSpec("uint8", (3, 32, 32)), 32)
BLUE_FIRST = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Three frames, blue, green, red, at 25 a second."""
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25.0, (64, 48))
    for colour in BLUE_FIRST:
        writer.write(np.full((48, 64, 3), colour, np.uint8))
    writer.release()
    return tmp_path / "clip.avi"


def test_a_video_gives_its_frames_in_rgb_with_their_times(clip: Path) -> None:
    video = Video(clip, SHAPER)
    found = [item for item in video.items(lambda name, frame: True) if isinstance(item, Item)]
    assert video.count() == 3
    assert [(item.entry.frame, round(item.entry.seconds or 0.0, 3)) for item in found] == [(0, 0.0), (1, 0.04), (2, 0.08)]
    assert [int(item.image.mean((1, 2)).argmax()) for item in found] == [2, 1, 0]  # RGB
    assert [item.entry.frame for item in video.items(lambda name, frame: frame == 1) if isinstance(item, Item)] == [1]


@pytest.mark.parametrize("kept", [0, 100])
def test_a_damaged_video_is_skipped(clip: Path, kept: int) -> None:
    clip.write_bytes(clip.read_bytes()[:kept])
    (skipped,) = Video(clip, SHAPER).items(lambda name, frame: True)
    assert isinstance(skipped, Skipped)
    assert "clip.avi: found no video that OpenCV can read" in skipped.cause


def test_a_camera_that_was_pulled_out_ends_with_a_line(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played = cv2.VideoCapture(str(clip))
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: played)
    *frames, pulled = Camera("camera:0", 0, SHAPER).items(lambda name, frame: True)
    assert [item.entry.frame for item in frames if isinstance(item, Item)] == [0, 1, 2]
    assert isinstance(pulled, Skipped)
    assert "camera:0: found no further frame after 3" in pulled.cause
    assert not played.isOpened()


def test_a_window_without_a_display_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BackendUnavailable, match="found no display"):
        labelled.Window()
