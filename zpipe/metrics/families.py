"""What Prometheus is told: each metric's name, kind, meaning and where its value stands in a node's counters.

A metric is a row of `METRICS`, and a function of a `Look`: nothing here counts anything.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from zpipe.bundle import parts_of
from zpipe.metrics.health import Health
from zpipe.runtime.stats import BUCKETS_PER_OCTAVE, LEAST_SECONDS, bucket_seconds

Kind = Literal["counter", "gauge", "histogram"]

#: Every series has them: several nodes of several networks may be scraped as one job.
COMMON_LABELS = ("topology", "rank")
OUTCOMES = ("result", "rejected", "expired", "failed")
#: Latencies are told apart at two edges an octave, each an edge of the node's own finer buckets: from 128 µs to 67 s.
_EDGES = tuple(range(7 * BUCKETS_PER_OCTAVE, 26 * BUCKETS_PER_OCTAVE + 1, BUCKETS_PER_OCTAVE // 2))
_LENGTHS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class Look:
    """A node at one moment.

    Attributes:
        stats: its counters (`zpipe.runtime.stats.node_stats`).
        health: how it is.
        topology, bundle: by name.
        version: of zpipe.
    """

    stats: Mapping[str, Any]
    health: Health
    topology: str
    bundle: str
    version: str


#: Values of a metric's own labels, and the value; a histogram's is its upper edges with cumulated counts, and the sum.
Point = tuple[tuple[str, ...], Any]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family.

    Attributes:
        name: as it stands in /metrics; a histogram's without `_bucket`.
        help: what it is, with its unit where the name has none.
        labels: its own, beside COMMON_LABELS.
        read: gives its points; none where there is nothing to tell.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    read: Callable[[Look], Iterable[Point]]


# ---- where values stand ------------------------------------------------------------------------


def _at(*path: str) -> Callable[[Look], Iterable[Point]]:
    """A number there; nothing where the node is no source, or knows none."""

    def read(look: Look) -> Iterator[Point]:
        value: Any = look.stats
        for key in path:
            value = value.get(key)
            if value is None:
                return
        yield (), float(value)

    return read


def _each(values: Mapping[str, tuple[str, ...]]) -> Callable[[Look], Iterable[Point]]:
    """{value of the label: path of its number}."""

    def read(look: Look) -> Iterator[Point]:
        for label, path in values.items():
            yield from (((label,), number) for _, number in _at(*path)(look))

    return read


def _pairs(*path: str) -> Callable[[Look], Iterable[Point]]:
    """A table with numbers as keys, which `node_stats` gives as a list of pairs."""

    def read(look: Look) -> Iterator[Point]:
        table: Any = look.stats
        for key in path:
            table = table[key]
        yield from (((str(key),), float(value)) for key, value in table)

    return read


def _exits(look: Look) -> Iterator[Point]:
    """Of every stage hosted here: a counter that begins with its first sample loses it to rate()."""
    exited = dict(look.stats["exits"])
    yield from (((str(stage),), float(exited.get(stage, 0))) for stage in look.stats["stages"])


def _node_info(look: Look) -> Iterator[Point]:
    stats = look.stats
    yield (look.version, look.bundle, stats["executor"] or "", ",".join(map(str, stats["stages"]))), 1.0


def _neighbour_up(look: Look) -> Iterator[Point]:
    for neighbour in look.stats["neighbours"]:
        yield (str(neighbour["rank"]),), float(neighbour["rank"] not in look.health.missing)


def _downstream(look: Look) -> list[Mapping[str, Any]]:
    """The neighbours that this node may send tasks to: only there is credit."""
    return [neighbour for neighbour in look.stats["neighbours"] if neighbour["window"]]


def _link(key: str) -> Callable[[Look], Iterable[Point]]:
    """How a link to a neighbour stands."""
    return lambda look: [((str(neighbour["rank"]),), float(neighbour[key])) for neighbour in _downstream(look)]


def _link_open(look: Look) -> Iterator[Point]:
    for neighbour in _downstream(look):
        open_ = neighbour["up"] and neighbour["takes"] and not neighbour["suspected"]
        yield (str(neighbour["rank"]),), float(open_)


def _carried(key: str) -> Callable[[Look], Iterable[Point]]:
    """What went over a link; 0 before the first task."""

    def read(look: Look) -> Iterator[Point]:
        links = {link["to"]: link for link in look.stats["links"]}
        for neighbour in _downstream(look):
            yield (str(neighbour["rank"]),), float(links.get(neighbour["rank"], {}).get(key, 0))

    return read


def _measured(key: str, factor: float = 1.0) -> Callable[[Look], Iterable[Point]]:
    """What a link is taken for; nothing before it was measured."""
    return lambda look: [((str(link["to"]),), factor * link[key]) for link in look.stats["links"] if link[key]]


def _tables(key: str) -> Callable[[Look], Iterable[Point]]:
    return lambda look: [((table,), float(size[key])) for table, size in look.stats["tables"].items()]


def _outcomes(look: Look) -> Iterator[Point]:
    if "source" in look.stats:
        outcomes = look.stats["source"]["outcomes"]
        yield from (((outcome,), float(outcomes.get(outcome, 0))) for outcome in OUTCOMES)


def _partial(look: Look) -> Iterator[Point]:
    for mask, results in look.stats.get("source", {}).get("missing", ()):
        yield (",".join(map(str, parts_of(mask))),), float(results)


def _thresholds(look: Look) -> Iterator[Point]:
    if "source" in look.stats:
        yield from (((str(stage),), value) for stage, value in enumerate(look.stats["source"]["thresholds"]))


def _operating_point(look: Look) -> Iterator[Point]:
    if "source" in look.stats:
        yield (look.stats["source"]["point"] or "",), 1.0


def _described(look: Look) -> Iterator[Point]:
    if "source" in look.stats:
        source = look.stats["source"]
        yield (source["name"], f"{source['weight']:g}", str(source["priority"])), 1.0


def _latencies(look: Look) -> Iterator[Point]:
    """The node's own buckets, summed up to coarser edges; the sum is that of their middles."""
    if "source" not in look.stats:
        return
    found = look.stats["source"]["latencies"]
    seconds = [f"{LEAST_SECONDS * 2 ** (edge / BUCKETS_PER_OCTAVE):.6g}" for edge in _EDGES]
    yield (), (_buckets(found, seconds, _EDGES), sum(times * bucket_seconds(bucket) for bucket, times in found))


