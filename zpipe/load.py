"""What is offered, and when: pure, so that a live run and a simulated one with the same seed offer the same at the same times."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice, takewhile
from pathlib import Path

from zpipe.errors import ConfigError

POISSON, CONSTANT = "poisson", "constant"


@dataclass(frozen=True, slots=True)
class Span:
    """How long a load lasts: so many samples, or so many seconds, whichever ends first."""

    samples: float = math.inf
    seconds: float = math.inf

    def over(self, *, offered: int, elapsed: float) -> bool:
        """Whether nothing more is to be offered, `elapsed` seconds after the start."""
        return offered >= self.samples or elapsed >= self.seconds

    def of(self, times: Iterable[float]) -> Iterator[float]:
        """Those of the arrival times that are in it."""
        within = takewhile(lambda time: time < self.seconds, times)
        return within if math.isinf(self.samples) else islice(within, int(self.samples))


def run_span(*, count: int | None, duration: float | None, arrivals: str, evaluation_samples: int) -> Span:
    """How long a run lasts; where neither is given, as long as the file of arrival times, or the evaluation set once."""
    if count is None and duration is None:
        return Span(samples=evaluation_samples) if arrivals in (POISSON, CONSTANT) else Span()
    return Span(count or math.inf, duration or math.inf)


def samples_of(severity: Sequence[int], wanted: Sequence[int] | None) -> Sequence[int]:
    """Indices of the evaluation samples of the wanted severities; all of them where none are named.

    Raises:
        ConfigError: a severity is wanted that no sample has.
    """
    if wanted is None:
        return range(len(severity))
    known = sorted(set(severity))
    strange = [level for level in wanted if level not in known]
    if strange or not wanted:
        found = ", ".join(map(str, strange)) or "none"
        raise ConfigError(f"--severity: found {found}, expected some of {', '.join(map(str, known))}, as the evaluation set has")
    chosen = frozenset(wanted)
    return [index for index, level in enumerate(severity) if level in chosen]


class Order:
    """Evaluation samples again and again, each time in another seeded order.

    Args:
        samples: how many there are, or which (indices).
        seed: of all orders.
    """

    def __init__(self, samples: int | Sequence[int], *, seed: int) -> None:
        self._rng = random.Random(seed)
        self._indices = list(range(samples) if isinstance(samples, int) else samples)
        self._left = 0  #: of this round; they stand first

    def next(self) -> int:
        """The next index: one step of `random.shuffle`, since many sources need only a few of many samples."""
        self._left = last = (self._left or len(self._indices)) - 1
        indices = self._indices
        if last:
            other = self._rng.randrange(last + 1)
            indices[last], indices[other] = indices[other], indices[last]
        return indices[last]


# ---- arrivals: rising seconds since the start of the load ----------------------------------------


def poisson(rate_hz: float, *, seed: int) -> Iterator[float]:
    """A Poisson process of so many samples a second, without end."""
    rng = random.Random(seed)
    time = 0.0
    while True:
        time += rng.expovariate(rate_hz)
        yield time


def constant(rate_hz: float) -> Iterator[float]:
    """One sample every 1 / rate seconds, the first at once, without end."""
    return (number / rate_hz for number in count())


#: The last arrival a file may name, as for --duration.
MOST_SECONDS = 1e6


def read_trace(path: Path) -> array[float]:
    """Arrival times from a file: one a line, in seconds, not falling; blank lines and lines that begin with # are passed over.

    Raises:
        ConfigError: it cannot be read, holds none, or a line is no such time; names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        expected = f"{POISSON}, {CONSTANT}, or a file of arrival times"
        raise ConfigError(f"--arrivals: found {str(path)!r}, which cannot be read ({exc}), expected {expected}") from exc
    times = array("d")
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            times.append(_trace_time(text, last=times[-1] if times else 0.0, where=f"{path}:{number}"))
    if not times:
        raise ConfigError(f"{path}: found no arrival times, expected one a line, in seconds")
    return times


def _trace_time(text: str, *, last: float, where: str) -> float:
    try:
        time = float(text)
    except ValueError:
        time = math.nan
    if not last <= time <= MOST_SECONDS:
        least = f"a number of seconds from {last:g} (arrival times do not fall) to {MOST_SECONDS:g}"
        raise ConfigError(f"{where}: found {text[:40]!r}, expected {least}; correct the file")
    return time


def arrival_times(arrivals: str, rate_hz: float | None, *, seed: int) -> Iterator[float] | None:
    """Arrival times as a command line names them.

    Args:
        arrivals: `poisson`, `constant`, or a file for `read_trace`.
        rate_hz: samples per second; None or `inf` where a loop is closed, or with a file.
        seed: of the Poisson process.

    Returns:
        None for a closed loop: neither a rate nor a file.

    Raises:
        ConfigError: a rate is missing, or one stands beside a file.
    """
    if arrivals == POISSON and (rate_hz is None or math.isinf(rate_hz)):
        return None
    if arrivals in (POISSON, CONSTANT):
        if rate_hz is None or math.isinf(rate_hz):
            raise ConfigError(f"--arrivals: found {arrivals} without a rate, expected --rate HZ beside it")
        return poisson(rate_hz, seed=seed) if arrivals == POISSON else constant(rate_hz)
    if rate_hz is not None:
        raise ConfigError(f"--arrivals: found file {arrivals!r} and --rate {rate_hz:g}, expected one of the two")
    return iter(read_trace(Path(arrivals)))
