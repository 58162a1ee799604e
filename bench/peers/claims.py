"""What zpipe is to reach beside the others (issue 7), by workload and mode."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.peers.contender import CONTENDERS
from bench.peers.rounds import HOPS, ratio

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """One of them and what was found.

    Attributes:
        found: on the clock.
        by_cpu: the same ratio were CPU all that limits; None where it has none.
    """

    text: str
    found: float
    wanted: float
    at_least: bool
    by_cpu: float | None = None

    @property
    def held(self) -> bool:
        compare: Callable[[float, float], bool] = operator.ge if self.at_least else operator.le
        return compare(self.found, self.wanted)

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        by_cpu = "" if self.by_cpu is None else f" (by CPU {self.by_cpu:.2f})"
        return f"{'held  ' if self.held else 'missed'} {self.text}: {self.found:.2f}{by_cpu}, wanted {sign} {self.wanted:g}"


def claims(rows: list[Row], workload: str, mode: str) -> list[Claim]:
    """Those that speak of this workload and mode, as far as the rows have figures."""
    found = {row["contender"]: row for row in rows if "fell" not in row}
    if "z" not in found:
        return []
    mine = found.pop("z")
    if mode == "latency":
        return list(_latency(mine, found, workload))
    if workload == "digits":
        return [*_ahead(mine, found), *_overhead(mine, mode)]
    if workload.endswith("1m") and "a" in found:
        return [_over(mine, found["a"], "a", 0.85, "bytes a second over")]
    return []


def _over(mine: Row, row: Row, key: str, wanted: float, what: str = "samples a second over") -> Claim:
    by_cpu = ratio(row["rounds"], mine["rounds"], "cpu_us")["median"]
    text = f"{what} ({key}) {CONTENDERS[key][1]}"
    return Claim(text, ratio(mine["rounds"], row["rounds"], "hz")["median"], wanted, True, by_cpu)


def _ahead(mine: Row, found: dict[str, Row]) -> Iterator[Claim]:
    wanted = {"a": 0.7, "a'": 0.9}
    for key, row in found.items():
        if key not in ("z'", "f"):
            yield _over(mine, row, key, wanted.get(key, 1.0))


def _overhead(mine: Row, mode: str) -> Iterator[Claim]:
    most = {"batch-1": 200.0, "batch-8": 50.0}[mode]
    yield Claim("CPU beside the stages, us a sample and process", mine["overhead_us"]["median"], most, False)
    if mode == "batch-8":
        yield Claim("share of CPU in stages", mine["stage_cpu_us"]["median"] / mine["cpu_us"]["median"], 0.85, True)


def _latency(mine: Row, found: dict[str, Row], workload: str) -> Iterator[Claim]:
    if "a'" in found:
        yield Claim(
            "time beside the stages over (a')", ratio(mine["rounds"], found["a'"]["rounds"], "beside_us")["median"], 1.25, False
        )
    if "a" in found and workload == "spin-4k":
        more = (mine["beside_us"]["median"] - found["a"]["beside_us"]["median"]) / HOPS
        yield Claim("us a hop more than (a)", more, 150.0, False)
