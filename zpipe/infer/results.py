"""The lines of the answers: written as they come, and found again by a run that goes on where an earlier one ended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xxhash

from zpipe.errors import ConfigError
from zpipe.infer.items import Answer

#: What each of our lines begins with.
_BEGINS = b'{"input": "'


def to_line(answer: Answer) -> dict[str, Any]:
    """One answer as it is written: `input`, `frame` and `seconds` if there are any, `outcome`, then the result or its `cause`.

    A result lists under `missing` the parts that were not in, if there were such.
    """
    entry, outcome = answer.entry, answer.outcome
    line: dict[str, Any] = {"input": entry.name}
    if entry.frame is not None:
        line["frame"] = entry.frame
    if entry.seconds is not None:
        line["seconds"] = round(entry.seconds, 4)
    line["outcome"] = outcome.kind
    if outcome.result is not None:
        result = outcome.result
        line |= {"label": result.class_name, "confidence": round(result.confidence, 6), "exit_stage": result.exit_stage}
        if result.missing:
            line["missing"] = list(result.missing)
    else:
        line["cause"] = outcome.cause
    return {**line, "latency_ms": round(1e3 * outcome.latency_seconds, 3)}


class Results:
    """A file of lines, one for each input. Use as `with`.

    Attributes:
        count: lines in it.
    """

    def __init__(self, file: Path, *, resume: bool) -> None:
        """Opens it.

        Raises:
            ConfigError: it cannot be written, it holds something and is not to be resumed, or what it holds is not ours.
        """
        self._file = file
        self.count = 0
        self._known = np.zeros(0, np.uint64)
        try:
            there = file.stat().st_size if file.exists() else 0
            if there and not resume:
                raise ConfigError(
                    f"{file}: found {there} bytes in it, expected a new file; add --resume to go on, or choose another name"
                )
            end = self._read() if there else 0
            self._stream = file.open("r+b" if file.exists() else "wb")
            self._stream.seek(end)
            self._stream.truncate()
        except OSError as exc:
            raise ConfigError(f"{file}: found that it cannot be written ({exc.strerror}), expected a file; choose another") from exc

    def __enter__(self) -> Results:  # noqa: PYI034 - Self is Python 3.11
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()

    def holds(self, name: str, frame: int | None) -> bool:
        """Whether a line of an earlier run is about it."""
        wanted = _key(name, frame)
        place = int(np.searchsorted(self._known, wanted))
        return place < len(self._known) and bool(self._known[place] == wanted)

    def write(self, line: dict[str, Any]) -> None:
        """Adds a line, which is on its way to the disk when this returns.

        Raises:
            ConfigError: the disk is full.
        """
        try:
            self._stream.write(json.dumps(line).encode("ascii") + b"\n")
            self._stream.flush()
        except OSError as exc:
            raise ConfigError(f"{self._file}: found that it cannot be written ({os.strerror(exc.errno or 0)}); make room") from exc
        self.count += 1

    def _read(self) -> int:
        """Learns what is there; bytes of the whole lines. A last line that was torn is done again."""
        end = 0

        def keys() -> Iterator[np.uint64]:
            nonlocal end
            with self._file.open("rb") as stream:
                for number, text in enumerate(stream, 1):
                    if not text.endswith(b"\n"):
                        if not (text.startswith(_BEGINS) or _BEGINS.startswith(text)):
                            raise self._foreign(number)
                        return
                    yield self._parsed(number, text)
                    end += len(text)

        # Eight bytes a line: of a million inputs the chance that two share them is 3e-8.
        self._known = np.unique(np.fromiter(keys(), np.uint64))
        return end

    def _parsed(self, number: int, text: bytes) -> np.uint64:
        try:
            line = json.loads(text)
            name, frame = line["input"], line.get("frame")
        except (ValueError, TypeError, KeyError, AttributeError):
            raise self._foreign(number) from None
        if not isinstance(name, str) or not (frame is None or isinstance(frame, int)):
            raise self._foreign(number)
        self.count += 1
        return _key(name, frame)

    def _foreign(self, number: int) -> ConfigError:
        return ConfigError(f"{self._file}: line {number}: found no answer of `zpipe infer`, expected one; choose another file")


def _key(name: str, frame: int | None) -> np.uint64:
    return np.uint64(xxhash.xxh3_64_intdigest(json.dumps([name, frame]).encode()))
