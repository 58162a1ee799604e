"""What the nodes did between two looks at them: pure, with the time as an argument.

Counters are compared with those before, by the clock of the node they are of: no two clocks are compared, and a look that came late
makes no rate wrong. A node that was started again (a new session) begins anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zpipe.bundle import parts_of
from zpipe.report import quantile
from zpipe.runtime.observer import Seen
from zpipe.runtime.stats import bucket_seconds
from zpipe.topology import SourceSpec, Topology

#: Intervals in a sparkline.
HISTORY = 60
#: For so long it is shown that a node was started again.
BACK_SECONDS = 30.0
#: A node that is connected and has not answered for so many intervals is called silent.
SILENT_INTERVALS = 2.5


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node now. Rates and means are of the last interval; None before there are two looks, or while it is not up.

    Attributes:
        state: `up`, `back` (up, and started again lately), `leaving`, `no executor`, `silent`, `gone` (it was up before),
            or `missing`.
        seconds: since when it is back, silent or gone; None in other states.
        trouble: why it cannot be reached, in words.
        busy: share of the time in which its executor worked.
        exits_hz: ((stage, samples per second that left after it here), ...).
        outstanding, window: slots taken at its neighbours, of how many.
        round_trip_seconds: of a Ping from here.
    """

    rank: int
    address: str
    state: str
    seconds: float | None = None
    trouble: str = ""
    stages: tuple[int, ...] = ()
    executor: str | None = None
    input_length: int | None = None
    output_length: int | None = None
    running: int | None = None
    busy: float | None = None
    batch_mean: float | None = None
    run_hz: float | None = None
    exits_hz: tuple[tuple[int, float], ...] | None = None
    outstanding: int | None = None
    window: int | None = None
    round_trip_seconds: float | None = None
    rss_bytes: int | None = None

    @property
    def well(self) -> bool:
        """Whether there is nothing to say about it."""
        return self.state in ("up", "back")


