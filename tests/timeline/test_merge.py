"""A timeline holds what happened, neither more nor less: the same numbers as the report of the run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bench.perfetto import TraceProcessor, why_not
from tests.runtime.mesh import live, run, topology
from tests.timeline.reader import Timeline, read
from tests.trace.test_recorder import Recorded
from tests.trace.test_replay import tampered, traces  # noqa: F401 - a fixture
from zpipe.bench.run import BenchOptions, run_bench
from zpipe.errors import ConfigError
from zpipe.timeline import Merged, merge
from zpipe.trace import codec


class Run:
    """A bench of emulated boards, its report and its timeline."""

    def __init__(self, folder: Path, name: str, *, every: int = 1) -> None:
        options = BenchOptions(
            name, executor="emulated", device="raspberry-pi-3", count=120, warm_up=0, rate_hz=150.0, seed=3, trace=folder / "traces"
        )
        self.report: dict[str, Any] = asyncio.run(run_bench(options, progress=lambda line, done: None))[0]
        self.path = folder / "timeline.json.gz"
        self.files = sorted((folder / "traces").iterdir())
        self.merged: Merged = merge(self.files, self.path, every=every)
        self.timeline: Timeline = read(self.path)

    def total(self, rows: str, key: str) -> int:
        return sum(int(row[key]) for row in self.report[rows])


@pytest.fixture(scope="module", params=["line4.yaml", "mesh3.yaml"])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"), request.param)


def test_counts_are_those_of_the_report(ran: Run) -> None:
    counts, report = ran.merged.counts, ran.report
    assert {kind: counts[kind] for kind in ("result", "rejected", "expired", "failed")} == {
        kind: report["counts"][kind] for kind in ("result", "rejected", "expired", "failed")
    }
    assert report["counts"]["submitted"] == 120
    assert counts["tasks_run"] == ran.total("nodes", "tasks")
    assert counts["batches"] == sum(round(row["tasks"] / row["batch_mean"]) for row in report["nodes"] if row["tasks"])
    assert (counts["hops"], counts["frames"]) == (ran.total("links", "tasks"), ran.total("links", "frames"))
    assert counts["arrived"] == counts["frames"] > 0
    assert ran.timeline.about["counts"] == counts


def test_every_batch_frame_and_outcome_is_drawn(ran: Run) -> None:
    counts, timeline = ran.merged.counts, ran.timeline
    assert timeline.processes == {row["rank"]: "node" for row in ran.report["nodes"]}
    assert timeline.count("stage ") == counts["batches"]
    for stage, share in enumerate(ran.report["exits"]):
        exited = sum(event["args"]["exited"] for event in timeline.slices.get(f"stage {stage}", []))
        assert exited == round(share["share"] * counts["result"])
    frames = [event for name, events in timeline.pairs.items() if name.startswith("to node") for event in events]
    assert len(frames) == counts["frames"]
    assert sum(event["args"]["tasks"] for event in frames) == counts["hops"]
    assert timeline.count("submit") == timeline.count("result") == len(timeline.pairs["sample: result"]) == 120
    (last,) = (events[-1]["args"] for events in [timeline.counters["outcomes"]])
    assert last["result"] == 120


def test_arrows_lead_each_sample_over_its_batches_to_its_outcome(ran: Run) -> None:
    counts, arrows = ran.merged.counts, ran.timeline.arrows
    assert len(arrows) == counts["tasks_run"] + 120
    assert sum(one == "submit" for one, _, _ in arrows) == sum(other == "result" for _, other, _ in arrows) == 120
    between_nodes = sum(elsewhere for _, other, elsewhere in arrows if other.startswith("stage"))
    assert between_nodes == counts["hops"]


def test_clocks_of_one_machine_are_found_equal_within_what_is_claimed(ran: Run) -> None:
    reference, *others = ran.merged.clocks
    assert reference.source == "reference"
    for clock in others:
        assert clock.source == "messages"
        assert clock.uncertainty_seconds is not None
        assert abs(clock.ahead_seconds) <= clock.uncertainty_seconds


def test_latency_in_the_timeline_is_the_reports(ran: Run) -> None:
    latencies = sorted(event["args"]["latency_ms"] for event in ran.timeline.slices["result"])
    assert latencies[-1] == pytest.approx(ran.report["latency_ms"]["max"], abs=0.001)
    assert sum(latencies) / 120 == pytest.approx(ran.report["latency_ms"]["mean"], abs=0.001)


def test_the_same_traces_make_the_same_file(ran: Run, tmp_path: Path) -> None:
    again = tmp_path / ran.path.name
    merge(ran.files[::-1], again)
    assert again.read_bytes() == ran.path.read_bytes()


def test_every_third_sample_alone_is_drawn_but_all_batches(ran: Run, tmp_path: Path) -> None:
    merged = merge(ran.files, tmp_path / "timeline.json", every=3)
    timeline = read(tmp_path / "timeline.json")
    assert merged.counts == ran.merged.counts
    assert timeline.count("stage ") == ran.timeline.count("stage ")
    assert timeline.count("result") == 40
    assert 0 < len(timeline.arrows) < len(ran.timeline.arrows)


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_perfettos_trace_processor_counts_the_same(ran: Run) -> None:
    counts = ran.merged.counts
    with TraceProcessor(ran.path) as processor:
        assert processor.query("select name from stats where severity in ('error', 'data_loss') and value > 0") == []
        assert processor.one("select count(*) from slice where name glob 'stage *'") == counts["batches"]
        assert processor.one("select count(*) from slice where name glob 'to node *'") == counts["frames"]
        assert processor.one("select count(*) from slice where name = 'result'") == counts["result"]
        assert processor.one("select count(*) from flow") == counts["tasks_run"] + 120
        ends = "select count(*) from flow join slice on slice.id = slice_in where slice.name = 'result' and "
        of_sample = "'0/' || extract_arg(slice.arg_set_id, 'args.sample') = extract_arg(flow.arg_set_id, 'name')"
        assert processor.one(ends + of_sample) == 120


# ---- what goes wrong ---------------------------------------------------------------------------


def test_a_node_that_comes_back_has_two_lives_on_one_track(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> None:  # noqa: F811
    async def main() -> int:
        async with live(topology([[0], [1, 2], [3, 4]])) as mesh:
            for number in range(60):
                mesh.submit(number)
            await mesh.until(10)
            await mesh.restart(1)
            for number in range(60, 90):
                mesh.submit(number)
            await mesh.until(90)
            source = mesh.drivers[0].policy.source
            assert source is not None
            return source.counts.resubmitted

    resubmitted = run(main)
    out = tmp_path_factory.mktemp("out") / "timeline.json"
    merged = merge(sorted(traces.iterdir()), out)
    timeline = read(out)
    assert [life.rank for life in merged.lives] == [0, 1, 1, 2]
    assert [life.differs_at for life in merged.lives] == [None] * 4
    assert merged.counts["result"] == 90
    assert merged.counts["resubmitted"] == len(timeline.instants["submitted again"]) == resubmitted > 0
    assert len(timeline.processes) == 3
    (began,) = {event["pid"] for event in timeline.instants["trace begins"] if event["args"]["file"].startswith("node-1")}
    assert began == 1
    assert "node 1 lost" in timeline.instants


def test_what_was_running_when_a_node_was_killed_is_drawn_to_its_end(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path / "node.trace")
    recorded.serve(3)
    recorded.recorder.close()
    *whole, last, _ = map(codec.pack, recorded.parts())
    recorded.path.write_bytes(b"".join(whole) + last[:20])
    merged = merge([recorded.path], tmp_path / "timeline.json")
    timeline = read(tmp_path / "timeline.json")
    assert merged.counts["tasks_run"] == 2
    assert [event["args"].get("unfinished", False) for event in timeline.slices["stage 2"]] == [False, False, True]
    assert "killed, or still running" in timeline.instants


def test_beyond_a_decision_this_zpipe_makes_otherwise_there_are_no_counters(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path / "node.trace")
    recorded.serve(6)
    recorded.recorder.close()
    tampered(recorded.path, 5, lambda line: line[2].clear())
    merged = merge([recorded.path], tmp_path / "timeline.json")
    (life,) = merged.lives
    assert life.differs_at == recorded.parts()[4][0]
    assert life.differs_at is not None
    assert all(now < life.differs_at for rows in life.counters.values() for now, _ in rows)
    assert merged.counts["tasks_run"] == 5  # the run that was taken out of the trace is not drawn
    assert "counters end" in read(tmp_path / "timeline.json").instants


def test_traces_of_two_runs_are_refused(tmp_path: Path) -> None:
    paths = []
    for name in ("a.trace", "b.trace"):
        recorded = Recorded(tmp_path / name)
        recorded.serve(20)
        recorded.recorder.close()
        paths.append(recorded.path)
    with pytest.raises(ConfigError, match=r"found that node 1 ran then, by .*, expected traces of one run; leave one of them out"):
        merge(paths, tmp_path / "timeline.json")
    assert not (tmp_path / "timeline.json").exists()


def test_a_timeline_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path / "node.trace")
    recorded.serve(2)
    recorded.recorder.close()
    with pytest.raises(ConfigError, match="found that it cannot be written"):
        merge([recorded.path], tmp_path / "none" / "timeline.json")
