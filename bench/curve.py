"""What CURVE costs per hop, and what those without a key get: nothing.

    python -m bench.curve                        about three minutes; writes bench/results/curve.json
    python -m bench.curve --quick                fewer rounds and tries, for a look; writes nothing

*Cost*: two processes send one message to and fro over loopback, with keys and without in turns: microseconds per hop (half a round
trip) and CPU time per message, both ends and ZeroMQ's threads together. *Tries*: strangers of three kinds knock at each plane
of a node which meanwhile serves a friend. *Replays*: a friend's session is recorded as it passes on the wire and its bytes are sent
again, at once or in the rhythm of the recording. What reaches the node's handler beyond the friend's own messages is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from bench.made import commit
from bench.trips import Peer, Trips
from zpipe.report import machine
from zpipe.transport import Buffer, Channel, Origin
from zpipe.transport.curve import CurveKeys, new_keypair
from zpipe.transport.zeromq import ZeroMQTransport

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "curve.json"

SIZES = {"4 KiB": 4096, "98 KiB": 98 * 1024}
#: Pairs of a round with keys and one without: single rounds of small messages differ by more than keys cost.
ROUNDS = 24
TRIPS = {"4 KiB": 4000, "98 KiB": 2000}
#: A stranger that has heard nothing by then gives up; so does a replay.
GIVE_UP_SECONDS = 4.0
#: What a node without keys never closes: a replay that was let in. Far more than a node takes to refuse one.
LISTEN_SECONDS = 1.0
#: Strangers and replays at a time.
AT_ONCE = 20


# ---- cost ----------------------------------------------------------------------------------------


def pairs() -> tuple[CurveKeys, CurveKeys]:
    """Keys of two nodes that let each other in."""
    (one, one_secret), (other, other_secret) = new_keypair(), new_keypair()
    return CurveKeys(one, one_secret, {other}), CurveKeys(other, other_secret, {one})


def echo(pipe: Connection, keys: CurveKeys | None, server_key: str) -> None:
    """The other process: sends everything back, and says in the end what processor time the measured part took."""

    async def main() -> None:
        peer = Peer(keys)
        pipe.send(await peer.transport.start())
        peer.transport.open(pipe.recv(), key=server_key)
        loop = asyncio.get_running_loop()
        for said in ("begin", "end"):
            heard = asyncio.Event()
            loop.add_reader(pipe.fileno(), heard.set)
            await heard.wait()
            loop.remove_reader(pipe.fileno())
            assert pipe.recv() == said
            pipe.send(time.process_time())
        await peer.transport.aclose()

    asyncio.run(main())


def hop(size: int, trips: int, *, secured: bool) -> tuple[float, float]:
    """(seconds per hop, processor seconds per message of both ends) of one round of trips."""
    here_keys, there_keys = pairs() if secured else (None, None)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=echo, args=(there, there_keys, here_keys.public if here_keys else ""))
    process.start()
    try:
        return asyncio.run(_trips(here, size, trips, here_keys, there_keys.public if there_keys else ""))
    finally:
        process.join()


async def _trips(pipe: Connection, size: int, trips: int, keys: CurveKeys | None, server_key: str) -> tuple[float, float]:
    peer = Peer(keys)
    address = await peer.transport.start()
    peer.transport.open(pipe.recv(), key=server_key)
    pipe.send(address)
    await peer.ready.wait()
    course = Trips(peer, size)
    # Until the other end has a channel back to us, what we send goes nowhere.
    while not course.done.is_set():
        course.send()
        await asyncio.wait([asyncio.ensure_future(course.done.wait())], timeout=0.1)
    await asyncio.sleep(0.2)
    await course.run(trips // 5)
    pipe.send("begin")
    there, here = pipe.recv(), time.process_time()
    seconds = await course.run(trips)
    pipe.send("end")
    cpu = pipe.recv() - there + time.process_time() - here
    await peer.transport.aclose()
    return seconds / (2 * trips), cpu / (2 * trips)


def cost(rounds: int) -> dict[str, Any]:
    """Microseconds per hop and message, with keys and without in turns: medians, and the mean of paired differences with its 95 %
    interval (normal).
    """
    found: dict[str, Any] = {}
    for name, size in SIZES.items():
        taken: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        for _ in range(rounds):
            for secured in (False, True):
                taken[secured].append(hop(size, TRIPS[name], secured=secured))
        pairs_taken = list(zip(taken[False], taken[True], strict=True))
        found[name] = {
            f"more_{figure}_us": _difference([1e6 * (with_keys[at] - without[at]) for without, with_keys in pairs_taken])
            for at, figure in enumerate(("hop", "cpu"))
        }
        for secured, label in ((False, "open"), (True, "curve")):
            hops, cpus = ([1e6 * value for value in values] for values in zip(*taken[secured], strict=True))
            found[name][label] = {
                "hop_us": round(statistics.median(hops), 1),
                "cpu_us": round(statistics.median(cpus), 1),
                "rounds_hop_us": [round(value, 1) for value in hops],
                "rounds_cpu_us": [round(value, 1) for value in cpus],
            }
    return found


def _difference(differences: list[float]) -> list[float]:
    """[mean, half of its 95 % interval]."""
    half = 1.96 * statistics.stdev(differences) / len(differences) ** 0.5
    return [round(statistics.mean(differences), 1), round(half, 1)]


# ---- strangers -------------------------------------------------------------------------------------


class Counting:
    """A handler that counts what reaches it, and takes everybody whom it hears for a friend."""

    def __init__(self) -> None:
        self.heard: Counter[bytes] = Counter()
        self.transport: ZeroMQTransport | None = None
        self.connected = asyncio.Event()
        self.more = asyncio.Event()

    def on_data(self, frames: list[Buffer], origin: Origin) -> None:
        self._count(frames)

    def on_control(self, channel: Channel, frames: list[Buffer]) -> None:
        assert self.transport is not None
        self.transport.confirm(channel)
        self._count(frames)

    def _count(self, frames: list[Buffer]) -> None:
        self.heard[bytes(frames[0])] += 1
        self.more.set()

    def on_connected(self, channel: Channel) -> None:
        self.connected.set()

    def on_disconnected(self, channel: Channel, reason: str) -> None: ...

    def on_drained(self) -> None: ...


class Site:
    """A node and a friend of it, with keys or without."""

    def __init__(self, *, secured: bool = True) -> None:
        self.keys, self.friend_keys = pairs() if secured else (None, None)
        self.public = self.keys.public if self.keys else ""

    async def __aenter__(self) -> Site:  # noqa: PYI034 - Self is Python 3.11
        self.handler, self.friend_handler = Counting(), Counting()
        self.node = ZeroMQTransport(self.handler, max_message_bytes=2**20, keys=self.keys)
        self.friend = ZeroMQTransport(self.friend_handler, max_message_bytes=2**20, keys=self.friend_keys)
        self.handler.transport = self.node
        self.address = await self.node.start()
        await self.friend.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.friend.aclose()
        await self.node.aclose()

    async def befriend(self, address: str | None = None) -> Channel:
        """A channel of the friend's, by way of `address` where it is not the node's own."""
        self.friend_handler.connected.clear()
        channel = self.friend.open(address or self.address, key=self.public)
        await asyncio.wait_for(self.friend_handler.connected.wait(), GIVE_UP_SECONDS)
        return channel

    async def until(self, message: bytes, count: int) -> None:
        """Waits until the node has heard a message so often."""
        while self.handler.heard[message] < count:
            self.handler.more.clear()
            await asyncio.wait_for(self.handler.more.wait(), GIVE_UP_SECONDS)

    async def greet(self, channel: Channel, message: bytes) -> None:
        """Sends a message on both planes and waits until both have come."""
        before = self.handler.heard[message]
        assert self.friend.send_data(channel, [message])
        assert self.friend.send_control(channel, [message])
        await self.until(message, before + 2)


#: {who: what of CURVE it uses}; the server's key is no secret.
STRANGERS: dict[str, Callable[[Any, str], None]] = {}


def stranger(name: str) -> Callable[[Callable[[Any, str], None]], Callable[[Any, str], None]]:
    def register(prepare: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
        STRANGERS[name] = prepare
        return prepare

    return register


@stranger("unknown key")
def unknown_key(socket: Any, server_key: str) -> None:
    public, secret = new_keypair()
    socket.curve_serverkey = server_key.encode()
    socket.curve_publickey, socket.curve_secretkey = public.encode(), secret.encode()


@stranger("no key")
def no_key(socket: Any, server_key: str) -> None:
    """ZMTP without a security mechanism."""


@stranger("password")
def password(socket: Any, server_key: str) -> None:
    socket.plain_username, socket.plain_password = b"admin", b"admin"


def knock(context: Any, kind: int, endpoint: str, prepare: Callable[[Any, str], None], server_key: str) -> str:
    """One stranger at one plane, with a message ready to go: the event that ended its try."""
    socket = context.socket(kind)
    socket.linger, socket.reconnect_ivl = 0, -1
    prepare(socket, server_key)
    monitor = socket.get_monitor_socket()
    try:
        socket.connect(endpoint)
        with suppress(zmq.Again):  # refused already: there is no connection left to queue it for
            socket.send(b"stranger", zmq.NOBLOCK)
        until = time.monotonic() + GIVE_UP_SECONDS
        while monitor.poll(max(0.0, 1e3 * (until - time.monotonic()))):
            event = recv_monitor_message(monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return "let in"
            if event in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED):
                return "disconnected"
            if event & (
                zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            ):
                return "handshake failed"
        return "no answer"
    finally:
        socket.disable_monitor()
        monitor.close(0)
        socket.close(0)


async def tries(count: int) -> dict[str, Any]:
    """`count` tries of strangers, a third of them of each kind, at both planes of a node that goes on serving its friend."""
    context = zmq.Context()
    endings: Counter[str] = Counter()
    gate = asyncio.Semaphore(AT_ONCE)
    begin = time.monotonic()
    async with Site() as site:
        channel = await site.befriend()
        host, _, port = site.address.rpartition(":")

        async def one(number: int) -> None:
            name = list(STRANGERS)[number % len(STRANGERS)]
            plane = number // len(STRANGERS) % 2
            endpoint = f"tcp://{host}:{int(port) + plane}"
            async with gate:
                kind = (zmq.PUSH, zmq.DEALER)[plane]
                ended = await asyncio.to_thread(knock, context, kind, endpoint, STRANGERS[name], site.public)
                endings[f"{name}: {ended}"] += 1
                if number % 10 == 0:
                    await site.greet(channel, b"friend")

        await asyncio.gather(*[one(number) for number in range(count)])
        await site.greet(channel, b"friend")
        heard = dict(site.handler.heard)
        refused = site.node.counts.unknown_keys
    context.term()
    return {
        "tries": count,
        "seconds": round(time.monotonic() - begin, 1),
        "endings": dict(sorted(endings.items())),
        "refused_by_zap": refused,
        "handler_calls_of_friend": heard.pop(b"friend"),
        "handler_calls_of_strangers": sum(heard.values()),
    }


# ---- replays ---------------------------------------------------------------------------------------


class Tap:
    """A wire in between: passes bytes both ways and keeps them as (sent by the client, bytes), in order."""

    def __init__(self, address: str) -> None:
        self.host, _, port = address.rpartition(":")
        self.port = int(port)
        self.heard: list[tuple[bool, bytes]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, port: int) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(self.host, self.port)
        self._tasks += [
            asyncio.ensure_future(self._pass(reader, there_writer, True)),
            asyncio.ensure_future(self._pass(there_reader, writer, False)),
        ]

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: bool) -> None:
        try:
            while data := await reader.read(1 << 16):
                self.heard.append((client, data))
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def aclose(self) -> None:
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def record(site: Site) -> list[list[tuple[bool, bytes]]]:
    """A friend's session by way of two taps: what passed on its data and its control plane, a message on each included."""
    host, _, port = site.address.rpartition(":")
    for _ in range(64):
        taps = [Tap(f"{host}:{int(port) + plane}") for plane in (0, 1)]
        await taps[0].start(0)
        entry = taps[0]._server.sockets[0].getsockname()[1]
        try:
            await taps[1].start(entry + 1)
        except OSError:
            await taps[0].aclose()
            continue
        channel = await site.befriend(f"127.0.0.1:{entry}")
        await site.greet(channel, b"recorded")
        site.friend.close_channel(channel)
        for tap in taps:
            await tap.aclose()
        return [tap.heard for tap in taps]
    raise SystemExit("found no two neighbouring free ports")


