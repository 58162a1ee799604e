"""A topology's boards and cables, made on entering and gone on leaving."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from zpipe.bench.lab import host
from zpipe.bench.lab.names import lab_name, left_over
from zpipe.bench.lab.plan import (
    PORTS,
    Cable,
    Command,
    bandwidth_commands,
    build_commands,
    burst_seconds,
    cables,
    namespace,
    node_address,
    within,
)
from zpipe.errors import ConfigError, ZpipeError
from zpipe.runtime.launch import Site
from zpipe.topology import Topology

log = logging.getLogger("zpipe.lab")

#: A relay gets so long to end by itself.
STOP_SECONDS = 2.0

_serials = itertools.count()


class EdgeLab:
    """The lab of one topology; use as `with`. Linux, root, iproute2.

    The methods that change a link may be called from any thread; they return once the change has taken effect, within some
    milliseconds (from a coroutine: `await asyncio.to_thread(lab.stall, (0, 1), 2.0)`).

    Args:
        topology: its links' `bandwidth` and `latency` are made real.
        cpu_shares: {rank: share of one core} of the slow boards; the others take what there is.
        faults: every link gets a relay, so that each can be slowed, stalled and reset; else only those with bandwidth or latency.
        seed: of the jitter.

    Attributes:
        name: what everything it makes is called, and begins with.
        sites: #: {rank: where `Pipeline.local` starts it}
        removed: what labs that died had left over and this one removed.

    Raises:
        ConfigError: a rank or share is impossible, or links share a medium.
    """

    def __init__(
        self, topology: Topology, *, cpu_shares: Mapping[int, float] | None = None, faults: bool = False, seed: int = 0
    ) -> None:
        self.topology = topology
        self.name = lab_name(next(_serials))
        self.removed: tuple[str, ...] = ()
        self._shares = dict(cpu_shares or {})
        _check_shares(topology, self._shares)
        _check_media(topology)
        self._groups = host.cpu_groups() if self._shares else None
        self._cables = {cable.link.between: cable for cable in cables(self.name, topology, relay_all=faults)}
        self._relays: dict[tuple[int, int], _RelayProcess] = {}
        self._seed = seed
        self.sites = {
            node.rank: Site(f"{node_address(node.rank)}:{PORTS[0]}", self.command_prefix(node.rank)) for node in topology.nodes
        }

    def __repr__(self) -> str:
        return f"<EdgeLab {self.name} | {len(self.sites)} nodes, {len(self._cables)} links, {len(self._relays)} relays>"

    # ---- life ----------------------------------------------------------------------------------

    def __enter__(self) -> EdgeLab:  # noqa: PYI034 - Self is Python 3.11
        """Makes it all.

        Raises:
            ConfigError: it cannot be made here; nothing is left of the attempt.
        """
        host.check_host()
        if self._shares and self._groups is None:
            raise ConfigError(
                "lab: found no CPU control group (cgroup v1 `cpu`, or v2), expected one for CPU shares; mount it, or leave them out"
            )
        self.removed = remove_left_over()
        try:
            for command in build_commands(self.name, self.topology, tuple(self._cables.values())):
                host.call(command)
            if self._groups is not None:
                for rank in self.sites:
                    self._groups.create(namespace(self.name, rank), self._shares.get(rank))
            for between, cable in self._cables.items():
                if cable.relay:
                    self._relays[between] = _RelayProcess(cable, seed=self._seed + len(self._relays))
            for between, cable in self._cables.items():
                if cable.relay:
                    self._relays[between].started()
                    self._set_relay(between, latency=cable.link.latency_seconds, bandwidth=cable.link.bandwidth_bps)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Removes everything, and ends what still runs in it. May be called twice."""
        for relay in self._relays.values():
            relay.close()
        self._relays.clear()
        _remove(name for name in _made() if name.startswith(f"{self.name}."))

    # ---- running in it -------------------------------------------------------------------------

    def command_prefix(self, rank: int) -> tuple[str, ...]:
        """Put before a command line, runs it on that board."""
        space = namespace(self.name, rank)
        if self._groups is None:
            return within(space)
        return (*_joining(self._groups.processes_file(space).as_posix()), *within(space))

    @contextmanager
    def entered(self, rank: int) -> Iterator[None]:
        """Sockets this thread makes inside belong to that board; with CPU shares this whole process computes there, too.

        Raises:
            ConfigError: no such rank.
        """
        self.topology.node(rank)
        space = namespace(self.name, rank)
        with ExitStack() as stack:
            stack.enter_context(host.entered(space))
            if self._groups is not None:
                stack.enter_context(self._groups.joined(space))
            yield

    # ---- while it runs -------------------------------------------------------------------------

    def set_bandwidth(self, between: tuple[int, int], bandwidth_bps: float) -> None:
        """Gives a link another bandwidth, bits of payload per second and direction; `inf` for none.

        Raises:
            ConfigError: no such link, or it has no relay.
        """
        relay = self._relay(between)
        _check("bandwidth", bandwidth_bps, least=1.0)
        for command in bandwidth_commands(relay.cable, bandwidth_bps):
            host.call(command)
        self._set_relay(relay.cable.link.between, bandwidth=bandwidth_bps)

    def set_latency(self, between: tuple[int, int], seconds: float, *, jitter_seconds: float = 0.0) -> None:
        """Gives a link another latency (one way), for what is sent from now on; each piece takes up to the jitter longer.

        Raises:
            ConfigError: no such link, or it has no relay.
        """
        relay = self._relay(between)
        _check("latency", seconds)
        _check("jitter", jitter_seconds)
        self._set_relay(relay.cable.link.between, latency=seconds, jitter=jitter_seconds)

    def stall(self, between: tuple[int, int], seconds: float) -> None:
        """Nothing passes for so long, either way; connections stay. 0 ends a stall, `inf` is one without end.

        Raises:
            ConfigError: no such link, or it has no relay.
        """
        relay = self._relay(between)
        _check("stall", seconds)
        relay.tell({"stall": min(seconds, sys.maxsize)})

    def reset(self, between: tuple[int, int]) -> None:
        """Breaks every connection of a link off, at both ends; they may be made anew at once.

        Raises:
            ConfigError: no such link, or it has no relay.
        """
        self._relay(between).tell({"reset": True})

    def corrupt(self, between: tuple[int, int], share: float) -> None:
        """Flips one bit in the body of this share (0..1) of the link's ZeroMQ messages, either way, from now on.

        Raises:
            ConfigError: no such link, or it has no relay.
        """
        relay = self._relay(between)
        _check("share", share)
        relay.tell({"corrupt": share})

    def flip(self, between: tuple[int, int]) -> None:
        """Flips one bit anywhere in what passes next, framing included.

        Raises:
            ConfigError: no such link, or it has no relay.
        """
        self._relay(between).tell({"flip": 1})

    def damage(self, between: tuple[int, int]) -> dict[str, int]:
        """How many `messages` a link's relay has seen, `corrupted`, and bits `flipped` elsewhere.

        Raises:
            ConfigError: no such link, or it has no relay.
        """
        return self._relay(between).tell({"counts": True})

    # ---- inside --------------------------------------------------------------------------------

    def _relay(self, between: tuple[int, int]) -> _RelayProcess:
        low, high = sorted(between)
        if (low, high) not in self._cables:
            known = ", ".join(f"{a}-{b}" for a, b in self._cables)
            raise ConfigError(f"lab: found no link {low}-{high}, expected one of {known}")
        if (low, high) not in self._relays:
            expected = "one with bandwidth or latency, or a lab made with faults=True"
            raise ConfigError(f"lab: found link {low}-{high} without a relay, expected {expected}")
        return self._relays[low, high]

    def _set_relay(
        self, between: tuple[int, int], *, latency: float | None = None, jitter: float | None = None, bandwidth: float | None = None
    ) -> None:
        conditions: dict[str, float] = {}
        if latency is not None:
            conditions["latency_seconds"] = latency
        if jitter is not None:
            conditions["jitter_seconds"] = jitter
        if bandwidth is not None:
            conditions.update(bandwidth_bps=bandwidth, burst_seconds=burst_seconds(bandwidth))
        self._relays[between].tell({"set": conditions})


