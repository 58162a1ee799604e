"""The other ranks of a topology as processes of this machine."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zpipe.bundle import Bundle
from zpipe.errors import ConfigError, ZpipeError
from zpipe.topology import LOCAL_ADDRESS, Topology
from zpipe.trace import trace_file

log = logging.getLogger("zpipe.launch")

#: Loading engines and libraries on a slow, busy board.
START_SECONDS = 120.0
#: What a child gets to end by itself before it is killed.
STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Site:
    """Where a rank runs: on this machine, or on a board that is made of it.

    Attributes:
        address: `host:port` it binds and the others reach it at; port 0 = chosen at start.
        command_prefix: put before its command line.
    """

    address: str = LOCAL_ADDRESS
    command_prefix: tuple[str, ...] = ()


class Launcher:
    """Starts ranks, tells them of each other, and ends them: also when one of them crashes.

    Args:
        topology, bundle: as this process has them.
        ranks: which to start.
        sites: where; a rank that is not in it, on this machine.
        trace: a folder where each records its policy's rounds.

    Attributes:
        crashed: done with a one-line error when a rank ended that nobody told to.
    """

    def __init__(
        self,
        topology: Topology,
        bundle: Bundle,
        ranks: Iterable[int],
        *,
        sites: Mapping[int, Site] | None = None,
        trace: Path | None = None,
    ) -> None:
        self.topology = topology
        self.bundle = bundle
        self.ranks = tuple(ranks)
        self._sites = sites or {}
        self._trace = trace
        self.processes: dict[int, asyncio.subprocess.Process] = {}
        self.crashed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers: list[asyncio.Task[None]] = []
        self._closing = False

    async def start(self) -> dict[int, str]:
        """Starts every rank; returns {rank: address} once all are bound and have their stages loaded.

        Raises:
            ConfigError: a rank could not start; its own line says why.
        """
        await asyncio.gather(*[self._spawn(rank) for rank in self.ranks])
        answers = await asyncio.gather(*[self._answer(rank, "address") for rank in self.ranks])
        return {rank: str(address) for rank, address in zip(self.ranks, answers, strict=True)}

    def introduce(self, addresses: Mapping[int, str]) -> None:
        """Tells every rank where all the others are."""
        for rank in self.ranks:
            self._tell(rank, {"addresses": {str(other): address for other, address in addresses.items()}})

    async def ready(self) -> None:
        """Returns once every rank has met its neighbours.

        Raises:
            ConfigError: one could not.
        """
        await asyncio.gather(*[self._answer(rank, "ready") for rank in self.ranks])
        for rank in self.ranks:
            self._watchers.append(asyncio.get_running_loop().create_task(self._watch(rank)))

    async def aclose(self) -> None:
        """Ends every process: by closing its input, then by force. None is left behind."""
        self._closing = True
        for watcher in self._watchers:
            watcher.cancel()
        for process in self.processes.values():
            if process.stdin is not None:
                process.stdin.close()
        await asyncio.gather(*[self._end(process) for process in self.processes.values()])
        if self.crashed.done():
            self.crashed.exception()
        else:
            self.crashed.cancel()

    # ---- inside --------------------------------------------------------------------------------

    async def _spawn(self, rank: int) -> None:
        self.processes[rank] = await asyncio.create_subprocess_exec(
            *self._sites.get(rank, Site()).command_prefix,
            sys.executable,
            "-m",
            "zpipe.runtime.child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the parent alone, who ends us in order
        )
        trace = None if self._trace is None else str(trace_file(self._trace, rank))
        self._tell(rank, {"topology": self.topology.to_dict(), "rank": rank, "bundle": str(self.bundle.path), "trace": trace})

    def _tell(self, rank: int, message: dict[str, Any]) -> None:
        stdin = self.processes[rank].stdin
        assert stdin is not None
        stdin.write(json.dumps(message).encode() + b"\n")

    async def _answer(self, rank: int, key: str) -> Any:
        process = self.processes[rank]
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        except asyncio.TimeoutError:
            raise ConfigError(
                f"node {rank} did not start within {START_SECONDS:.0f} s; set ZPIPE_LOG=DEBUG to see what it does"
            ) from None
        if not line:
            await self._end(process)  # a pipe may end before its process does
            found = f"exit code {process.returncode}"
            raise ConfigError(f"node {rank} ended at start with {found}; its own message stands above")
        message = json.loads(line)
        if "error" in message:
            raise ConfigError(f"node {rank}: {message['error']}")
        return message[key]

    async def _watch(self, rank: int) -> None:
        process = self.processes[rank]
        assert process.stdout is not None
        line = await process.stdout.readline()  # nothing more is said but an error, or the end
        code = await process.wait()
        if self._closing or self.crashed.done():
            return
        said = f": {json.loads(line)['error']}" if line else ""
        log.warning("node %d ended with exit code %d%s", rank, code, said)
        self.crashed.set_exception(ZpipeError(f"node {rank} ended by itself (exit code {code}){said}"))

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()
