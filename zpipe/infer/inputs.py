"""Opening what was named on the command line."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zpipe.datasets.images import import_pillow, is_picture
from zpipe.errors import ConfigError
from zpipe.infer.archive import Archive
from zpipe.infer.frames import PIXELS, RawFormat, RawFrames
from zpipe.infer.items import Item, Shaper, Skipped, Source, Wanted
from zpipe.infer.video import SUFFIXES as VIDEO_SUFFIXES
from zpipe.infer.video import Camera, Video

__all__ = ["PIXELS", "RawFormat", "open_inputs"]

#: How a camera is named: `camera:0`, the first one.
CAMERA = "camera:"


def open_inputs(names: Sequence[str], shaper: Shaper, *, raw: RawFormat | None) -> list[Source]:
    """What was named, in that order: `-`, `camera:N`, folders, `.npz` files, videos; every other file is a picture.

    Raises:
        ConfigError: nothing is there, a name stands in the wrong company, or the network takes no images.
        BackendUnavailable: a library or the camera is absent.
    """
    for name in names:
        if (name == "-" or name.startswith(CAMERA)) and len(names) > 1:
            raise ConfigError(f"{name}: found it beside other inputs, expected it alone: what is live has no end to wait for")
    if raw is not None and "-" not in names:
        raise ConfigError("--size: found it without `-`, expected `-` as INPUT: it describes raw frames on standard input")
    return [_open(name, shaper, raw) for name in names]


def _open(name: str, shaper: Shaper, raw: RawFormat | None) -> Source:
    path = Path(name)
    archive = path.suffix.lower() == ".npz"
    if shaper.size is None and not archive:
        raise ConfigError(
            f"{name}: found an input of images, and a network that takes {shaper.takes.dtype} {list(shaper.takes.shape)}; expected "
            "an .npz of such tensors, or a bundle for images"
        )
    if name == "-":
        if raw is None:
            raise ConfigError("-: found no --size, expected the size of the raw frames on standard input, such as --size 640x480")
        return RawFrames(os.dup(sys.stdin.fileno()), raw, shaper, live=not _is_file(sys.stdin.fileno()))
    if name.startswith(CAMERA):
        number = name.removeprefix(CAMERA)
        if not number.isdecimal():
            raise ConfigError(f"{name}: found {number!r}, expected the number of a camera, such as {CAMERA}0")
        return Camera(name, int(number), shaper)
    if path.is_dir():
        import_pillow()
        return Folder(path, shaper)
    if not path.exists():
        raise ConfigError(
            f"{name}: found nothing there, expected a picture, a folder, an .npz, a video, {CAMERA}0 or - for standard input; "
            "correct the path"
        )
    film = path.suffix.lower() in VIDEO_SUFFIXES
    if (archive or film) and not path.is_file():
        what = "an .npz" if archive else "a video"
        raise ConfigError(f"{name}: found {_kind(path)}, expected {what} that is a file: it is not read in one go; copy it")
    if archive:
        return Archive(path, shaper)
    if film:
        return Video(path, shaper)
    import_pillow()
    return Picture(path, shaper)


def _kind(path: Path) -> str:
    return "a pipe" if path.is_fifo() else "a socket" if path.is_socket() else "a device"


def _is_file(descriptor: int) -> bool:
    """A file waits, a pipe or a terminal does not."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


@dataclass(frozen=True, slots=True)
class Picture:
    """One file in any format Pillow reads."""

    path: Path
    shaper: Shaper
    live: bool = False

    def count(self) -> int:
        return 1

    def items(self, wanted: Wanted) -> Iterator[Item | Skipped]:
        if wanted(str(self.path), None):
            yield self.shaper.from_file(self.path)


@dataclass(frozen=True, slots=True)
class Folder:
    """The pictures in a folder and the folders in it, in the order of their names. Links to folders are not followed."""

    path: Path
    shaper: Shaper
    live: bool = False

    def count(self) -> int:
        return sum(isinstance(each, str) for each in _pictures(str(self.path), ordered=False))

    def items(self, wanted: Wanted) -> Iterator[Item | Skipped]:
        found = False
        for each in _pictures(str(self.path), ordered=True):
            found = True
            if isinstance(each, Skipped):
                yield each
            elif wanted(each, None):
                yield self.shaper.from_file(each)
        if not found:
            yield Skipped(f"{self.path}: found no picture in it, expected some, such as .png or .jpg")


def _pictures(folder: str, *, ordered: bool) -> Iterator[str | Skipped]:
    """Paths of pictures; only the names in the folders above a file are held."""
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not entry.name.startswith(".")]
    except OSError as exc:
        yield Skipped(f"{folder}: found a folder that cannot be read ({exc.strerror}), expected one to read; see its permissions")
        return
    for entry in sorted(entries, key=lambda entry: entry.name) if ordered else entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _pictures(entry.path, ordered=ordered)
        elif is_picture(entry.name) and not entry.is_dir():
            # A pipe that lies in a folder would be waited for; a link to nowhere is told of by who opens it.
            waits = not entry.is_file() and os.path.exists(entry.path)
            found = f"{entry.path}: found {_kind(Path(entry.path))}, expected a picture; move it out of the folder" if waits else ""
            yield Skipped(found) if found else entry.path
