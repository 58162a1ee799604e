"""The highest rate a topology could sustain, whatever decides: a linear program over flows of tasks.

Variables, all in tasks per second: samples admitted at each source, stage k run at node n, stage-k tasks over each link direction.
Constraints:

1. Conservation: what runs stage k at n has come in over links or was left over after stage k-1 there; a share of it,
   P(reach k+1) / P(reach k), waits for the next stage. A received task runs where it is, then it may leave (policy rule A1).
2. A node computes at most one second in each second.
3. A link direction, or all links of a medium together, carries at most its bandwidth.
4. Stage 0 runs where a source's own inputs are, or where they may go: only away from their source (policy rule S3).
5. What a strategy never does is not allowed: `local` keeps what it can run, `ddi` keeps what is past stage 0.

It knows no queues, no waiting, no headers and no control messages, so nothing can exceed it, and little reaches it quite.

Source: ours; the bound that MDI-Exit's rule (arXiv:2408.05247) is measured against.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Bundle
from zpipe.codecs import measured_codecs, row_bytes
from zpipe.devices import load_device, service_seconds
from zpipe.errors import BackendUnavailable, TopologyError
from zpipe.model import AUTO_CODEC, NEVER_EXIT
from zpipe.topology import Topology

#: Below this a dual value is the solver's rounding: the constraint does not bind.
LEAST_DUAL = 1e-9

#: A variable: ("admit", source), ("run", rank, stage), ("run", rank, 0, source) or ("send", sender, receiver, stage, source or -1).
Name = tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class Bound:
    """What the linear program found.

    Attributes:
        rate_hz: samples admitted per second, over all sources.
        run_hz: {(rank, stage): tasks run per second}, without what is 0.
        sent_hz: {(sender, receiver, stage): tasks sent per second}, without what is 0.
        limits: what keeps the rate from being higher: `node 0`, `link 0-1`, `medium air`.
    """

    rate_hz: float
    run_hz: Mapping[tuple[int, int], float]
    sent_hz: Mapping[tuple[int, int, int], float]
    limits: tuple[str, ...]


def exit_reach(confidences: npt.NDArray[Any], thresholds: Sequence[float]) -> tuple[float, ...]:
    """Per stage the share of samples that get there, by the gate's rule.

    Args:
        confidences: `[samples, stages]`, as a bundle's replay has them.
        thresholds: one per stage; the last is ignored.
    """
    bounds = np.array([value if value < NEVER_EXIT else math.inf for value in thresholds], np.float32)
    stays = (np.asarray(confidences, np.float32) < bounds)[:, :-1]
    reached = np.cumprod(stays, axis=1).mean(axis=0) if len(confidences) else np.ones(stays.shape[1])
    return (1.0, *map(float, reached))


def rate_bound(topology: Topology, bundle: Bundle, *, reach: Sequence[float], device: str) -> Bound:
    """The highest sum of the sources' rates at which no node and no link is asked for more than it has.

    Args:
        topology: checked against the bundle, with `offload_input` decided (`zpipe.configure.prepare`).
        bundle: whose multiply-adds and activation sizes count.
        reach: P(a sample gets to stage k) at the operating point, `reach[0] == 1`.
        device: profile of every node that names none.

    Raises:
        BackendUnavailable: scipy is not here.
        ConfigError: a device is not known.
        TopologyError: nothing bounds the rate.
    """
    program = _Program(topology, bundle, reach, device)
    return program.solve()


class _Program:
    """Collects the rows of the program by the names of what they constrain."""

    def __init__(self, topology: Topology, bundle: Bundle, reach: Sequence[float], device: str) -> None:
        self._topology = topology
        self._bundle = bundle
        self._survive = [after / before if before else 0.0 for before, after in pairwise(reach)]
        self._device = device
        self._columns: dict[Name, int] = {}
        self._balance: dict[Name, dict[Name, float]] = defaultdict(dict)  #: sums that are 0
        self._at_most_zero: dict[Name, dict[Name, float]] = defaultdict(dict)
        self._capacity: dict[str, dict[Name, float]] = defaultdict(dict)  #: sums that are at most 1
        self._add_flows()
        self._add_compute()
        self._add_links()

    # ---- 1, 4, 5: where tasks come from and go to ----------------------------------------------

    def _add_flows(self) -> None:
        topology, stages = self._topology, len(self._bundle.stages)
        for spec in topology.sources:
            self._balance["0", spec.rank, spec.rank]["admit", spec.rank] = 1.0
        for node in topology.nodes:
            for stage in node.stages:
                for source in self._sources_of(stage):
                    self._balance[str(stage), node.rank, source][self._run(node.rank, stage, source)] = -1.0
                if stage + 1 < stages:
                    self._add_survivors(node.rank, stage)
            for peer in topology.neighbours(node.rank):
                for stage in topology.lanes(node.rank, peer):
                    self._add_lane(node.rank, peer, stage)

    def _sources_of(self, stage: int) -> Iterable[int]:
        """Raw inputs are told apart by their source (rule S3), later tasks are alike: -1."""
        return [source.rank for source in self._topology.sources] if stage == 0 else (-1,)

    def _run(self, rank: int, stage: int, source: int) -> Name:
        return ("run", rank, stage, source)

    def _add_survivors(self, rank: int, stage: int) -> None:
        for source in self._sources_of(stage):
            self._balance[str(stage + 1), rank, -1][self._run(rank, stage, source)] = self._survive[stage]

    def _add_lane(self, sender: int, receiver: int, stage: int) -> None:
        topology = self._topology
        offload, hosted = topology.policy.offload, stage in topology.node(sender).stages
        if hosted and (offload == "local" or (offload == "ddi" and stage > 0)):
            return
        for source in self._sources_of(stage):
            if stage == 0 and not (source in topology.farther(sender, receiver) or (source == sender and not hosted)):
                continue
            name: Name = ("send", sender, receiver, stage, source)
            self._balance[str(stage), sender, source][name] = -1.0
            self._balance[str(stage), receiver, source][name] = 1.0
            if stage > 0:
                # What came over a link runs first: no more leaves than stage - 1 left over here.
                rows = self._at_most_zero["leaves", sender, stage]
                rows[name] = 1.0
                for earlier in self._sources_of(stage - 1):
                    rows[self._run(sender, stage - 1, earlier)] = -self._survive[stage - 1]

    # ---- 2, 3: what nodes and links have -------------------------------------------------------

    def _add_compute(self) -> None:
        for node in self._topology.nodes:
            device = load_device(node.device or self._device)
            for stage in node.stages:
                spec = self._bundle.stages[stage]
                seconds = min(service_seconds(device, spec, rows) / rows for rows in (1, node.max_batch))
                for source in self._sources_of(stage):
                    self._capacity[f"node {node.rank}"][self._run(node.rank, stage, source)] = seconds

    def _add_links(self) -> None:
        sends = [name for row in list(self._balance.values()) for name in row if name[0] == "send"]
        for name in dict.fromkeys(sends):
            _, sender, receiver, stage, _ = name
            assert isinstance(sender, int)
            assert isinstance(receiver, int)
            assert isinstance(stage, int)
            link = self._topology.link(sender, receiver)
            assert link is not None
            if link.bandwidth_bps < math.inf:
                where = f"medium {link.medium}" if link.medium else f"link {sender}-{receiver}"
                self._capacity[where][name] = 8.0 * self._bytes(link.codec)[stage] / link.bandwidth_bps

    def _bytes(self, codec: str) -> tuple[int, ...]:
        """Of one row per stage; what `auto` may come down to at most."""
        names = measured_codecs(self._bundle) if codec == AUTO_CODEC else (codec,)
        return tuple(min(sizes) for sizes in zip(*[row_bytes(self._bundle, name) for name in names], strict=True))

    # ---- solving -------------------------------------------------------------------------------

    def solve(self) -> Bound:
        """The optimum.

        Raises:
            BackendUnavailable, TopologyError: as `rate_bound`.
        """
        try:
            from scipy.optimize import linprog
        except ImportError as exc:
            raise BackendUnavailable("found no scipy, expected it for rate bounds; run: pip install 'zpipe[suite]'") from exc
        equal, below = self._matrix(self._balance), self._matrix(self._at_most_zero)
        capacity = self._matrix(self._capacity)
        gain = np.zeros(len(self._columns))
        for name, column in self._columns.items():
            gain[column] = name[0] == "admit"
        found = linprog(
            -gain,
            A_ub=np.vstack([_wide(rows, len(gain)) for rows in (capacity, below)]),
            b_ub=np.concatenate([np.ones(len(capacity)), np.zeros(len(below))]),
            A_eq=_wide(equal, len(gain)),
            b_eq=np.zeros(len(equal)),
            method="highs",
        )
        if found.status != 0:
            where = self._topology.path or self._topology.name
            raise TopologyError(f"{where}: rate bound: found none ({found.message}), expected every stage on a node with a device")
        return self._bound(found.x, found.ineqlin.marginals[: len(capacity)])

    def _matrix(self, rows: Mapping[Any, Mapping[Name, float]]) -> list[npt.NDArray[np.float64]]:
        """One array per row; columns are numbered as they are met, so earlier rows are short."""
        found = []
        for row in rows.values():
            for name in row:
                self._columns.setdefault(name, len(self._columns))
            values = np.zeros(len(self._columns))
            for name, value in row.items():
                values[self._columns[name]] = value
            found.append(values)
        return found

    def _bound(self, x: npt.NDArray[np.float64], duals: npt.NDArray[np.float64]) -> Bound:
        run: dict[tuple[int, int], float] = defaultdict(float)
        sent: dict[tuple[int, int, int], float] = defaultdict(float)
        rate = 0.0
        for name, column in self._columns.items():
            value, (kind, *where) = float(x[column]), name
            if kind == "admit":
                rate += value
            elif value > LEAST_DUAL:
                into: Any = run if kind == "run" else sent
                into[tuple(where[:-1])] += value
        limits = tuple(name for name, dual in zip(self._capacity, duals, strict=True) if dual < -LEAST_DUAL)
        return Bound(rate, dict(run), dict(sent), limits)


def _wide(rows: Sequence[npt.NDArray[np.float64]], columns: int) -> npt.NDArray[np.float64]:
    """`[rows, columns]`, short rows filled up with 0."""
    wide = np.zeros((len(rows), columns))
    for number, row in enumerate(rows):
        wide[number, : len(row)] = row
    return wide
