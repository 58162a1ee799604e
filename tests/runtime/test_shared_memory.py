"""Live nodes that send large activations through shared memory: the same answers, and one that is lost there is sent again."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tests.runtime.mesh import answers, expected, live, run, topology
from zpipe.topology import from_dict
from zpipe.transport import Buffer, shared
from zpipe.transport.shared import Mapped

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="shared memory is used on Linux alone")

LINE = [[0], [1, 2], [3, 4]]


@pytest.fixture(autouse=True)
def _every_activation_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "SHARE_FROM_BYTES", 1024)


def test_neighbours_share_memory_and_a_restarted_one_does_anew() -> None:
    async def main() -> None:
        async with live(topology(LINE), kind="zeromq") as mesh:
            for number in range(20):
                mesh.submit(number)
            assert answers(await mesh.until(20)) == expected(20)
            first, middle, last = (mesh.drivers[rank].stats()["transport"] for rank in range(3))
            assert first["shared_sent"] == middle["shared_received"] > 0
            assert middle["shared_sent"] == last["shared_received"] > 0
            await mesh.restart(2)
            for number in range(20, 40):
                mesh.submit(number)
            assert answers(await mesh.until(40)) == expected(40)
            again = mesh.drivers[1].transport.counts.shared_sent - middle["shared_sent"]
            assert again == mesh.drivers[2].transport.counts.shared_received > 0
            assert [driver.inbox.counts.bad_frames for driver in mesh.drivers.values()] == [0, 0, 0]

    run(main)


def test_where_the_topology_says_no_nothing_is_shared() -> None:
    async def main() -> None:
        async with live(replace(topology(LINE), shared_memory=False), kind="zeromq") as mesh:
            for number in range(10):
                mesh.submit(number)
            assert answers(await mesh.until(10)) == expected(10)
            assert all(driver.transport.counts.shared_sent == 0 for driver in mesh.drivers.values())

    run(main)


def test_whether_memory_is_shared_is_each_nodes_own_business() -> None:
    plain = topology(LINE).to_dict()
    without = from_dict({**plain, "shared_memory": False})
    assert from_dict(plain).shared_memory
    assert not from_dict(without.to_dict()).shared_memory
    assert without.digest() == from_dict(plain).digest()


def test_an_activation_that_is_not_where_it_should_be_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Mapped.take
    lost: list[bytes | None] = []

    def lose_one(self: Mapped, reference: Buffer) -> bytes | None:
        frame = take(self, reference)
        if not lost:
            lost.append(frame)
            return None
        return frame

    monkeypatch.setattr(Mapped, "take", lose_one)

    async def main() -> None:
        async with live(topology(LINE), kind="zeromq") as mesh:
            for number in range(10):
                mesh.submit(number)
            assert answers(await mesh.until(10)) == expected(10)
            assert sum(driver.transport.counts.shared_missing for driver in mesh.drivers.values()) == 1

    run(main)