def _queue_lengths(look: Look) -> Iterator[Point]:
    found = look.stats["queue_histogram"]
    names, above = map(str, _LENGTHS), [most + 1 for most in _LENGTHS]
    yield (), (_buckets(found, names, above), sum(length * times for length, times in found))


def _buckets(found: Sequence[tuple[int, int]], names: Iterable[str], edges: Iterable[int]) -> list[tuple[str, int]]:
    """How many observations lie below each edge, and how many there are; `found`: (value, times), rising."""
    values = [value for value, _ in found]
    below = [0, *accumulate(times for _, times in found)]
    return [*((name, below[bisect_left(values, edge)]) for name, edge in zip(names, edges, strict=True)), ("+Inf", below[-1])]


# ---- the metrics -------------------------------------------------------------------------------


def _counter(name: str, text: str, read: Callable[[Look], Iterable[Point]], *labels: str) -> Metric:
    return Metric(f"zpipe_{name}_total", "counter", text, labels, read)


def _gauge(name: str, text: str, read: Callable[[Look], Iterable[Point]], *labels: str) -> Metric:
    return Metric(f"zpipe_{name}", "gauge", text, labels, read)


_NODE = (
    _gauge("node_info", "1; what this node runs.", _node_info, "version", "bundle", "executor", "stages"),
    _gauge(
        "node_ready", "1 while samples that come here can go on, as /readyz says it.", lambda look: [((), not look.health.waits)]
    ),
    _gauge("node_serving", "1 until its executor is lost.", _at("serving")),
    _gauge("node_accepting", "1 until it leaves or its executor is lost.", _at("accepting")),
    _gauge("neighbour_up", "1 while every connection between this node and a neighbour stands.", _neighbour_up, "peer"),
    _gauge(
        "queue_tasks",
        "Tasks in the input queue, in the executor, and in the output queue, where they wait for credit.",
        _each({"input": ("input_length",), "executor": ("running",), "output": ("output_length",)}),
        "queue",
    ),
    _gauge("held_tasks", "Tasks that hold a slot here.", _at("held")),
    Metric(
        "zpipe_queue_length_tasks",
        "histogram",
        "Tasks in input and output queue, looked at each time one comes or goes.",
        (),
        _queue_lengths,
    ),
    _gauge("table_entries", "Entries of what the node keeps in memory, by table.", _tables("now"), "table"),
    _gauge("table_limit_entries", "Entries that a table has at most.", _tables("most"), "table"),
)

