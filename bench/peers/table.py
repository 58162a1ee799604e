"""The table for people.

zpipe x        zpipe's figure over this contender's
by CPU         this contender's CPU per sample over zpipe's: the same ratio, were CPU all that limits
beside stages  from a sample's start to its answer, less the time inside stages
over/hop       CPU outside stages, per sample and process of the line
"""

from __future__ import annotations

import math
from typing import Any

from bench.peers.claims import claims
from bench.peers.contender import CONTENDERS
from bench.peers.rounds import HOPS, ratio

Row = dict[str, Any]


def print_rows(rows: list[Row], workload: str, mode: str) -> None:
    """One workload in one mode; zpipe over each where it was measured, too."""
    latency = mode == "latency"
    mine = next((row for row in rows if row["contender"] == "z" and "fell" not in row), None)
    print(f"\n{workload}, {mode}: " + ("one sample at a time" if latency else "saturated"))
    for line in [_head(latency), *[_line(row, mine, latency) for row in rows]]:
        print(line)
    for claim in claims(rows, workload, mode):
        print(f"      {claim}")


def _head(latency: bool) -> str:
    if latency:
        first = f"{'beside stages us':>18}{'range':>18}{'per hop':>9}{'zpipe x':>9}{'zpipe more/hop':>16}{'whole us':>10}"
    else:
        first = f"{'samples/s':>18}{'range':>18}{'zpipe x':>9}{'range':>14}{'by CPU':>8}{'MB/s':>8}"
    return f"  {'':<28}{first}{'CPU us':>9}{'stages':>9}{'over/hop':>9}{'RSS MB':>9}{'proc':>6}"


def _line(row: Row, mine: Row | None, latency: bool) -> str:
    key = row["contender"]
    name = f"  {key:<3} {CONTENDERS[key][1]:<24}"
    if "fell" in row:
        return f"{name}    not counted: {row['fell']}"
    return name + (_latency(row, mine) if latency else _throughput(row, mine)) + _usage(row)


def _throughput(row: Row, mine: Row | None) -> str:
    hz = row["hz"]
    factor, by_cpu = {"median": math.nan, "low": math.nan, "high": math.nan}, math.nan
    if mine is not None:
        factor = ratio(mine["rounds"], row["rounds"], "hz")
        by_cpu = ratio(row["rounds"], mine["rounds"], "cpu_us")["median"]
    carried = f"{row['bytes_per_second']['median'] / 1e6:8.0f}" if "bytes_per_second" in row else f"{'':8}"
    between = f"{hz['low']:.0f}-{hz['high']:.0f}"
    factors = f"{factor['low']:.2f}-{factor['high']:.2f}"
    return f"{hz['median']:18.0f}{between:>18}{factor['median']:9.2f}{factors:>14}{by_cpu:8.2f}{carried}"


def _latency(row: Row, mine: Row | None) -> str:
    beside = row["beside_us"]
    between = f"{beside['low']:.0f}-{beside['high']:.0f}"
    factor = more = math.nan
    if mine is not None:
        factor = ratio(mine["rounds"], row["rounds"], "beside_us")["median"]
        more = (mine["beside_us"]["median"] - beside["median"]) / HOPS
    hop = beside["median"] / HOPS
    return f"{beside['median']:18.0f}{between:>18}{hop:9.0f}{factor:9.2f}{more:16.0f}{row['latency_us']['median']:10.0f}"


def _usage(row: Row) -> str:
    columns = (row["cpu_us"], row["stage_cpu_us"], row["overhead_us"], row["rss_mb"])
    return "".join(f"{column['median']:9.0f}" for column in columns) + f"{row['processes']['median']:6.0f}"
