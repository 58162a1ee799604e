"""What is offered, and when: pure, so that a live run and a simulated one with the same seed offer the same at the same times."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice, takewhile
from pathlib import Path

from zpipe.errors import ConfigError
from zpipe.topology import ARRIVALS, LIVE, RATE_HZ, SourceSpec, Topology

_, POISSON, CONSTANT = ARRIVALS
#: How long samples come at a rate where nothing says for how long.
RATED_SECONDS = 10.0
#: Seeds of a run's further sources are this far apart: nobody tries as many neighbouring seeds.
SEED_STEP = 1_000_003


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


def run_span(
    *, count: int | None, duration: float | None, arrivals: str, evaluation_samples: int, loads: Sequence[SourceLoad] = ()
) -> Span:
    """How long a run lasts; where neither is given, as long as the files of arrival times, or the evaluation set once.

    Where sources have a pace of their own, in `loads`, that is RATED_SECONDS: the evaluation set says nothing of a rate.
    """
    if count is not None or duration is not None:
        return Span(count or math.inf, duration or math.inf)
    if arrivals not in (POISSON, CONSTANT) or (loads and all(load.from_file for load in loads)):
        return Span()
    return Span(seconds=RATED_SECONDS) if any(load.own_pace for load in loads) else Span(samples=evaluation_samples)


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


def read_trace(path: Path, *, said: str = "--arrivals") -> array[float]:
    """Arrival times from a file: one a line, in seconds, not falling; blank lines and lines that begin with # are passed over.

    Args:
        path: of the file.
        said: what named it, for the error.

    Raises:
        ConfigError: it cannot be read, holds none, or a line is no such time; names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        expected = f"{POISSON}, {CONSTANT}, or a file of arrival times"
        raise ConfigError(f"{said}: found {str(path)!r}, which cannot be read ({exc}), expected {expected}") from exc
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


# ---- several sources -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceLoad:
    """When the samples of one source come.

    Attributes:
        arrivals: `live` is a closed loop; `poisson`, `constant`, or a file of arrival times.
        rate_hz: samples a second of `poisson` and `constant`; of `live` None for a window, `inf` for as fast as admission lets in.
        seed: of the order of its samples, and of their arrivals.
        turn, turns: of a file's times it takes each `turns`-th, from number `turn` on.
        own_pace: its pace is not that of the whole run, but given for this source.
    """

    arrivals: str = LIVE
    rate_hz: float | None = None
    seed: int = 0
    turn: int = 0
    turns: int = 1
    own_pace: bool = False

    @property
    def from_file(self) -> bool:
        """Whether it takes its times from a file."""
        return self.arrivals not in ARRIVALS

    def times(self) -> Iterator[float] | None:
        """Seconds from the start of the run at which samples come; None for a closed loop."""
        if self.arrivals == LIVE:
            return None
        times = arrival_times(self.arrivals, self.rate_hz, seed=self.seed)
        return None if times is None else islice(times, self.turn, None, self.turns)

    def window(self, window: float) -> float:
        """Samples under way in its closed loop, where a window has so many."""
        return window if self.rate_hz is None else math.inf