_WORK = (
    _counter("run_tasks", "Tasks whose stage was run here.", _at("tasks_run")),
    _counter("run_batches", "Batches that were run here.", _at("batches")),
    _counter("busy_seconds", "Time in which the executor ran batches.", _at("busy_seconds")),
    _counter("stage_cpu_seconds", "CPU time of the stages themselves.", _at("stage_cpu_seconds")),
    _gauge("task_service_seconds", "What a task of a stage takes here, smoothed over batches.", _pairs("service_seconds"), "stage"),
    _counter("exited_samples", "Samples that left the network here, by the stage whose exit was sure.", _exits, "stage"),
    _counter("stage_failures", "Tasks whose stage failed here.", _at("stage_failures")),
    _counter("spilled_batches", "Batches that found no room on the executor's device.", _at("spilled_batches")),
    _counter("handed_over_tasks", "Tasks that went elsewhere since the executor was lost.", _at("handed_over")),
    _counter(
        "dropped_tasks",
        "Tasks given up: nobody waits for them (stale), another attempt is here (superseded), their connection ended (epoch).",
        _each({"stale": ("stale",), "superseded": ("met_again",), "epoch": ("wrong_epoch",)}),
        "reason",
    ),
)

_NETWORK = (
    _counter("received_tasks", "Tasks that came from neighbours.", _at("received")),
    _counter("sent_tasks", "Tasks handed on to neighbours.", _at("sent")),
    _counter("sent_input_tasks", "Of these, raw inputs.", _at("sent_inputs")),
    _counter("missed_tasks", "Tasks sent that never arrived.", _at("frames_missed")),
    _counter("relayed_answers", "Answers passed on towards their source.", _at("relayed")),
    _counter("unroutable_answers", "Answers given up for want of a way to their source.", _at("unroutable")),
    _counter("sent_bytes", "Sent to neighbours and observers, without what the transport adds.", _at("sent_bytes")),
    _counter("received_bytes", "Received from them, likewise.", _at("received_bytes")),
    _counter(
        "sent_messages",
        "Messages sent, by plane: tasks (data), and all else (control).",
        _each({"data": ("frames_sent",), "control": ("control_sent",)}),
        "plane",
    ),
    _counter(
        "received_messages",
        "Messages received, by plane.",
        _each({"data": ("frames_received",), "control": ("control_received",)}),
        "plane",
    ),
    _counter(
        "shared_memory_messages",
        "Messages whose activations went through memory shared with a neighbour, or were not found in it (missing).",
        _each(
            {
                "sent": ("transport", "shared_sent"),
                "received": ("transport", "shared_received"),
                "missing": ("transport", "shared_missing"),
            }
        ),
        "event",
    ),
    _counter(
        "refused_messages",
        "Messages not looked into: not understood (bad), of no connection that stands (stray), under a false rank (forged), of "
        "banned neighbours or keys, or more than a stranger may send.",
        _each(
            {
                "bad": ("bad_frames",),
                "stray": ("stray_frames",),
                "forged": ("forged_frames",),
                "banned": ("banned_frames",),
                "banned_key": ("transport", "banned_frames"),
                "stranger": ("transport", "dropped"),
            }
        ),
        "reason",
    ),
    _counter(
        "refused_connections",
        "Connections turned away: no key of ours, too many from one, no room for one more, or other files than here (hello).",
        _each(
            {
                "unknown_key": ("transport", "unknown_keys"),
                "rate": ("transport", "limited"),
                "room": ("transport", "evicted"),
                "hello": ("hellos_refused",),
            }
        ),
        "reason",
    ),
    _counter("suspicions", "Times a neighbour was silent too long.", _at("suspicions")),
    _counter(
        "reset_connections",
        "Connections made anew: a link lost what it carried (link), or nothing on it could be understood (out_of_step).",
        _each({"link": ("resets",), "out_of_step": ("out_of_step",)}),
        "reason",
    ),
    _counter("blocked_messages", "Times a link without credit for a report interval asked for it.", _at("blocked")),
    _counter("dropped_credits", "Credits of an ended connection.", _at("wrong_epoch_credit")),
    _counter("bans", "Times a neighbour was caught lying.", _at("bans")),
    _counter("banned_keys", "Keys struck from the allow-list.", _at("transport", "banned_keys")),
    _counter("false_results", "Results for samples that never left this source.", _at("false_results")),
    _counter("held_back_lines", "Log lines said together with others like them.", _at("notes_held_back")),
    _counter("failed_lines", "Log lines that could not be written.", _at("notes_failed")),
)

