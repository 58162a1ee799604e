"""What the evaluation of RoCoIn varies, with the reason for every figure.

The paper (arXiv:2406.14185) is known to us by its abstract and what others say of it: students on groups of boards that crash or
time out, answers from what arrives. Its devices, failure rates and figures are not at hand, so everything here is our assumption,
and no published figure stands beside ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

from zpipe.bundle import Bundle
from zpipe.configure import reach
from zpipe.devices import load_device
from zpipe.topology import Topology
from zpipe.topology import from_dict as topology_from

#: The students, and the network they were made from: the chain, and what one board does alone.
STUDENTS_BUNDLE, NETWORK_BUNDLE = "digits-rocoin", "digits-mobilenetv2"

#: Every board: a quarter of a Raspberry Pi 3's core, about a Raspberry Pi Zero's. A live run can keep the pace of boards
#: as slow as that.
DEVICE = "raspberry-pi-3/4"
#: Of each link: a quiet wireless LAN, which all share with nobody.
BANDWIDTH, LATENCY = "20 Mbit/s", "3 ms"
#: Between pieces of the chain; students get raw inputs, which are bytes already.
CODEC = "int8"
#: Arrivals, as a share of what one board computes alone: boards wait most of the time, so that what a failure costs is the
#: failure's own and no queue's. The same for every system.
LOAD = 0.3
#: A robot that has waited so long has stopped for it. Long beside every repair, so that it cuts none short.
DEADLINE_SECONDS = 5.0
#: Nobody is turned away: a sample that nobody can answer expires, and counts as wrong.
WAITING = 10_000
#: Samples that the source may have under way: more than arrive in a deadline.
SLOTS = 256
#: On CPUs batches buy nothing (zpipe/devices.yaml).
MAX_BATCH = 1

#: What a board holds: a student, a piece of the network, or all of it.
STUDENT, PIECE, WHOLE = "student", "piece", "whole"
FAILOVER, HEDGED, ALL = "failover", "hedged", "all"
REDUNDANCIES = (FAILOVER, HEDGED, ALL)


@dataclass(frozen=True, slots=True)
class System:
    """One way to use the boards.

    Attributes:
        name: short, in tables.
        title: for people.
        holds: what each board holds.
        replicated: all boards are used, every student or piece on as many; else one board for each, the others are idle.
        redundancy: of students.
    """

    name: str
    title: str
    holds: str
    replicated: bool
    redundancy: str = ""


SYSTEMS = (
    System("rocoin-failover", "students with replicas; another one where one failed", STUDENT, True, FAILOVER),
    System("rocoin-hedged", "students with replicas; another one where one failed or takes long", STUDENT, True, HEDGED),
    System("rocoin-all", "students with replicas; all of them get every sample", STUDENT, True, ALL),
    System("rocoin-single", "students, one board each", STUDENT, False, FAILOVER),
    System("chain-replicas", "the network in pieces, every piece on as many boards as a student", PIECE, True),
    System("chain", "the network in pieces, one board each", PIECE, False),
    System("one-board", "the network on one board", WHOLE, False),
    System("copies", "the network on every board, where each can hold all of it", WHOLE, True),
)
ROCOIN = tuple(f"rocoin-{name}" for name in REDUNDANCIES)
CHAINS = ("chain-replicas", "chain")

#: How nodes fail: they are dead from the start, or die at a random time of the run.
DEAD, DYING = "dead", "dying"


@dataclass(frozen=True, slots=True)
class Stalling:
    """How a board stalls.

    Attributes:
        name: short, in tables.
        seconds: it stands still for; infinite: for good.
        every_seconds: from the begin of one to the next, on average (it works for an exponential time between them).
        title: for people.
    """

    name: str
    seconds: float
    every_seconds: float
    title: str


#: So many of the boards stall.
STALLING_SHARE = 0.2
#: A pause that is over before a neighbour may call it silence (policy rule R5: three reports of 100 ms); one that is not; silence.
STALLINGS = (
    Stalling("short", 0.25, 2.0, "stand still for 0.25 s, every 2 s on average"),
    Stalling("long", 1.0, 3.0, "stand still for 1 s, every 3 s on average"),
    Stalling("for good", float("inf"), float("inf"), "stand still for good, from some time in the first half of the run on"),
)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it is run.

    Attributes:
        seeds: each figure is a mean over these, with a 95 % interval.
        draws: of failing boards for each seed; their runs are pooled.
        probabilities: that a board fails.
        models: how.
        replicas: boards for each student in the failure sweep; `stalling_replicas`: where some stall.
        samples: of each run of the failure sweep; `stalling_samples`: where some stall.
        sizes: replicas of each student in the sweep of sizes; `size_samples`: of each run.
        live: names of `live.CASES`; (): nothing is run live.
        live_runs: of each, one seed each.
        live_seconds: of each.
    """

    seeds: tuple[int, ...]
    draws: int
    probabilities: tuple[float, ...]
    models: tuple[str, ...]
    replicas: int
    stalling_replicas: int
    samples: int
    stalling_samples: int
    sizes: tuple[int, ...]
    size_samples: int
    live: tuple[str, ...]
    live_runs: int
    live_seconds: float


