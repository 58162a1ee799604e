"""What a live node tells Prometheus: read back by Prometheus' own client, against what the node counted."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from tests.metrics.looks import get, scraped
from tests.runtime.mesh import run, turns_until
from zpipe.metrics.families import COMMON_LABELS, LEFT_OUT, METRICS, OUTCOMES, Look
from zpipe.metrics.health import STARTING, health_of

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3"
OWN = re.compile(r"zpipe_[a-z]+(_[a-z]+)*")


def values(families: Iterator[Any]) -> dict[tuple[str, ...], float]:
    """{(sample name, values of its own labels): value}."""
    return {
        (sample.name, *(value for label, value in sample.labels.items() if label not in COMMON_LABELS)): sample.value
        for family in families
        for sample in family.samples
    }


def test_what_is_told_is_what_was_counted_in_either_format(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with scraped() as (mesh, telling):
            for number in range(50):
                mesh.submit(number)
            await mesh.until(50)
            stats = mesh.drivers[0].stats()
            monkeypatch.setattr(mesh.drivers[0], "stats", lambda: stats)  # reports come in between the two
            text, openmetrics = await get(telling, "/metrics"), await get(telling, "/metrics", OPENMETRICS)
            assert text.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert openmetrics.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
            plain = values(read_text(text.body.decode()))
            told = values(read_openmetrics(openmetrics.body.decode()))
            moving = {key for key in told if key[0].startswith("process_")}
            assert {key: told[key] for key in told.keys() - moving} == {key: plain[key] for key in told.keys() - moving}
            assert told["zpipe_source_ended_samples_total", "result"] == 50
            assert told["zpipe_source_ended_samples_total", "expired"] == 0
            assert told["zpipe_exited_samples_total", "0"] == 10
            assert told["zpipe_run_tasks_total",] == stats["tasks_run"]
            assert told["zpipe_busy_seconds_total",] == stats["busy_seconds"]
            assert told["zpipe_link_sent_bytes_total", "1"] == stats["links"][0]["bytes"] > 0
            assert told["zpipe_link_window_tasks", "1"] == 16
            assert told["zpipe_link_open", "1"] == told["zpipe_neighbour_up", "1"] == told["zpipe_node_ready",] == 1
            assert told["zpipe_source_exit_threshold_ratio", "4"] == 0.5
            assert told["zpipe_source_operating_point_info", "t0.50"] == 1
            assert told["zpipe_source_info", "0", "source-0", "1"] == 1
            assert told["process_resident_memory_bytes",] > 1e6

    run(main)


def test_histograms_hold_every_observation_once() -> None:
    async def main() -> None:
        async with scraped() as (mesh, telling):
            for number in range(50):
                mesh.submit(number)
            outcomes = [each.latency_seconds for each in await mesh.until(50)]
            told = values(read_text((await get(telling, "/metrics")).body.decode()))
            buckets = {key[1]: value for key, value in told.items() if key[0] == "zpipe_source_latency_seconds_bucket"}
            assert buckets == {edge: sum(latency < float(edge) for latency in outcomes) for edge in buckets}
            assert [*buckets][-1] == "+Inf"
            assert told["zpipe_source_latency_seconds_count",] == 50
            assert math.isclose(told["zpipe_source_latency_seconds_sum",], sum(outcomes), rel_tol=0.045)
            lengths = mesh.drivers[0].stats()["queue_histogram"]
            assert told["zpipe_queue_length_tasks_count",] == sum(times for _, times in lengths)
            assert told["zpipe_queue_length_tasks_sum",] == sum(length * times for length, times in lengths)
            assert told["zpipe_queue_length_tasks_bucket", "8"] == sum(times for length, times in lengths if length <= 8)

    run(main)


def test_names_follow_the_conventions() -> None:
    for metric in METRICS:
        assert OWN.fullmatch(metric.name), metric
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric
        assert metric.help.endswith("."), metric
        assert not re.search("_(ms|millis|micros|mb|kb|percent|count|sum|bucket|bits)(_|$)", metric.name), metric
        assert not set(metric.labels) & {*COMMON_LABELS, "le", "job", "instance"}, metric
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_counters_are_there_before_anything_happened_or_their_first_rate_is_lost() -> None:
    async def main() -> None:
        async with scraped() as (_, telling):
            told = values(read_text((await get(telling, "/metrics")).body.decode()))
            assert {told["zpipe_source_ended_samples_total", outcome] for outcome in OUTCOMES} == {0}
            assert told["zpipe_link_sent_tasks_total", "1"] == told["zpipe_exited_samples_total", "0"] == 0
            assert ("zpipe_link_round_trip_seconds", "1") not in told  # not measured yet

    run(main)


class Noting(Mapping[str, Any]):
    """Counters, and which of them were read."""

    def __init__(self, stats: dict[str, Any], read: set[str]) -> None:
        self._stats, self._read = stats, read

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return self._stats[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stats)

    def __len__(self) -> int:
        return len(self._stats)


def test_whatever_a_node_counts_is_told_or_named_as_left_out() -> None:
    async def main() -> None:
        async with scraped() as (mesh, _):
            stats, read = mesh.drivers[0].stats(), set[str]()
            tables = {key: set[str]() for key in ("delivery", "source", "transport")}
            noting = Noting({**stats, **{key: Noting(stats[key], seen) for key, seen in tables.items()}}, read)
            for metric in METRICS:
                list(metric.read(Look(noting, STARTING, "test", "half", "0")))
            assert set(stats) - read == LEFT_OUT
            assert set(stats["delivery"]) - tables["delivery"] == {"results"}  # zpipe_source_ended_samples_total
            assert set(stats["source"]) - tables["source"] == {"admission", "when_full"}
            assert set(stats["transport"]) == tables["transport"]

    run(main)


def test_node_is_ready_while_what_comes_can_go_on() -> None:
    async def main() -> None:
        async with scraped() as (mesh, _):
            assert [health_of(mesh.drivers[rank]).waits for rank in range(3)] == [(), (), ()]
            await mesh.drivers[2].aclose()
            await turns_until(lambda: bool(health_of(mesh.drivers[1]).missing))
            told = health_of(mesh.drivers[1])
            assert told.dead == ()
            assert told.waits == (f"nobody takes samples to stage 3: it waits for rank 2 ({mesh.topology.node(2).address})",)
            assert told.missing == (2,)

    run(main)


def test_node_whose_source_is_away_is_ready_and_says_who_is_missing() -> None:
    async def main() -> None:
        async with scraped(1) as (mesh, telling):
            await mesh.drivers[0].aclose()
            await turns_until(lambda: bool(health_of(mesh.drivers[1]).missing))
            said = await get(telling, "/readyz")
            assert (said.status, said.plain) == (200, {"status": "ready", "why": [], "missing": [0], "rank": 1})

    run(main)
