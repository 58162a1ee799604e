"""From the plain values of `source:` and `sources:` to checked `SourceSpec`s; every default is the one of its dataclass."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

from zpipe.topology.reader import TIME_UNITS, At, Fields, integer, number, one_of, quantity
from zpipe.topology.spec import ARRIVALS, LIVE, POISSON, RATE_HZ, AdmissionSpec, SourceSpec, WhenFull, default_name

WHEN_FULL: tuple[WhenFull, ...] = ("block", "latest", "deadline")
MAX_PRIORITY = 255
DEADLINE_SECONDS = (1e-6, 1e6)
RATE_UNITS = {"/s": 1.0, "Hz": 1.0, "kHz": 1e3, "/min": 1.0 / 60.0}
#: A source whose priority its weight says; `_classed` puts a class in its place.
_BY_WEIGHT = -1
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")

Option = Callable[[At, object], float]


def _positive(at: At, value: object) -> float:
    return number(at, value, valid=lambda x: x > 0.0, expected="a number above 0")


def _fraction(at: At, value: object) -> float:
    return number(at, value, valid=lambda x: 0.0 < x < 1.0, expected="a number above 0 and below 1")


def _count(at: At, value: object) -> float:
    return integer(at, value, minimum=1)


def _duration(at: At, value: object) -> float:
    return quantity(at, value, TIME_UNITS)


_BANDS: Mapping[str, Option] = {"t_q1": _count, "t_q2": _count, "alpha": _fraction, "beta": _fraction, "zeta": _fraction}
#: {admission strategy: {option: its reader}}: the keyword arguments of the strategies in zpipe.policy.admission (a test compares).
ADMISSION_OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "fixed": {"rate_hz": _positive},
    "mdi-rate": {"rate_hz": _positive, "min_hz": _positive, "max_hz": _positive, **_BANDS},
    "mdi-threshold": _BANDS,
    "aimd": {
        "window": _positive,
        "max_window": _positive,
        "decrease": _fraction,
        "target_factor": _positive,
        "min_target_seconds": _duration,
    },
}


def parse_sources(top: Fields, nodes: int) -> tuple[SourceSpec, ...]:
    """The sources that a topology file names, by rank; rank 0 where it names none.

    Args:
        top: the whole file.
        nodes: how many there are.

    Raises:
        TopologyError: something is wrong.
    """
    if "source" in top and "sources" in top:
        raise (top.at / "sources").error("both source and sources", "one of the two")
    if "source" in top:
        return _classed(top.at, [_source(top.at / "source", top.raw("source"), nodes, alone=True)])
    if "sources" not in top:
        return (SourceSpec(0),)
    sources: list[SourceSpec] = []
    for here, entry in top.items("sources"):
        source = _source(here, entry, nodes)
        if any(other.rank == source.rank for other in sources):
            raise (here / "rank").error(f"a second source at rank {source.rank}", "one source per rank; give one of them another")
        if any(other.name == source.name for other in sources):
            raise (here / "name").error(f"a second source named {source.name!r}", "a name of its own; rename one of them")
        sources.append(source)
    if not sources:
        raise (top.at / "sources").error("no sources", "at least one")
    return _classed(top.at, sorted(sources, key=lambda source: source.rank))


def _classed(at: At, sources: list[SourceSpec]) -> tuple[SourceSpec, ...]:
    """Classes of those that name none: sources of different weight are of different classes, the heavier the higher."""
    weights = sorted({source.weight for source in sources})
    if len(weights) > MAX_PRIORITY + 1 and any(source.priority == _BY_WEIGHT for source in sources):
        raise (at / "sources").error(
            f"{len(weights)} different weights", f"at most {MAX_PRIORITY + 1} where priorities come from them; give each a priority"
        )
    return tuple(
        replace(source, priority=weights.index(source.weight)) if source.priority == _BY_WEIGHT else source for source in sources
    )


def _source(at: At, value: object, nodes: int, *, alone: bool = False) -> SourceSpec:
    if isinstance(value, int):
        return SourceSpec(rank_of(at, value, nodes), priority=_BY_WEIGHT)
    known = ("rank", "name", "arrivals", "rate", "admission", "deadline", "priority", "weight", "accuracy")
    read = Fields(at, value, known=known)
    # A lone source may leave its rank out, as a topology may leave out its source.
    default = SourceSpec(0 if alone and "rank" not in read else rank_of(at / "rank", read.raw("rank"), nodes))
    wanted = read.raw("accuracy")
    arrivals, rate_hz = _arrivals(read)
    return SourceSpec(
        rank=default.rank,
        admission=_admission(at / "admission", read.raw("admission")),
        deadline_seconds=read.quantity("deadline", TIME_UNITS, default.deadline_seconds, bounds=DEADLINE_SECONDS),
        priority=read.integer("priority", maximum=MAX_PRIORITY) if "priority" in read else _BY_WEIGHT,
        weight=read.number("weight", default.weight, valid=lambda x: x > 0.0, expected="a finite number above 0, such as 4"),
        accuracy=default.accuracy if wanted is None else number(at / "accuracy", wanted, valid=_wished, expected=_WISHED),
        name=_name(at / "name", read.raw("name"), default.rank, nodes),
        arrivals=arrivals,
        rate_hz=rate_hz,
    )


def _name(at: At, value: object, rank: int, nodes: int) -> str:
    if value is None:
        return default_name(rank)
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise at.wrong(value, "up to 40 letters, digits, - and _, such as camera")
    # Whoever may say a rank or a name must get the source that was meant.
    others = {str(other) for other in range(nodes)} | {default_name(other) for other in range(nodes) if other != rank}
    if value in others:
        raise at.wrong(value, "a word that is no rank, and not the name another rank has by default, such as camera")
    return value


def _arrivals(read: Fields) -> tuple[str, float | None]:
    """How a bench offers samples there, and how many a second."""
    at = read.at / "arrivals"
    rate_hz = quantity(read.at / "rate", read.raw("rate"), RATE_UNITS) if "rate" in read else None
    if rate_hz is not None and not RATE_HZ[0] <= rate_hz <= RATE_HZ[1]:
        raise (read.at / "rate").wrong(read.raw("rate"), f"from {RATE_HZ[0]:g} to {RATE_HZ[1]:g} samples a second")
    arrivals = read.text("arrivals", LIVE if rate_hz is None else POISSON)
    if arrivals not in ARRIVALS and not set(arrivals) & set("./"):
        raise at.wrong(arrivals, f"{one_of(ARRIVALS, arrivals)}, or a file of arrival times such as ./{arrivals}.txt")
    paced = arrivals in ARRIVALS and arrivals != LIVE
    if paced and rate_hz is None:
        raise (read.at / "rate").error(f"nothing beside arrivals {arrivals}", "samples a second, such as 20/s")
    if rate_hz is not None and not paced:
        raise (read.at / "rate").wrong(read.raw("rate"), f"none beside arrivals {arrivals}: drop one of the two")
    return arrivals, rate_hz


_WISHED = "a number above 0 and up to 1, or nothing"


def _wished(x: float) -> bool:
    return 0.0 < x <= 1.0


def _admission(at: At, value: object) -> AdmissionSpec:
    default = AdmissionSpec()
    names = tuple(ADMISSION_OPTIONS)
    if value is None:
        return default
    if not isinstance(value, Mapping):
        if value not in names:
            raise at.wrong(value, one_of(names, value))
        return AdmissionSpec(name=str(value))
    name = value.get("name", default.name)
    if name not in names:
        raise (at / "name").wrong(name, one_of(names, name))
    readers = ADMISSION_OPTIONS[name]
    read = Fields(at, value, known=("name", "when_full", "waiting", *readers))
    options = {option: reader(at / option, read.raw(option)) for option, reader in readers.items() if option in read}
    for low, high in (("t_q1", "t_q2"), ("min_hz", "max_hz"), ("window", "max_window")):
        if low in options and high in options and options[low] > options[high]:
            raise (at / low).wrong(options[low], f"at most {high}, which is {options[high]:g}")
    return AdmissionSpec(
        name=name,
        options=options,
        when_full=cast(WhenFull, read.text("when_full", default.when_full, names=WHEN_FULL)),
        waiting=read.integer("waiting", default.waiting),
    )


def rank_of(at: At, value: object, nodes: int) -> int:
    """The rank of a node, where it is one."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < nodes:
        raise at.wrong(value, f"the rank of a node, one of 0 to {nodes - 1}")
    return value
