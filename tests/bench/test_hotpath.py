"""How bench.hotpath and bench.micro compare: the arithmetic between two checkouts, and between a run and its baseline."""

from __future__ import annotations

import math

import pytest

from bench import hotpath, micro
from bench.hotpath import Run, ratio, show_ratios


def test_ratio_of_pairs_is_their_geometric_mean_whatever_each_pair_has_in_common() -> None:
    there = [100.0, 400.0, 50.0, 230.0]
    mean, low, high = ratio([0.8 * value for value in there], there)
    assert mean == pytest.approx(0.8)
    assert (low, high) == pytest.approx((0.8, 0.8))


def test_interval_of_a_ratio_is_students_t_on_the_logarithms() -> None:
    mean, low, high = ratio([1.1, 1.0, 1.2], [1.0, 1.0, 1.0])
    logs = [math.log(1.1), 0.0, math.log(1.2)]
    centre = sum(logs) / 3
    half = 4.302653 * math.sqrt(sum((value - centre) ** 2 for value in logs) / 2) / math.sqrt(3)
    assert mean == pytest.approx(math.exp(centre))
    assert (low, high) == pytest.approx((math.exp(centre - half), math.exp(centre + half)), rel=1e-5)


def test_one_pair_has_no_interval() -> None:
    assert ratio([1.0], [2.0]) == (0.5, 0.0, math.inf)


def test_overhead_is_per_hop_and_efficiency_of_the_whole() -> None:
    run = Run(nodes=(300.0, 500.0), stages=(200.0, 400.0), batches=(1.0, 1.0), tasks=3.0, hz=10.0)
    assert (run.cpu, run.overhead, run.overheads, run.efficiency) == (800.0, 100.0, (100.0, 100.0), 0.75)


def test_micro_rows_are_microseconds_a_unit() -> None:
    stats = {"min": 0.004, "q1": 0.005, "median": 0.006, "rounds": 7}
    row = micro._row({"stats": stats, "extra_info": {"units": 1000, "events": 3.4}})
    assert row == {"us": 4.0, "us_quartile": 5.0, "us_median": 6.0, "rounds": 7, "events": 3.4}


def test_a_slower_machine_is_taken_out_of_a_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    def rows(machine: float, wire: float) -> micro.Rows:
        return {name: {"us": us, "us_quartile": us} for name, us in ((micro.REFERENCE, machine), ("wire encode", wire))}

    baseline = {"commit": "c", "date": "d", "machine": {"cpu": "x"}, "benchmarks": rows(10.0, 2.0)}
    micro.show(rows(20.0, 3.0), baseline)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("wire encode"))
    assert line.split() == ["wire", "encode", "3.00", "0%", "2.00", "1.50", "0.75"]


@pytest.mark.parametrize(
    ("ratios", "said"), [([1.01, 0.99, 1.0], "held"), ([1.2, 0.9, 1.0], "open: more pairs"), ([1.2, 1.21, 1.2], "COSTS MORE")]
)
def test_a_cost_is_unchanged_only_where_its_whole_interval_is(
    ratios: list[float], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(node: float) -> Run:
        return Run(nodes=(node,), stages=(0.0,), batches=(1.0,), tasks=1.0, hz=1.0)

    found = show_ratios([run(each) for each in ratios], [run(1.0)] * len(ratios))
    line = next(line for line in capsys.readouterr().out.splitlines() if "cpu_us_per_sample" in line)
    assert line.endswith(said)
    assert found["cpu_us_per_sample"]["low"] <= found["cpu_us_per_sample"]["ratio"] <= found["cpu_us_per_sample"]["high"]


@pytest.mark.parametrize("arguments", [["--rounds", "-1"], ["--rounds", "0"], ["--count", "0"], ["--batch", "0"]])
def test_what_would_measure_nothing_is_refused_in_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["hotpath", *arguments])
    with pytest.raises(SystemExit) as error:
        hotpath.main()
    assert error.value.code == 2
    assert f"{arguments[0]}: found {arguments[1]}, expected at least 1" in capsys.readouterr().err
