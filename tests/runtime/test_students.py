"""Students on live nodes: every sample answered by the parts that are alive, and always with the label these give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import students
from tests.runtime.mesh import EmulatedMesh, run, started, turns_until
from zpipe.bench.chaos.answers import Answers, right_answers
from zpipe.bundle import Bundle
from zpipe.policy.exits import ExitLadder
from zpipe.policy.messages import Resolve
from zpipe.runtime.outcomes import outcome_of
from zpipe.topology import override

COUNT = students.SAMPLES


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return students.students(tmp_path / "three")


def right(bundle: Bundle) -> Answers:
    """What each sample gets, by which parts are missing."""
    answers = right_answers(bundle, ExitLadder((bundle.default_point.thresholds,), 0), admission="fixed", codec="none")
    assert answers is not None
    return answers


def told(outcomes: list[Resolve], bundle: Bundle) -> dict[int, tuple[str, int]]:
    """{sample: (kind, parts that were missing)}; every label is that of the parts that were in."""
    joined: Any = right(bundle).joined
    for outcome in outcomes:
        assert outcome.row is not None, outcome.cause
        assert outcome.row.label == joined[outcome.missing, outcome.sample]
    assert len({outcome.sample for outcome in outcomes}) == len(outcomes)
    return {outcome.sample: (outcome.kind, outcome.missing) for outcome in outcomes}


def mesh(bundle: Bundle, *, replicas: int = 2, redundancy: str = "hedged") -> EmulatedMesh:
    topology = override(students.star(bundle.path, replicas=replicas), redundancy=redundancy)
    return EmulatedMesh(topology, bundle.emulated(), students.DEVICE)


@pytest.mark.parametrize("redundancy", ["failover", "hedged", "all"])
def test_every_part_is_in_and_the_answer_is_their_join(bundle: Bundle, redundancy: str) -> None:
    async def main() -> None:
        async with started(mesh(bundle, redundancy=redundancy)) as live:
            for number in range(COUNT):
                live.submit(number)
            assert told(await live.until(COUNT), bundle) == dict.fromkeys(range(COUNT), ("result", 0))
            result = outcome_of(live.outcomes[0], bundle.classes).result
            assert result is not None
            assert result.missing == ()
            assert live.drivers[0].stats()["source"]["missing"] == []

    run(main)


def test_one_replica_of_every_student_may_die_and_nothing_is_missing(bundle: Bundle) -> None:
    async def main() -> None:
        async with started(mesh(bundle)) as live:
            for number in range(COUNT):
                live.submit(number)
            await turns_until(lambda: len(live.outcomes) > 2)
            for rank in (1, 2, 3):
                await live.drivers[rank].aclose(None)
            assert told(await live.until(COUNT), bundle) == dict.fromkeys(range(COUNT), ("result", 0))

    run(main)


def test_a_student_without_a_living_replica_is_missing_and_no_sample_waits_for_it(bundle: Bundle) -> None:
    async def main() -> None:
        async with started(mesh(bundle)) as live:
            for rank in (2, 5):  # both of part 1
                await live.drivers[rank].aclose(None)
            await turns_until(lambda: not any(live.drivers[0].policy.neighbour(rank).sends for rank in (2, 5)))
            for number in range(COUNT):
                live.submit(number)
            assert told(await live.until(COUNT), bundle) == dict.fromkeys(range(COUNT), ("result", 0b010))
            result = outcome_of(live.outcomes[0], bundle.classes).result
            assert result is not None
            assert result.missing == (1,)
            assert result.confidence == pytest.approx(expected_confidence(bundle, live.outcomes[0].sample), rel=1e-5)
            assert live.drivers[0].stats()["source"]["missing"] == [(0b010, COUNT)]
            await live.make(2)
            live.drivers[2].connect(live.topology)
            await turns_until(lambda: live.drivers[0].policy.neighbour(2).takes)
            live.submit(0)
            assert (await live.until(COUNT + 1))[-1].missing == 0

    run(main)


def expected_confidence(bundle: Bundle, sample: int) -> float:
    """Without part 1, at the temperature of parts 0 and 2."""
    early = students.confidences()[sample, students.EARLY] >= np.float32(students.THRESHOLD)
    scores = students.scores()[sample, [0, students.EARLY if early else students.ENDS[2]]]
    assert bundle.join is not None
    return bundle.join.answer({0: scores[0].tobytes(), 2: scores[1].tobytes()})[1]
