"""`zpipe bench` of a topology with two sources: both are driven at once, each at its own pace, and reported side by side."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.runtime.mesh import HALF
from zpipe.bench.options import BenchOptions
from zpipe.bench.run import compare_bench, run_bench
from zpipe.errors import ConfigError, ZpipeError
from zpipe.report import check_schema
from zpipe.sim import SimOptions, run_sim
from zpipe.topology import Topology, from_dict
from zpipe.trace import replay


def topology(**policy: Any) -> Topology:
    """Two boards that can do everything, each a source."""
    nodes = [{"rank": rank, "stages": [0, 1, 2, 3, 4]} for rank in range(2)]
    sources = [{"rank": 0, "name": "camera", "weight": 4, "rate": "80/s"}, {"rank": 1, "name": "mapping", "rate": "40/s"}]
    return from_dict({"name": "pair", "bundle": str(HALF), "nodes": nodes, "links": "line", "sources": sources, **policy})


def bench(**options: Any) -> tuple[dict[str, Any], Any]:
    return asyncio.run(run_bench(BenchOptions(topology=topology(), **options), progress=lambda line, done: None))


def test_every_source_is_driven_at_its_own_pace_from_the_same_moment_on(tmp_path: Path) -> None:
    report, log = bench(count=90, warm_up=10, seed=4, trace=tmp_path / "traces")
    check_schema(report)
    camera, mapping = report["sources"]
    assert [(row["name"], row["weight"], row["priority"]) for row in (camera, mapping)] == [("camera", 4.0, 1), ("mapping", 1.0, 0)]
    assert [(row["submitted"], row["result"]) for row in (camera, mapping)] == [(60, 60), (30, 30)]
    counts = report["counts"]
    assert (counts["submitted"], counts["result"], counts["lost"], counts["duplicate"], counts["hung"]) == (90, 90, 0, 0, 0)
    assert report["strangers"] == 0
    # The same samples in the same order as a simulated run of the same seed.
    _, expected = run_sim(SimOptions(topology(), count=90, warm_up=10, seed=4))
    for column in ("source", "index"):
        assert log.columns()[column].tolist() == expected.columns()[column].tolist()
    assert [node["rank"] for node in report["nodes"]] == [0, 1]
    assert report["series"][-1]["t"] <= report["seconds"]
    assert [replay(tmp_path / "traces" / f"node-{rank}.trace").difference for rank in range(2)] == [None, None]


def test_a_source_that_dies_ends_the_bench_in_one_line() -> None:
    def kill_the_other(line: str, done: float) -> None:
        if line == "classifying":
            for child in psutil.Process().children(recursive=True):
                if "zpipe.bench.source" in child.cmdline():
                    child.kill()

    with pytest.raises(ZpipeError, match=r"^source mapping \(rank 1\) ended by itself \(exit code -9\)$"):
        asyncio.run(run_bench(BenchOptions(topology=topology(), duration=60.0, warm_up=0), progress=kill_the_other))
    assert not [child for child in psutil.Process().children(recursive=True) if "zpipe.bench.source" in child.cmdline()]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"rates": {"lidar": 5.0}}, r"^pair: --source-rate: found 'lidar', expected one of camera \(rank 0\), mapping \(rank 1\)$"),
        ({"rates": {"camera": 5.0}, "rate_hz": 9.0}, r"^--source-rate: found --rate 9 beside it"),
        (
            {"rates": {"camera": 5.0}, "attach": True, "source": "mapping"},
            r"^--source-rate: found source camera, expected source mapping: with --attach this program is that one alone",
        ),
        ({"attach": True, "source": "lidar"}, r"^pair: --source: found 'lidar', expected one of camera \(rank 0\), mapping"),
        ({"source": "mapping"}, r"^--source: found 'mapping' without --attach, expected none"),
        ({"arrivals": "no.txt"}, r"^--arrivals: found 'no\.txt', which cannot be read"),
        ({"chaos": "kill every 1s"}, r"^--chaos: kill: found no node beside the sources, expected some"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        bench(**options)


def test_local_is_no_baseline_of_several_sources() -> None:
    plan = BenchOptions(topology=topology(), count=1)
    with pytest.raises(ConfigError, match="found 2 sources, expected one for `local`"):
        asyncio.run(compare_bench(plan, ["local"], progress=lambda line, done: None))
