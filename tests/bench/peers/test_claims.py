"""What is said of figures: factors round by round, what was wanted, and the plot of it all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.peers import __main__ as command
from bench.peers.claims import claims
from bench.peers.rounds import _row, ratio
from bench.peers.work import WORKLOADS

DIGITS = WORKLOADS["digits"]


def row(key: str, hz: list[float], **figures: float) -> dict[str, Any]:
    """A contender whose rounds gave these rates; the rest is the same in every round."""
    rest = {"beside_us": 900.0, "cpu_us": 3000.0, "stage_cpu_us": 2600.0, "overhead_us": 100.0, **figures}
    return _row(key, [{"hz": value, **rest} for value in hz], None, DIGITS)


def test_factor_is_taken_within_each_round() -> None:
    mine, other = row("z", [100.0, 10.0, 50.0]), row("a", [200.0, 20.0, 100.0])
    assert ratio(mine["rounds"], other["rounds"], "hz") == {"median": 0.5, "low": 0.5, "high": 0.5}


def test_saturated_claims_hold_and_fall_by_the_issues_numbers() -> None:
    rows = [row("z", [80.0]), row("a", [100.0]), row("a'", [100.0]), row("d", [79.0]), row("f", [500.0])]
    found = {claim.text: claim.held for claim in claims(rows, "digits", "batch-1")}
    assert found == {
        "samples a second over (a) pyzmq, blocking": True,
        "samples a second over (a') pyzmq, asyncio + thread": False,
        "samples a second over (d) dora-rs": True,
        "CPU beside the stages, us a sample and process": True,
    }


def test_latency_claims_are_of_what_is_beside_the_stages() -> None:
    rows = [row("z", [1.0], beside_us=1300.0), row("a", [1.0], beside_us=700.0), row("a'", [1.0], beside_us=1000.0)]
    over, more = claims(rows, "spin-4k", "latency")
    assert (over.found, over.held) == (1.3, False)
    assert (more.found, more.held) == (200.0, False)


def test_no_claim_is_made_without_zpipe_or_of_who_fell() -> None:
    fallen = _row("a'", [], "3 of 9 answers wrong or missing", DIGITS)
    assert claims([row("a", [1.0])], "digits", "batch-1") == []
    assert [claim.text for claim in claims([row("z", [1.0]), fallen], "digits", "batch-1")] == [
        "CPU beside the stages, us a sample and process"
    ]


def test_results_of_another_mode_stay_and_all_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "peers.json"
    fallen = {"workload": "digits", "mode": "latency", "contender": "a", "fell": "No module named 'zmq'"}
    for mode in ("batch-1", "latency"):
        rows = [{"workload": "digits", "mode": mode, **row("z", [10.0, 12.0])}, {**fallen, "mode": mode}]
        command._keep(path, f"digits, {mode}", {"rows": rows})
    results = json.loads(path.read_text(encoding="utf-8"))
    assert list(results["measured"]) == ["digits, batch-1", "digits, latency"]
    assert "<svg" in path.with_suffix(".svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [["--only", "zz"], ["--workload", "cats"], ["--mode", "fast"]])
def test_unknown_name_lists_the_known_ones(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert f"found {arguments[1]!r}, expected some of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--rounds", "0"], ["--seconds", "nan"], ["--seconds", "0"], ["--json", "/no/such/folder/x.json"]]
)
def test_impossible_numbers_and_places_are_refused_before_anything_starts(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
