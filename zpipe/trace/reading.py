"""Reads a trace: its header, and its rounds one after the other."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, TypeAlias

import msgpack

from zpipe.errors import ConfigError
from zpipe.policy import NodePolicy
from zpipe.policy.messages import Command, Event
from zpipe.trace.codec import Reader
from zpipe.trace.recorder import VERSION

#: Of one round, at most.
MOST_BYTES = 1 << 26
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
            self._parts = _parts(path, self._file)
            self._header = _header(path, next(self._parts, None))
            with _told_where(path, -1):
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
        with _told_where(self.path, -1):
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
        for number, part in self._numbered():
            with _told_where(self.path, number):
                found = _round(self._reader, part)
            yield found

    def plain(self) -> Iterator[Any]:
        """The header, every whole round and the end mark as they are written, of JSON's types; infinities as strings. Once."""
        yield _finite(self._header)
        for _, part in self._numbered():
            yield _finite(part)
        if self.end:
            yield {"end": self.end}

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        for number, part in enumerate(self._parts):
            if isinstance(part, dict):
                self.end = "limit" if part.get("end") == "limit" else "closed"
                return
            yield number, part

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


def _parts(path: Path, file: BinaryIO) -> Iterator[Any]:
    """Whole parts of a trace; the piece that a killed node left at the end is none."""
    unpacker = msgpack.Unpacker(file, strict_map_key=False, unicode_errors="surrogatepass", max_buffer_size=MOST_BYTES)
    number = -1  # the header comes before round 0
    while True:
        try:
            yield unpacker.unpack()
        except msgpack.OutOfData:
            return
        except (msgpack.UnpackException, ValueError) as exc:
            raise ConfigError(f"{path}: {_place(number)}: found bytes that mean nothing, expected a part of a trace") from exc
        number += 1


def _place(number: int) -> str:
    return "its header" if number < 0 else f"round {number}"


@contextmanager
def _told_where(path: Path, number: int) -> Iterator[None]:
    try:
        yield
    except ConfigError as exc:
        raise ConfigError(f"{path}: {_place(number)}: {exc}") from exc


def _header(path: Path, header: Any) -> dict[str, Any]:
    found = header.get("trace") if isinstance(header, dict) else None
    if found != VERSION:
        # Version 1 was JSON, whose first byte would be this number.
        what = (
            f"trace version {found}" if found is not None else "trace version 1" if header == ord("{") else "no header of a trace"
        )
        raise ConfigError(f"{path}: found {what}, expected trace version {VERSION}; `zpipe node --trace` writes one")
    kinds = {"zpipe": str, "rank": int, "seed": int, "fields": dict, "config": list}
    wrong = [key for key, kind in kinds.items() if not isinstance(header.get(key), kind)]
    if wrong:
        raise ConfigError(
            f"{path}: its header: found no usable {', '.join(wrong)}, expected the header of a trace; record it again"
        )
    whole: dict[str, Any] = header
    return whole


def _finite(plain: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(plain, float):
        return plain if math.isfinite(plain) else str(plain)
    if isinstance(plain, list):
        return [_finite(part) for part in plain]
    if isinstance(plain, dict):
        return {str(key): _finite(part) for key, part in plain.items()}
    return plain


def _round(reader: Reader, part: Any) -> Round:
    if not isinstance(part, list) or len(part) != 3 or not isinstance(part[0], (int, float)):
        raise ConfigError("found another shape, expected [now, events, commands]")
    now, events, commands = part
    if isinstance(commands, dict) and isinstance(commands.get("raised"), str):
        return now, reader.events(events), commands
    return now, reader.events(events), reader.commands(commands)