async def replay(host: str, port: int, recording: list[tuple[bool, bytes]], *, rhythm: bool) -> str:
    """Sends the client's side of a recording again: at once, or after as many of the node's bytes as the client had heard."""
    reader, writer = await asyncio.open_connection(host, port)
    owed = 0
    try:
        for client, data in recording:
            if client:
                writer.write(data)
            elif rhythm:
                owed += len(data)
                while owed > 0:
                    answer = await asyncio.wait_for(reader.read(owed), GIVE_UP_SECONDS)
                    if not answer:
                        return "closed by the node"
                    owed -= len(answer)
        await asyncio.wait_for(reader.read(-1), LISTEN_SECONDS)
    except ConnectionError:
        return "closed by the node"
    except asyncio.TimeoutError:
        return "no answer"
    else:
        return "closed by the node"
    finally:
        writer.close()


async def replays(count: int, *, secured: bool = True) -> dict[str, Any]:
    """`count` replays of one recorded session, in turns of both planes, at once and in its rhythm."""
    endings: Counter[str] = Counter()
    gate = asyncio.Semaphore(AT_ONCE)
    begin = time.monotonic()
    async with Site(secured=secured) as site:
        recordings = await record(site)
        recorded = site.handler.heard[b"recorded"]
        channel = await site.befriend()
        host, _, port = site.address.rpartition(":")

        async def one(number: int) -> None:
            plane, rhythm = number % 2, number // 2 % 2 == 1
            async with gate:
                ended = await replay(host, int(port) + plane, recordings[plane], rhythm=rhythm)
                endings[f"{'in its rhythm' if rhythm else 'at once'}: {ended}"] += 1

        await asyncio.gather(*[one(number) for number in range(count)])
        await site.greet(channel, b"friend")
        heard = dict(site.handler.heard)
    return {
        "replays": count,
        "seconds": round(time.monotonic() - begin, 1),
        "recorded_bytes": [sum(len(data) for client, data in heard_there if client) for heard_there in recordings],
        "endings": dict(sorted(endings.items())),
        "handler_calls_of_the_recorded_session": recorded,
        "handler_calls_of_replays": sum(heard.values()) - heard[b"friend"] - recorded,
    }


