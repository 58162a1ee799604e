"""Whether a topology can work: that every sample can reach the last stage, and that queues and windows are large enough."""

from __future__ import annotations

from zpipe.topology.reader import At
from zpipe.topology.spec import Topology

#: Default of `t_q2` in zpipe.policy.admission (a test compares).
DEFAULT_T_Q2 = 30


def check(topology: Topology, stage_count: int, students: tuple[int, ...] = ()) -> None:
    """Checks a topology against a bundle of `stage_count` stages.

    Together with what loading checks this is why no sample can get stuck: each host of stage k hosts k+1 or has a link to a
    host of it, and each source hosts stage 0 or has a link to a host of it. Of students this holds within each of them.

    Args:
        topology: as it was loaded.
        stage_count: stages of its bundle.
        students: how many stages each student of the bundle has; () where they are one chain.

    Raises:
        TopologyError: a node hosts a stage that the bundle does not have, no node hosts a stage, a stage's output cannot reach
            the next stage, or the students are not the bundle's.
    """
    at = At(str(topology.path or topology.name))
    last = stage_count - 1
    if topology.students != students:
        found = f"{list(topology.students)}" if topology.students else "none"
        if students:
            expected = f"{list(students)}, the stages of each student of bundle {topology.bundle}"
        else:
            expected = f"none, as one chain is all there is in bundle {topology.bundle}; remove `students:`"
        raise (at / "students").error(found, expected)
    for node in topology.nodes:
        if node.stages and node.stages[-1] > last:
            raise (at / f"nodes[{node.rank}].stages").error(
                f"stage {node.stages[-1]} at rank {node.rank}", f"stages 0 to {last}, as bundle {topology.bundle} has"
            )
    for stage in range(stage_count):
        if not topology.hosts(stage):
            raise (at / "nodes").error(f"no node that hosts stage {stage}", f"each of stages 0 to {last} in some node's stages")
    for source in topology.sources:
        for first in topology.firsts:
            _check_next(topology, at, source.rank, first, f"the source (rank {source.rank})")
    for node in topology.nodes:
        for stage in node.stages:
            if stage not in topology.ends:
                _check_next(topology, at, node.rank, stage + 1, f"rank {node.rank}, which hosts stage {stage}")


def check_links(topology: Topology, at: At) -> None:
    """What must hold whatever the bundle: called on every load; `at` is the file's top."""
    for source in topology.sources:
        reached = topology.hops(source.rank)
        for node in topology.nodes:
            if node.rank not in reached:
                raise (at / "links").error(
                    f"no way from the source (rank {source.rank}) to rank {node.rank}", "links by which every node can be reached"
                )
    for index, link in enumerate(topology.links):
        for sender, receiver in (link.between, link.between[::-1]):
            lanes = topology.lanes(sender, receiver)
            if link.window < len(lanes):
                raise (at / f"links[{index}].window").error(
                    str(link.window),
                    f"at least {len(lanes)}, one for each stage that rank {sender} sends to rank {receiver} ({_listed(lanes)})",
                )
    _check_queues(topology, at)


def _check_queues(topology: Topology, at: At) -> None:
    """A queue that cannot grow past a policy's threshold never lets it act (MDI-Exit: T_Q2 of Alg. 3-4, T_O of Alg. 1).

    Looked at where samples enter: behind it credits keep queues short, and a short O just offers what it holds.
    """
    for source in topology.sources:
        if source.admission.name in ("mdi-rate", "mdi-threshold"):
            t_q2 = int(source.admission.options.get("t_q2", DEFAULT_T_Q2))
            slots = topology.node(source.rank).slots
            if slots <= t_q2:
                raise (at / f"nodes[{source.rank}].slots").error(
                    str(slots), f"more than t_q2 = {t_q2} of the source's admission {source.admission.name}"
                )
    if topology.policy.offload != "mdi":
        return
    for node in (topology.node(source.rank) for source in topology.sources):
        room = node.slots + sum(link.window for peer in topology.upstream(node.rank) if (link := topology.link(node.rank, peer)))
        if room <= topology.policy.output_threshold:
            raise (at / "policy.output_threshold").error(
                str(topology.policy.output_threshold),
                f"less than {room}, all the tasks that rank {node.rank} can hold",
            )


def _check_next(topology: Topology, at: At, rank: int, stage: int, who: str) -> None:
    if stage in topology.node(rank).stages or any(stage in topology.lanes(rank, peer) for peer in topology.neighbours(rank)):
        return
    expected = f"a link from rank {rank} to a host of it (rank {_listed(topology.hosts(stage))})"
    raise (at / "links").error(f"no way to stage {stage} from {who}", expected)


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(str(number) for number in numbers)
