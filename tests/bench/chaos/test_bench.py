"""`zpipe bench --chaos` as a whole: real processes that die and real links that fail, and every sample still ends once."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from rich.console import Console

from tests.runtime.mesh import HALF
from zpipe.bench.run import BenchOptions, run_bench
from zpipe.cli import main
from zpipe.errors import ConfigError
from zpipe.report import check_schema, render
from zpipe.topology import Topology, from_dict


def topology() -> Topology:
    """A source that can do everything, and a node that can, too: nothing has to wait for it."""
    nodes = [{"rank": rank, "stages": [0, 1, 2, 3, 4]} for rank in range(2)]
    return from_dict({"name": "pair", "bundle": str(HALF), "nodes": nodes, "links": "line", "policy": "mdi"})


def bench(chaos: str, **options: Any) -> dict[str, Any]:
    """The report of a short run; every one has to keep the promise."""
    plan = BenchOptions(topology=topology(), rate_hz=100.0, duration=1.0, warm_up=0, deadline=20.0, chaos=chaos, **options)
    report, _ = asyncio.run(run_bench(plan, progress=lambda line, done: None))
    check_schema(report)
    counts = report["counts"]
    assert counts["result"] == counts["submitted"] > 50
    assert (counts["lost"], counts["duplicate"], counts["hung"], report["strangers"]) == (0, 0, 0, 0)
    return report


def shown(report: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(render(report))
    return out.getvalue()


def test_killed_node_comes_back_and_the_report_says_when() -> None:
    report = bench("kill node 1 at 200ms; calm 100ms every 10s")
    (event,) = report["chaos"]["timeline"]
    assert (event["action"], event["target"]) == ("kill", "node 1")
    assert event["at_seconds"] >= 0.3
    assert event["back_after_seconds"] > 0.0
    assert [node["restarted"] for node in report["nodes"]] == [False, True]
    assert all(value >= 0 for node in report["nodes"] for key, value in node.items() if key in ("tasks", "sent_bytes", "busy"))
    assert report["chaos"]["labels"]["compared"] == report["counts"]["result"]
    text = shown(report)
    assert "counters of nodes 1: since they were last started" in text
    assert "…" not in text  # it fits 80 columns


def test_links_fail_through_relays_and_their_damage_is_counted() -> None:
    report = bench("corrupt 5%; reset at 300ms; flip at 500ms")
    assert [event["action"] for event in report["chaos"]["timeline"]] == ["corrupt", "reset", "flip"]
    damage = report["chaos"]["damage"]["0-1"]
    assert damage["messages"] > 0
    assert damage["corrupted"] > 0
    assert report["chaos"]["summary"]["reset"]["events"] == 1


def test_spec_is_refused_before_anything_starts() -> None:
    async def refused(**options: Any) -> None:
        await run_bench(BenchOptions(topology=topology(), **options), progress=lambda line, done: pytest.fail(line))

    with pytest.raises(ConfigError, match=r"^--chaos: found action 'kil', expected one of .* \(did you mean kill\?\)$"):
        asyncio.run(refused(chaos="kil every 5s"))
    with pytest.raises(ConfigError, match=r"^--chaos: kill: found node 5, expected one of 1 "):
        asyncio.run(refused(chaos="kill node 5 every 5s"))
    with pytest.raises(ConfigError, match=r"^--chaos kills and stops nodes it has started: found --attach"):
        asyncio.run(refused(chaos="kill every 5s", attach=True))


def test_command_says_what_is_wrong_with_a_spec_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["zpipe", "bench", "--chaos", "stop every 5s"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2
    assert "'stop every 5s': found no duration, expected how long each lasts; for instance 'stop 2s every 5s'" in said
    assert "\n" not in said
