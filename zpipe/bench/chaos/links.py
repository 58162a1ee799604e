"""Links that can be made to fail: those of the edge lab, or of relays on loopback."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from zpipe.bench.chaos.schedule import Link
from zpipe.bench.lab.edge import EdgeLab
from zpipe.errors import ZpipeError

#: The relays' process gets so long to end by itself.
STOP_SECONDS = 2.0


class LinkFaults(Protocol):
    """What can be done to a link. Each returns once it has taken effect; none waits for what it causes."""

    async def stall(self, link: Link, seconds: float) -> None:
        """Nothing passes for so long; connections stay."""

    async def limit(self, link: Link, bandwidth_bps: float | None) -> None:
        """So many bits a second each way; None for what the link had at first."""

    async def reset(self, link: Link) -> None:
        """Breaks every connection off."""

    async def corrupt(self, link: Link, share: float) -> None:
        """Flips one bit in the body of this share of the messages, until told otherwise."""

    async def flip(self, link: Link) -> None:
        """Flips one bit of what passes next."""

    async def damage(self) -> dict[str, dict[str, int]]:
        """{"0-1": {`messages`: seen, `corrupted`, `flipped`}}."""


class LabLinks:
    """Links of an edge lab made with `faults=True`."""

    def __init__(self, lab: EdgeLab) -> None:
        self._lab = lab
        self._at_first = {link.between: link.bandwidth_bps for link in lab.topology.links}

    async def stall(self, link: Link, seconds: float) -> None:
        await asyncio.to_thread(self._lab.stall, link, seconds)

    async def limit(self, link: Link, bandwidth_bps: float | None) -> None:
        await asyncio.to_thread(self._lab.set_bandwidth, link, bandwidth_bps or self._at_first[link])

    async def reset(self, link: Link) -> None:
        await asyncio.to_thread(self._lab.reset, link)

    async def corrupt(self, link: Link, share: float) -> None:
        await asyncio.to_thread(self._lab.corrupt, link, share)

    async def flip(self, link: Link) -> None:
        await asyncio.to_thread(self._lab.flip, link)

    async def damage(self) -> dict[str, dict[str, int]]:
        return {f"{a}-{b}": await asyncio.to_thread(self._lab.damage, (a, b)) for a, b in self._at_first}


class LoopbackLinks:
    """Relays for every link of nodes that all run on this machine, in one process.

    Args:
        links: in the order of which their relays are numbered.
        seed: of what they damage.
    """

    def __init__(self, links: Sequence[Link], *, seed: int) -> None:
        self._links = tuple(links)
        self._seed = seed
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()  # one order at a time

    async def start(self, addresses: Mapping[int, str]) -> dict[int, dict[int, str]]:
        """Starts them, given every node's address; returns where each node reaches its neighbours: {viewer: {rank: address}}.

        Raises:
            ZpipeError: they could not start.
        """
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "zpipe.bench.chaos.relay",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the parent alone, who ends us in order
        )
        between = [[addresses[low], addresses[high]] for low, high in self._links]
        answer = await self._tell({"links": between, "seed": self._seed})
        detours: dict[int, dict[int, str]] = {}
        for (low, high), (to_low, to_high) in zip(self._links, answer["ports"], strict=True):
            detours.setdefault(low, {})[high] = f"127.0.0.1:{to_high}"
            detours.setdefault(high, {})[low] = f"127.0.0.1:{to_low}"
        return detours

    async def aclose(self) -> None:
        """Ends them: by closing their input, then by force. May be called twice, and before `start`."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except asyncio.TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def stall(self, link: Link, seconds: float) -> None:
        await self._order(link, {"stall": min(seconds, sys.maxsize)})

    async def limit(self, link: Link, bandwidth_bps: float | None) -> None:
        # No burst: here nothing but the relay limits, so it sends at the cable's own pace.
        await self._order(link, {"set": {"bandwidth_bps": bandwidth_bps or math.inf, "burst_seconds": math.inf}})

    async def reset(self, link: Link) -> None:
        await self._order(link, {"reset": True})

    async def corrupt(self, link: Link, share: float) -> None:
        await self._order(link, {"corrupt": share})

    async def flip(self, link: Link) -> None:
        await self._order(link, {"flip": 1})

    async def damage(self) -> dict[str, dict[str, int]]:
        return {f"{a}-{b}": await self._order((a, b), {"counts": True}) for a, b in self._links}

    async def _order(self, link: Link, order: dict[str, Any]) -> dict[str, Any]:
        return await self._tell({"link": self._links.index(link), **order})

    async def _tell(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process is not None, "start() first"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._lock:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            line = await self._process.stdout.readline()
        said: dict[str, Any] = json.loads(line) if line else {"error": "they ended without a word"}
        if "error" in said:
            raise ZpipeError(f"chaos: the relays failed: {said['error']}")
        return said
