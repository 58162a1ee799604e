"""The report's `nodes` and `links`: what each did between two looks at its counters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


def node_rows(before: list[dict[str, Any]], after: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """The report's `nodes`: what each node did between two looks at its counters; None where a simulated node has none.

    A node that was started again between them counts from that start (`restarted`): what it did before ended with its process.
    """
    first = _same_start(before, after)
    looked_at = {stats["rank"] for stats in before}
    rows = []
    for stats in after:
        old = first.get(stats["rank"], {})

        def grown(key: str, stats: dict[str, Any] = stats, old: dict[str, Any] = old) -> float:
            return float(stats[key] - old.get(key, 0))

        def grown_or_none(key: str, stats: dict[str, Any] = stats, old: dict[str, Any] = old) -> float | None:
            return None if stats[key] is None else float(stats[key] - old.get(key, 0))

        seen = {int(length): int(times) for length, times in stats["queue_histogram"]}
        for length, times in old.get("queue_histogram", ()):
            seen[int(length)] -= int(times)
        tasks, batches = grown("tasks_run"), grown("batches")
        rows.append(
            {
                "rank": stats["rank"],
                "stages": stats["stages"],
                "executor": stats["executor"],
                "busy": grown("busy_seconds") / seconds,
                # Of that, {source: share}; None where nobody counted.
                "busy_by_source": _by_source(old.get("served_seconds", {}), stats.get("served_seconds"), seconds),
                "queue_p95": quantile(seen, 0.95),
                "queue_max": max((length for length, times in seen.items() if times), default=0),
                "batch_mean": tasks / batches if batches else 0.0,
                "tasks": int(tasks),
                "cpu_s": grown_or_none("cpu_seconds"),
                "stage_cpu_s": grown_or_none("stage_cpu_seconds"),
                "rss_mb": None if stats["rss_bytes"] is None else stats["rss_bytes"] / 1e6,
                "sent_bytes": int(grown("sent_bytes")),
                "sent_inputs": int(grown("sent_inputs")),
                "restarted": stats["rank"] in looked_at and stats["rank"] not in first,
            }
        )
    return rows


def _by_source(before: Mapping[int, float], after: Mapping[int, float] | None, seconds: float) -> dict[int, float] | None:
    return None if after is None else {rank: (value - before.get(rank, 0.0)) / seconds for rank, value in sorted(after.items())}


def link_rows(
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
    seconds: float,
    *,
    limits: Mapping[tuple[int, int], tuple[float, str]] | None = None,
) -> list[dict[str, Any]]:
    """The report's `links`: what each direction carried between two looks, and its smoothed round trip at the end.

    Args:
        before, after: every node's counters.
        seconds: between them.
        limits: {ranks, lower first: (bits per second, medium)} where links were as the topology says; None where they were not.
    """
    first = {(rank, link["to"]): link for rank, stats in _same_start(before, after).items() for link in stats["links"]}
    rows = []
    for stats in after:
        for link in stats["links"]:
            old = first.get((stats["rank"], link["to"]), {})
            low, high = sorted((stats["rank"], link["to"]))
            limit_bps, medium = (limits or {}).get((low, high), (math.inf, ""))
            # raw_bytes: what `bytes` would be without the link's codec.
            grown = {key: link[key] - old.get(key, 0) for key in ("tasks", "frames", "bytes", "raw_bytes")}
            rows.append(
                {
                    "between": [stats["rank"], link["to"]],
                    **grown,
                    "mbit_s": 8e-6 * grown["bytes"] / seconds,
                    "limit_mbit_s": 1e-6 * limit_bps if limit_bps < math.inf else None,
                    "medium": medium,
                    "round_trip_ms": 1e3 * link["round_trip_seconds"],
                    # What the sender takes the link for (`zpipe.policy.estimates`); a simulated node does not say.
                    "estimated_bps": link.get("bandwidth_bps"),
                    "estimated_latency_s": link.get("latency_seconds"),
                }
            )
    return rows


def grown(before: list[dict[str, Any]], after: list[dict[str, Any]], key: str) -> int:
    """How much a counter grew at all nodes together between two looks; at those started again between them, since then."""
    first = _same_start(before, after)
    return sum(int(stats[key]) - int(first.get(stats["rank"], {}).get(key, 0)) for stats in after)


def sources_grown(before: list[dict[str, Any]], after: list[dict[str, Any]], key: str, ranks: Iterable[int]) -> int:
    """By how much a count of the sources at these ranks grew, over all of them; of those that answered both times."""
    first = {stats["rank"]: stats["delivery"][key] for stats in before if "delivery" in stats}
    last = {stats["rank"]: stats["delivery"][key] for stats in after if "delivery" in stats}
    return sum(int(last[rank] - first[rank]) for rank in ranks if rank in first and rank in last)


def copies_grown(before: list[dict[str, Any]], after: list[dict[str, Any]], ranks: Iterable[int]) -> dict[str, int]:
    """Of students, what a report's counts say of copies; of those sources that answered both times."""
    own = list(ranks)
    return {key: sources_grown(before, after, key, own) for key in ("copies", "hedged", "partial")}


def _same_start(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """{rank: its counters before}, of those that ran all the time between; simulated ones have no session and always did."""
    sessions = {stats["rank"]: stats.get("session") for stats in after}
    return {stats["rank"]: stats for stats in before if stats.get("session") == sessions.get(stats["rank"])}


def quantile(histogram: dict[int, int], q: float) -> int:
    """The smallest value that at least a fraction `q` of the counted ones do not exceed; 0 of nothing."""
    left = q * sum(histogram.values())
    for value in sorted(histogram):
        left -= histogram[value]
        if left <= 0 and histogram[value]:
            return value
    return 0
