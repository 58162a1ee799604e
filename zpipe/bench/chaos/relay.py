"""The relays of all links on loopback: `python -m zpipe.bench.chaos.relay`, one JSON line at a time on its pipes.

    in   {"links": [["127.0.0.1:4000", "127.0.0.1:5000"], ...], "seed": 7}     where the two nodes of each link listen
    out  {"ports": [[6000, 7000], ...]}           where each of them is to be reached over that link instead, on 127.0.0.1
    in   {"link": 0, "stall": 2.5}                the number of a link, and any order of `zpipe.bench.lab.relay`
    out  {"done": true}                           or the answer
    out  {"error": "one line"}                    instead; exit code 2

A node is reached over a link as it is directly: data at the port given, control at the next one. One process for all: relaying is
little work. It ends when its standard input does, so it cannot outlive whoever started it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import socket
import sys
from contextlib import ExitStack

from zpipe.bench.lab.relay import Address, Relay, obey, say

HOST = "127.0.0.1"
#: A port whose neighbour is taken is given back and another one is tried.
TRIES = 100


def pair_of_listeners() -> tuple[socket.socket, socket.socket]:
    """Two bound sockets, the second one port above the first.

    Raises:
        OSError: no two free ports side by side were found.
    """
    with ExitStack() as rejected:
        for _ in range(TRIES):
            first, second = socket.socket(), socket.socket()
            try:
                first.bind((HOST, 0))
                second.bind((HOST, first.getsockname()[1] + 1))
            except (OSError, OverflowError):  # taken, or above the last port
                rejected.callback(first.close)  # kept until one is found: else the kernel may offer it again
                second.close()
            else:
                return first, second
    raise OSError(f"found no two free ports side by side in {TRIES} tries")


async def relay_of_link(low: Address, high: Address, *, rng: random.Random) -> tuple[Relay, tuple[int, int]]:
    """A relay between two nodes; with it the ports at which it stands for the lower and the higher one."""
    targets: dict[int, Address] = {}  #: {our port: where it leads}
    ways: dict[int, tuple[str, str]] = {}  #: {our port: directions there and back}

    def dial(wanted: Address, caller: Address) -> tuple[socket.socket, Address]:
        target = targets[wanted[1]]
        return socket.socket(), target

    relay = Relay(rng=rng, dial=dial, directions=lambda wanted, caller: ways[wanted[1]])
    ports = []
    for (host, port), directions in ((low, ("down", "up")), (high, ("up", "down"))):
        listeners = pair_of_listeners()
        for offset, listener in enumerate(listeners):
            ours = listener.getsockname()[1]
            targets[ours], ways[ours] = (host, port + offset), directions
        await relay.listen(*listeners)
        ports.append(listeners[0].getsockname()[1])
    return relay, (ports[0], ports[1])


def address(text: str) -> Address:
    """`host:port` in two."""
    host, _, port = text.rpartition(":")
    return host, int(port)


async def _serve() -> None:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    first = await lines.readline()
    if not first:
        return
    spec = json.loads(first)
    relays: list[Relay] = []
    try:
        ports = []
        for number, (low, high) in enumerate(spec["links"]):
            relay, pair = await relay_of_link(address(low), address(high), rng=random.Random(f"{spec['seed']}/{number}"))
            relays.append(relay)
            ports.append(pair)
        say({"ports": ports})
        while line := await lines.readline():
            order = json.loads(line)
            say(obey(relays[order.pop("link")], order))
    finally:
        for relay in relays:
            await relay.aclose()


def main() -> int:
    """Entry point; errors go to the parent in one line."""
    logging.basicConfig(level=os.environ.get("ZPIPE_LOG", "ERROR"), format="%(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to act on
    try:
        asyncio.run(_serve())
    except Exception as exc:
        say({"error": " ".join(f"{type(exc).__name__}: {exc}".split())})
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
