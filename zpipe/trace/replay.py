"""Feeds a trace to a fresh policy and compares what it answers."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from zpipe.errors import ConfigError
from zpipe.policy import NodePolicy
from zpipe.policy.messages import Command, Event
from zpipe.trace.codec import Reader, to_json
from zpipe.trace.recorder import VERSION, raised

#: Of a value that differs no more is shown.
SHOWN_CHARACTERS = 160

#: Commands, or why there are none (`recorder.raised`).
Answer: TypeAlias = "list[Command] | dict[str, str]"
#: Where two answers differ, what the trace has there, and what the replay.
Found: TypeAlias = "tuple[str, str, str] | None"


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a replay left its trace for the first time.

    Attributes:
        round: from 0; it stands in line `round + 2` of the trace.
        now: the round's time on the node's clock, seconds.
        events: {kind: how many} of the round.
        where: which command, from 0, and which field of it.
        expected, found: the trace's value and the replay's, shortened.
    """

    round: int
    now: float
    events: dict[str, int]
    where: str
    expected: str
    found: str

    def __str__(self) -> str:
        heard = ", ".join(f"{count} {kind}" for kind, count in self.events.items()) or "no event"
        return f"round {self.round} at {self.now:.6f} s ({heard}): {self.where}: expected {self.expected}, found {self.found}"


@dataclass(slots=True)
class ReplayResult:
    """What a replay showed.

    Attributes:
        rank: of the node.
        version: of the zpipe that wrote the trace.
        rounds, events, commands: found equal.
        ended: how the trace ends, for people; empty where a difference came first.
        difference: the first one; None: there is none.
    """

    rank: int
    version: str
    rounds: int = 0
    events: int = 0
    commands: int = 0
    ended: str = ""
    difference: Difference | None = None


def replay(path: Path) -> ReplayResult:
    """Builds a policy from a trace's header and tells it every round again, up to the first difference.

    A trace that stops in the middle, of a node that was killed or still runs, is compared as far as it goes.

    Raises:
        ConfigError: the file is no trace, or from a zpipe with other events, commands or strategies.
    """
    with _opened(path) as file:
        lines = _lines(path, file)
        header = _header(path, next(lines, (1, None))[1])
        result = ReplayResult(header["rank"], header["zpipe"])
        with _told_where(path, 1):
            reader = Reader(header["fields"])
            policy = _fresh_policy(reader, header)
        for number, line in lines:
            if isinstance(line, dict):
                result.ended = result.ended or ("at its size limit" if line.get("end") == "limit" else "when the node was closed")
                return result
            with _told_where(path, number):
                now, events, expected = _round(reader, line)
            _compare(result, policy, now, events, expected)
            if result.difference is not None:
                return result
    result.ended = result.ended or "without its end mark, since the node was killed or still runs"
    return result


def read_rounds(path: Path) -> Iterator[tuple[float, list[Event], Answer]]:
    """(now, events, commands) of every whole round of a trace; where the policy broke, what it raised instead of commands.

    Raises:
        ConfigError: as `replay`.
    """
    with _opened(path) as file:
        lines = _lines(path, file)
        reader = Reader(_header(path, next(lines, (1, None))[1])["fields"])
        for number, line in lines:
            if isinstance(line, dict):
                return
            with _told_where(path, number):
                found = _round(reader, line)
            yield found


def _compare(result: ReplayResult, policy: NodePolicy, now: float, events: list[Event], expected: Answer) -> None:
    """Plays one round and counts it, or keeps the difference."""
    kinds = Counter(type(event).__name__ for event in events)
    try:
        found: Answer = policy.handle_all(events, now=now)
    except Exception as exc:  # whatever it was, the node that was traced met it, too; else it is the difference
        found = raised(exc)
    difference = first_difference(expected, found)
    if difference is not None:
        result.difference = Difference(result.rounds, now, dict(kinds), *difference)
        return
    result.rounds += 1
    result.events += len(events)
    if isinstance(expected, dict):
        result.ended = f"when its policy broke, {expected['raised']}"
    else:
        result.commands += len(expected)


# ---- reading -----------------------------------------------------------------------------------


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as exc:
        raise ConfigError(f"{path}: found that it cannot be read ({exc.strerror}), expected a trace; name another file") from exc


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Whole lines with their numbers, from 1; the piece that a killed node left at the end is none."""
    for number, line in enumerate(file, start=1):
        if not line.endswith(b"\n"):
            return
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


def _fresh_policy(reader: Reader, header: dict[str, Any]) -> NodePolicy:
    config = reader.config(header["config"])
    try:
        return NodePolicy(config, rng=random.Random(header["seed"]))
    except (AssertionError, KeyError, TypeError, ValueError) as exc:
        raise ConfigError(
            f"found a configuration that this policy refuses ({type(exc).__name__}: {exc}), expected one of zpipe's; "
            f"replay it with zpipe {header['zpipe']}"
        ) from exc


def _round(reader: Reader, line: Any) -> tuple[float, list[Event], Answer]:
    if not isinstance(line, list) or len(line) != 3 or not isinstance(line[0], (int, float)):
        raise ConfigError("found another shape, expected [now, events, commands]")
    now, events, commands = line
    if isinstance(commands, dict) and isinstance(commands.get("raised"), str):
        return now, reader.events(events), commands
    return now, reader.events(events), reader.commands(commands)


# ---- comparing ---------------------------------------------------------------------------------


def first_difference(expected: Answer, found: Answer) -> Found:
    """The first command, and the first field in it, in which two answers differ; None where they are the same to the last bit."""
    if to_json(expected) == to_json(found):
        return None
    if isinstance(expected, dict) or isinstance(found, dict):
        return "answer", _shown(expected), _shown(found)
    for index, (one, other) in enumerate(itertools.zip_longest(expected, found)):
        where = f"command {index}"
        if one is None or other is None:
            return where, _shown(one) if one else "none", _shown(other) if other else "none"
        difference = _inside(one, other, f"{where}, {type(one).__name__}" if type(one) is type(other) else where)
        if difference is not None:
            return difference
    raise AssertionError("answers that differ have a command that does")


def _inside(expected: Any, found: Any, where: str) -> Found:
    """Goes down while both have the same parts."""
    if to_json(expected) == to_json(found):
        return None
    ones, others = _parts(expected), _parts(found)
    if type(expected) is type(found) and ones.keys() == others.keys():
        for name, one in ones.items():
            difference = _inside(one, others[name], where + name)
            if difference is not None:
                return difference
    return where, _shown(expected), _shown(found)


def _parts(value: Any) -> dict[str, Any]:
    """What a value is made of, by what leads there; nothing for plain values."""
    if dataclasses.is_dataclass(value):
        return {f".{field.name}": getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {f"[{key!r}]": part for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return {f"[{index}]": part for index, part in enumerate(value)}
    return {}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
