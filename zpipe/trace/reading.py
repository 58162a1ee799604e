"""Reads a trace: its header, and its rounds one after the other."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, TypeAlias

from zpipe.errors import ConfigError
from zpipe.policy import NodePolicy
from zpipe.policy.messages import Command, Event
from zpipe.trace.codec import Reader
from zpipe.trace.recorder import VERSION

#: Commands, or why there are none (`recorder.raised`).
Answer: TypeAlias = "list[Command] | dict[str, str]"
Round: TypeAlias = "tuple[float, list[Event], Answer]"


class Trace:
    """An open trace. Use it in a `with`.

    Args:
        path: the file.

    Attributes:
        rank: of the node.
        version: of the zpipe that wrote it.
        epoch: wall time, seconds since 1970, at which the node's clock read 0; None in a trace of an older zpipe.
        end: #: how it ends, once `rounds` is through; "": without its end mark, of a node that was killed or still runs.

    Raises:
        ConfigError: the file is no trace, or from a zpipe with other events, commands or strategies; so do its methods.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end: Literal["closed", "limit", ""] = ""
        self._file = _opened(path)
        try:
            self._lines = _lines(path, self._file)
            self._header = _header(path, next(self._lines, (1, None))[1])
            with _told_where(path, 1):
                self._reader = Reader(self._header["fields"])
        except BaseException:
            self._file.close()
            raise
        self.rank: int = self._header["rank"]
        self.version: str = self._header["zpipe"]
        epoch = self._header.get("epoch")
        self.epoch: float | None = epoch if isinstance(epoch, float) else None

    def __enter__(self) -> Trace:  # noqa: PYI034 - Self is Python 3.11
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def fresh_policy(self) -> NodePolicy:
        """The node's policy as it was before the first round."""
        with _told_where(self.path, 1):
            config = self._reader.config(self._header["config"])
            try:
                return NodePolicy(config, rng=random.Random(self._header["seed"]))
            except (AssertionError, KeyError, TypeError, ValueError) as exc:
                raise ConfigError(
                    f"found a configuration that this policy refuses ({type(exc).__name__}: {exc}), expected one of zpipe's; "
                    f"replay it with zpipe {self.version}"
                ) from exc

    def rounds(self) -> Iterator[Round]:
        """(now, events, commands) of every whole round; where the policy broke, what it raised instead of commands. Once."""
        for number, line in self._lines:
            if isinstance(line, dict):
                self.end = "limit" if line.get("end") == "limit" else "closed"
                return
            with _told_where(self.path, number):
                found = _round(self._reader, line)
            yield found

    def read_share(self) -> float:
        """How much of the file was read, 0..1."""
        size = self.path.stat().st_size
        return min(1.0, self._file.tell() / size) if size else 1.0


def read_rounds(path: Path) -> Iterator[Round]:
    """The rounds of a trace.

    Raises:
        ConfigError: as Trace.
    """
    with Trace(path) as trace:
        yield from trace.rounds()


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as exc:
        raise ConfigError(f"{path}: found that it cannot be read ({exc.strerror}), expected a trace; name another file") from exc


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Whole lines with their numbers, from 1; the piece that a killed node left at the end is none."""
    number = 0
    while (line := file.readline()).endswith(b"\n"):  # iterating over it would forbid `tell`
        number += 1
        try:
            yield number, json.loads(line)
        except ValueError as exc:
            raise ConfigError(f"{path}: line {number}: found text that is no JSON, expected a line of a trace") from exc


@contextmanager
def _told_where(path: Path, number: int) -> Iterator[None]:
    try:
        yield
    except ConfigError as exc:
        raise ConfigError(f"{path}: line {number}: {exc}") from exc


def _header(path: Path, header: Any) -> dict[str, Any]:
    found = header.get("trace") if isinstance(header, dict) else None
    if found != VERSION:
        what = f"trace version {found}" if found is not None else "no header of a trace"
        raise ConfigError(f"{path}: found {what}, expected trace version {VERSION}; `zpipe node --trace` writes one")
    kinds = {"zpipe": str, "rank": int, "seed": int, "fields": dict, "config": list}
    wrong = [key for key, kind in kinds.items() if not isinstance(header.get(key), kind)]
    if wrong:
        raise ConfigError(f"{path}: line 1: found no usable {', '.join(wrong)}, expected the header of a trace; record it again")
    whole: dict[str, Any] = header
    return whole


def _round(reader: Reader, line: Any) -> Round:
    if not isinstance(line, list) or len(line) != 3 or not isinstance(line[0], (int, float)):
        raise ConfigError("found another shape, expected [now, events, commands]")
    now, events, commands = line
    if isinstance(commands, dict) and isinstance(commands.get("raised"), str):
        return now, reader.events(events), commands
    return now, reader.events(events), reader.commands(commands)
