"""What a topology is, as values, and the questions one may ask it; `zpipe.topology` documents the file's keys."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any, Literal

from zpipe.errors import TopologyError
from zpipe.topology.keys import SecuritySpec

WhenFull = Literal["block", "latest", "deadline"]
OffloadInput = Literal["no", "yes", "auto"]
Order = Literal["fifo", "priority"]
Redundancy = Literal["failover", "hedged", "all"]

LOCAL_ADDRESS = "127.0.0.1:0"
#: Strategies whose service order is by class unless the topology says more.
RANKED = ("pa-mdi",)
#: The most of a node's time that all classes below the highest are owed together.
MOST_SHARES = 0.5
#: `exit:` names that are no operating points.
DEFAULT_POINT, NO_EXIT = "default", "no-exit"
#: How samples come to a source, where it is no file of arrival times.
LIVE, POISSON, CONSTANT = ARRIVALS = ("live", "poisson", "constant")
#: Samples a second of a source, least and most: one every quarter of an hour, below which a run is a matter of years and nodes that
#: idle cost the simulator time, too; no clock of ours tells more than a million a second apart.
RATE_HZ = (0.001, 1e6)


def default_name(rank: int) -> str:
    """What a source is called that has no other name."""
    return f"source-{rank}"


# ---- what a topology is ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One process on one board.

    Attributes:
        rank: its number, 0 to nodes - 1.
        stages: what it hosts, rising; may be empty at a source.
        address: `host:port` of its data plane as its neighbours reach it; port 0 = chosen at start.
        bind: host or `host:port` it listens on, "" = the address.
        executor: name of what runs its stages, or `module:class`.
        device: which device or device profile, in the executor's own words.
        max_batch: most tasks in one batch.
        slots: most samples of its own under way in this node (policy rule C1, `own_slots`).
    """

    rank: int
    stages: tuple[int, ...]
    address: str = LOCAL_ADDRESS
    bind: str = ""
    executor: str = "auto"
    device: str = ""
    max_batch: int = 8
    slots: int = 64

    @property
    def host(self) -> str:
        """Host part of the address."""
        return self.address.rpartition(":")[0]

    @property
    def port(self) -> int:
        """Data port; 0 = chosen at start."""
        return int(self.address.rpartition(":")[2])

    @property
    def control_address(self) -> str:
        """`host:port` of its control plane: one above the data port."""
        return f"{self.host}:{self.port + 1}"

    @property
    def bind_address(self) -> str:
        """`host:port` to listen on for data."""
        if not self.bind:
            return self.address
        return self.bind if has_port(self.bind) else f"{self.bind}:{self.port}"

    @property
    def launched(self) -> bool:
        """Whoever runs the bench starts this node, on a port that is free then."""
        return self.port == 0


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """A connection between two nodes, both ways.

    Attributes:
        between: the two ranks, lower first.
        bandwidth_bps: bits per second and direction, `inf` = not limited.
        latency_seconds: one way.
        jitter_seconds: a frame takes up to this much longer, each a share of its own; the order stays.
        codec: how activations are packed: one of `zpipe.model.CODECS`, or `auto`.
        medium: links of one name share its airtime; "" = a medium of its own.
        window: slots of each direction at its receiver (policy rule C1).
    """

    between: tuple[int, int]
    bandwidth_bps: float = math.inf
    latency_seconds: float = 0.0
    jitter_seconds: float = 0.0
    codec: str = "none"
    medium: str = ""
    window: int = 16


