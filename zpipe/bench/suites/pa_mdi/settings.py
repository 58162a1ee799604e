"""What the evaluation of PA-MDI varies, with the reason for every figure, and what is the paper's and what our assumption.

The paper's (arXiv:2412.12371, from its abstract and published summaries of it; the full text is not at hand): the three testbeds
- five Jetson Xavier boxes that all hear each other by Wi-Fi, about 20 Mbit/s; three Xavier and three Nano boxes, multi-hop; five
radio nodes of the Colosseum testbed, Xeon E5-2650, CPU alone, 10 Gbit/s - their networks, and the largest reductions of the
time-sensitive source's mean inference time.

Ours, as nothing is known to us of it: how fast their boxes are, who is linked to whom in the multi-hop testbed, where the sources
are, their weights and data points, GPT-2's window, and how activations were packed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from zpipe.bench.suites.pa_mdi import profiles
from zpipe.bench.suites.pa_mdi.profiles import Profile
from zpipe.devices import load_device
from zpipe.topology import NO_EXIT, Topology
from zpipe.topology import from_dict as topology_from

#: What the claims are about, what they are made against, and MDI-Exit's own choice for comparison.
PA_MDI, AR_MDI, MS_MDI, FIFO, MDI = "pa-mdi", "ar-mdi", "ms-mdi", "fifo", "mdi"
POLICIES = (PA_MDI, AR_MDI, MS_MDI, FIFO, MDI)
#: Baselines with published reductions; `fifo` has none, but chooses as freely as `pa-mdi`: it tells what priority alone is worth.
BASELINES = (AR_MDI, MS_MDI)
COMPARED = (*BASELINES, FIFO)

#: Boxes. A Jetson Xavier's CPU has six Carmel cores at 1.9 GHz, a Nano's four Cortex-A57 at 1.43 GHz; no benchmark of either CPU
#: with these networks is at hand. Half a Raspberry Pi 5's core and a whole core of a Raspberry Pi 4 are taken for them (2.9 : 1):
#: ResNet-50 takes 0.45 s on the fast one and would take 1.3 s on the slow one.
FAST, SLOW = "raspberry-pi-5/2", "raspberry-pi-4"
#: One AVX-512 core for a Xeon E5-2650 v3's cores under an untuned framework: GPT-2's 64 tokens take 0.13 s.
SERVER = "reference"

#: The time-sensitive source is the first one. Weights only order the classes here.
URGENT_WEIGHT, OTHER_WEIGHT = 4.0, 1.0
NAMES = ("time-sensitive", "second", "third")
#: On CPUs batches buy nothing (zpipe/devices.yaml), and a task that came just now waits for them.
MAX_BATCH = 1
#: int8 on every cut, for every policy: with float32 a layer cut of ResNet-50 is 0.6 to 1.3 s on 20 Mbit/s, and the baselines,
#: which cut between layers whatever it costs, would be beaten by the links alone.
CODEC = "int8"
#: Data points have all the time they need: a mean over those that were in time would flatter who is late.
DEADLINE_SECONDS = 3600.0
#: Nobody is turned away, however long the queue in overload.
WAITING = 1_000_000
#: So many tasks for each stage that a link carries may be on it: one is the least (policy rule C3).
TASKS_PER_LANE = 2

#: Kinds of load. `open`: data points come by a Poisson process. `closed`: the paper's, each source has a fixed number of data
#: points to work off as fast as it can; so many of them under way at a time.
OPEN, CLOSED = "open", "closed"


@dataclass(frozen=True, slots=True)
class Setting:
    """One testbed with its network.

    Attributes:
        name: short, in tables.
        title: for people.
        profile: makes the network.
        devices: of the nodes, by rank.
        links: shape, or pairs.
        bandwidth, latency: of each link.
        sources: ranks, the time-sensitive one first.
        published: {baseline: largest reduction of the time-sensitive source's mean inference time, as a fraction}.
        samples: of each source in a quick run; a full one has `Scale.lengthened` times as many.
        why: what is not the paper's, and why it is so.
    """

    name: str
    title: str
    profile: Callable[[], Profile]
    devices: tuple[str, ...]
    links: str | tuple[tuple[int, int], ...]
    bandwidth: str
    latency: str
    sources: tuple[int, ...]
    published: Mapping[str, float] = field(hash=False)
    samples: int
    why: str

    @property
    def capacity_hz(self) -> float:
        """Data points a second that the boxes could compute all together if links cost nothing: no policy can have more."""
        return sum(load_device(name).macs_per_second for name in self.devices) / self.profile().macs

    def least_seconds(self, topology: Topology) -> float:
        """The least that a data point of the time-sensitive source takes: computed in one piece at the best box, all idle.

        A stage waits for the one before, so no second box makes a single data point faster; what a box gains must be more than its
        input takes to get there. The answer's few bytes are left out.
        """
        profile, hops = self.profile(), topology.hops(self.sources[0])
        link = topology.links[0]
        hop = 8.0 * profile.input.bytes / link.bandwidth_bps + link.latency_seconds
        return min(
            profile.macs / load_device(name).macs_per_second + hops[rank] * (hop + link.latency_seconds)
            for rank, name in enumerate(self.devices)
        )


#: Two rows of three boxes, the fast above the slow, each linked to its neighbours: up to three hops.
_LADDER = ((0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5))

SETTINGS = (
    Setting(
        "resnet50",
        "five equal boxes, full mesh, 20 Mbit/s, ResNet-50",
        profiles.resnet50,
        (FAST,) * 5,
        "mesh",
        "20 Mbit/s",
        "3 ms",
        (0, 1, 2),
        {AR_MDI: 0.753, MS_MDI: 0.732},
        80,
        "each link has its 20 Mbit/s for itself, 3 ms one way as on a quiet wireless LAN",
    ),
    Setting(
        "resnet56",
        "three fast and three slow boxes, multi-hop, ResNet-56",
        profiles.resnet56,
        (FAST,) * 3 + (SLOW,) * 3,
        _LADDER,
        "20 Mbit/s",
        "3 ms",
        (3, 5, 4),
        {AR_MDI: 0.714, MS_MDI: 0.610},
        200,
        "a ladder, fast boxes (ranks 0 to 2) above slow ones (3 to 5); sources are at slow boxes, as cameras are; links as above",
    ),
    Setting(
        "gpt2",
        "five boxes, 10 Gbit/s, GPT-2",
        profiles.gpt2,
        (SERVER,) * 5,
        "mesh",
        "10 Gbit/s",
        "0.1 ms",
        (0, 1, 2),
        {AR_MDI: 0.564, MS_MDI: 0.348},
        120,
        f"all linked with all, 0.1 ms one way as in a rack; a data point is {profiles.TOKENS} tokens and one answer",
    ),
)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it is run.

    Attributes:
        seeds: each figure is a mean over these, with a 95 % interval.
        settings: names.
        sources: how many there are.
        policies: names.
        loads: of Poisson arrivals, as shares of `Setting.capacity_hz`, all sources together.
        windows: data points of each source under way in the closed loop.
        lengthened: `Setting.samples` times this.
        live_policies: run live, too.
        live_loads: how many of `live.LOADS`.
        live_runs: of each, one seed each; 0: nothing is run live.
        live_seconds: of each.
    """

    seeds: tuple[int, ...]
    settings: tuple[str, ...]
    sources: tuple[int, ...]
    policies: tuple[str, ...]
    loads: tuple[float, ...]
    windows: tuple[int, ...]
    lengthened: float
    live_policies: tuple[str, ...]
    live_loads: int
    live_runs: int
    live_seconds: float


FULL = Scale(
    seeds=(0, 1, 2, 3, 4),
    settings=tuple(setting.name for setting in SETTINGS),
    sources=(2, 3),
    policies=POLICIES,
    loads=(0.2, 0.3, 0.4, 0.6, 0.8, 0.9, 1.0, 1.2),
    windows=(1, 2, 4, 8, 16, 32),
    lengthened=2.0,
    live_policies=(PA_MDI, MS_MDI),
    live_loads=2,
    live_runs=4,
    live_seconds=20.0,
)
QUICK = replace(
    FULL,
    seeds=(0, 1, 2),
    loads=(0.3, 0.9, 1.2),
    windows=(2, 16),
    lengthened=1.0,
    live_policies=(PA_MDI,),
    live_loads=1,
    live_runs=2,
    live_seconds=12.0,
)


def setting(name: str) -> Setting:
    """The setting of that name."""
    return next(each for each in SETTINGS if each.name == name)


def topology_in(where: Setting, policy: str, *, bundle: str, sources: int) -> Topology:
    """The setting under a policy; every node can host every stage, and raw inputs may go out.

    Args:
        where: the setting.
        policy: an offload strategy.
        bundle: path of the setting's profile as a bundle.
        sources: how many of the setting's sources there are.
    """
    stages = list(range(len(where.profile().stages)))
    nodes = [
        {"rank": rank, "stages": stages, "device": device, "max_batch": MAX_BATCH} for rank, device in enumerate(where.devices)
    ]
    link: dict[str, Any] = {
        "bandwidth": where.bandwidth,
        "latency": where.latency,
        "codec": CODEC,
        "window": TASKS_PER_LANE * len(stages),
    }
    links = (
        {"shape": where.links, **link}
        if isinstance(where.links, str)
        else [{"between": list(pair), **link} for pair in where.links]
    )
    entering = [
        {
            "rank": rank,
            "name": NAMES[index],
            "weight": OTHER_WEIGHT if index else URGENT_WEIGHT,
            "deadline": DEADLINE_SECONDS,
            "admission": {"name": "fixed", "waiting": WAITING},
        }
        for index, rank in enumerate(where.sources[:sources])
    ]
    return topology_from(
        {
            "name": f"{where.name}/{policy}",
            "bundle": bundle,
            "nodes": nodes,
            "links": links,
            "sources": entering,
            "policy": {"offload": policy, "exit": NO_EXIT, "offload_input": True},
        }
    )
