"""What only sockets can get wrong: strangers on the port, descriptors, threads, event loops, idle processor time."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import zmq

from tests.transport.harness import MAX_MESSAGE_BYTES, PATIENCE, Recorder, World, connect, run
from zpipe.errors import ConfigError
from zpipe.transport import Channel, zeromq
from zpipe.transport.sockets import COPY_BELOW_BYTES, SEND_COPY_BELOW_BYTES
from zpipe.transport.zeromq import ZeroMQTransport

#: The first 10 bytes of a ZMTP 3 greeting: a signature that libzmq answers.
SIGNATURE = b"\xff" + bytes(8) + b"\x7f"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("plane", [0, 1], ids=["data", "control"])
@pytest.mark.parametrize(
    "noise",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(range(256)) * 64,
        SIGNATURE + b"\x03\x01NULL" + bytes(48),
        SIGNATURE + b"\x03\x00NULL" + bytes(48) + b"\x04\xff" + b"\xff" * 64,
        SIGNATURE + b"\x03\x00NULL" + bytes(48) + b"\x06" + (2**62).to_bytes(8, "big") + bytes(99),
    ],
    ids=["silence", "http", "all bytes", "half a greeting", "bad command", "huge command"],
)
def test_a_stranger_with_noise_hurts_nobody(plane: int, noise: bytes) -> None:
    async def main() -> None:
        async with World("zeromq") as world:
            one, heard, _ = await world.node()
            _, other, address = await world.node()
            channel = await connect(one, heard, address)
            host, _, port = address.rpartition(":")
            for _ in range(5):
                with socket.create_connection((host, int(port) + plane), timeout=PATIENCE) as stranger:
                    stranger.sendall(noise)
            assert one.send_data(channel, [b"data"])
            assert one.send_control(channel, [b"control"])
            await other.until(lambda: bool(other.data) and bool(other.control))
            assert (other.data, [message for _, message in other.control]) == ([[b"data"]], [[b"control"]])
            assert heard.disconnected == other.disconnected == []

    run(main())


def test_fifty_connections_leave_no_descriptor_and_no_reader() -> None:
    async def once() -> None:
        async with World("zeromq") as world:
            one, heard, _ = await world.node()
            two, other, address = await world.node()
            channel = await connect(one, heard, address)
            one.send_data(channel, [b"x", bytes(SEND_COPY_BELOW_BYTES)])  # starts pyzmq's collector thread, once
            await other.until(lambda: bool(other.data))
            one.open("127.0.0.1:9")  # refused, and tried again until closed
            one.reset(channel)
            two.open(address, data=False)

    async def main() -> None:
        await once()
        gc.collect()
        before = descriptors()
        for _ in range(50):
            await once()
        gc.collect()
        assert descriptors() == before

    run(main())


def test_one_channel_that_flaps_leaves_no_descriptor() -> None:
    async def main() -> None:
        async with World("zeromq") as world:
            one, heard, _ = await world.node()
            _, other, address = await world.node()
            before = descriptors()
            counts = set()
            for _ in range(30):
                channel = await connect(one, heard, address)
                one.send_control(channel, [b"x"])
                await other.until(lambda: bool(other.control))
                counts.add(descriptors())
                one.close_channel(channel)
                await other.until(lambda: bool(other.disconnected))
                other.control.clear()
                other.disconnected.clear()
            # A closed socket is reaped by ZeroMQ's thread in its own time: a few may be there still, not thirty.
            assert max(counts) - before < 40

    run(main())


def test_a_dead_peer_costs_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World("zeromq") as world:
            one, _, _ = await world.node()
            attempts = []
            attempt = ZeroMQTransport._connect
            arrived = asyncio.Event()

            def counted(self: ZeroMQTransport, channel: Channel) -> None:
                attempts.append(asyncio.get_running_loop().time())
                attempt(self, channel)
                if len(attempts) == 5:
                    arrived.set()

            monkeypatch.setattr(ZeroMQTransport, "_connect", counted)
            cpu = time.process_time()
            one.open("127.0.0.1:9")
            await asyncio.wait_for(arrived.wait(), PATIENCE)
            pauses = np.diff(attempts)
            assert np.all(pauses > [0.09, 0.19, 0.39, 0.79])
            assert time.process_time() - cpu < 0.3

    run(main())


def test_an_attempt_without_any_event_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zeromq, "ATTEMPT_SECONDS", 0.05)

    async def main() -> None:
        async with World("zeromq") as world:
            one, heard, _ = await world.node()
            loop = asyncio.get_running_loop()
            held: list[socket.socket] = []
            with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never speaks
                silent.setblocking(False)
                one.open(f"127.0.0.1:{silent.getsockname()[1] - 1}", data=False)
                for _ in range(3):
                    accepted, _ = await asyncio.wait_for(loop.sock_accept(silent), PATIENCE)
                    held.append(accepted)
            for accepted in held:
                accepted.close()
            assert (heard.connected, heard.disconnected) == ([], [])

    run(main())


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """In this whole process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0)]
    highest = max(map(int, os.listdir("/proc/self/fd")))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + count, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