@dataclass(frozen=True, slots=True)
class AdmissionSpec:
    """How a source lets its samples in.

    Attributes:
        name: strategy, one of `fixed`, `mdi-rate`, `mdi-threshold`, `aimd`.
        options: keyword arguments of the strategy; what is absent has the strategy's default.
        when_full: who gives way when the waiting room is full.
        waiting: samples the waiting room holds, 0 = the mode's default.
    """

    name: str = "aimd"
    options: Mapping[str, float] = field(default_factory=dict, hash=False)
    when_full: WhenFull = "block"
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A node where samples enter.

    Attributes:
        rank: the node; run by whoever submits.
        admission: how samples are let in.
        deadline_seconds: from submit(); a sample without a result by then has expired.
        priority: class of its tasks, 0 the lowest; a file that leaves it out has it from the weights (`zpipe.topology.sources`).
        weight: gamma of PA-MDI (arXiv:2412.12371), > 0.
        accuracy: wanted, 0..1; 0 = no wish.
        name: for people and programs; no two sources have the same.
        arrivals: how a bench offers samples: `live`, whoever connects submits (a bench keeps a window under way); `poisson`,
            `constant`, or a file of arrival times.
        rate_hz: samples a second of `poisson` and `constant`, else None.
    """

    rank: int
    admission: AdmissionSpec = AdmissionSpec()
    deadline_seconds: float = 30.0
    priority: int = 0
    weight: float = 1.0
    accuracy: float = 0.0
    name: str = ""
    arrivals: str = LIVE
    rate_hz: float | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", default_name(self.rank))

    @property
    def label(self) -> str:
        """What it is called in a sentence: `source camera`, or `source 0` where it has no name of its own."""
        return f"source {self.rank if self.name == default_name(self.rank) else self.name}"


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """What all nodes decide by.

    Attributes:
        offload: strategy name.
        exit_point: operating point of the bundle, `default` or `no-exit`.
        report_interval_seconds: between two load reports to a neighbour.
        output_threshold: T_O of MDI-Exit's Alg. 1, tasks.
        offload_input: whether raw inputs may go out, from their source and away from it; `auto`: where they are fewer bytes than
            what goes on after stage 0.
        inputs_of: of `auto`, the sources whose raw inputs may go out, by rank; None while that is open. No part of `canonical`:
            it follows from the rest and the bundle, and an observer has no bundle.
        order: of service; `priority`: by class, then age (policy rule A7).
        min_share: of each node's time, 0..1, for every class that waits below another; together they are owed MOST_SHARES at most.
        max_batch_low: most tasks in a batch of any class but the highest; 0 = the node's `max_batch`.
        ageing_seconds: of waiting at a node that a class is worth; 0 = none is.
        redundancy: how many hosts of a student get a sample: `failover`, another once one failed; `hedged`, another once one takes
            long; `all`.
    """

    offload: str = "local"
    exit_point: str = DEFAULT_POINT
    report_interval_seconds: float = 0.1
    output_threshold: int = 50
    offload_input: OffloadInput = "no"
    inputs_of: tuple[int, ...] | None = None
    order: Order = "fifo"
    min_share: float = 0.05
    max_batch_low: int = 0
    ageing_seconds: float = 0.0
    redundancy: Redundancy = "hedged"


@dataclass(frozen=True, slots=True)
class Topology:
    """A checked topology. Two nodes work together when their `digest()` is the same.

    Attributes:
        name: for reports.
        bundle: name or path of the model bundle.
        nodes: by rank: `nodes[rank].rank == rank`.
        links: by their ranks.
        sources: at least one, by rank.
        policy: what all nodes decide by.
        security: who may connect.
        shared_memory: large frames between nodes of one host and one user may go through memory that both have mapped.
        students: how many stages each student of the bundle has, by part; () where its stages are one chain.
        path: the file it was read from, None where there was none.
    """

    name: str
    bundle: str
    nodes: tuple[NodeSpec, ...]
    links: tuple[LinkSpec, ...] = ()
    sources: tuple[SourceSpec, ...] = (SourceSpec(0),)
    policy: PolicySpec = PolicySpec()
    security: SecuritySpec = field(default_factory=SecuritySpec)
    shared_memory: bool = True
    students: tuple[int, ...] = ()
    path: Path | None = field(default=None, compare=False)
    #: {rank: {neighbour: link}}, neighbours rising.
    _adjacent: Mapping[int, Mapping[int, LinkSpec]] = field(init=False, repr=False, compare=False, hash=False)
    #: {rank: its hops}, found when first asked for: every node of a large mesh asks for the same few.
    _hops: dict[int, dict[int, int]] = field(init=False, repr=False, compare=False, hash=False)
    #: Where each student begins and ends; of a chain, stage 0 and the highest stage that somebody hosts.
    firsts: tuple[int, ...] = field(init=False, repr=False, compare=False)
    ends: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sizes = self.students or (1 + max((stage for node in self.nodes for stage in node.stages), default=0),)
        object.__setattr__(self, "ends", tuple(count - 1 for count in accumulate(sizes)))
        object.__setattr__(self, "firsts", tuple(end + 1 - size for end, size in zip(self.ends, sizes, strict=True)))
        adjacent: dict[int, dict[int, LinkSpec]] = {node.rank: {} for node in self.nodes}
        for link in self.links:
            low, high = link.between
            adjacent[low][high] = adjacent[high][low] = link
        object.__setattr__(self, "_adjacent", {rank: dict(sorted(links.items())) for rank, links in adjacent.items()})
        object.__setattr__(self, "_hops", {})

    def __repr__(self) -> str:
        return f"<Topology {self.name} | {len(self.nodes)} nodes, {len(self.links)} links | {self.bundle} | {self.digest()[:12]}>"

    # ---- who and where -------------------------------------------------------------------------

    def node(self, rank: int) -> NodeSpec:
        """The node of that rank.

        Raises:
            TopologyError: there is none.
        """
        if not 0 <= rank < len(self.nodes):
            raise TopologyError(f"{self.name}: found rank {rank}, expected one of 0 to {len(self.nodes) - 1}")
        return self.nodes[rank]

    @property
    def source(self) -> SourceSpec:
        """The source of the lowest rank."""
        return self.sources[0]

    @property
    def limits(self) -> dict[tuple[int, int], tuple[float, str]]:
        """{ranks of a link, lower first: (its bits per second, its medium)}."""
        return {link.between: (link.bandwidth_bps, link.medium) for link in self.links}

    @property
    def classes(self) -> tuple[int, ...]:
        """Those that are told apart, rising: of all sources where the policy orders by them, else one."""
        if self.policy.order == "fifo":
            return (0,)
        return tuple(sorted({source.priority for source in self.sources}))

    @property
    def min_share(self) -> float:
        """Of each node's time, for each class below the highest: what the policy says, less where that would be most of it."""
        return min(self.policy.min_share, MOST_SHARES / max(1, len(self.classes) - 1))

    def source_named(self, name: str | int, *, said: str = "source") -> SourceSpec:
        """The source of that name, or at that rank.

        Args:
            name: as people give it.
            said: what named it, for the error.

        Raises:
            TopologyError: there is none; the message lists those that there are.
        """
        for source in self.sources:
            if name == source.name or (not isinstance(name, bool) and name in (source.rank, str(source.rank))):
                return source
        found = f"rank {name}" if isinstance(name, int) else repr(name)
        known = ", ".join(f"{source.name} (rank {source.rank})" for source in self.sources)
        raise TopologyError(f"{self.path or self.name}: {said}: found {found}, expected one of {known}")

    def source_at(self, rank: int) -> SourceSpec | None:
        """The source at that rank, None where no samples enter."""
        return next((source for source in self.sources if source.rank == rank), None)

    def key_of(self, rank: int) -> str:
        """The public key (Z85) of that rank; "" without keys, or where there is no such rank."""
        return self.security.keys[rank] if 0 <= rank < len(self.security.keys) else ""

    def hosts(self, stage: int) -> tuple[int, ...]:
        """Ranks that host a stage, rising."""
        return tuple(node.rank for node in self.nodes if stage in node.stages)

    def link(self, a: int, b: int) -> LinkSpec | None:
        """The link between two ranks, None where there is none."""
        return self._adjacent[a].get(b)

    def neighbours(self, rank: int) -> tuple[int, ...]:
        """Ranks that share a link with this one, rising."""
        return tuple(self._adjacent[rank])

    # ---- who sends what to whom ----------------------------------------------------------------

    def lanes(self, sender: int, receiver: int) -> tuple[int, ...]:
        """Stages a task may wait for when `sender` forwards it to `receiver`, rising; () where there is no link.

        Those the receiver hosts whose predecessor the sender hosts (policy rule L3); stage 0 from a source that does not host
        it; and stage 0 away from some source, where raw inputs may go out (rule S3). Of students: each one's first stage from a
        source, and no other from one student to the next.
        """
        if receiver not in self._adjacent[sender]:
            return ()
        before = self.nodes[sender].stages
        if self.students:
            source = self.source_at(sender) is not None
            return tuple(
                stage for stage in self.nodes[receiver].stages if (source if stage in self.firsts else stage - 1 in before)
            )
        raw = (0 not in before and self.source_at(sender) is not None) or bool(self.farther(sender, receiver))
        return tuple(stage for stage in self.nodes[receiver].stages if stage - 1 in before or (stage == 0 and raw))

    def farther(self, sender: int, receiver: int) -> tuple[int, ...]:
        """Sources of which a raw input may go from `sender` on to `receiver`, which is farther from them."""
        hosts = self.nodes[sender].stages
        ways = [(source.rank, self.hops(source.rank)) for source in self.sources if self.may_send_input(source.rank)]
        return tuple(source for source, hops in ways if hops[receiver] > hops[sender] and (sender == source or 0 in hosts))

    def may_send_input(self, source: int) -> bool:
        """Whether raw inputs of that source may go out (`offload_input`); while `auto` is open, they may."""
        policy = self.policy
        if policy.offload_input == "auto" and policy.inputs_of is not None:
            return source in policy.inputs_of
        return policy.offload_input != "no"

    def downstream(self, rank: int) -> tuple[int, ...]:
        """Neighbours this node may forward tasks to, rising."""
        return tuple(peer for peer in self._adjacent[rank] if self.lanes(rank, peer))

    def upstream(self, rank: int) -> tuple[int, ...]:
        """Neighbours that may forward tasks to this node, rising."""
        return tuple(peer for peer in self._adjacent[rank] if self.lanes(peer, rank))

    def hops(self, start: int) -> Mapping[int, int]:
        """{rank: links on the shortest way from `start`}, for every rank that can be reached."""
        known = self._hops.get(start)
        if known is not None:
            return known
        hops = {start: 0}
        ring = [start]
        while ring:
            farther = [near for rank in ring for near in self._adjacent[rank] if near not in hops]
            hops.update(dict.fromkeys(farther, hops[ring[0]] + 1))
            ring = list(dict.fromkeys(farther))
        self._hops[start] = hops
        return hops

    def nearer(self, rank: int, target: int) -> tuple[int, ...]:
        """Neighbours nearer to `target`, rising: the ways on which answers go there."""
        hops = self.hops(target)
        return tuple(peer for peer in self._adjacent[rank] if hops[peer] < hops[rank])

    def beside(self, rank: int, target: int) -> tuple[int, ...]:
        """Neighbours as far from `target` as `rank` is, rising."""
        hops = self.hops(target)
        return tuple(peer for peer in self._adjacent[rank] if hops[peer] == hops[rank])

    # ---- as plain values -----------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Everything, in the form of a topology file (numbers in base units) plus `path`; JSON can carry it to a child process."""
        nodes = [
            {
                "rank": node.rank,
                "stages": list(node.stages),
                "address": node.address,
                "bind": node.bind,
                "executor": node.executor,
                "device": node.device,
                "max_batch": node.max_batch,
                "slots": node.slots,
            }
            for node in self.nodes
        ]
        links = [
            {
                "between": list(link.between),
                "bandwidth": None if link.bandwidth_bps == math.inf else link.bandwidth_bps,
                "latency": link.latency_seconds,
                "jitter": link.jitter_seconds,
                "codec": link.codec,
                "medium": link.medium,
                "window": link.window,
            }
            for link in self.links
        ]
        sources = [
            {
                "rank": source.rank,
                "admission": {
                    "name": source.admission.name,
                    "when_full": source.admission.when_full,
                    "waiting": source.admission.waiting,
                    **source.admission.options,
                },
                "deadline": source.deadline_seconds,
                "priority": source.priority,
                "weight": source.weight,
                "accuracy": source.accuracy or None,
                **({} if source.name == default_name(source.rank) else {"name": source.name}),
                **({} if source.arrivals == LIVE else {"arrivals": source.arrivals}),
                **({} if source.rate_hz is None else {"rate": source.rate_hz}),
            }
            for source in self.sources
        ]
        policy = {
            "offload": self.policy.offload,
            "exit": self.policy.exit_point,
            "report_interval": self.policy.report_interval_seconds,
            "output_threshold": self.policy.output_threshold,
            "offload_input": self.policy.offload_input,
            **self._service_order(),
            **({"redundancy": self.policy.redundancy} if self.students else {}),
        }
        return {
            "name": self.name,
            "bundle": self.bundle,
            "nodes": nodes,
            "links": links,
            "sources": sources,
            "policy": policy,
            "security": self.security.to_plain(),
            "path": str(self.path) if self.path else None,
            **({} if self.shared_memory else {"shared_memory": False}),
            **({"students": list(self.students)} if self.students else {}),
        }

    def _service_order(self) -> dict[str, Any]:
        """What differs from first come, first served."""
        policy = self.policy
        if policy.order == "fifo":
            return {"order": "fifo"} if policy.offload in RANKED else {}
        ageing = {"ageing": policy.ageing_seconds} if policy.ageing_seconds else {}
        return {"order": policy.order, "min_share": policy.min_share, "max_batch_low": policy.max_batch_low, **ageing}

    def canonical(self) -> dict[str, Any]:
        """What must be the same at every node: all but paths, where nodes listen and when samples come; of security the keys."""
        plain = self.to_dict()
        del plain["path"]
        del plain["security"]
        plain.pop("shared_memory", None)  # each node's own business: one that will not share is sent everything
        if self.security.keys:
            plain["keys"] = list(self.security.keys)
        for node in plain["nodes"]:
            del node["address"], node["bind"]
        for source in plain["sources"]:
            source.pop("arrivals", None)  # whoever submits there may do so as it likes
            source.pop("rate", None)
        plain["links"].sort(key=lambda link: link["between"])
        return plain

    def digest(self) -> str:
        """sha256 (hex) of the canonical form as JSON."""
        return hashlib.sha256(json.dumps(self.canonical(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    # ---- the same, a little different ----------------------------------------------------------

    def with_addresses(self, addresses: Mapping[int, str]) -> Topology:
        """The same topology with the addresses found at start, {rank: "host:port"}; the digest stays."""
        return replace(self, nodes=tuple(replace(node, address=addresses.get(node.rank, node.address)) for node in self.nodes))

    def without_keys(self) -> Topology:
        """The same topology, whose nodes bind any address and let everybody in: what `--insecure` says.

        Raises:
            TopologyError: it has keys.
        """
        if self.security.keys:
            raise TopologyError(
                f"{self.path or self.name}: security: found keys and --insecure, expected one of the two; leave out --insecure"
            )
        return replace(self, security=SecuritySpec(insecure=True))

    def with_fixed_ports(self, first: int) -> Topology:
        """The same topology where every launched node has a port known beforehand: rank r listens on first + 2 * r.

        For nodes that are started by hand on one machine: each must know the others' ports without a parent telling it.
        """
        return self.with_addresses({node.rank: f"{node.host}:{first + 2 * node.rank}" for node in self.nodes if node.launched})


def has_port(address: str) -> bool:
    """Whether the text ends in a port: `host:5800`, `[::1]:5800`, but not `host`, `::1` or `[::1]`."""
    host, colon, port = address.rpartition(":")
    return bool(colon) and port.isascii() and port.isdigit() and (":" not in host or host.endswith("]"))


def first_difference(a: object, b: object, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key at which two canonical forms differ, with both values (None where a side has none); None if they agree.

    `first_difference(mine.canonical(), theirs)` gives `("nodes[2].max_batch", 8, 1)`.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        steps = [(f"{key}.{name}" if key else str(name), a.get(name), b.get(name)) for name in [*a, *(n for n in b if n not in a)]]
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        pairs = zip_longest(a, b)
        steps = [(f"{key}[{index}]", mine, theirs) for index, (mine, theirs) in enumerate(pairs)]
    else:
        return None if a == b else (key, a, b)
    return next((found for step, mine, theirs in steps if (found := first_difference(mine, theirs, step))), None)
