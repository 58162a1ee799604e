"""What is offered, and when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from zpipe.errors import ConfigError
from zpipe.load import (
    RATED_SECONDS,
    SEED_STEP,
    Order,
    SourceLoad,
    Span,
    arrival_times,
    constant,
    poisson,
    read_trace,
    run_span,
    shares,
    source_loads,
)
from zpipe.topology import Topology, from_dict


def test_the_same_seed_gives_the_same_order_and_the_same_arrivals() -> None:
    first, second = Order(7, seed=5), Order(7, seed=5)
    assert [first.next() for _ in range(50)] == [second.next() for _ in range(50)]
    assert list(islice(poisson(100.0, seed=5), 50)) == list(islice(poisson(100.0, seed=5), 50))
    assert list(islice(poisson(100.0, seed=5), 50)) != list(islice(poisson(100.0, seed=6), 50))


def test_order_visits_every_sample_before_any_again() -> None:
    order = Order(7, seed=0)
    assert sorted(order.next() for _ in range(7)) == list(range(7))


def test_poisson_arrivals_have_the_rate_and_the_spread_they_should() -> None:
    times = list(islice(poisson(200.0, seed=1), 20_000))
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(1 / 200.0, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.03)


def test_constant_arrivals_do_not_drift() -> None:
    assert list(islice(constant(3.0), 4)) == [0.0, 1 / 3.0, 2 / 3.0, 1.0]
    assert next(islice(constant(3.0), 3_000_000, None)) == 1_000_000.0


def test_a_span_ends_by_samples_or_by_seconds() -> None:
    assert list(Span(samples=2).of(constant(10.0))) == [0.0, 0.1]
    assert list(Span(seconds=0.25).of(constant(10.0))) == [0.0, 0.1, 0.2]
    assert list(Span(samples=2, seconds=0.05).of(constant(10.0))) == [0.0]
    assert list(Span().of([1.0, 2.0])) == [1.0, 2.0]


def test_a_trace_is_read_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    file.write_text("# seconds\n0.5\n\n0.5\n 1e0 \n")
    assert list(read_trace(file)) == [0.5, 0.5, 1.0]
    assert list(arrival_times(str(file), None, seed=0) or ()) == [0.5, 0.5, 1.0]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0.1\nsoon\n", r"trace\.txt:2: found 'soon', expected a number of seconds from 0\.1 "),
        ("0.1\n1e300\n", r"trace\.txt:2: found '1e300', expected a number of seconds from 0\.1 .* to 1e\+06"),
        ("0.1\n0.05\n", r"trace\.txt:2: found '0\.05', expected a number of seconds from 0\.1 "),
        ("-1\n", r"trace\.txt:1: found '-1'"),
        ("inf\n", r"trace\.txt:1: found 'inf'"),
        ("nan\n", r"trace\.txt:1: found 'nan'"),
        ("# nothing\n", r"trace\.txt: found no arrival times"),
    ],
)
def test_a_trace_that_is_none_names_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "trace.txt"
    file.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_trace(file)


def test_a_rate_beside_a_file_and_constant_without_a_rate_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="constant without a rate"):
        arrival_times("constant", None, seed=0)
    with pytest.raises(ConfigError, match="and --rate 5"):
        arrival_times(str(tmp_path / "trace.txt"), 5.0, seed=0)
    with pytest.raises(ConfigError, match="cannot be read"):
        arrival_times(str(tmp_path / "trace.txt"), None, seed=0)


def test_without_rate_or_file_the_loop_is_closed() -> None:
    assert arrival_times("poisson", None, seed=0) is None
    assert arrival_times("poisson", math.inf, seed=0) is None


# ---- several sources -----------------------------------------------------------------------------


def two(camera: Mapping[str, object] | None = None, mapping: Mapping[str, object] | None = None) -> Topology:
    nodes = [{"rank": rank, "stages": [0]} for rank in range(2)]
    sources = [{"rank": 0, "name": "camera", **(camera or {})}, {"rank": 1, "name": "mapping", **(mapping or {})}]
    return from_dict({"name": "two", "bundle": "digits-mobilenetv2", "nodes": nodes, "links": "line", "sources": sources})


def test_a_rate_of_the_whole_run_is_shared_and_each_source_has_dice_of_its_own() -> None:
    loads = source_loads(two({"rate": 9}), rate_hz=10.0, seed=3)
    assert loads == {0: SourceLoad("poisson", 5.0, 3), 1: SourceLoad("poisson", 5.0, 3 + SEED_STEP)}


def test_a_rate_given_for_one_source_leaves_the_others_as_the_topology_has_them() -> None:
    topology = two({"arrivals": "constant", "rate": "20/s"}, {"rate": "30/s"})
    assert [load.rate_hz for load in source_loads(topology).values()] == [20.0, 30.0]
    loads = source_loads(topology, rates={"camera": 5.0})
    assert [(load.arrivals, load.rate_hz) for load in loads.values()] == [("constant", 5.0), ("poisson", 30.0)]
    assert [load.rate_hz for load in source_loads(topology, rates={0: 5.0, "1": 7.0}).values()] == [5.0, 7.0]
    assert {load.arrivals for load in source_loads(topology, arrivals="constant").values()} == {"constant"}


def test_sources_that_say_nothing_keep_a_window_under_way() -> None:
    assert [(load.times(), load.window(32)) for load in source_loads(two()).values()] == 2 * [(None, 32)]
    loads = source_loads(two({"rate": 9}), rate_hz=math.inf)
    assert [(load.times(), load.window(32)) for load in loads.values()] == 2 * [(None, math.inf)]


def test_a_sources_own_file_lies_beside_its_topology(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "morning.txt").write_text("0.5\n1.5\n")
    topology = from_dict({**two({"arrivals": "morning.txt"}).to_dict(), "path": str(tmp_path / "site" / "two.yaml")})
    loads = source_loads(topology)
    assert list(loads[0].times() or ()) == [0.5, 1.5]
    assert loads[1].times() is None
    (tmp_path / "site" / "morning.txt").rename(tmp_path / "morning.txt")
    monkeypatch.chdir(tmp_path)
    assert list(source_loads(topology)[0].times() or ()) == [0.5, 1.5]
    (tmp_path / "morning.txt").unlink()
    expected = r"two\.yaml: source camera: arrivals: found '.*morning\.txt', which cannot be read .*, expected "
    with pytest.raises(ConfigError, match=expected):
        source_loads(topology)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"rates": {"lidar": 5.0}}, r"--source-rate: found 'lidar', expected one of camera \(rank 0\), mapping \(rank 1\)"),
        ({"rates": {7: 5.0}}, r"--source-rate: found rank 7, expected one of camera"),
        ({"rates": {"camera": 5.0, 0: 6.0}}, r"--source-rate: found source camera \(rank 0\) twice, expected each once"),
        ({"rates": {"camera": 0.0}}, r"--source-rate: found 0\.0 for source camera, expected from 0\.001 to 1e\+06 samples"),
        ({"rates": {"camera": 1e9}}, r"--source-rate: found 1000000000\.0 for source camera, expected from 0\.001 to 1e\+06"),
        ({"rates": {"camera": math.nan}}, r"--source-rate: found nan for source camera"),
        ({"rates": {"camera": 5.0}, "rate_hz": 8.0}, r"--source-rate: found --rate 8 beside it, .*; expected one of the two"),
        ({"rates": {"camera": 5.0}, "arrivals": "x.txt"}, r"--source-rate: found --arrivals x\.txt beside it"),
        ({"arrivals": "constant"}, r"found constant without a rate, expected --rate HZ, or --source-rate camera=HZ, beside it"),
        ({"arrivals": "x.txt"}, r"--arrivals: found 'x\.txt', which cannot be read"),
    ],
)
def test_a_load_that_cannot_be_is_one_line(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        source_loads(two(), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("total", "rates", "expected"),
    [
        (402, [25.0] * 4, [101, 101, 100, 100]),
        (100, [5.0, 20.0], [20, 80]),
        (10, [1.0, 1.0, 1.0], [4, 3, 3]),
        (7, [1.0, 100.0], [0, 7]),
        (9, [5.0, None], [5, 4]),
        (1, [None, None, None], [1, 0, 0]),
        (math.inf, [1.0, 2.0], [math.inf, math.inf]),
    ],
)
def test_samples_are_shared_by_rate_so_that_all_sources_end_together(
    total: float, rates: list[float | None], expected: list[float]
) -> None:
    assert shares(total, [SourceLoad("live" if rate is None else "poisson", rate) for rate in rates]) == expected


def test_a_pace_of_its_own_lasts_ten_seconds_where_nothing_says_how_long(tmp_path: Path) -> None:
    def span(topology: Topology, **given: Any) -> Span:
        known: dict[str, Any] = {"count": None, "duration": None, "evaluation_samples": 500, **given}
        return run_span(arrivals="poisson", loads=list(source_loads(topology).values()), **known)

    assert span(two()) == Span(samples=500)
    assert span(two({"rate": 5})) == Span(seconds=RATED_SECONDS)
    assert span(two({"rate": 5}), count=7) == Span(samples=7)
    (tmp_path / "a.txt").write_text("1\n")
    file = {"arrivals": str(tmp_path / "a.txt")}
    assert span(two(file, file)) == Span()
    assert span(two(file)) == Span(seconds=RATED_SECONDS)
