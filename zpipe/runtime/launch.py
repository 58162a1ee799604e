"""The other ranks of a topology as processes of this machine: started, ended, and killed or stopped where faults are wanted."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zpipe.bundle import Bundle
from zpipe.errors import ConfigError, ZpipeError
from zpipe.topology import LOCAL_ADDRESS, Topology
from zpipe.trace import trace_file

log = logging.getLogger("zpipe.launch")

#: Loading libraries on a slow, busy board, and building TensorRT engines where there are none yet: minutes on a Jetson. One that
#: dies is seen at once, so this is for those that hang.
START_SECONDS = 900.0
#: What a child gets to end by itself before it is killed.
STOP_SECONDS = 5.0
#: What a child that was told to end gets for what it holds, before it is killed and started anew.
END_SECONDS = 30.0
#: What a child may say in one line: the states of a source over a whole run are most of it.
LONGEST_LINE = 1 << 24


@dataclass(frozen=True, slots=True)
class Site:
    """Where a rank runs: on this machine, or on a board that is made of it.

    Attributes:
        address: `host:port` it binds and the others reach it at; port 0 = chosen at start.
        command_prefix: put before its command line.
    """

    address: str = LOCAL_ADDRESS
    command_prefix: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """What runs a rank instead of `zpipe.runtime.child`; it starts and ends as that does, and says more meanwhile.

    Attributes:
        module: run as `python -m`.
        told: what it is told at its start beside what every rank is told.
        heard: takes each message it says once it has met its neighbours.
    """

    module: str
    told: Mapping[str, Any]
    heard: Callable[[dict[str, Any]], None]


class Launcher:
    """Starts ranks, tells them of each other, and ends them: also when one of them crashes.

    Args:
        topology, bundle: as this process has them.
        ranks: which to start.
        sites: where; a rank that is not in it, on this machine.
        trace: a folder where each records its policy's rounds.
        programs: {rank: what runs it}, where that is more than a node.

    Attributes:
        processes: #: {rank: the process it runs in now}
        restarts: #: {rank: how often it was started again}
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
        programs: Mapping[int, Program] | None = None,
    ) -> None:
        self.topology = topology
        self.bundle = bundle
        self.ranks = tuple(ranks)
        self._sites = sites or {}
        self._trace = trace
        self._programs = programs or {}
        self.processes: dict[int, asyncio.subprocess.Process] = {}
        self.crashed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.restarts: Counter[int] = Counter()
        self._watchers: dict[int, asyncio.Task[None]] = {}  #: {rank: task}, of those that nobody told to end
        self._closing = False
        self._paused: set[int] = set()
        self._bound: dict[int, str] = {}  #: {rank: address}, of those started here
        self._told: dict[int, dict[str, str]] = {}  #: {rank: {other rank: where it is for this one}}

    async def start(self) -> dict[int, str]:
        """Starts every rank; returns {rank: address} once all are bound and have their stages loaded.

        Raises:
            ConfigError: a rank could not start; its own line says why.
        """
        await asyncio.gather(*[self._spawn(rank) for rank in self.ranks])
        answers = await asyncio.gather(*[self._answer(rank, "address") for rank in self.ranks])
        self._bound = {rank: str(address) for rank, address in zip(self.ranks, answers, strict=True)}
        return dict(self._bound)

    def introduce(self, addresses: Mapping[int, str], detours: Mapping[int, Mapping[int, str]] | None = None) -> None:
        """Tells every rank where all the others are.

        Args:
            addresses: {rank: address}.
            detours: {viewer: {rank: address}} where that viewer is to reach a rank at another address, such as a relay's.
        """
        for viewer in self.ranks:
            seen = {**addresses, **(detours or {}).get(viewer, {})}
            self._told[viewer] = {str(rank): address for rank, address in seen.items()}
            self.tell(viewer, {"addresses": self._told[viewer]})

    async def ready(self) -> None:
        """Returns once every rank has met its neighbours.

        Raises:
            ConfigError: one could not.
        """
        await asyncio.gather(*[self._answer(rank, "ready") for rank in self.ranks])
        for rank in self.ranks:
            self._watch(rank)

    # ---- faults on purpose ---------------------------------------------------------------------

    def kill(self, rank: int) -> None:
        """Ends a rank at once (SIGKILL); it says no Bye, and this is no crash. `restart` brings it back."""
        self._expect_end(rank)
        self._paused.discard(rank)
        self._signal(rank, signal.SIGKILL)

    def terminate(self, rank: int) -> None:
        """Asks a rank to end in order (SIGTERM); this is no crash. `restart` waits until it has."""
        self._expect_end(rank)
        self._signal(rank, signal.SIGTERM)

    def pause(self, rank: int) -> None:
        """Stops a rank (SIGSTOP): it does nothing, and its connections stay, until `resume`."""
        self._paused.add(rank)
        self._signal(rank, signal.SIGSTOP)

    def resume(self, rank: int) -> None:
        """Lets a paused rank go on (SIGCONT)."""
        self._paused.discard(rank)
        self._signal(rank, signal.SIGCONT)

    async def restart(self, rank: int) -> None:
        """Starts a rank anew at the address it had; returns once it has met its neighbours, who must be there for that.

        One that was told to end is waited for, then killed; one that was not is terminated first.

        Raises:
            ConfigError: it could not start; its own line says why.
        """
        if rank in self._watchers:
            self.terminate(rank)
        await self._end(self.processes[rank], END_SECONDS)
        self.restarts[rank] += 1
        await self._spawn(rank)
        if self._closing:  # meanwhile; `aclose` has ended the one before
            await self._end(self.processes[rank], 0.0)
            return
        await self._answer(rank, "address")
        self.tell(rank, {"addresses": self._told[rank]})
        await self._answer(rank, "ready")
        self._watch(rank)

    # ---- the end -------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Ends every process: by closing its input, then by force. None is left behind, paused ones included."""
        self._closing = True
        for watcher in self._watchers.values():
            watcher.cancel()
        for rank in list(self._paused):
            self.resume(rank)
        for process in self.processes.values():
            if process.stdin is not None:
                process.stdin.close()
        await asyncio.gather(*[self._end(process, STOP_SECONDS) for process in self.processes.values()])
        if self.crashed.done():
            self.crashed.exception()
        else:
            self.crashed.cancel()

    # ---- inside --------------------------------------------------------------------------------

    async def _spawn(self, rank: int) -> None:
        program = self._programs.get(rank)
        self.processes[rank] = await asyncio.create_subprocess_exec(
            *self._sites.get(rank, Site()).command_prefix,
            sys.executable,
            "-m",
            program.module if program is not None else "zpipe.runtime.child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
            start_new_session=True,  # Ctrl-C reaches the parent alone, who ends us in order
        )
        trace = None if self._trace is None else str(trace_file(self._trace, rank, restarts=self.restarts[rank]))
        topology = self.topology.with_addresses({rank: self._bound[rank]}) if rank in self._bound else self.topology
        spec = {"topology": topology.to_dict(), "rank": rank, "bundle": str(self.bundle.path), "trace": trace, "path": sys.path}
        self.tell(rank, {**spec, **(program.told if program is not None else {})})

    def tell(self, rank: int, message: Mapping[str, Any]) -> None:
        """Says a message, JSON values, to the process of a rank that is no mere node."""
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
                f"{self._who(rank)} did not start within {START_SECONDS:.0f} s; set ZPIPE_LOG=DEBUG to see what it does"
            ) from None
        if not line:
            await self._end(process, STOP_SECONDS)  # a pipe may end before its process does
            found = f"exit code {process.returncode}"
            raise ConfigError(f"{self._who(rank)} ended at start with {found}; its own message stands above")
        message = json.loads(line)
        if "error" in message:
            raise ConfigError(f"{self._who(rank)}: {message['error']}")
        return message[key]

    def _signal(self, rank: int, number: signal.Signals) -> None:
        try:
            self.processes[rank].send_signal(number)
        except ProcessLookupError:  # it ended a moment ago, which its watcher tells
            pass

    def _expect_end(self, rank: int) -> None:
        watcher = self._watchers.pop(rank, None)
        if watcher is not None:
            watcher.cancel()

    def _watch(self, rank: int) -> None:
        self._watchers[rank] = asyncio.get_running_loop().create_task(self._watched(rank, self.processes[rank]))

    async def _watched(self, rank: int, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        said, program = "", self._programs.get(rank)
        while line := await process.stdout.readline():  # a node says nothing more but an error
            message = json.loads(line)
            if "error" in message:
                said = f": {message['error']}"
            elif program is not None:
                program.heard(message)
        code = await process.wait()
        if self._closing or self.crashed.done():
            return
        log.warning("%s ended with exit code %d%s", self._who(rank), code, said)
        self.crashed.set_exception(ZpipeError(f"{self._who(rank)} ended by itself (exit code {code}){said}"))

    def _who(self, rank: int) -> str:
        """A rank, for people."""
        source = self.topology.source_at(rank)
        return f"node {rank}" if source is None else f"source {source.name} (rank {rank})"

    async def _end(self, process: asyncio.subprocess.Process, seconds: float) -> None:
        """Waits for a process to end by itself, then ends it by force."""
        try:
            await asyncio.wait_for(process.wait(), seconds)
        except asyncio.TimeoutError:
            # Not process.kill(): that looks first whether it has ended, and what it finds asyncio then reports as exit code 255.
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()
