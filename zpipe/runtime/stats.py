"""What a live node says of itself when asked: its counters since its start, and how it stands now.

Everything here is read when somebody asks; what has to be counted on the way is in `Tally`, a few additions per batch and outcome.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from zpipe.policy.messages import Resolve
from zpipe.runtime import bounds

if TYPE_CHECKING:
    from zpipe.bundle import Bundle
    from zpipe.policy.delivery import Source
    from zpipe.runtime.driver import Driver

#: Buckets of the latency histogram to a factor of two: each is 9 % wide, so its middle is at most 4.5 % beside.
BUCKETS_PER_OCTAVE = 8
#: The shortest latency told apart; the longest is that of the longest deadline, some 300 buckets above it.
LEAST_SECONDS = 1e-6
_MOST_BUCKET = 400


def latency_bucket(seconds: float) -> int:
    """The bucket of the histogram that a latency falls into."""
    return min(_MOST_BUCKET, int(BUCKETS_PER_OCTAVE * math.log2(max(1.0, seconds / LEAST_SECONDS))))


def bucket_seconds(bucket: int) -> float:
    """The middle of a bucket."""
    return float(LEAST_SECONDS * 2.0 ** ((bucket + 0.5) / BUCKETS_PER_OCTAVE))


@dataclass(slots=True)
class Tally:
    """What the policy does not count.

    Attributes:
        exits: #: {stage: samples that left after it here}
        outcomes: #: {kind: own samples that ended so}
        latencies: #: {bucket: own samples with a result after so long}
        missing: #: {parts that were not in, as bits: own samples with a result without them}; of students
        runs: #: {run: (stage, tasks)}, of those the executor has now
    """

    exits: Counter[int] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    latencies: Counter[int] = field(default_factory=Counter)
    missing: Counter[int] = field(default_factory=Counter)
    runs: dict[int, tuple[int, int]] = field(default_factory=dict)

    def started(self, run: int, stage: int, tasks: int) -> None:
        """The executor got a batch."""
        self.runs[run] = stage, tasks

    def completed(self, run: int, exited: Sequence[bool]) -> None:
        """It gave it back; nobody exited from one that failed."""
        stage, _ = self.runs.pop(run)
        left = int(sum(exited))  # of NumPy booleans, maybe
        if left:
            self.exits[stage] += left

    def ended(self, resolve: Resolve) -> None:
        """An own sample has its outcome."""
        self.outcomes[resolve.kind] += 1
        if resolve.kind == "result":
            self.latencies[latency_bucket(resolve.latency_seconds)] += 1
            if resolve.missing:
                self.missing[resolve.missing] += 1


def node_stats(driver: Driver) -> dict[str, Any]:
    """A node's counters since its start; plain JSON values.

    Lists of pairs stand for tables with numbers as keys: `queue_histogram`, `exits` (stage, samples), `service_seconds`, and the
    source's `latencies` (bucket, results; `bucket_seconds`) and, of students, `missing` (parts as bits, results without them).
    """
    policy, tally = driver.policy, driver.tally
    cpu = driver._process.cpu_times()
    stats: dict[str, Any] = {
        "rank": driver.rank,
        "session": driver.session,
        "stages": list(policy.config.stages),
        "executor": driver._executor,
        "cpu_seconds": cpu.user + cpu.system,
        "rss_bytes": driver._process.memory_info().rss,
        "clock_seconds": time.monotonic(),
        "payloads": len(driver._payloads),
        "held": policy.held_count,
        "input_length": policy.input_length,
        "output_length": policy.output_length,
        "running": sum(tasks for _, tasks in tally.runs.values()),
        **asdict(driver.counts),
        **asdict(driver.inbox.counts),
        "hellos_refused": driver.peers.hellos_refused,
        "spilled_batches": driver._stages.spilled if driver._stages is not None else 0,
        "notes_held_back": driver.notes.held_back,
        "notes_failed": driver.notes.failed,
        "accepting": policy.accepting,
        "serving": policy.serving,
        "transport": asdict(driver.transport.counts),
        **asdict(policy.counts),
    }
    stats["links"] = [
        {"to": peer, **asdict(carried), "round_trip_seconds": driver.round_trip(peer), **_estimate(driver, peer)}
        for peer, carried in sorted(driver.carried.items())
    ]
    stats["neighbours"] = [_neighbour(driver, peer) for peer in driver.topology.neighbours(driver.rank)]
    stats["queue_histogram"] = sorted(policy.counts.queue_histogram.items())
    stats["exits"] = sorted(tally.exits.items())
    stats["tables"] = bounds.tables(driver)
    stats["service_seconds"] = sorted(policy.service_seconds.items())
    if policy.source is not None:
        stats["delivery"] = asdict(policy.source.counts)
        spec = driver.topology.source_at(driver.rank)
        assert spec is not None
        of_topology = {"name": spec.name, "weight": spec.weight, "priority": spec.priority}
        stats["source"] = {**of_topology, **_source(policy.source, driver.bundle, tally)}
    return stats


def _estimate(driver: Driver, peer: int) -> dict[str, float | None]:
    """What the policy takes a link for; None while nothing showed a limit."""
    link = driver.policy.neighbour(peer).outgoing
    bandwidth = link.estimate.bandwidth_bps if link is not None else math.inf
    return {
        "bandwidth_bps": bandwidth if bandwidth < math.inf else None,
        "latency_seconds": link.estimate.latency_seconds if link is not None else None,
    }


def _neighbour(driver: Driver, peer: int) -> dict[str, Any]:
    """How a link stands now; `window` is 0, and `up` False, where this node sends it no tasks."""
    neighbour = driver.policy.neighbour(peer)
    link = neighbour.outgoing
    return {
        "rank": peer,
        "up": neighbour.sends,
        "takes": neighbour.takes,
        "suspected": neighbour.suspected,
        "window": link.window if link is not None else 0,
        "outstanding": len(link.outstanding) if link is not None else 0,
        "starves": link is not None and link.waiting_since is not None,
    }


def _source(source: Source, bundle: Bundle, tally: Tally) -> dict[str, Any]:
    """How samples enter and end; `point` is what the next one gets, by name where it is one of the bundle's."""
    admission, thresholds = source.admission, source.config.ladder.thresholds[source.admission.point]
    names = [point.name for point in bundle.operating_points if point.thresholds == thresholds]
    return {
        "admission": admission.name,
        "when_full": source.config.when_full,
        "point": names[0] if names else None,
        "thresholds": list(thresholds),
        "rate_hz": admission.rate_hz,
        "window": admission.window_samples,
        "waiting": source.waiting_count,
        "room": source.waiting_count + source.room_left,
        "in_flight": source.in_flight,
        "outcomes": dict(tally.outcomes),
        "latencies": sorted(tally.latencies.items()),
        **({"missing": sorted(tally.missing.items())} if bundle.students else {}),
    }
