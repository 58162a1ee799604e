"""Answers drawn on pictures: saved in a folder, shown in a window."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from zpipe.datasets.images import import_pillow
from zpipe.errors import BackendUnavailable, ConfigError
from zpipe.infer.items import Answer
from zpipe.infer.video import import_cv2

#: Shortest side of what is drawn: smaller pictures are enlarged, so that the text has room.
LEAST_PIXELS = 256
_INK, _BAR, _DOUBT = (255, 255, 255), (20, 60, 110), (120, 40, 40)
_TITLE = "zpipe"
_ESCAPE = 27


def draw(answer: Answer) -> Any:
    """The input's picture with a bar beneath it: label, confidence, exit stage, latency; what went wrong on red."""
    from PIL import ImageDraw, ImageFont

    pillow = import_pillow()
    picture: Any = answer.entry.picture
    scale = -(-LEAST_PIXELS // min(picture.size)) if min(picture.size) < LEAST_PIXELS else 1
    shown = picture.resize((picture.width * scale, picture.height * scale), pillow.Resampling.NEAREST)
    bar = max(28, shown.height // 12)
    drawn = pillow.new("RGB", (shown.width, shown.height + bar), _BAR if answer.outcome.result else _DOUBT)
    drawn.paste(shown)
    text, size = _text(answer), bar * 0.6
    pen = ImageDraw.Draw(drawn)
    width = pen.textlength(text, font=ImageFont.load_default(size))
    font = ImageFont.load_default(min(size, size * 0.96 * shown.width / width))
    pen.text((shown.width / 2, shown.height + bar / 2), text, fill=_INK, font=font, anchor="mm")
    return drawn


def _text(answer: Answer) -> str:
    result = answer.outcome.result
    if result is None:
        return answer.outcome.kind
    return f"{result.class_name}   {result.confidence:.0%}   exit {result.exit_stage}   {1e3 * result.latency_seconds:.0f} ms"


class Folder:
    """Labelled pictures as JPEG files, numbered as the lines are."""

    def __init__(self, path: Path) -> None:
        import_pillow()
        try:
            path.mkdir(exist_ok=True)
        except OSError as exc:
            raise ConfigError(f"{path}: found that it cannot be made ({exc.strerror}), expected a folder; choose another") from exc
        self._path = path

    def save(self, answer: Answer, number: int) -> None:
        """Writes one.

        Raises:
            ConfigError: the disk is full.
        """
        entry = answer.entry
        stem = Path(entry.name).stem.replace(":", "-").strip("-") or "stdin"
        frame = "" if entry.frame is None else f"-{entry.frame:06d}"
        file = self._path / f"{number:06d}-{stem}{frame}.jpg"
        try:
            draw(answer).save(file, quality=90)
        except OSError as exc:
            raise ConfigError(f"{file}: found that it cannot be written ({exc.strerror}), expected room there; make some") from exc


class Window:
    """A window that shows the latest answer; `q`, Escape or closing it ends the run.

    Raises:
        BackendUnavailable: there is no display, or OpenCV came without windows.
    """

    def __init__(self) -> None:
        # Asked first: an OpenCV with Qt ends the whole process where there is none.
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise BackendUnavailable("--show: found no display, expected DISPLAY or WAYLAND_DISPLAY; use --save FOLDER instead")
        self._cv2 = import_cv2()
        try:
            self._cv2.namedWindow(_TITLE, self._cv2.WINDOW_AUTOSIZE)
        except self._cv2.error as exc:
            raise BackendUnavailable(
                "--show: found an OpenCV without windows, expected one with them; run: pip uninstall opencv-python-headless; "
                "pip install opencv-python; or use --save FOLDER"
            ) from exc

    def show(self, answer: Answer) -> bool:
        """Shows it; False when the user wants no more."""
        self._cv2.imshow(_TITLE, np.asarray(draw(answer))[..., ::-1].copy())
        key = self._cv2.waitKey(1) & 0xFF
        return key not in (_ESCAPE, ord("q")) and self._cv2.getWindowProperty(_TITLE, self._cv2.WND_PROP_VISIBLE) >= 1

    def close(self) -> None:
        """Takes it away."""
        self._cv2.destroyAllWindows()
