"""What MDI-Exit is compared with: the same boards, bundle, thresholds, batches and credits, and one thing taken away.

`no-exit`      the same pipeline; every sample runs the whole network.
`local`        the source's board alone, with the whole network and its exits.
`ddi`          data-distributed inference in its strongest fair form: every board has the whole network, raw inputs go out as uint8
               to whoever has done first, over several hops where it must be; same exits.
`mdi-static`   exits and slices as they are, no choice where a task goes, no adaptation of rate or thresholds.

Source: the baselines of MDI-Exit (arXiv:2408.05247): No-EE, Local, DDI; `mdi-static` is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from zpipe.errors import TopologyError
from zpipe.topology.reader import one_of
from zpipe.topology.spec import NO_EXIT, AdmissionSpec, Topology


def baseline(topology: Topology, name: str, *, stage_count: int) -> Topology:
    """The topology as that baseline would run it, under the name `TOPOLOGY/BASELINE`.

    Args:
        topology: what it is a baseline of.
        name: one of `BASELINES`.
        stage_count: stages of its bundle.

    Raises:
        TopologyError: no such baseline, `local` of several sources, or `ddi` of students.
    """
    if name not in BASELINES:
        where = topology.path or topology.name
        raise TopologyError(f"{where}: baseline: found {name!r}, expected {one_of(tuple(BASELINES), name)}")
    return replace(BASELINES[name](topology, tuple(range(stage_count))), name=f"{topology.name}/{name}")


def _no_exit(topology: Topology, stages: tuple[int, ...]) -> Topology:
    return replace(topology, policy=replace(topology.policy, exit_point=NO_EXIT))


def _local(topology: Topology, stages: tuple[int, ...]) -> Topology:
    if len(topology.sources) > 1:
        raise TopologyError(
            f"{topology.path or topology.name}: baseline: found {len(topology.sources)} sources, expected one for `local`; "
            "compare with ddi or no-exit"
        )
    node = replace(topology.node(topology.source.rank), rank=0, stages=stages)
    source = replace(topology.source, rank=0)
    policy = replace(topology.policy, offload="local", offload_input="no")
    return replace(topology, nodes=(node,), links=(), sources=(source,), policy=policy)


def _ddi(topology: Topology, stages: tuple[int, ...]) -> Topology:
    if topology.students:
        raise TopologyError(
            f"{topology.path or topology.name}: baseline: found students, each of which gets every raw input, expected one chain "
            "for `ddi`; compare with local or no-exit"
        )
    nodes = tuple(replace(node, stages=stages) for node in topology.nodes)
    # One slot is reserved for each lane (policy rule C1), so a window below their number would not load.
    links = tuple(replace(link, window=max(link.window, len(stages))) for link in topology.links)
    return replace(topology, nodes=nodes, links=links, policy=replace(topology.policy, offload="ddi", offload_input="yes"))


def _mdi_static(topology: Topology, stages: tuple[int, ...]) -> Topology:
    sources = tuple(
        replace(source, admission=AdmissionSpec("fixed", {}, source.admission.when_full, source.admission.waiting))
        for source in topology.sources
    )
    return replace(topology, sources=sources, policy=replace(topology.policy, offload="local", offload_input="no"))


BASELINES: Mapping[str, Callable[[Topology, tuple[int, ...]], Topology]] = {
    "no-exit": _no_exit,
    "local": _local,
    "ddi": _ddi,
    "mdi-static": _mdi_static,
}