@pytest.mark.parametrize("count", [0, 3, 6, 9])
def test_an_attempt_that_runs_out_of_descriptors_is_lost_and_made_again(count: int) -> None:
    async def main() -> None:
        async with World("zeromq") as world:
            one, heard, _ = await world.node()
            _, _, address = await world.node()
            with descriptors_left(count):
                channel = one.open(address)
                if count < 4:
                    assert channel.trouble == "this node has no socket left (Too many open files; see `ulimit -n`)"
            await heard.until(lambda: heard.connected == [channel])
            assert channel.trouble == ""

    run(main())


@pytest.mark.parametrize("made", range(5))
def test_a_start_that_runs_out_of_sockets_is_a_config_error_and_leaves_none(monkeypatch: pytest.MonkeyPatch, made: int) -> None:
    """By hand: in a process that has too few descriptors to begin with, libzmq aborts."""

    async def main() -> None:
        before = descriptors()
        transport = ZeroMQTransport(Recorder(), max_message_bytes=MAX_MESSAGE_BYTES)
        left, make = iter(range(made)), zmq.Context.socket

        def socket_or_none(context: zmq.Context[Any], kind: int) -> Any:
            if next(left, None) is None:
                raise zmq.ZMQError(errno.EMFILE)
            return make(context, kind)

        monkeypatch.setattr(zmq.Context, "socket", socket_or_none)
        with pytest.raises(ConfigError, match=r"^127\.0\.0\.1:0: found no socket left for this process"):
            await transport.start()
        assert descriptors() == before

    run(main())


def test_a_big_frame_is_received_without_a_copy_and_outlives_the_transport() -> None:
    async def main() -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        async with World("zeromq") as world:
            one, heard, _ = await world.node()
            _, other, address = await world.node()
            channel = await connect(one, heard, address)
            one.send_data(channel, [b"head", bytes([7]) * COPY_BELOW_BYTES])
            await other.until(lambda: bool(other.data))
            head, big = other.last_frames
            assert (type(head), type(big)) == (bytes, memoryview)
            view = np.frombuffer(big, np.uint8)
            assert view.ctypes.data % 8 == 0
            other.last_frames = []
            return view

    view = run(main())
    gc.collect()
    assert view.size == COPY_BELOW_BYTES
    assert (view == 7).all()


def test_an_address_of_another_machine_is_a_config_error() -> None:
    async def main() -> None:
        async with World("zeromq") as world:
            with pytest.raises(ConfigError, match=r"cannot bind 203.0.113.7:0: .*; expected an IP address of this machine"):
                await world.make(Recorder(), "203.0.113.7:0").start()
            one, _, _ = await world.node()
            with pytest.raises(ConfigError, match="expected host:port"):
                one.open("nonsense")

    run(main())


def test_a_taken_control_port_is_named() -> None:
    async def main() -> None:
        async with World("zeromq") as world:
            for _ in range(20):
                with socket.create_server(("127.0.0.1", 0)) as taken:
                    port = taken.getsockname()[1]
                    with pytest.raises(ConfigError, match="in use") as caught:
                        await world.make(Recorder(), f"127.0.0.1:{port - 1}").start()
                if f"address 127.0.0.1:{port} is in use" in str(caught.value):
                    return
                # Another program has the port below: take the next pair.
            pytest.fail("the taken control port was never named")

    run(main())


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6() -> None:
    async def main() -> None:
        async with World("zeromq") as world:
            try:
                one, heard, _ = await world.node("[::1]:0")
            except ConfigError:
                pytest.skip("no IPv6 loopback on this machine")
            _, other, address = await world.node("[::1]:0")
            assert address.startswith("[::1]:")
            channel = await connect(one, heard, address)
            assert one.send_data(channel, [b"x"])
            await other.until(lambda: bool(other.data))

    run(main())


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop does not exist here")
def test_it_runs_on_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with World("zeromq") as world:
            one, heard, _ = await world.node()
            server, other, address = await world.node()

            def confirm_and_answer(incoming: Channel, message: list[bytes]) -> None:
                server.confirm(incoming)
                server.send_control(incoming, message)

            other.on_control_hook = confirm_and_answer
            channel = await connect(one, heard, address)
            for number in range(500):
                assert one.send_data(channel, [b"%d" % number])
                assert one.send_control(channel, [b"%d" % number])
            await other.until(lambda: len(other.data) == 500)
            await heard.until(lambda: len(heard.control) == 500)
            await server.aclose()
            await heard.until(lambda: bool(heard.disconnected))

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_the_message_bound_is_the_one_it_was_given() -> None:
    async def main() -> None:
        async with World("zeromq") as world:
            one, heard, _ = await world.node()
            small = ZeroMQTransport(Recorder(), max_message_bytes=1000)
            address = await small.start()
            channel = await connect(one, heard, address)
            one.send_control(channel, [bytes(MAX_MESSAGE_BYTES)])
            await heard.until(lambda: bool(heard.disconnected))
            await small.aclose()

    run(main())
