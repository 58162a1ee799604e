"""Stages that fail, on live nodes: samples that no executor can look at, and executors that die."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.executors.tiny import host_rows
from tests.runtime.mesh import LiveMesh, answers, expected, live, run, topology, turns_until
from zpipe.executors import StageOutput
from zpipe.policy.delivery import MAX_STAGE_FAILURES

KINDS = ["memory", "zeromq"]
LINE = [[0], [1, 2], [3, 4]]
#: Stages 1 and 2 on two boards, each linked to the source and to the last.
REPLICAS = [[0], [1, 2], [1, 2], [3, 4]]
SQUARE = [{"between": [0, 1]}, {"between": [0, 2]}, {"between": [1, 3]}, {"between": [2, 3]}]


def epochs(mesh: LiveMesh) -> dict[tuple[int, int], int]:
    """{(rank, neighbour): number of the connection between them}: a node that went down, were it for a moment, shows here."""
    return {
        (rank, peer): outgoing.epoch
        for rank, driver in mesh.drivers.items()
        for peer, outgoing in driver.peers.outgoing.items()
        if outgoing.ready
    }


async def emptied(mesh: LiveMesh) -> None:
    """Nothing is left at any node, and each policy is in order."""
    await turns_until(lambda: not any(driver.policy.held_count for driver in mesh.drivers.values()))
    for driver in mesh.drivers.values():
        driver.policy.check()
        assert driver.stats()["payloads"] == 0
    assert mesh.drivers[0].inputs == {}


# ---- poison samples (policy rule R4) -------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stages", "links"), [(LINE, "line"), (REPLICAS, SQUARE)], ids=["line", "replicas"])
def test_poison_samples_fail_with_their_cause_and_nothing_else_does(kind: str, stages: list[list[int]], links: object) -> None:
    async def main() -> None:
        async with live(topology(stages, links), kind=kind) as mesh:
            before = epochs(mesh)
            poison = {7, 23, 24}  # they come as far as stage 1
            hosts = [rank for rank, hosted in enumerate(stages) if 1 in hosted]
            for rank in hosts:
                mesh.executors[rank].broken = poison
            for number in range(60):
                mesh.submit(number)
            outcomes = answers(await mesh.until(60))
            assert outcomes == {**expected(60), **dict.fromkeys(poison, ("failed", -1, -1))}

            failed = [outcome for outcome in mesh.outcomes if outcome.sample in poison]
            causes = {f"stage-failed: stage 1 on node {rank}: ValueError: cannot look at this one" for rank in hosts}
            assert all(outcome.cause in causes for outcome in failed)
            assert [outcome.attempts for outcome in failed] == [MAX_STAGE_FAILURES] * len(poison)

            batches = [numbers for rank in hosts for _, numbers in mesh.executors[rank].ran if poison.intersection(numbers)]
            assert any(len(numbers) > 1 for numbers in batches), "some had neighbours in their batch"
            alone = sorted(numbers for numbers in batches if len(numbers) == 1)
            assert alone == [[number] for number in sorted(poison) for _ in range(MAX_STAGE_FAILURES)]

            stats = {rank: driver.stats() for rank, driver in mesh.drivers.items()}
            assert sum(stats[rank]["stage_failures"] for rank in hosts) == len(batches)
            assert all(stats[rank]["serving"] and stats[rank]["accepting"] for rank in stats)
            assert stats[0]["delivery"]["resubmitted"] == len(poison) * (MAX_STAGE_FAILURES - 1)
            assert epochs(mesh) == before, "no node went down"
            await emptied(mesh)

    run(main)


def leaves(output: StageOutput) -> StageOutput:
    raise SystemExit(3)


def cut(output: StageOutput) -> StageOutput:
    return replace(output, activation=host_rows(output)[:, :1])


#: {name: (what the executor makes of its output, what the cause says)}
FAULTS: dict[str, tuple[Callable[[StageOutput], Any], str]] = {
    "exit": (leaves, "SystemExit: 3"),
    "nothing": (lambda output: None, "found output of type NoneType, expected a StageOutput"),
    "short": (lambda output: replace(output, exited=output.exited[1:]), "found output exited of 0 rows, expected 1"),
    "shape": (
        cut,
        "found output activation float32 [1, 1, 8, 8], expected float32 [1, 16, 8, 8]",
    ),
    "nan": (lambda output: replace(output, confidences=[math.nan] * len(output.exited)), "found output confidence nan in row 0"),
    "label": (lambda output: replace(output, labels=[99] * len(output.exited)), "found output label 99, expected 0..9"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_output_that_does_not_fit_fails_its_sample_alone(fault: str) -> None:
    async def main() -> None:
        async with live(topology(LINE)) as mesh:
            before = epochs(mesh)
            mesh.executors[1].broken = {7}
            mesh.executors[1].fault, cause = FAULTS[fault]
            for number in range(30):
                mesh.submit(number)
            assert answers(await mesh.until(30)) == {**expected(30), 7: ("failed", -1, -1)}
            (failed,) = [outcome for outcome in mesh.outcomes if outcome.kind == "failed"]
            assert failed.cause.startswith("stage-failed: stage 1 on node 1: ")
            assert cause in failed.cause
            assert failed.attempts == MAX_STAGE_FAILURES
            assert mesh.drivers[1].stats()["serving"]
            assert epochs(mesh) == before, "no node went down"
            await emptied(mesh)

    run(main)


# ---- executors that die (policy rule R6) ---------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_replica_takes_over_from_an_executor_that_died(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with live(topology(REPLICAS, SQUARE), kind=kind) as mesh:
            before = epochs(mesh)
            mesh.executors[1].deadly = set(range(40))
            for number in range(40):
                mesh.submit(number)
            await mesh.until(40)
            for number in range(40, 80):
                mesh.submit(number)
            assert answers(await mesh.until(80)) == expected(80)

            dead, replica = mesh.drivers[1].stats(), mesh.drivers[2].stats()
            assert (dead["serving"], dead["accepting"], dead["tasks_run"], dead["stage_failures"]) == (False, False, 0, 1)
            assert (replica["serving"], replica["stage_failures"]) == (True, 0)
            assert dead["handed_over"] >= len(mesh.executors[1].ran[0][1])
            assert len(mesh.executors[1].ran) == 1, "it was never asked again"
            await turns_until(lambda: not mesh.drivers[0].policy.neighbour(1).accepting)
            assert epochs(mesh) == before, "the node itself stays up"
            delivery = mesh.drivers[0].stats()["delivery"]
            assert delivery["resubmitted"] <= 16 + 4, "once for each task that was there or on its way"
            await emptied(mesh)

    with caplog.at_level(logging.ERROR, logger="zpipe.node"):
        run(main)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "node 1 lost its executor (ExecutorLost: its device is gone) and runs no stage any more; start it again"


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_replica_samples_wait_for_a_dead_executor_until_their_deadline(kind: str) -> None:
    async def main() -> None:
        async with live(topology(LINE), kind=kind) as mesh:
            before = epochs(mesh)
            mesh.executors[1].deadly = {12}
            for number in range(10):
                mesh.submit(number)
            await mesh.until(10)
            for number in range(10, 14):
                mesh.submit(number, deadline=0.5)
            await turns_until(lambda: not mesh.drivers[0].policy.neighbour(1).accepting)
            for number in range(14, 20):
                mesh.submit(number, deadline=0.5)
            outcomes = answers(await mesh.until(20))
            stats = mesh.drivers[1].stats()
            assert (stats["serving"], stats["accepting"], stats["stage_failures"]) == (False, False, 1)
            stuck = {number for number in range(10, 20) if number % 5}  # the others leave at stage 0
            assert outcomes == {**expected(20), **dict.fromkeys(stuck, ("expired", -1, -1))}
            assert epochs(mesh) == before, "the node itself stays up"
            causes = {outcome.sample: outcome.cause for outcome in mesh.outcomes}
            waits = "waiting for stage 1: node 1 takes no tasks: it leaves, or lost its executor"
            assert all(f"({waits}" in causes[number] for number in stuck)
            assert causes[12].endswith(f"({waits}; last loss: executor-lost: node 1: ExecutorLost: its device is gone)")
            await emptied(mesh)

    run(main)