FULL = Scale(
    seeds=(0, 1, 2, 3, 4),
    draws=5,
    probabilities=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    models=(DEAD, DYING),
    replicas=3,
    stalling_replicas=5,
    samples=200,
    stalling_samples=400,
    sizes=(3, 6, 16, 33),
    size_samples=120,
    live=("sound", "one-of-each", "group", "dying", "stall-failover", "stall-hedged", "chain-replicas"),
    live_runs=2,
    live_seconds=20.0,
)
QUICK = replace(
    FULL,
    seeds=(0, 1, 2),
    draws=2,
    probabilities=(0.0, 0.2, 0.5),
    samples=60,
    stalling_samples=200,
    sizes=(3, 33),
    size_samples=60,
    live=("one-of-each", "stall-hedged"),
    live_runs=1,
    live_seconds=12.0,
)


@dataclass(frozen=True, slots=True)
class Bundles:
    """What the boards compute.

    Attributes:
        students, network: as they were loaded.
    """

    students: Bundle
    network: Bundle

    @property
    def parts(self) -> int:
        """How many students there are, and pieces of the network beside them."""
        return len(self.students.students)

    @property
    def rate_hz(self) -> float:
        """Arrivals of every run."""
        return LOAD * load_device(DEVICE).macs_per_second / self.network.default_point.test.mean_macs


def pieces(network: Bundle, count: int) -> tuple[tuple[int, ...], ...]:
    """The network's stages in so many pieces, the dearest one as cheap as can be; early exits at the default point counted."""
    stages = range(len(network.stages))
    costs = [share * spec.macs for share, spec in zip(reach(network), network.stages, strict=True)]

    def dearest(cuts: Sequence[int]) -> float:
        return max(sum(costs[start:end]) for start, end in pairwise((0, *cuts, len(stages))))

    cuts = min(combinations(stages[1:], count - 1), key=dearest)
    return tuple(tuple(stages[start:end]) for start, end in pairwise((0, *cuts, len(stages))))


def hosted(system: System, bundles: Bundles, *, boards: int) -> list[tuple[int, ...]]:
    """What each board that is used holds, ranks 1 and on; neighbours in rank hold different parts."""
    match system.holds:
        case "student":
            parts = tuple(student.stages for student in bundles.students.students)
        case "piece":
            parts = pieces(bundles.network, bundles.parts)
        case _:
            parts = (tuple(range(len(bundles.network.stages))),)
    used = boards if system.replicated else len(parts)
    return [parts[index % len(parts)] for index in range(used)]


def topology_in(system: System, bundles: Bundles, *, boards: int) -> Topology:
    """A camera (rank 0, no stage, never fails) and the boards that the system uses, each linked to the camera.

    Boards that hold neighbouring pieces of the network are linked, too.
    """
    holds = hosted(system, bundles, boards=boards)
    bundle = bundles.students if system.holds == STUDENT else bundles.network
    nodes: list[dict[str, Any]] = [{"rank": 0, "stages": [], "slots": SLOTS}]
    nodes += [
        {"rank": rank, "stages": list(stages), "device": DEVICE, "max_batch": MAX_BATCH} for rank, stages in enumerate(holds, 1)
    ]
    pairs = [(0, rank) for rank in range(1, len(nodes))]
    if system.holds == PIECE:
        pairs += [(a, b) if a < b else (b, a) for a, first in enumerate(holds, 1) for b in _following(holds, first)]
    link = {"bandwidth": BANDWIDTH, "latency": LATENCY, "codec": "none" if system.holds == STUDENT else CODEC}
    plain: dict[str, Any] = {
        "name": system.name,
        "bundle": str(bundle.path),
        "nodes": nodes,
        "links": [{"between": list(pair), **link} for pair in pairs],
        "source": {"rank": 0, "deadline": DEADLINE_SECONDS, "admission": {"name": "fixed", "waiting": WAITING}},
    }
    if system.holds == STUDENT:
        plain |= {"students": list(bundle.student_stages), "policy": {"redundancy": system.redundancy}}
    return topology_from(plain)


def _following(holds: Sequence[tuple[int, ...]], first: tuple[int, ...]) -> list[int]:
    """Ranks of the boards that hold what comes next."""
    return [rank for rank, stages in enumerate(holds, 1) if stages[0] == first[-1] + 1]


def system_named(name: str) -> System:
    """The system of that name."""
    return next(system for system in SYSTEMS if system.name == name)


def of_boards(system: System, bundles: Bundles, *, boards: int) -> Mapping[str, Any]:
    """What a system has of the boards: how many it uses, in which groups, and the most that one of them must hold."""
    holds = hosted(system, bundles, boards=boards)
    groups = list(dict.fromkeys(holds))
    bundle = bundles.students if system.holds == STUDENT else bundles.network
    sizes = [sum(bundle.stages[stage].macs for stage in stages) for stages in groups]
    return {
        "system": system.name,
        "title": system.title,
        "boards": boards,
        "used": len(holds),
        "groups": [list(stages) for stages in groups],
        "most_bytes": max(file_bytes(bundle, stages) for stages in groups),
        "compute_ms": [1e3 * macs / load_device(DEVICE).macs_per_second for macs in sizes],
    }


def file_bytes(bundle: Bundle, stages: Iterable[int]) -> int:
    """Of the files of these stages; 0 where there are none to look at."""
    return sum(path.stat().st_size for path in map(bundle.stage_path, stages) if path.exists())
