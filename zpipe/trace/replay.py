"""Feeds a trace to a fresh policy and compares what it answers."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from zpipe.policy import NodePolicy
from zpipe.policy.messages import Event
from zpipe.trace.codec import pack
from zpipe.trace.reading import Answer, Trace
from zpipe.trace.recorder import raised

#: Of a value that differs no more is shown.
SHOWN_CHARACTERS = 160

_ENDED = {
    "closed": "when the node was closed",
    "limit": "at its size limit",
    "": "without its end mark, since the node was killed or still runs",
}

#: Where two answers differ, what the trace has there, and what the replay.
Found: TypeAlias = "tuple[str, str, str] | None"


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a replay left its trace for the first time.

    Attributes:
        round: from 0; it stands in line `round + 2` of `zpipe trace show`.
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
    with Trace(path) as trace:
        result = ReplayResult(trace.rank, trace.version)
        policy = trace.fresh_policy()
        for now, events, expected in trace.rounds():
            _compare(result, policy, now, events, expected)
            if result.difference is not None:
                return result
    result.ended = result.ended or _ENDED[trace.end]
    return result


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


# ---- comparing ---------------------------------------------------------------------------------


def first_difference(expected: Answer, found: Answer) -> Found:
    """The first command, and the first field in it, in which two answers differ; None where they are the same to the last bit."""
    if pack(expected) == pack(found):
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
    if pack(expected) == pack(found):
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