# ---- all of it -------------------------------------------------------------------------------------


def main() -> None:
    """Measures, prints, and writes RESULTS."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    multiprocessing.set_start_method("spawn")
    found = {
        "schema": "zpipe.curve/1",
        "cost": cost(2 if quick else ROUNDS),
        "strangers": asyncio.run(tries(60 if quick else 1000)),
        "replays": asyncio.run(replays(60 if quick else 1000)),
        "replays_without_keys": asyncio.run(replays(4, secured=False)),  # what a replay can do: the tool works
        "machine": {**machine(), "libzmq": zmq.zmq_version()},
        "commit": commit(),
        "command": "python -m bench.curve",
    }
    show(found)
    if not quick:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if found["strangers"]["handler_calls_of_strangers"] or found["replays"]["handler_calls_of_replays"]:
        raise SystemExit("somebody without a key was heard")


def show(found: dict[str, Any]) -> None:
    """The figures as a table."""
    print(f"{'message':<9}{'hop, open':>12}{'CURVE':>10}{'more':>16}   {'CPU, open':>10}{'CURVE':>10}{'more':>16}   microseconds")
    for name, by in found["cost"].items():
        cells = []
        for figure in ("hop", "cpu"):
            more, half = by[f"more_{figure}_us"]
            cells.append(f"{by['open'][f'{figure}_us']:>10.1f}{by['curve'][f'{figure}_us']:>10.1f}{f'{more:.1f} ± {half:.1f}':>16}")
        print(f"{name:<9}  {'   '.join(cells)}")
    strangers, again = found["strangers"], found["replays"]
    print(
        f"{strangers['tries']} tries of strangers: {strangers['handler_calls_of_strangers']} handler calls "
        f"({strangers['handler_calls_of_friend']} of a friend meanwhile); {strangers['endings']}"
    )
    print(
        f"{again['replays']} replays: {again['handler_calls_of_replays']} handler calls "
        f"({again['handler_calls_of_the_recorded_session']} of the session itself); {again['endings']}"
    )
    without = found["replays_without_keys"]
    print(f"without keys: {without['replays']} replays, {without['handler_calls_of_replays']} handler calls")


if __name__ == "__main__":
    main()
