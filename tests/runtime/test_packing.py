"""Links pack by their codec: every sample arrives, bytes are counted, and what cannot be unpacked is a counted bad frame."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.runtime.mesh import bundle, live, run, topology
from zpipe.bundle import CodecMetrics
from zpipe.configure import node_config
from zpipe.model import CODECS, Report, SampleKey, Task
from zpipe.policy import NodePolicy
from zpipe.policy.messages import ReportReceived
from zpipe.runtime.packing import Packing, codecs_of, wire_limits
from zpipe.wire import TaskBatch, decode, encode

LINE3 = [[0], [1], [2, 3, 4]]
COUNT = 100


@pytest.mark.parametrize("kind", ["memory", "zeromq"])
@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "bottleneck"])
def test_every_sample_arrives_through_every_codec_and_its_bytes_are_counted(kind: str, codec: str) -> None:
    async def main() -> None:
        async with live(topology([[], *LINE3], links={"shape": "line", "codec": codec}), kind=kind) as mesh:
            for number in range(COUNT):
                mesh.submit(number)
            outcomes = await mesh.until(COUNT)
            assert {(o.sample, o.kind, o.row.label if o.row else -1) for o in outcomes} == {
                (number, "result", number % 10) for number in range(COUNT)
            }
            for rank, driver in mesh.drivers.items():
                assert driver.inbox.counts.bad_frames == driver.inbox.counts.stray_frames == 0
                assert driver.stats()["payloads"] == 0
                for link in driver.stats()["links"]:
                    image = rank == 0
                    assert (link["bytes"] < link["raw_bytes"]) == (codec == "int8+zstd" or (codec != "none" and not image))

    run(main)


def test_the_learned_codec_runs_on_a_live_link_at_a_sixteenth_of_the_bytes() -> None:
    async def main() -> None:
        async with live(topology(LINE3, links={"shape": "line", "codec": "bottleneck"})) as mesh:
            for number in range(COUNT):
                mesh.submit(number)
            await mesh.until(COUNT)
            link = mesh.drivers[0].stats()["links"][0]
            assert 10 < link["raw_bytes"] / link["bytes"] < 16  # headers and scales take their part
            assert mesh.drivers[1].inbox.counts.bad_frames == 0

    run(main)


def test_a_frame_that_cannot_be_unpacked_is_counted_dropped_and_sent_again() -> None:
    async def main() -> None:
        async with live(topology([[0], [1, 2, 3, 4]], links={"shape": "line", "codec": "int8+zstd"})) as mesh:
            source, server = mesh.drivers[0], mesh.drivers[1]
            task = Task(SampleKey(0, source.session, 10**6), 1, 1, (0.5,) * 4, number=0, deadline=time.monotonic() + 9)
            for junk in (b"no zstd frame", bytes(4), b"\x28\xb5\x2f\xfd" + bytes(40)):
                payload = np.frombuffer(junk, np.uint8)
                frames = encode(TaskBatch(0, source.peers.outgoing[1].epoch, "int8+zstd", 1, [task], payload), now=time.monotonic())
                assert source.transport.send_data(source.peers.outgoing[1].channel, frames)
            mesh.submit(3)
            outcomes = await mesh.until(1)
            assert outcomes[0].kind == "result"
            assert server.inbox.counts.bad_frames == 3
            server.policy.check()

    run(main)


# ---- codec: auto -------------------------------------------------------------------------------

LOST = {"fp16": 0.0, "int8": 0.001, "bottleneck": 0.01}
#: Row of stage 1: 16,384 bytes raw, 8,192 fp16, 4,128 int8, 1,032 bottleneck. A tenth of a second per task.
SECONDS = 0.1


class Node:
    """Rank 0 of a line of two, its policy told a bandwidth and service times."""

    def __init__(self, mbit_s: float, *, report: float | None = SECONDS, own: float = 0.0) -> None:
        self.mesh = topology([[0], [1, 2, 3, 4]], links={"shape": "line", "codec": "auto", "bandwidth": 1e6 * mbit_s})
        self.bundle = replace(bundle(), codecs={name: CodecMetrics(0.9, lost, ()) for name, lost in LOST.items()})
        config = node_config(self.mesh, self.bundle, 0, source=None)
        self.policy = NodePolicy(replace(config, service_seconds={0: own} if own else {}), rng=random.Random(0))
        if report is not None:
            self.policy.handle(ReportReceived(1, Report(0, 0, {1: report}, {1: 0.0})), now=0.0)
        self.codecs = codecs_of(self.mesh, self.bundle)
        self.packing = Packing(self.mesh, self.bundle, self.codecs, self.policy)

    def pack(self, now: float = 0.0) -> tuple[str, Any]:
        batch = np.random.default_rng(0).normal(size=(2, *self.bundle.stages[1].input.shape)).astype(np.float32)
        return self.packing.pack(1, 1, batch, now=now)


@pytest.mark.parametrize(
    ("mbit_s", "codec"), [(1.7, "none"), (1.6, "fp16"), (0.8, "int8"), (0.2, "bottleneck"), (0.01, "bottleneck")]
)
def test_auto_takes_the_most_accurate_codec_with_which_the_link_keeps_up(mbit_s: float, codec: str) -> None:
    assert Node(mbit_s).pack()[0] == codec


def test_auto_sends_as_it_is_until_it_knows_what_a_task_costs() -> None:
    assert Node(0.01, report=None).pack()[0] == "none"


def test_auto_minds_the_slower_of_the_two_nodes() -> None:
    assert Node(1.6, report=SECONDS, own=2 * SECONDS).pack()[0] == "none"


def test_auto_looks_again_once_a_second_and_says_what_changed(caplog: pytest.LogCaptureFixture) -> None:
    node = Node(1.7)
    assert node.pack(now=0.0)[0] == "none"
    node.policy.handle(ReportReceived(1, Report(0, 0, {1: SECONDS / 4}, {1: 0.0})), now=0.1)
    with caplog.at_level(logging.INFO, "zpipe.node"):
        assert node.pack(now=0.9)[0] == "none"
        assert node.pack(now=1.0)[0] == "int8"
    assert [record.message for record in caplog.records] == [
        "node 0 packs stage 1 for node 1 by int8, no longer by none: 1.7 Mbit/s, 25 ms a task"
    ]


def test_the_receiver_of_an_auto_link_accepts_every_codec_of_the_bundle() -> None:
    node = Node(1.0)
    limits = wire_limits(node.mesh, node.bundle, node.codecs)
    batch = np.ones((1, *node.bundle.stages[1].input.shape), np.float32)
    for name in CODECS:
        codec = node.codecs[name, 1]
        task = Task(SampleKey(0, 1, 2), 1, 1, (0.5,) * 4, number=0)
        message = decode(encode(TaskBatch(0, 1, codec.name, 1, [task], codec.encode(batch)), now=0.0), limits=limits, now=0.0)
        assert isinstance(message, TaskBatch)
        np.testing.assert_allclose(node.packing.unpack(message), codec.decode(codec.encode(batch), 1))
