"""Activations that are fewer than the batch, or lie with the executor: where the runtime keeps, joins and sends them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.executors.tiny import host_rows, stay
from tests.runtime.mesh import FakeExecutor, LiveMesh, answers, expected, run, started, topology
from zpipe.errors import ExecutorError
from zpipe.executors.base import Batch, ResidentRows, StageExecutor, StageOutput
from zpipe.model import GateSpec
from zpipe.runtime.payloads import Payloads, join


@dataclass(eq=False)
class Far:
    """Rows that only their executor looks at; it fetches them unless `lost`."""

    rows: list[npt.NDArray[Any]]
    lost: set[int]
    fetched: list[int]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.rows[0].shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.rows[0].dtype

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        numbers = [round(float(row.flat[0])) for row in self.rows]
        if self.lost.intersection(numbers):
            self.lost.difference_update(numbers)
            raise ExecutorError("found its device gone")
        self.fetched.extend(numbers)
        return np.stack(self.rows)

    def join(self, rows: Sequence[tuple[Batch, int]]) -> Far:
        picked = [batch.rows[index] if isinstance(batch, Far) else np.asarray(batch)[index] for batch, index in rows]
        return Far(picked, self.lost, self.fetched)


class Keeping(FakeExecutor):
    """Gives the survivors alone, and keeps them."""

    lost: set[int]
    fetched: list[int]

    def run(self, stage: int, inputs: Any, gate: GateSpec) -> StageOutput:
        output = super().run(stage, np.stack(inputs.rows) if isinstance(inputs, Far) else inputs, gate)
        if output.activation is None:
            return output
        rows = stay(host_rows(output), output.exited)
        # Stage 0's are given as they are; of the others even those are kept that another node's stage takes.
        return replace(output, activation=Far(list(rows), self.lost, self.fetched) if stage > 0 and len(rows) else rows)


class KeepingMesh(LiveMesh):
    def __init__(self, stages: list[list[int]], *, kind: str = "memory") -> None:
        super().__init__(topology(stages), kind=kind)
        self.lost: set[int] = set()
        self.fetched: list[int] = []

    def executor(self, rank: int, stages: tuple[int, ...]) -> StageExecutor:
        made = self.executors[rank] = Keeping(self.bundle, stages)
        made.lost, made.fetched = self.lost, self.fetched
        return made


@pytest.mark.parametrize("kind", ["memory", "zeromq"])
def test_survivors_find_their_own_rows_wherever_these_lie(kind: str) -> None:
    async def main() -> None:
        async with started(KeepingMesh([[0], [1, 2, 3], [3, 4]], kind=kind)) as mesh:
            for number in range(200):
                mesh.submit(number)
            assert answers(await mesh.until(200)) == expected(200)
            assert all(driver.stats()["payloads"] == 0 for driver in mesh.drivers.values())

    run(main)


@pytest.mark.parametrize("kind", ["memory", "zeromq"])
def test_rows_that_cannot_be_fetched_cost_their_samples_an_attempt_and_the_node_nothing(kind: str) -> None:
    async def main() -> None:
        async with started(KeepingMesh([[0], [1, 2], [3, 4]], kind=kind)) as mesh:
            mesh.lost.update((23, 39))
            for number in range(100):
                mesh.submit(number)
            assert answers(await mesh.until(100)) == expected(100)
            assert mesh.lost == set()
            source = mesh.drivers[0].policy.source
            assert source is not None
            assert source.counts.resubmitted > 0
            assert all(driver.policy.serving for driver in mesh.drivers.values())

    run(main)


def test_join_is_a_view_of_neighbours_and_a_copy_of_others() -> None:
    one, two = np.arange(12.0).reshape(4, 3), np.arange(100.0, 112.0).reshape(4, 3)
    view = join([(one, 1), (one, 2)])
    assert isinstance(view, np.ndarray)
    assert np.shares_memory(view, one)
    np.testing.assert_array_equal(join([(one, 2), (two, 0), (one, 0)]), [one[2], two[0], one[0]])


def test_join_leaves_all_rows_where_they_are_if_one_is_resident() -> None:
    lost: set[int] = {1}
    fetched: list[int] = []
    host = np.zeros((2, 3))
    far = Far([np.full(3, 1.0), np.full(3, 2.0)], lost, fetched)
    picks: list[list[tuple[Batch, int]]] = [[(host, 0), (far, 1)], [(far, 0), (far, 1)], [(far, 1)]]
    for rows in picks:
        joined = join(rows)
        assert isinstance(joined, ResidentRows)
        assert len(joined) == len(rows)
    assert fetched == []
    assert lost == {1}


def test_payloads_name_rows_of_either_kind() -> None:
    payloads, far = Payloads(), Far([np.zeros(3)], set(), [])
    token = payloads.add(np.zeros((1, 3)), 0)
    payloads.replace(token, far, 0)
    assert payloads.row(token) == (far, 0)
    payloads.drop(token)
    assert len(payloads) == 0
