"""A fresh policy that is told a node's trace answers the same, command for command: live, on a virtual clock, and after faults."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy import mesh as virtual
from tests.policy.test_mesh_properties import shapes
from tests.properties import examples
from tests.runtime.mesh import live, run, topology
from tests.trace.test_recorder import Recorded, parts
from zpipe.errors import ConfigError
from zpipe.policy import NodePolicy
from zpipe.policy.messages import Command, Event
from zpipe.policy.state import NodeConfig
from zpipe.runtime import driver
from zpipe.trace import Recorder, ReplayResult, codec, replay


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where every life of every node of a live mesh leaves its trace."""

    def traced(topology: Any, bundle: Any, rank: int, *, session: int, **options: Any) -> driver.Driver:
        trace = tmp_path / f"node-{rank}-{session}.trace"
        return driver.Driver(topology, bundle, rank, session=session, trace=trace, **options)

    monkeypatch.setattr("tests.runtime.mesh.Driver", traced)
    return tmp_path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A node served 20 tasks."""
    recorded = Recorded(tmp_path / "node.trace")
    recorded.serve(20)
    recorded.recorder.close()
    return recorded.path


def all_equal(folder: Path) -> list[ReplayResult]:
    """Every trace of a folder, replayed without a difference."""
    results = [replay(path) for path in sorted(folder.iterdir())]
    assert [str(result.difference) for result in results if result.difference is not None] == []
    assert all(result.rounds for result in results)
    return results


# ---- live --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "zeromq"])
def test_a_live_line_with_a_node_that_comes_back_replays_equal(traces: Path, kind: str) -> None:
    async def main() -> tuple[int, int]:
        async with live(topology([[0], [1, 2], [3, 4]]), kind=kind) as mesh:
            for number in range(60):
                mesh.submit(number)
            await mesh.until(10)
            await mesh.restart(1)
            for number in range(60, 120):
                mesh.submit(number)
            await mesh.until(120)
            counts = [node.policy.counts for node in mesh.drivers.values()]
            return sum(each.tasks_run for each in counts), sum(each.batches + each.sent // 8 for each in counts)

    ran, commanded = run(main)
    results = all_equal(traces)
    assert [result.rank for result in results] == [0, 1, 1, 2]
    assert all(result.ended == "when the node was closed" for result in results)
    assert ran > 120
    assert sum(result.commands for result in results) > commanded  # a run each, and frames of eight tasks at most


def test_a_live_line_whose_link_is_cut_and_mended_replays_equal(traces: Path) -> None:
    async def main() -> None:
        async with live(topology([[0, 1], [2, 3], [4]])) as mesh:
            one, other = (mesh.topology.node(rank).address for rank in (0, 1))
            assert one is not None
            assert other is not None
            for number in range(50):
                mesh.submit(number)
            await mesh.until(5)
            mesh.network.cut(one, other)
            mesh.network.drop_data(one, other, 1)
            mesh.network.mend(one, other)
            await mesh.until(50)

    run(main)
    all_equal(traces)
    assert b"PeerLost" in next(traces.glob("node-0-*")).read_bytes()


# ---- on a virtual clock ------------------------------------------------------------------------


class TracedPolicy(NodePolicy):
    """A policy of a virtual mesh, recorded; with dice of its own, where the mesh has one pair for all."""

    folder: Path
    recorders: list[Recorder]

    def __init__(self, config: NodeConfig, *, rng: random.Random) -> None:
        life = len(self.recorders)
        super().__init__(config, rng=random.Random(life))
        self.recorder = Recorder(self.folder / f"{life}.trace", self, seed=life)
        self.recorders.append(self.recorder)

    def handle(self, event: Event, *, now: float) -> list[Command]:
        return self.recorder.handle_all((event,), now=now)


@given(
    shape=shapes(),
    seed=st.integers(0, 999),
    cut=st.floats(0.005, 0.05),
    losses=st.sampled_from([0.0, 0.05]),
    restart=st.booleans(),
)
@examples(150)
def test_random_meshes_with_faults_replay_equal(shape: virtual.Shape, seed: int, cut: float, losses: float, restart: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(TracedPolicy, "folder", Path(folder), raising=False)
        patch.setattr(TracedPolicy, "recorders", [], raising=False)
        patch.setattr(virtual, "NodePolicy", TracedPolicy)
        mesh = virtual.Mesh(shape, seed=seed)
        mesh.lose = lambda sender, receiver, command: mesh.rng.random() < losses
        for sample in range(15):
            mesh.submit_at(sample * 0.004, sample, deadline=20.0)
        a, b = shape.links[0]
        mesh.at(cut, lambda: mesh.cut(a, b))
        if restart:
            mesh.at(2.0 * cut, lambda: mesh.restart(len(shape.stages) - 1))
        mesh.run(until=30.0)
        for recorder in TracedPolicy.recorders:
            recorder.close()
        results = all_equal(Path(folder))
        assert len(results) == len(TracedPolicy.recorders) >= len(shape.stages)
        assert sum(result.events for result in results) == mesh.handled > 0


def test_dice_of_another_seed_show_in_a_mesh_that_throws_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TracedPolicy, "folder", tmp_path, raising=False)
    monkeypatch.setattr(TracedPolicy, "recorders", [], raising=False)
    monkeypatch.setattr(virtual, "NodePolicy", TracedPolicy)
    everywhere = virtual.Shape(stages=((0, 1, 2),) * 2, links=((0, 1),), offload="mdi", output_threshold=50, own_slots=16)
    slow_neighbour = {0: 0.004, 1: 0.016}  # Alg. 2 throws dice where the neighbour's cost is above the own backlog
    mesh = virtual.Mesh(everywhere, answer=virtual.leaves_at(lambda sample: 2), service=lambda rank, stage: slow_neighbour[rank])
    for sample in range(60):
        mesh.submit(sample)
    mesh.run(until=30.0)
    for recorder in TracedPolicy.recorders:
        recorder.close()
    source = all_equal(tmp_path)[0]
    found = replay(tampered(tmp_path / "0.trace", 1, lambda header: header.update(seed=header["seed"] + 1)))
    assert found.difference is not None
    assert found.rounds < source.rounds


# ---- differences -------------------------------------------------------------------------------


def tampered(path: Path, number: int, change: Callable[[Any], None]) -> Path:
    """The trace with one part changed; the header is part 1."""
    whole = parts(path)
    change(whole[number - 1])
    path.write_bytes(b"".join(map(codec.pack, whole)))
    return path


def test_a_changed_command_is_named_with_its_field(trace: Path) -> None:
    def change(line: Any) -> None:
        (run,) = [command for command in line[2] if command[0] == "RunStage"]
        run[3][0][2] = 1  # Task.stage

    result = replay(tampered(trace, 3, change))
    assert str(result.difference) == (
        "round 1 at 0.250000 s (1 TaskReceived): command 2, RunStage.tasks[0].stage: expected 1, found 2"
    )
    assert (result.rounds, result.events, result.ended) == (1, 1, "")


def test_a_changed_event_shows_in_the_commands_that_follow(trace: Path) -> None:
    def change(line: Any) -> None:
        line[1][0][3] = [4]  # StageCompleted.labels

    difference = replay(tampered(trace, 4, change)).difference
    assert difference is not None
    assert difference.where.endswith("SendResults.rows[0].label")
    assert (difference.round, difference.expected, difference.found) == (2, "3", "4")


@pytest.mark.parametrize(
    ("change", "where", "expected", "found"),
    [
        (lambda line: line[2].clear(), "command 0", "none", "GrantCredit("),
        (lambda line: line[2].append(["Discard", [5]]), "command 3", "Discard(tokens=[5])", "none"),
        (lambda line: line[2].insert(0, ["Discard", [5]]), "command 0", "Discard(tokens=[5])", "GrantCredit("),
        (lambda line: line.__setitem__(2, {"raised": "KeyError: 1"}), "answer", "{'raised': 'KeyError: 1'}", "[GrantCredit("),
        (lambda line: line[1].append(["StageFailed", 77, "", False]), "answer", "[GrantCredit(", "{'raised': 'KeyError: 77'}"),
    ],
    ids=["missing", "additional", "another", "raised-before", "raises-now"],
)
def test_every_kind_of_difference_is_one_short_line(
    trace: Path, change: Callable[[Any], None], where: str, expected: str, found: str
) -> None:
    difference = replay(tampered(trace, 3, change)).difference
    assert difference is not None
    assert difference.where == where
    assert difference.expected.startswith(expected)
    assert difference.found.startswith(found)
    assert "\n" not in str(difference)
    assert len(str(difference)) < 600


def test_a_float_that_differs_in_its_last_bit_is_a_difference(trace: Path) -> None:
    def change(line: Any) -> None:
        (run,) = [command for command in line[2] if command[0] == "RunStage"]
        run[4][1] = 1.0000000000000002  # GateSpec.temperature

    difference = replay(tampered(trace, 3, change)).difference
    assert difference is not None
    assert (difference.where, difference.expected, difference.found) == (
        "command 2, RunStage.gate.temperature",
        "1.0000000000000002",
        "1.0",
    )


# ---- ends and refusals -------------------------------------------------------------------------


@pytest.mark.parametrize("left", [1, 30, 120])
def test_a_trace_cut_off_in_a_round_replays_up_to_there(trace: Path, left: int) -> None:
    whole = list(map(codec.pack, parts(trace)))
    trace.write_bytes(b"".join(whole[:11]) + whole[11][:left])
    result = replay(trace)
    assert result.difference is None
    assert result.rounds == 10
    assert result.ended == "without its end mark, since the node was killed or still runs"


def write(*values: Any) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(b"".join(map(codec.pack, values)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, r"found that it cannot be read \(No such file or directory\), expected a trace"),
        (write(), r"found no header of a trace, expected trace version 2; "),
        (write([1, 2]), r"found no header of a trace, expected trace version 2; "),
        (write({"trace": 3}), r"found trace version 3, expected trace version 2; "),
        (write({"trace": 2, "rank": "x"}), r"its header: found no usable zpipe, rank, seed, fields, config, expected the header"),
        (lambda path: path.write_text('{"trace":1,"zpipe":"0.1.0"}'), r"found trace version 1, expected trace version 2; "),
        (lambda path: path.write_text("name: line4"), r"found no header of a trace, expected trace version 2; "),
        (lambda path: path.write_bytes(b"\xc1"), r"its header: found bytes that mean nothing, expected a part of a trace"),
    ],
    ids=["none", "empty", "list", "version", "header", "json", "yaml", "bytes"],
)
def test_what_is_no_trace_is_refused_in_one_line(trace: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(trace)
    with pytest.raises(ConfigError, match=message) as caught:
        replay(trace)
    assert str(caught.value).startswith(f"{trace}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (
            1,
            lambda header: header["fields"]["Task"].append("colour"),
            r"its header: found Task with fields .*, colour, expected key, ",
        ),
        (1, lambda header: header["config"].pop(), r"its header: found \d+ values, expected \d+"),
        (3, lambda line: line.pop(), r"round 1: found another shape, expected \[now, events, commands\]"),
        (3, lambda line: line[1].append(["Rained"]), r"round 1: found event 'Rained', expected one of TaskReceived, "),
    ],
    ids=["field", "config", "shape", "event"],
)
def test_a_part_that_cannot_be_read_is_named(trace: Path, number: int, change: Callable[[Any], None], message: str) -> None:
    tampered(trace, number, change)
    with pytest.raises(ConfigError, match=message):
        replay(trace)


def test_a_strategy_this_version_does_not_have_is_refused(trace: Path) -> None:
    def change(header: Any) -> None:
        header["config"][header["fields"]["NodeConfig"].index("offload")] = "oracle"

    with pytest.raises(ConfigError, match=r"its header: found a configuration that this policy refuses \(KeyError: 'oracle'\), "):
        replay(tampered(trace, 1, change))