_LINKS = (
    _gauge("link_open", "1 while the peer is there, not suspected, and takes tasks.", _link_open, "peer"),
    _gauge("link_window_tasks", "Credit window: tasks that may be under way to the peer.", _link("window"), "peer"),
    _gauge("link_outstanding_tasks", "Tasks under way to the peer, or held there.", _link("outstanding"), "peer"),
    _gauge("link_starved", "1 while tasks wait for credit of the peer.", _link("starves"), "peer"),
    _counter("link_sent_tasks", "Tasks sent to the peer.", _carried("tasks"), "peer"),
    _counter("link_sent_messages", "Messages these were packed into.", _carried("frames"), "peer"),
    _counter("link_sent_bytes", "Bytes of these messages.", _carried("bytes"), "peer"),
    _counter("link_uncoded_bytes", "What they would be without a codec.", _carried("raw_bytes"), "peer"),
    _gauge(
        "link_round_trip_seconds",
        "From a task's sending to the peer's word of it, smoothed.",
        _measured("round_trip_seconds"),
        "peer",
    ),
    _gauge("link_latency_seconds", "One way, as the policy takes it.", _measured("latency_seconds"), "peer"),
    _gauge(
        "link_bandwidth_bytes_per_second",
        "As the policy takes it, once something showed a limit.",
        _measured("bandwidth_bps", 0.125),
        "peer",
    ),
)

_SOURCE = (
    _counter("source_submitted_samples", "Samples that were submitted.", _at("delivery", "submitted")),
    _counter("source_admitted_samples", "Samples that were let in.", _at("delivery", "admitted")),
    _counter("source_ended_samples", "Samples that have their outcome.", _outcomes, "outcome"),
    Metric(
        "zpipe_source_latency_seconds",
        "histogram",
        "From submit to result; the sum is right within 4.5 %.",
        (),
        _latencies,
    ),
    _counter("source_resubmitted_samples", "Attempts after the first.", _at("delivery", "resubmitted")),
    _counter("source_copies", "Tasks made of samples that students share.", _at("delivery", "copies")),
    _counter("source_hedged_copies", "Of these, those made since an earlier one was late.", _at("delivery", "hedged")),
    _counter("source_partial_results", "Results of students without all parts, by those missing.", _partial, "missing"),
    _counter("source_retransmit_timeouts", "Of these, those that only a timer asked for.", _at("delivery", "by_timer")),
    _counter("source_repeated_results", "Results of samples that had one.", _at("delivery", "second_results")),
    _counter("source_stray_answers", "Answers of another session, or for samples that never were.", _at("delivery", "strangers")),
    _counter("source_raised_sessions", "Times it had to go on under a later session.", _at("delivery", "sessions")),
    _gauge("source_waiting_samples", "Samples in the waiting room.", _at("source", "waiting")),
    _gauge("source_room_samples", "Samples that the waiting room holds.", _at("source", "room")),
    _gauge("source_in_flight_samples", "Samples that are let in and have no outcome.", _at("source", "in_flight")),
    _gauge("source_window_samples", "Most samples in flight, where admission limits them.", _at("source", "window")),
    _gauge("source_rate_limit_hertz", "Samples that admission lets in per second, where it paces them.", _at("source", "rate_hz")),
    _gauge("source_exit_threshold_ratio", "Confidence from which the next sample leaves at a stage's exit.", _thresholds, "stage"),
    _gauge("source_info", "1; its name, its weight, and the class of its tasks.", _described, "name", "weight", "class"),
    _gauge(
        "source_operating_point_info",
        "1; the bundle's operating point of the next sample, empty where none fits.",
        _operating_point,
        "point",
    ),
)

METRICS: tuple[Metric, ...] = _NODE + _WORK + _NETWORK + _LINKS + _SOURCE

#: What `node_stats` says beside: what labels, `process_...`, exits by stage or the tables tell, and what serves its readers alone.
LEFT_OUT = frozenset({"rank", "session", "clock_seconds", "payloads", "exited", "cpu_seconds", "rss_bytes"})


def families(look: Look) -> Iterator[Any]:
    """Each metric as prometheus_client's families; then the process's own, under the names that Prometheus has for them."""
    from prometheus_client import ProcessCollector
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    common = (look.topology, str(look.stats["rank"]))
    for metric in METRICS:
        points = list(metric.read(look))
        if not points:
            continue
        family = kinds[metric.kind](metric.name, metric.help, labels=(*COMMON_LABELS, *metric.labels), unit=_unit(metric.name))
        for own, value in points:
            family.add_metric((*common, *own), *(value if metric.kind == "histogram" else (value,)))
        yield family
    of_all = dict(zip(COMMON_LABELS, common, strict=True))
    for family in ProcessCollector(registry=None).collect():
        family.samples = [sample._replace(labels={**of_all, **sample.labels}) for sample in family.samples]
        yield family


def _unit(name: str) -> str:
    last = name.removesuffix("_total").rpartition("_")[2]
    return last if last in ("seconds", "bytes", "hertz", "ratio") else ""
