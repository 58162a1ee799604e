"""A credit's round trip between two transports: `python -m bench.micro micro_transport`.

A task goes over the data plane of one ZeroMQTransport to another, which decodes it and grants a credit over the control plane; the
first decodes that: TCP loopback, codec and event loop, without policy, executor or payload handling. Both ends share one event
loop and one thread, so the figure is work, not the scheduler's choice of cores; ZeroMQ's own threads run beside it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvloop

from bench.micro_wire import NOW, SIZES, task_batch
from bench.trips import Peer
from zpipe.model import Credit
from zpipe.transport import Buffer, Channel
from zpipe.wire import Bye, CreditUpdate, TaskBatch, WireLimits, decode, encode

TRIPS = 50


class End(Peer):
    """One that knows who opened a channel to it, and has each message heard."""

    def __init__(self) -> None:
        super().__init__()
        self.back: Channel | None = None  #: an incoming control channel
        self.shown = asyncio.Event()  #: it has one

    def on_control(self, channel: Channel, frames: list[Buffer]) -> None:
        if not channel.outgoing and self.back is None:
            self.transport.confirm(channel)
            self.back = channel
            self.shown.set()
            return
        self.on_message(frames)


async def pair() -> tuple[End, End, Channel]:
    """A sender, a receiver that knows how to answer, and the sender's channel to it."""
    sender, receiver = End(), End()
    await sender.transport.start()
    channel = sender.transport.open(await receiver.transport.start())
    await sender.ready.wait()
    sender.transport.send_control(channel, encode(Bye(0, "only to show the channel")))
    await receiver.shown.wait()
    return sender, receiver, channel


async def trips(sender: End, receiver: End, channel: Channel, batch: TaskBatch, limits: WireLimits) -> None:
    """TRIPS round trips, one after the other; no task is woken in between, as in the runtime."""
    done, left = asyncio.get_running_loop().create_future(), TRIPS

    def granted(frames: list[Buffer]) -> None:
        nonlocal left
        message = decode(frames, limits=limits, now=NOW)
        assert isinstance(message, CreditUpdate)
        left -= 1
        if left:
            send()
        else:
            done.set_result(None)

    def received(frames: list[Buffer]) -> None:
        message = decode(frames, limits=limits, now=NOW)
        assert isinstance(message, TaskBatch)
        assert receiver.back is not None
        credit = Credit(message.epoch, message.tasks[-1].number + 1, (), message.tasks[-1].number + 9, {}, 0.0)
        receiver.transport.send_control(receiver.back, encode(CreditUpdate(1, credit)))

    def send() -> None:
        assert sender.transport.send_data(channel, encode(batch, now=NOW, transit_seconds=0.0002))

    sender.on_message, receiver.on_message = granted, received
    send()
    await done


@pytest.mark.parametrize("size", SIZES)
def test_credit_round_trip(benchmark: Any, size: str) -> None:
    batch, limits = task_batch(1, SIZES[size])
    loop = uvloop.new_event_loop()
    try:
        sender, receiver, channel = loop.run_until_complete(pair())
        benchmark.extra_info["units"] = TRIPS
        benchmark(lambda: loop.run_until_complete(trips(sender, receiver, channel, batch, limits)))
        for end in (sender, receiver):
            loop.run_until_complete(end.transport.aclose())
    finally:
        loop.close()
