"""Writes the trace of one node's policy while it runs."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from zpipe import __version__
from zpipe.errors import ConfigError
from zpipe.policy import NodePolicy
from zpipe.policy.messages import Command, Event
from zpipe.trace import codec

log = logging.getLogger("zpipe.trace")

#: Version of the format that the package docstring describes.
VERSION = 2
#: A trace ends here, so that a forgotten one cannot fill a board's card: some 10^6 samples.
LIMIT_BYTES = 1_000_000_000
#: Written together, about ...
BUFFER_BYTES = 1 << 16
#: ... and at least so often: what a killed process did in its last moments is what its trace is read for.
FLUSH_SECONDS = 0.25


def trace_file(folder: Path, rank: int, *, restarts: int = 0) -> Path:
    """Where a node's trace lies when a run has one per rank, and one more for each time it was started again."""
    return folder / (f"node-{rank}-{restarts}.trace" if restarts else f"node-{rank}.trace")


def trace_folder(path: Path) -> Path:
    """The folder for the traces of one run; made where there is none.

    Raises:
        ConfigError: it holds those of an earlier run, or cannot be made.
    """
    earlier = next(path.glob("*.trace"), None)
    if earlier is not None:
        raise ConfigError(
            f"trace: found {earlier} of an earlier run, expected a folder without traces; remove them or choose another"
        )
    try:
        path.mkdir(exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"trace: found {path}, which cannot be made ({exc.strerror}), expected a folder; choose another") from exc
    return path


def beside(path: Path) -> Iterator[Path]:
    """The path, then those for later traces of the same name: `node.trace`, `node-1.trace`, `node-2.trace` ..."""
    yield path
    name, dot, ending = path.name.partition(".")
    for number in itertools.count(1):
        yield path.with_name(f"{name}-{number}{dot}{ending}")


def raised(error: Exception) -> dict[str, str]:
    """What stands in place of the commands when the policy broke."""
    return {"raised": f"{type(error).__name__}: {error}"}


class Recorder:
    """Stands in for a policy's `handle_all` and keeps what goes in and out. `close` it.

    The file is opened at once. What cannot be written later ends the trace with a note, never the node.

    Args:
        path: the file; where there is one, of an earlier start of the node, that stays and this trace goes beside it.
        policy: fresh: a replay starts from its configuration.
        seed: of the policy's dice.
        note: takes a line for people when the trace ends early.
        limit_bytes: the trace ends before it grows larger than this.

    Attributes:
        path: #: where the trace is.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        policy: NodePolicy,
        *,
        seed: int,
        note: Callable[[str], None] | None = None,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        self._policy = policy
        self._note = note or (lambda line: log.warning("%s", line))
        self._limit_bytes = limit_bytes
        self._rounds = self._written = 0
        self._packer = codec.packer()  #: of what waits to be written
        self._whole = 0  #: its bytes up to the end of the last round
        self._flushed_at = -math.inf
        try:
            self.path, file = _opened(path)
        except OSError as exc:
            raise ConfigError(
                f"{path}: found that it cannot be written ({exc.strerror}), expected a file for the trace; choose another"
            ) from exc
        self._file: BinaryIO | None = file
        if self.path != path:
            self._note(f"{path}: found a file there, so the trace goes to {self.path}")
        header = {"trace": VERSION, "zpipe": __version__, "rank": policy.config.rank, "seed": seed, "epoch": _epoch()}
        self._packer.pack({**header, "fields": codec.fields(), "config": policy.config})
        self._round_ended()
        self._flush()

    def handle_all(self, events: Sequence[Event], *, now: float) -> list[Command]:
        """The policy's answer, which is in the trace afterwards; so is an exception."""
        if self._file is None:
            return self._policy.handle_all(events, now=now)
        packer = self._packer
        packer.pack_array_header(3)
        packer.pack(now)
        packer.pack(events)  # before the policy changes the tasks in it
        try:
            commands = self._policy.handle_all(events, now=now)
        except Exception as exc:
            packer.pack(raised(exc))
            self._round_ended()
            self.close()
            raise
        packer.pack(commands)
        self._round_ended()
        self._rounds += 1
        if now - self._flushed_at >= FLUSH_SECONDS or self._whole >= BUFFER_BYTES:
            self._flushed_at = now
            self._flush()
        return commands

    def close(self, end: str = "closed") -> None:
        """Writes what waits and the end mark. May be called twice."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            with file:
                file.write(self._waiting() + codec.pack({"end": end}))
        except OSError as exc:
            self._tell_failure(exc)

    def _round_ended(self) -> None:
        size = self._packer.getbuffer().nbytes
        if self._written + size > self._limit_bytes:
            self._note(f"{self.path}: the trace ends after {self._rounds} rounds, at its limit of {self._limit_bytes} bytes")
            self.close("limit")
            return
        self._whole = size

    def _waiting(self) -> bytes:
        """The whole rounds not yet written; then nothing waits any more."""
        found: bytes = self._packer.bytes()[: self._whole]
        self._packer.reset()
        self._whole = 0
        self._written += len(found)
        return found

    def _flush(self) -> None:
        if self._file is None:
            return
        try:
            self._file.write(self._waiting())
            self._file.flush()
        except OSError as exc:
            self._give_up(exc)

    def _give_up(self, error: OSError) -> None:
        self._tell_failure(error)
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # it tries once more to write what waits
                file.close()

    def _tell_failure(self, error: OSError) -> None:
        self._note(f"{self.path}: the trace ends here, it cannot be written any more ({error.strerror})")


def _opened(path: Path) -> tuple[Path, BinaryIO]:
    """The first file beside `path` that was not there; a device is taken as it is, a folder refused."""
    if path.exists() and not path.is_file():
        return path, path.open("wb", buffering=BUFFER_BYTES)
    for free in beside(path):
        with suppress(FileExistsError):
            return free, free.open("xb", buffering=BUFFER_BYTES)
    raise AssertionError("numbers go on without end")


def _epoch() -> float:
    """Seconds since 1970 at which this machine's monotonic clock would have read 0, as its wall clock has it now."""
    return time.time() - time.monotonic()
