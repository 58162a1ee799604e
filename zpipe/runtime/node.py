"""A node that serves: run by `zpipe node`, or inside another program."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from zpipe.bundle import Bundle
from zpipe.configure import prepare
from zpipe.emulation import EMULATED, is_emulated, replay_codec
from zpipe.errors import ConfigError, ExecutorError, ZpipeError, one_line
from zpipe.executors.base import StageExecutor, executor_options, make_executor
from zpipe.runtime.driver import Driver, zeromq
from zpipe.security import node_keys
from zpipe.topology import Topology

log = logging.getLogger("zpipe.node")

#: Nodes started by hand from a topology without addresses meet on this host's ports from here on: rank r at 5800 + 2r.
FIRST_PORT = 5800
#: A node that misses neighbours says so this often.
WAITING_NOTE_SECONDS = 10.0
#: A node that is told to end gets so long to finish what it holds.
DRAIN_SECONDS = 5.0


def new_session() -> int:
    """A number for this start: milliseconds of the wall clock, so that a later start has a larger one (policy rule S1)."""
    return time.time_ns() // 1_000_000


def executor_for(
    topology: Topology,
    bundle: Bundle,
    rank: int,
    *,
    name: str | None = None,
    device: str | None = None,
    note: Callable[[str], None] | None = None,
) -> StageExecutor | None:
    """The executor of one node, warm; None where it hosts no stage.

    Args:
        topology, bundle, rank: whose.
        name, device: instead of the topology's.
        note: takes the line in which `auto` says what it chose.

    Raises:
        ConfigError: there is no such executor, or it does not fit the bundle.
        ExecutorError: it could not be made, or run.
    """
    node = topology.node(rank)
    if not node.stages:
        return None
    name = name or node.executor
    if (name == EMULATED) != is_emulated(topology):
        kind = "an emulated topology" if is_emulated(topology) else "a topology of real nodes"
        raise ConfigError(f"executor: found {name} at node {rank} of {kind}, expected all or none emulated; name another executor")
    says = {"device": device or node.device, "codec": replay_codec(topology), "max_batch": node.max_batch, "note": note}
    options = {option: says[option] for option in executor_options(name) if option in says}
    executor = make_executor(name, bundle, node.stages, **options)
    try:
        executor.warm_up(node.max_batch)
    except ZpipeError:
        raise
    except Exception as exc:  # of somebody else's class
        found = one_line(" ".join(f"{type(exc).__name__}: {exc}".split()))
        raise ExecutorError(f"executor {name}: found {found} at its warm-up, expected it to run; correct it") from exc
    return executor


class Node:
    """One rank of a topology, serving until it is closed.

    Args:
        topology: as loaded; addresses without a port get 5800 + 2 * rank.
        rank: not a source's: those are run by whoever submits.
        bundle: with which the topology was prepared already (`zpipe.configure.prepare`).
        session: of this start; drawn from the clock if not given.
        waiting: takes lines for people: neighbours that come, go or are missing, and what `auto` chose; they go to the log if not
            given.
        trace: a file to record the policy's rounds in (`zpipe replay`).
        executor, device: instead of the topology's, at this node alone: the others need not know.

    Raises:
        ConfigError: the rank is a source's, topology and bundle do not fit, its keys cannot be used, or it has none and its
            address is open to a network.
    """

    def __init__(
        self,
        topology: Topology,
        rank: int,
        *,
        bundle: Bundle | None = None,
        session: int | None = None,
        waiting: Callable[[str], None] | None = None,
        trace: Path | None = None,
        executor: str | None = None,
        device: str | None = None,
    ) -> None:
        if topology.source_at(rank) is not None:
            raise ConfigError(
                f"{topology.path or topology.name}: rank {rank} is a source, expected a rank that only serves; a source is run by "
                "whoever submits: `zpipe bench --attach`, or Pipeline.connect in your program"
            )
        self.topology, self.bundle = (topology, bundle) if bundle else prepare(topology)
        node_keys(self.topology, rank)  # refused before stages are loaded
        self.rank = rank
        self._waiting = waiting
        self.refusal: asyncio.Future[None] | None = None
        self._executor, self._device = executor, device
        self._trace = trace
        self._session = session or new_session()
        self._driver: Driver | None = None
        self._watch: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return repr(self._driver.policy) if self._driver else f"<Node {self.rank} not started>"

    @property
    def driver(self) -> Driver:
        """The running driver."""
        assert self._driver is not None, "the node was not started"
        return self._driver

    async def bind(self) -> str:
        """Loads the stages and binds; returns the `host:port` others reach the data plane at."""
        chosen: list[str] = []
        executor = executor_for(self.topology, self.bundle, self.rank, name=self._executor, device=self._device, note=chosen.append)
        self.refusal = asyncio.get_running_loop().create_future()
        self._driver = Driver(
            self.topology,
            self.bundle,
            self.rank,
            transport=zeromq(self.topology, self.bundle, self.rank),
            executor=executor,
            session=self._session,
            refused=self._refused,
            note=self._waiting,
            broken=self._refused,
            trace=self._trace,
        )
        address = await self._driver.start()
        for line in chosen:  # where it cannot start, its error stands alone
            self._driver.notes(line)
        return address

    def connect(self, topology: Topology | None = None) -> None:
        """Joins its neighbours; `topology`: the same with the addresses found since `bind`."""
        self.driver.connect(topology)
        self._watch = asyncio.get_running_loop().create_task(self._note_missing())

    def _refused(self, error: ZpipeError) -> None:
        if self.refusal is not None and not self.refusal.done():
            self.refusal.set_exception(error)

    async def _note_missing(self) -> None:
        while True:
            await asyncio.sleep(WAITING_NOTE_SECONDS)
            missing = self.driver.peers.missing_text()
            if missing:
                self.driver.notes(f"node {self.rank} waits for rank {missing}")

    async def serve(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set.

        Raises:
            ConfigError: a neighbour refused this node: other files than there.
            ZpipeError: an internal error.
        """
        assert self.refusal is not None, "bind() first"
        stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((stopping, self.refusal), return_when=asyncio.FIRST_COMPLETED)
            if self.refusal.done():
                self.refusal.result()
        finally:
            stopping.cancel()

    async def drain(self, seconds: float = DRAIN_SECONDS, *, hurry: asyncio.Event | None = None) -> bool:
        """Takes no more tasks, finishes and hands over what it holds: to be called before `aclose`, so that nothing is lost.

        Args:
            seconds: how long at most; what is left then its neighbours tell the sources of, who submit it again.
            hurry: ends it at once when set.

        Returns:
            Whether nothing is left.
        """
        return await self.driver.drain(seconds, hurry=hurry)

    async def aclose(self) -> None:
        """Says Bye and lets everything go."""
        if self._watch is not None:
            self._watch.cancel()
        if self.refusal is not None:
            if self.refusal.done():
                self.refusal.exception()  # looked at: no warning about one nobody saw
            else:
                self.refusal.cancel()
        if self._driver is not None:
            await self._driver.aclose()

    async def __aenter__(self) -> Node:  # noqa: PYI034 - Self is Python 3.11
        try:
            await self.bind()
            self.connect()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    def stats(self) -> dict[str, Any]:
        """Counters since the start."""
        return self.driver.stats()


def by_hand(topology: Topology) -> Topology:
    """The topology for nodes that are started one by one: every address known beforehand."""
    return topology.with_fixed_ports(FIRST_PORT)
