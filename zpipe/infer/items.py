"""What inputs give, one after the other."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from zpipe.datasets.images import picture_of, read_picture, shape_picture, shape_pixels
from zpipe.errors import ConfigError
from zpipe.model import Outcome, TensorSpec

#: Longest side of what is drawn on, in pixels: a window of answers that wait for their turn stays below 300 MB.
DRAWN_PIXELS = 1280
#: A picture is reduced while it is decoded, but to no less than four times this, in which ink is found.
LEAST_PIXELS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """Where an input comes from.

    Attributes:
        name: as on the command line; of a file in a folder, its path.
        frame: from 0, in a video, an archive or a stream; None for a picture.
        seconds: in a video by its own clock, of a live source since its first frame; else None.
        picture: Pillow's, to draw the answer on; None unless asked for.
    """

    name: str
    frame: int | None = None
    seconds: float | None = None
    picture: Any | None = None

    def __str__(self) -> str:
        return self.name if self.frame is None else f"{self.name} frame {self.frame}"


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One input, ready for stage 0.

    Attributes:
        entry: where it comes from.
        image: as stage 0 takes it, `[3, size, size] uint8` or the network's own tensor.
    """

    entry: Entry
    image: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Skipped:
    """An input that could not be read, or the rest of one: the line that says why."""

    cause: str


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """An input and how it ended."""

    entry: Entry
    outcome: Outcome


#: Given a name and a frame: whether it is wanted, or was answered in an earlier run. Raises to end the reading.
Wanted: TypeAlias = Callable[[str, "int | None"], bool]


class Source(Protocol):
    """One thing named on the command line."""

    @property
    def live(self) -> bool:
        """Whether it does not wait for us: what comes while the network is busy is dropped."""

    def count(self) -> int | None:
        """How many items there will be, as far as that can be told at little cost; None if not."""

    def items(self, wanted: Wanted) -> Iterator[Item | Skipped]:
        """Reads it, on a thread of its own; what is not wanted is passed over."""


@dataclass(frozen=True, slots=True)
class Shaper:
    """Makes an item of what was read.

    Attributes:
        takes: one sample of stage 0.
        size: of the images it takes; None where it takes none.
        fit: one of `datasets.images.FITS`.
        drawn: keep a picture to draw on.
    """

    takes: TensorSpec
    size: int | None
    fit: str = "stretch"
    drawn: bool = False

    def from_file(self, path: Any) -> Item | Skipped:
        """A picture in a file."""
        return self._from_stored(path, Entry(str(path)))

    def from_encoded(self, content: bytes, name: str, frame: int) -> Item | Skipped:
        """A picture that came as the bytes of a file, such as a camera's JPEG."""
        return self._from_stored(io.BytesIO(content), Entry(name, frame))

    def _from_stored(self, file: Any, entry: Entry) -> Item | Skipped:
        assert self.size is not None
        try:
            picture = read_picture(file, least=max(self.size, DRAWN_PIXELS // 4 if self.drawn else LEAST_PIXELS), name=str(entry))
        except ConfigError as exc:
            return Skipped(str(exc))
        return self._shaped(replace(entry, picture=self._kept(picture)), picture)

    def from_pixels(self, pixels: npt.NDArray[np.uint8], name: str, frame: int, seconds: float | None = None) -> Item | Skipped:
        """A frame, `[height, width]` or `[height, width, 1, 3 or 4]`, grey, RGB or RGBA."""
        assert self.size is not None
        if not self.drawn and self.fit != "ink":
            return Item(Entry(name, frame, seconds), shape_pixels(pixels, self.size, self.fit))
        picture = picture_of(pixels)
        return self._shaped(Entry(name, frame, seconds, self._kept(picture)), picture)

    def _shaped(self, entry: Entry, picture: Any) -> Item | Skipped:
        assert self.size is not None
        try:
            return Item(entry, shape_picture(picture, self.size, self.fit))
        except ConfigError as exc:
            return Skipped(f"{entry}: {exc}")

    def _kept(self, picture: Any) -> Any | None:
        if not self.drawn:
            return None
        kept = picture.copy()
        kept.thumbnail((DRAWN_PIXELS, DRAWN_PIXELS))
        return kept
