"""Observers without a place in the topology: what nodes tell them, and how they see nodes go and come back."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any

import pytest

from tests.runtime.mesh import PATIENCE_SECONDS, LiveMesh, live, run, topology, turns_until
from zpipe.errors import ConfigError
from zpipe.runtime.observer import PADDING_BYTES, Observer, Seen
from zpipe.runtime.stats import bucket_seconds, latency_bucket
from zpipe.security import make_keys, observer_keys, secret_file
from zpipe.topology import SecuritySpec, Topology
from zpipe.wire import Bye, Hello, Message, Refused, Stats, encode

KINDS = ["memory", "zeromq"]
LINE = [[0], [1, 2], [3, 4]]


def observer(mesh: LiveMesh, topology: Topology | None = None) -> Observer:
    """On the transport the mesh has."""
    if mesh.kind == "memory":
        return Observer(topology or mesh.topology, transport=partial(mesh.network.transport))
    return Observer(topology or mesh.topology)


async def look(watching: Observer) -> list[Seen]:
    await watching.arrived(PATIENCE_SECONDS)
    return await watching.look(PATIENCE_SECONDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_node_tells_what_it_did_and_how_it_stands(kind: str) -> None:
    async def main() -> None:
        async with live(topology(LINE), kind=kind) as mesh, observer(mesh) as watching:
            before = await look(watching)
            assert [(seen.rank, seen.up, seen.trouble) for seen in before] == [(0, True, ""), (1, True, ""), (2, True, "")]
            for number in range(50):
                mesh.submit(number)
            await mesh.until(50)
            stats = [seen.stats or {} for seen in await look(watching)]
            exits = {stage: times for each in stats for stage, times in each["exits"]}
            assert exits == dict.fromkeys(range(5), 10)
            assert [each["running"] for each in stats] == [0, 0, 0]
            assert [each["neighbours"][0]["rank"] for each in stats] == [1, 0, 1]
            assert stats[0]["neighbours"][0]["up"]
            assert stats[2]["neighbours"][0]["window"] == 0  # it hands nothing back
            source = stats[0]["source"]
            assert source["outcomes"] == {"result": 50}
            assert sum(times for _, times in source["latencies"]) == 50
            assert source["thresholds"] == [0.5] * 5
            assert (source["in_flight"], source["waiting"], source["room"]) == (0, 0, 10_000)
            assert "source" not in stats[1]
            for seen in watching.seen:
                assert seen.round_trip_seconds is not None
                assert 0.0 < seen.round_trip_seconds < PATIENCE_SECONDS
                assert seen.topology_digest == mesh.topology.digest()

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_rate_is_measured_by_pings_that_are_answered_without_their_padding(kind: str) -> None:
    async def main() -> None:
        async with live(topology(LINE), kind=kind) as mesh, observer(mesh) as watching:
            await look(watching)
            before = [driver.inbox.counts.received_bytes for driver in mesh.drivers.values()]
            seen = await watching.measure(1, PATIENCE_SECONDS)
            got = [driver.inbox.counts.received_bytes - old for driver, old in zip(mesh.drivers.values(), before, strict=True)]
            assert seen.bits_per_second is not None
            assert seen.bits_per_second > 0.0
            assert got[1] > 2 * PADDING_BYTES
            assert max(got[0], got[2]) < PADDING_BYTES  # reports of neighbours alone
            assert [driver.inbox.counts.bad_frames for driver in mesh.drivers.values()] == [0, 0, 0]
            assert [each.bundle_digest for each in watching.seen] == [mesh.bundle.digest] * 3

    run(main)


def test_rate_of_a_node_that_is_gone_or_does_not_answer_is_not_known() -> None:
    async def main() -> None:
        async with live(topology(LINE), kind="memory") as mesh, observer(mesh) as watching:
            await look(watching)
            mesh.drivers[2].inbox.answer = lambda channel, message: None
            assert (await watching.measure(2, 0.0)).bits_per_second is None
            await mesh.drivers[1].aclose(None)
            await turns_until(lambda: not watching.seen[1].up)
            assert (await watching.measure(1, PATIENCE_SECONDS)).bits_per_second is None

    run(main)


def test_outcomes_are_told_by_kind() -> None:
    async def main() -> None:
        async with live(topology([[0], [1, 2, 3, 4]])) as mesh:
            mesh.submit(0, deadline=-1.0)
            mesh.submit(1)
            await mesh.until(2)
            assert mesh.drivers[0].stats()["source"]["outcomes"] == {"expired": 1, "result": 1}

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_node_that_dies_is_gone_and_comes_back_with_a_new_session(kind: str) -> None:
    async def main() -> None:
        async with live(topology(LINE), kind=kind) as mesh, observer(mesh) as watching:
            first = (await look(watching))[2].stats or {}
            await mesh.drivers[2].aclose(None)
            await turns_until(lambda: not watching.seen[2].up)
            seen = await watching.look(PATIENCE_SECONDS)
            assert [each.up for each in seen] == [True, True, False]
            assert seen[2].trouble
            assert seen[2].stats == first  # as it was last seen
            await mesh.restart(2)
            await turns_until(lambda: watching.seen[2].up)
            seen = await watching.look(PATIENCE_SECONDS)
            assert (seen[2].stats or {})["session"] > first["session"]
            assert seen[2].trouble == ""

    run(main)


def test_a_look_waits_no_longer_than_it_may_for_a_node_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with live(topology(LINE)) as mesh, observer(mesh) as watching:
            before = (await look(watching))[1].answered_at
            monkeypatch.setattr(mesh.drivers[1].inbox, "answer", lambda channel, message: None)
            seen = await watching.look(0.01)
            assert seen[1].up
            assert seen[1].answered_at == before
            assert seen[2].answered_at > before

    run(main)


def test_a_node_that_is_not_there_is_known_to_be_missing() -> None:
    async def main() -> None:
        with closing(socket()) as taken:  # bound and not listening: it refuses connections, and nobody else gets the port
            taken.bind(("127.0.0.1", 0))
            nobody = topology([[0, 1, 2, 3, 4]]).with_addresses({0: f"127.0.0.1:{taken.getsockname()[1] - 1}"})
            async with Observer(nobody) as watching:
                await watching.arrived(PATIENCE_SECONDS)
                assert [(seen.up, seen.trouble) for seen in watching.seen] == [(False, "connection refused")]
                assert (await watching.look(PATIENCE_SECONDS))[0].stats is None

    run(main)


def test_a_hello_that_is_lost_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpipe.runtime.observer.HELLO_SECONDS", 0.05)

    async def main() -> None:
        async with live(topology([[0, 1, 2, 3, 4]])) as mesh:
            node = mesh.drivers[0]
            hear = node.inbox.on_control
            lost: list[object] = []

            def lose_first(channel: Any, frames: Any) -> None:
                if lost:
                    hear(channel, frames)
                else:
                    lost.append(frames)

            monkeypatch.setattr(type(node.inbox), "on_control", lambda inbox, channel, frames: lose_first(channel, frames))
            async with observer(mesh) as watching:
                assert (await look(watching))[0].stats is not None
            assert len(lost) == 1

    run(main)


def test_what_is_no_answer_of_that_node_counts_for_nothing() -> None:
    async def main() -> None:
        async with live(topology(LINE)) as mesh, observer(mesh) as watching:
            before = (await look(watching))[1]
            answered_at, stats = before.answered_at, before.stats
            node = mesh.drivers[1]
            channel = next(iter(node.peers.observers))
            hello = Hello(2, "peer", 1, 1, "", "other", {})
            told: list[Message] = [
                Stats(1, 999, {"rank": 1}),
                Stats(2, 2, {"rank": 2}),
                hello,
                Refused(1, "wire version", "2", "1"),
            ]
            for message in told:
                assert node.transport.send_control(channel, encode(message))
            assert node.transport.send_control(channel, [b"no message"])
            assert node.transport.send_control(channel, encode(Bye(1, "it was stopped")))
            await turns_until(lambda: watching.seen[1].trouble == "it was stopped")
            assert (watching.seen[1].answered_at, watching.seen[1].stats) == (answered_at, stats)
            assert watching.seen[1].topology_digest == mesh.topology.digest()
            await turns_until(lambda: watching.seen[1].up)  # a Bye that was none: it comes again

    run(main)


def test_an_answer_of_another_version_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with live(topology(LINE)) as mesh, observer(mesh) as watching:
            monkeypatch.setattr(mesh.drivers[2].inbox, "stats", lambda: {"rank": 2})
            seen = await look(watching)
            assert seen[2].stats is None
            assert seen[2].trouble == "its answer lacks figures: it runs another version of zpipe"

    run(main)


def secured(folder: Path) -> Topology:
    made = make_keys(folder, range(3))
    return replace(topology(LINE), security=SecuritySpec(tuple(made.values()), folder))


@pytest.mark.parametrize("rank", [0, 2])
def test_the_key_of_any_board_opens_every_node_that_boards_own_too(rank: int, tmp_path: Path) -> None:
    async def main() -> None:
        async with live(secured(tmp_path), kind="zeromq") as mesh:
            for other in {0, 1, 2} - {rank}:
                secret_file(tmp_path, other).unlink()
            async with observer(mesh) as watching:
                seen = await look(watching)
                assert [(each.up, each.stats is not None) for each in seen] == [(True, True)] * 3
            assert all(driver.transport.counts.unknown_keys == 0 for driver in mesh.drivers.values())

    run(main)


def test_without_any_nodes_secret_it_is_said_which_to_copy(tmp_path: Path) -> None:
    closed = secured(tmp_path)
    for rank in range(3):
        secret_file(tmp_path, rank).unlink()
    with pytest.raises(ConfigError) as refused:
        observer_keys(closed)
    assert str(refused.value) == (
        f"{tmp_path}: found the secret of no rank whose key the topology has, expected one to show its nodes; copy node0.secret, "
        "or another node's, from where `zpipe keygen` was run"
    )


@pytest.mark.parametrize("seconds", [1e-6, 3e-4, 0.02, 0.5, 7.0, 30.0])
def test_a_latency_is_told_within_five_percent(seconds: float) -> None:
    assert abs(bucket_seconds(latency_bucket(seconds)) / seconds - 1.0) < 0.05


def test_no_latency_is_beyond_the_histogram() -> None:
    assert latency_bucket(0.0) == latency_bucket(-1.0) == 0
    assert latency_bucket(1e300) == latency_bucket(1e12) == 400