def source_loads(
    topology: Topology,
    *,
    arrivals: str = POISSON,
    rate_hz: float | None = None,
    rates: Mapping[str | int, float] | None = None,
    seed: int = 0,
) -> dict[int, SourceLoad]:
    """When samples come at each source, {rank: its load}.

    In this order: a rate given for the source alone; the whole run's rate, in equal shares, or its file, taken in turns; what the
    topology says of the source.

    Args:
        topology: its sources.
        arrivals: of the whole run, `poisson`, `constant`, or a file.
        rate_hz: of all sources together; None where nothing is said.
        rates: {name or rank of a source: samples a second}.
        seed: of the first source; a single one has the run's own, whether live or simulated.

    Raises:
        ConfigError: a rate is missing or cannot be, a source does not exist or is named twice, or a file cannot be read.
    """
    own = _own_rates(topology, rates or {})
    whole = rate_hz is not None or arrivals not in (POISSON, CONSTANT)
    if own and whole:
        found = f"--rate {rate_hz:g}" if rate_hz is not None else f"--arrivals {arrivals}"
        raise ConfigError(f"--source-rate: found {found} beside it, which is for all sources together; expected one of the two")
    turns = len(topology.sources)
    if whole:
        arrival_times(arrivals, rate_hz, seed=seed)  # what cannot be is refused
    loads = {}
    for turn, spec in enumerate(topology.sources):
        mine = seed + SEED_STEP * turn
        if whole and rate_hz is None:
            loads[spec.rank] = SourceLoad(arrivals, None, mine, turn, turns)
        elif rate_hz is not None:
            closed = arrivals == POISSON and math.isinf(rate_hz)
            loads[spec.rank] = SourceLoad(LIVE if closed else arrivals, rate_hz / turns, mine)
        else:
            loads[spec.rank] = _own_load(topology, spec, arrivals, own.get(spec.rank, spec.rate_hz), mine)
    return loads


def _own_load(topology: Topology, spec: SourceSpec, arrivals: str, rate_hz: float | None, seed: int) -> SourceLoad:
    """Of a source that has a pace of its own, or none."""
    if rate_hz is not None:
        process = CONSTANT if CONSTANT in (arrivals, spec.arrivals) else POISSON
        return SourceLoad(process, rate_hz, seed, own_pace=True)
    if arrivals == CONSTANT:
        alone = len(topology.sources) == 1
        expected = "--rate HZ beside it" if alone else f"--rate HZ, or --source-rate {spec.name}=HZ, beside it"
        raise ConfigError(f"--arrivals: found {arrivals} without a rate, expected {expected}")
    if spec.arrivals == LIVE:
        return SourceLoad(seed=seed)
    # Beside the topology file first, as a bundle; else where whoever runs the bench stands.
    beside = topology.path.parent / spec.arrivals if topology.path is not None else Path(spec.arrivals)
    file = beside if beside.is_file() else Path(spec.arrivals)
    read_trace(file, said=f"{topology.path or topology.name}: source {spec.name}: arrivals")
    return SourceLoad(str(file.absolute()), None, seed, own_pace=True)


def _own_rates(topology: Topology, rates: Mapping[str | int, float]) -> dict[int, float]:
    """{rank: samples a second} of the sources that have a rate of their own."""
    own: dict[int, float] = {}
    for name, rate in rates.items():
        spec = topology.source_named(name, said="--source-rate")
        if spec.rank in own:
            raise ConfigError(f"--source-rate: found source {spec.name} (rank {spec.rank}) twice, expected each once")
        if isinstance(rate, bool) or not RATE_HZ[0] <= rate <= RATE_HZ[1]:
            expected = f"from {RATE_HZ[0]:g} to {RATE_HZ[1]:g} samples a second"
            raise ConfigError(f"--source-rate: found {rate!r} for source {spec.name}, expected {expected}")
        own[spec.rank] = float(rate)
    return own


def shares(total: float, loads: Sequence[SourceLoad]) -> list[float]:
    """How many of `total` samples fall to each source: by their rates, so that all end together, or evenly where some have none.

    Whole numbers that add up to `total`; the first ones take one more where it does not divide.
    """
    if math.isinf(total):
        return [math.inf] * len(loads)
    rates = [load.rate_hz or math.inf for load in loads]
    rates = [1.0] * len(loads) if math.inf in rates else rates
    exact = [total * rate / sum(rates) for rate in rates]
    whole = [math.floor(part + 1e-9) for part in exact]
    by_rest = sorted(range(len(loads)), key=lambda index: (round(whole[index] - exact[index], 9), index))
    for index in by_rest[: int(total) - sum(whole)]:
        whole[index] += 1
    return [float(part) for part in whole]