@dataclass(frozen=True, slots=True)
class LinkRow:
    """One direction of a link over which tasks may go, as its sender sees it.

    Attributes:
        state: `up`, `no credit` (tasks wait for it), `silent`, `closed` (its receiver takes no tasks), `down`; `unknown` while the
            sender cannot be asked.
        bandwidth_bps: what the sender takes it for; None while nothing showed a limit.
    """

    sender: int
    receiver: int
    state: str
    bytes_hz: float | None = None
    tasks_hz: float | None = None
    outstanding: int | None = None
    window: int | None = None
    round_trip_seconds: float | None = None
    bandwidth_bps: float | None = None


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One source. Rates and latencies are of the last interval.

    Attributes:
        priority, weight: as the topology says.
        point: the operating point of the next sample; None where its thresholds are none of the bundle's points.
        target_hz: the rate that admission aims at; None where it sets none.
        window: the limit on samples in flight; None where there is none.
        goodput_hz: results; each came before its deadline, or it would have been none.
        outcomes: {kind: samples since its start}.
        latency_seconds: {0.5, 0.95, 0.99: its quantile}; None without a result.
        latencies: 95th percentiles of the last intervals, the latest at the end.
        missing: {parts that were not in: results without them since its start}; None where there are no students.
    """

    rank: int
    admission: str
    when_full: str
    point: str | None
    target_hz: float | None
    window: float | None
    waiting: int
    room: int
    in_flight: int
    outcomes: Mapping[str, int]
    offered_hz: float | None
    admitted_hz: float | None
    goodput_hz: float | None
    resubmitted: int
    latency_seconds: Mapping[float, float] | None
    latencies: tuple[float | None, ...]
    missing: Mapping[tuple[int, ...], int] | None = None
    priority: int = 0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A topology at one moment.

    Attributes:
        seconds: since the first look.
        absent: ranks of sources that are not up, of whose samples nothing is known.
        labels: {rank: what its source is called}, of all sources.
        notes: what else a person should know, one sentence each.
    """

    topology: str
    bundle: str
    seconds: float
    nodes: tuple[NodeRow, ...]
    links: tuple[LinkRow, ...]
    sources: tuple[SourceRow, ...]
    absent: tuple[int, ...]
    notes: tuple[str, ...]
    labels: Mapping[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Track:
    """What is kept of one node from look to look."""

    seen: Seen
    stats: dict[str, Any] | None = None
    before: dict[str, Any] | None = None
    answered_at: float = 0.0
    ended_at: float | None = None  #: when it was last seen to be gone
    back_at: float | None = None
    latencies: deque[float | None] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def take(self, seen: Seen, now: float) -> None:
        self.seen = seen
        if seen.up:
            self.ended_at = None
        elif self.stats is not None and self.ended_at is None:
            self.ended_at = now
        if seen.stats is None or seen.answered_at == self.answered_at:
            return
        if self.stats is not None and seen.stats["session"] != self.stats["session"]:
            self.before, self.back_at = None, now
        else:
            self.before = self.stats
        self.stats, self.answered_at = seen.stats, seen.answered_at
        if self.before is not None and "source" in self.stats:
            self.latencies.append(self.latency().get(0.95))

    @property
    def elapsed(self) -> float:
        """Seconds between the two answers; 0 where there are not two."""
        return self.stats["clock_seconds"] - self.before["clock_seconds"] if self.stats and self.before else 0.0

    def rate(self, now: Mapping[str, Any], before: Mapping[str, Any], key: str) -> float | None:
        return (now[key] - before.get(key, 0)) / self.elapsed if self.elapsed > 0.0 else None

    def own_rate(self, key: str) -> float | None:
        return self.rate(self.stats or {}, self.before or {}, key)

    def latency(self) -> dict[float, float]:
        """Quantiles of the samples that ended between the two answers; {} of none."""
        assert self.stats is not None
        before = dict(map(tuple, self.before["source"]["latencies"])) if self.before else {}
        came = {bucket: times - before.get(bucket, 0) for bucket, times in self.stats["source"]["latencies"]}
        return {q: bucket_seconds(quantile(came, q)) for q in (0.5, 0.95, 0.99)} if any(came.values()) else {}


class History:
    """Makes snapshots of a topology from what an observer sees.

    Args:
        topology: that is looked at.
        every: seconds from look to look.

    Attributes:
        digest: of the topology its nodes should run; the topology's own at first.
    """

    def __init__(self, topology: Topology, *, every: float) -> None:
        self.digest = topology.digest()
        self._topology = topology
        self._every = every
        self._tracks: dict[int, _Track] = {}
        self._began_at: float | None = None

    def take(self, seen: Sequence[Seen], *, now: float) -> Snapshot:
        """A look: each node as it was last seen, and when that was."""
        self._began_at = now if self._began_at is None else self._began_at
        for each in seen:
            self._tracks.setdefault(each.rank, _Track(each)).take(each, now)
        tracks = [self._tracks[each.rank] for each in seen]
        nodes = tuple(self._node(track, now) for track in tracks)
        there = [track for track, row in zip(tracks, nodes, strict=True) if row.state not in ("gone", "missing")]
        specs = {source.rank: source for source in self._topology.sources}
        sources = tuple(
            _source(track, specs.get(track.seen.rank, SourceSpec(track.seen.rank)))
            for track in there
            if track.stats is not None and "source" in track.stats
        )
        found = {row.rank for row in sources}
        return Snapshot(
            topology=self._topology.name,
            bundle=self._topology.bundle,
            seconds=now - self._began_at,
            nodes=nodes,
            links=tuple(row for track, node in zip(tracks, nodes, strict=True) for row in self._links(track, node)),
            sources=sources,
            absent=tuple(source.rank for source in self._topology.sources if source.rank not in found),
            notes=self._notes(there),
            labels={source.rank: source.label for source in self._topology.sources},
        )

    def _node(self, track: _Track, now: float) -> NodeRow:
        seen, stats = track.seen, track.stats
        state, seconds = self._state(track, now)
        if stats is None or state in ("gone", "missing"):
            stages = self._topology.node(seen.rank).stages
            return NodeRow(seen.rank, seen.address, state, seconds, seen.trouble, stages)
        batches, tasks = track.own_rate("batches"), track.own_rate("tasks_run")
        before = dict(map(tuple, track.before["exits"])) if track.before else {}
        exits = None
        if track.elapsed > 0.0:
            exits = tuple((stage, (times - before.get(stage, 0)) / track.elapsed) for stage, times in stats["exits"])
        return NodeRow(
            rank=seen.rank,
            address=seen.address,
            state=state,
            seconds=seconds,
            stages=tuple(stats["stages"]),
            executor=stats["executor"],
            input_length=stats["input_length"],
            output_length=stats["output_length"],
            running=stats["running"],
            busy=track.own_rate("busy_seconds"),
            batch_mean=tasks / batches if tasks is not None and batches else None,
            run_hz=tasks,
            exits_hz=exits,
            outstanding=sum(neighbour["outstanding"] for neighbour in stats["neighbours"]),
            window=sum(neighbour["window"] for neighbour in stats["neighbours"]),
            round_trip_seconds=seen.round_trip_seconds,
            rss_bytes=stats["rss_bytes"],
        )

    def _state(self, track: _Track, now: float) -> tuple[str, float | None]:
        seen, stats = track.seen, track.stats
        if not seen.up:
            return ("missing", None) if track.ended_at is None else ("gone", now - track.ended_at)
        if stats is None:
            return "silent", None
        if now - track.answered_at > SILENT_INTERVALS * self._every:
            return "silent", now - track.answered_at
        if not stats["serving"]:
            return "no executor", None
        if not stats["accepting"]:
            return "leaving", None
        if track.back_at is not None and now - track.back_at < BACK_SECONDS:
            return "back", now - track.back_at
        return "up", None

    def _notes(self, there: Sequence[_Track]) -> tuple[str, ...]:
        others = [str(track.seen.rank) for track in there if track.seen.topology_digest != self.digest]
        if not others:
            return ()
        who = f"rank {others[0]} runs" if len(others) == 1 else f"ranks {', '.join(others)} run"
        return (f"{who} another topology than this one, in which links and sources may be others",)

    def _links(self, track: _Track, node: NodeRow) -> list[LinkRow]:
        rank, stats = node.rank, track.stats
        if stats is None or node.state in ("gone", "missing", "silent"):
            peers = [peer for peer in self._topology.neighbours(rank) if self._topology.lanes(rank, peer)]
            return [LinkRow(rank, peer, "unknown") for peer in peers]
        carried = {link["to"]: link for link in stats["links"]}
        before = {link["to"]: link for link in track.before["links"]} if track.before else {}
        rows = []
        for neighbour in stats["neighbours"]:
            peer = neighbour["rank"]
            if not neighbour["window"]:
                continue
            link, old = carried.get(peer, {"bytes": 0, "tasks": 0}), before.get(peer, {})
            rows.append(
                LinkRow(
                    sender=rank,
                    receiver=peer,
                    state=_link_state(neighbour),
                    bytes_hz=track.rate(link, old, "bytes"),
                    tasks_hz=track.rate(link, old, "tasks"),
                    outstanding=neighbour["outstanding"],
                    window=neighbour["window"],
                    round_trip_seconds=link.get("round_trip_seconds") or None,
                    bandwidth_bps=link.get("bandwidth_bps"),
                )
            )
        return rows


def _link_state(neighbour: Mapping[str, Any]) -> str:
    if not neighbour["up"]:
        return "down"
    if neighbour["suspected"]:
        return "silent"
    if not neighbour["takes"]:
        return "closed"
    return "no credit" if neighbour["starves"] else "up"


def _source(track: _Track, spec: SourceSpec) -> SourceRow:
    stats = track.stats
    assert stats is not None
    source, delivery = stats["source"], stats["delivery"]
    before = track.before["delivery"] if track.before else {}
    return SourceRow(
        rank=stats["rank"],
        admission=source["admission"],
        when_full=source["when_full"],
        point=source["point"],
        target_hz=source["rate_hz"],
        window=source["window"],
        waiting=source["waiting"],
        room=source["room"],
        in_flight=source["in_flight"],
        outcomes=dict(source["outcomes"]),
        offered_hz=track.rate(delivery, before, "submitted"),
        admitted_hz=track.rate(delivery, before, "admitted"),
        goodput_hz=track.rate(delivery, before, "results"),
        resubmitted=delivery["resubmitted"],
        latency_seconds=(track.latency() or None) if track.before else None,
        latencies=tuple(track.latencies),
        missing={parts_of(mask): results for mask, results in source["missing"]} if "missing" in source else None,
        priority=spec.priority,
        weight=spec.weight,
    )