class _RelayProcess:
    """A relay's process, seen from the lab."""

    def __init__(self, cable: Cable, *, seed: int) -> None:
        self.cable = cable
        self._lock = threading.Lock()  # one order at a time
        self._process = subprocess.Popen(
            within(cable.relay, sys.executable, "-m", "zpipe.bench.lab.relay"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the parent alone, who ends us in order
        )
        self._write({"ports": PORTS, "seed": seed})

    def started(self) -> None:
        """Returns once it listens.

        Raises:
            ZpipeError: it could not start.
        """
        self._answer()

    def tell(self, order: dict[str, Any]) -> dict[str, Any]:
        """Gives an order; returns the answer once it has taken effect.

        Raises:
            ZpipeError: the relay ended.
        """
        with self._lock:
            self._write(order)
            return self._answer()

    def close(self) -> None:
        """Ends it: by closing its input, then by force."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _write(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer, or its absence, says more

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        said: dict[str, Any] = json.loads(line) if line else {"error": "it ended without a word"}
        if "error" in said:
            low, high = self.cable.link.between
            raise ZpipeError(f"lab: the relay of link {low}-{high} failed: {said['error']}")
        return said


# ---- what labs leave ---------------------------------------------------------------------------


def remove_left_over() -> tuple[str, ...]:
    """Removes what labs left over whose process is gone; the living ones' is left alone. Returns the names.

    Raises:
        ConfigError: something cannot be removed.
    """
    found = left_over(_made())
    _remove(found)
    if found:
        log.info("removed what a dead lab left over: %s", ", ".join(found))
    return tuple(found)


def _made() -> set[str]:
    """Names of everything that may be a lab's."""
    groups = host.cpu_groups()
    return {*host.namespaces(), *(groups.names() if groups is not None else ())}


def _remove(names: Iterator[str] | list[str]) -> None:
    groups = host.cpu_groups()
    for name in list(names):
        if (host.NAMESPACES / name).exists():
            host.delete_namespace(name)
        if groups is not None:
            groups.delete(name)


# ---- checks ------------------------------------------------------------------------------------


def _joining(processes_file: str) -> Command:
    """Makes the command after it begin by joining a control group."""
    return ("sh", "-c", 'echo $$ > "$0" && exec "$@"', processes_file)


def _check(what: str, found: float, *, least: float = 0.0) -> None:
    if math.isnan(found) or found < least:
        raise ConfigError(f"lab: {what}: found {found}, expected a number of at least {least:g}")


def _check_shares(topology: Topology, shares: Mapping[int, float]) -> None:
    cores = os.cpu_count() or 1
    for rank, share in shares.items():
        if not 0 <= rank < len(topology.nodes):
            raise ConfigError(f"lab: CPU share: found rank {rank}, expected one of 0 to {len(topology.nodes) - 1}")
        if not 0.001 <= share <= cores:
            raise ConfigError(
                f"lab: CPU share of rank {rank}: found {share}, expected 0.001 to {cores} (1 = one core of this machine)"
            )


def _check_media(topology: Topology) -> None:
    shared: dict[str, tuple[int, int]] = {}
    for index, link in enumerate(topology.links):
        if link.medium and shared.setdefault(link.medium, link.between) != link.between:
            low, high = shared[link.medium]
            raise ConfigError(
                f"{topology.path or topology.name}: links[{index}].medium: found {link.medium!r}, as link {low}-{high} has, "
                "expected links that share nothing: the lab gives each a cable of its own; use `zpipe sim`, or leave the medium out"
            )
