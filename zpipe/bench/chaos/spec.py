"""What `--chaos` says, as values; the grammar stands in the package's docstring."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

from zpipe.errors import ConfigError

TIME_UNITS = {"ms": 1e-3, "s": 1.0, "min": 60.0}
BANDWIDTH_UNITS = {"bit/s": 1.0, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9}
SHARE_UNITS = {"%": 0.01}
#: Faults closer than this are one fault to everybody concerned; a minute of them would only fill the timeline.
LEAST_SECONDS, MOST_SECONDS = 0.01, 1e6
#: No cable that a link could be made slower than.
MOST_BPS = 1e12

_QUANTITY = re.compile(r"([0-9]*\.?[0-9]+)([^0-9.]+)")


@dataclass(frozen=True, slots=True)
class Action:
    """What may stand in a clause of it.

    Attributes:
        target: `node`, `link`, or "" for none.
        duration: `must`, `may` or `never` say how long it lasts.
        amount: the units of what it needs besides, none for most.
        when: `must` or `may` say when, or `never`: it goes on all the time.
        example: a clause that is right.
    """

    target: str
    duration: str
    when: str
    example: str
    amount: tuple[str, ...] = ()


ACTIONS = {
    "kill": Action("node", "may", "must", "kill every 5s"),
    "terminate": Action("node", "may", "must", "terminate every 5s"),
    "stop": Action("node", "must", "must", "stop 2s every 5s"),
    "rolling": Action("", "never", "may", "rolling every 60s"),
    "down": Action("link", "must", "must", "down 2s every 5s"),
    "slow": Action("link", "must", "must", "slow 1Mbit/s 3s every 10s", tuple(BANDWIDTH_UNITS)),
    "reset": Action("link", "never", "must", "reset every 5s"),
    "flip": Action("link", "never", "must", "flip every 2s"),
    "corrupt": Action("link", "never", "never", "corrupt 1%", tuple(SHARE_UNITS)),
}
CALM = "calm"
WHENS = ("every", "poisson", "at")


@dataclass(frozen=True, slots=True)
class Clause:
    """One action, again and again.

    Attributes:
        action: a key of ACTIONS.
        amount: bits per second of `slow`, share of messages of `corrupt`; else 0.
        seconds: how long each lasts; 0 where it says nothing.
        node, link: the target; None = a random one, each time another.
        when: `every`, `poisson`, `at` (once), or "" for all the time.
        period_seconds: of that.
    """

    action: str
    amount: float = 0.0
    seconds: float = 0.0
    node: int | None = None
    link: tuple[int, int] | None = None
    when: str = ""
    period_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Chaos:
    """A whole spec.

    Attributes:
        text: as it was given.
        clauses: at least one.
        calm_seconds: without faults, at the begin of each cycle; 0 = never calm.
        cycle_seconds: from one calm to the next.
    """

    text: str
    clauses: tuple[Clause, ...]
    calm_seconds: float = 0.0
    cycle_seconds: float = math.inf

    @property
    def needs_relays(self) -> bool:
        """Whether some fault is a link's."""
        return any(ACTIONS[clause.action].target == "link" for clause in self.clauses)

    def at(self, fault_seconds: float) -> float:
        """When so many seconds with faults have passed, in seconds since the start: the calm before and between them added."""
        if not self.calm_seconds:
            return fault_seconds
        cycles = math.floor(fault_seconds / (self.cycle_seconds - self.calm_seconds))
        return fault_seconds + (cycles + 1) * self.calm_seconds

    def is_calm(self, seconds: float) -> bool:
        """Whether that time since the start is in a calm."""
        return bool(self.calm_seconds) and seconds % self.cycle_seconds < self.calm_seconds


def parse_chaos(text: str) -> Chaos:
    """Reads a spec.

    Raises:
        ConfigError: names the clause, what was found in it and what was expected.
    """
    clauses: list[Clause] = []
    calm: tuple[float, float] | None = None
    for part in filter(None, (part.split() for part in text.split(";"))):
        if part[0] != CALM:
            clauses.append(_Words(part).clause())
        elif calm is None:
            calm = _Words(part).calm()
        else:
            raise ConfigError(f"--chaos: found calm twice in {text!r}, expected it once")
    if not clauses:
        raise ConfigError(f"--chaos: found {text!r}, expected an action, such as '{ACTIONS['kill'].example}'")
    return Chaos(text, tuple(clauses), *calm) if calm else Chaos(text, tuple(clauses))


