"""What the evaluation of MDI-Exit varies, with the reason for every figure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from zpipe.topology import Topology, baseline, load_topology, override

#: Board of every node whose topology names none, and of all that are equal.
DEVICE = "raspberry-pi-3"
#: All boards on one radio channel: links share its airtime.
MEDIUM = "air"
#: One way over a quiet wireless LAN: a millisecond or two of waiting for the channel, and the driver.
LATENCY = "3 ms"
#: Activations go as int8, which costs at most 0.2 points here (the bundles' manifests), so no policy is starved by a careless link;
#: inputs are uint8 already.
CODEC = "int8"
#: Samples under way in the closed loop that measures capacity: as many as a source may have (a node's `slots`).
WINDOW = 64
#: What a sample is worth waiting for where arrivals are given: about 100 times one board's service time of the early exit.
DEADLINE_SECONDS = 2.0
#: A policy answers a given data rate when it answers so much of it in time.
CARRIED = 0.99
#: An accuracy target is the whole network's accuracy less this.
ACCURACY_SLACK = 0.005

#: Alg. 1-2 alone; with raw inputs let out, too; with the node choosing whether, where the topology's file says so.
MDI, MDI_INPUTS, MDI_AUTO = "mdi", "mdi+inputs", "mdi+auto"
#: What they are compared with.
BASELINES = ("no-exit", "local", "ddi", "mdi-static")
POLICIES = (MDI, MDI_INPUTS, MDI_AUTO, *BASELINES)

#: A mesh of equal boards, one of them four times slower: not a file, as it is of use here only.
SLOW_NODE = "mesh3-slow"
TOPOLOGIES = ("line2", "line4", "mesh2", "mesh3", "ring3", "mesh5", "mesh3-mixed", SLOW_NODE)


@dataclass(frozen=True, slots=True)
class Setting:
    """Which network over which links.

    Attributes:
        name: short, in tables.
        bundle: name.
        bandwidth_mbit: of the radio channel that all links share.
        why: one sentence.
    """

    name: str
    bundle: str
    pixels: int
    bandwidth_mbit: float
    why: str

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.pixels} px inputs, {self.bandwidth_mbit:g} Mbit/s shared"


_GOOD = (
    "20 Mbit/s: what PA-MDI's testbed had per link (arXiv:2412.12371), here for the whole channel; mostly the boards are the limit"
)
_POOR = "5 Mbit/s: a crowded or distant channel; the links are the limit for whoever sends much"
SETTINGS = (
    Setting("32px-20", "digits-mobilenetv2", 32, 20.0, _GOOD),
    Setting("32px-5", "digits-mobilenetv2", 32, 5.0, _POOR),
    Setting("96px-20", "digits96-mobilenetv2", 96, 20.0, _GOOD),
    Setting("96px-5", "digits96-mobilenetv2", 96, 5.0, _POOR),
)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it is run.

    Attributes:
        seeds: each figure is a mean over these, with a 95 % interval.
        settings, topologies: names.
        points: operating points of the bundle, spread over its list, the default among them.
        samples: at least so many in a closed loop, in whole rounds of the evaluation set: the same samples for every policy.
        rates: arrivals given, as shares of the highest rate that any policy could carry at the cheapest point.
        rate_settings: settings in which arrivals are given.
        seconds: of given arrivals.
        series_seconds: of the runs whose admission is looked at over time.
        live: names of live parts.
    """

    seeds: tuple[int, ...]
    settings: tuple[str, ...]
    topologies: tuple[str, ...]
    points: int
    samples: int
    rates: tuple[float, ...]
    rate_settings: tuple[str, ...]
    seconds: float
    series_seconds: float
    live_samples: int


FULL = Scale(
    seeds=(0, 1, 2, 3, 4),
    settings=tuple(setting.name for setting in SETTINGS),
    topologies=TOPOLOGIES,
    points=5,
    samples=1500,
    rates=(0.15, 0.35, 0.55, 0.75, 0.95),
    rate_settings=("32px-20", "96px-5"),
    seconds=10.0,
    series_seconds=60.0,
    live_samples=3000,
)
QUICK = replace(
    FULL,
    seeds=(0, 1, 2),
    settings=("32px-20", "96px-5"),
    topologies=("line4", "mesh3", "mesh3-mixed", SLOW_NODE),
    points=3,
    samples=600,
    rates=(0.2, 0.5, 0.9),
    seconds=5.0,
    series_seconds=30.0,
    live_samples=600,
)


def setting(name: str) -> Setting:
    """The setting of that name."""
    return next(each for each in SETTINGS if each.name == name)


def topology_in(where: Setting, name: str) -> Topology:
    """A topology as the suite runs it, under its own strategy `mdi`."""
    topology = load_topology("mesh3" if name == SLOW_NODE else name)
    topology = override(
        topology,
        bundle=where.bundle,
        device=DEVICE,
        offload="mdi",
        bandwidth=f"{where.bandwidth_mbit:g} Mbit/s",
        latency=LATENCY,
        codec=CODEC,
    )
    nodes = topology.nodes
    if name == SLOW_NODE:
        nodes = (*nodes[:2], replace(nodes[2], device=f"{nodes[2].device}/4"))
    links = tuple(replace(link, medium=MEDIUM) for link in topology.links)
    return replace(topology, name=name, nodes=nodes, links=links)


def variants(topology: Topology, *, stage_count: int) -> dict[str, Topology]:
    """{policy: the topology under it}, without those that would be the same as another one.

    Raw inputs can only go out where some node hosts stage 0 beside the source; `mdi-static` differs from `local` only where the
    source does not host everything.
    """
    alone, inputs = (replace(topology, policy=replace(topology.policy, offload_input=word)) for word in ("no", "yes"))
    found = {MDI: alone}
    if any(0 in inputs.lanes(a, b) for link in inputs.links for a, b in (link.between, link.between[::-1])):
        found[MDI_INPUTS] = inputs
        if topology.policy.offload_input == "auto":
            found[MDI_AUTO] = topology
    for name in BASELINES:
        if name != "mdi-static" or len(topology.node(topology.source.rank).stages) < stage_count:
            found[name] = baseline(topology, name, stage_count=stage_count)
    return found