class _Words:
    """The words of one clause, taken one by one."""

    def __init__(self, words: list[str]) -> None:
        self._all = " ".join(words)
        self._left = words[::-1]

    def clause(self) -> Clause:
        name = self._left.pop()
        action = ACTIONS.get(name)
        if action is None:
            near = difflib.get_close_matches(name, [*ACTIONS, CALM], n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(f"--chaos: found action {name!r}, expected one of {', '.join([*ACTIONS, CALM])}{hint}")
        amount = self._amount(action)
        seconds = self._duration(action)
        node, link = self._target(action)
        when, period = self._when(action)
        if self._left:
            raise self._wrong(f"{self._left[-1]!r} there", "nothing more", action)
        return Clause(name, amount, seconds, node, link, when, period)

    def calm(self) -> tuple[float, float]:
        self._left.pop()
        example = Action("", "must", "may", "calm 60s every 120s")
        seconds = self._duration(example)
        when, period = self._when(example)
        if self._left or (when and when != "every"):
            raise self._wrong(f"{(self._left or [when])[-1]!r} there", "a length, and every so often", example)
        period = period or 2 * seconds
        if period <= seconds:
            raise self._wrong("no time for faults", "a cycle longer than its calm", example)
        return seconds, period

    def _amount(self, action: Action) -> float:
        if not action.amount:
            return 0.0
        units = {unit: factor for unit, factor in (BANDWIDTH_UNITS | SHARE_UNITS).items() if unit in action.amount}
        value = self._quantity(units)
        if value is None:
            raise self._wrong(repr(self._left[-1]) if self._left else "no amount", f"a number of {' or '.join(units)}", action)
        if not 0.0 < value <= (1.0 if action.amount == tuple(SHARE_UNITS) else MOST_BPS):
            expected = "above 0 and at most 100 %" if "%" in units else f"above 0 and at most {MOST_BPS:g} bit/s"
            raise self._wrong(repr(self._left[-1]), expected, action)
        self._left.pop()
        return value

    def _duration(self, action: Action) -> float:
        value = self._quantity(TIME_UNITS)
        if value is None:
            if action.duration == "must":
                raise self._wrong("no duration", "how long each lasts", action)
            return 0.0
        if action.duration == "never":
            raise self._wrong(f"duration {self._left[-1]}", "none: it takes no time", action)
        return self._seconds(action, value)

    def _target(self, action: Action) -> tuple[int | None, tuple[int, int] | None]:
        if not self._left or self._left[-1] not in ("node", "link"):
            return None, None
        kind = self._left.pop()
        if kind != action.target:
            raise self._wrong(f"a {kind}", f"a {action.target}" if action.target else "no target", action)
        word = self._left.pop() if self._left else ""
        found = re.fullmatch(r"(\d{1,6})" if kind == "node" else r"(\d{1,6})-(\d{1,6})", word)
        if found is None:
            raise self._wrong(f"{kind} {word!r}", "node 2" if kind == "node" else "link 0-1", action)
        ranks = sorted(map(int, found.groups()))
        return (ranks[0], None) if kind == "node" else (None, (ranks[0], ranks[1]))

    def _when(self, action: Action) -> tuple[str, float]:
        if not self._left or self._left[-1] not in WHENS:
            if action.when == "must":
                raise self._wrong(f"{self._left[-1]!r}" if self._left else "no time", "every 5s, poisson 5s or at 5s", action)
            return "", 0.0
        when = self._left.pop()
        if action.when == "never":
            raise self._wrong(f"{when!r}", "none: it goes on all the time", action)
        value = self._quantity(TIME_UNITS)
        if value is None:
            raise self._wrong(f"{when} {self._left[-1] if self._left else ''}".strip(), f"a time, such as {when} 5s", action)
        return when, self._seconds(action, value)

    def _seconds(self, action: Action, value: float) -> float:
        word = self._left.pop()
        if not LEAST_SECONDS <= value <= MOST_SECONDS:
            raise self._wrong(word, f"{LEAST_SECONDS:g} to {MOST_SECONDS:g} s", action)
        return value

    def _quantity(self, units: dict[str, float]) -> float | None:
        """The next word as a number of these units, left where it is; None where it is none."""
        found = _QUANTITY.fullmatch(self._left[-1]) if self._left else None
        return float(found[1]) * units[found[2]] if found and found[2] in units else None

    def _wrong(self, found: str, expected: str, action: Action) -> ConfigError:
        return ConfigError(f"--chaos: {self._all!r}: found {found}, expected {expected}; for instance '{action.example}'")
