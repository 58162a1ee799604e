"""From a topology and its bundle to what each node's policy must know: the live runtime and the simulator start from the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from zpipe.bundle import Bundle, load_bundle
from zpipe.codecs import load_bottleneck, measured_codecs, row_bytes
from zpipe.emulation import bundle_to_run, check_emulation
from zpipe.errors import BundleError, ConfigError, TopologyError
from zpipe.executors.base import EXECUTORS, is_executor_name
from zpipe.model import AUTO_CODEC, FRAME_BYTES, FRAME_ROWS, NO_CODEC, Promise
from zpipe.policy import NodePolicy
from zpipe.policy.admission import ADMISSIONS, MdiThreshold
from zpipe.policy.allocation import chain_of
from zpipe.policy.delivery import WAITING_SAMPLES, SourceConfig
from zpipe.policy.exits import ExitGates, ExitLadder, no_exit
from zpipe.policy.fanout import FanoutConfig
from zpipe.policy.offload import OFFLOADS
from zpipe.policy.state import NeighbourConfig, NodeConfig
from zpipe.topology import BASELINES, DEFAULT_POINT, NO_EXIT, Redundancy, SourceSpec, Topology, baseline, check, override

#: Admission strategies under which a source's thresholds change as it runs.
MOVES_THRESHOLDS = (MdiThreshold.name,)


def prepare(topology: Topology) -> tuple[Topology, Bundle]:
    """The topology, checked against its bundle and with nothing left open: what nodes, sources and the simulator start from.

    Raises:
        BundleError, TopologyError: as `load_checked`.
    """
    bundle = load_checked(topology)
    return with_inputs_decided(topology, bundle), bundle


def with_inputs_decided(topology: Topology, bundle: Bundle) -> Topology:
    """The same topology, `offload_input: auto` decided for each source by the links of its own node; the digest stays."""
    if topology.policy.offload_input != "auto":
        return topology
    cheaper = [spec.rank for spec in topology.sources if input_is_cheaper(bundle, _mean_bytes(topology, bundle, spec.rank))]
    return replace(topology, policy=replace(topology.policy, inputs_of=tuple(cheaper)))


def load_checked(topology: Topology) -> Bundle:
    """The topology's bundle (its emulation where the nodes are emulated), with the topology checked against it.

    Raises:
        BundleError: missing or changed.
        TopologyError: its stages do not fit the bundle's, or it names what there is not, or what cannot be emulated.
    """
    try:
        bundle = load_bundle(topology.bundle, beside=topology.path)
    except BundleError as exc:
        raise BundleError(f"{topology.path or topology.name}: bundle: {exc}") from exc
    check(topology, len(bundle.stages), bundle.student_stages)
    points = dict.fromkeys((DEFAULT_POINT, NO_EXIT, *[point.name for point in bundle.operating_points]))
    _check_name(topology, "policy.offload", topology.policy.offload, OFFLOADS)
    _check_name(topology, "policy.exit", topology.policy.exit_point, points)
    for node in topology.nodes:
        if not is_executor_name(node.executor):  # whether Python finds one is for the node that runs it to say
            known = (*EXECUTORS, "MODULE:CLASS of your own")
            _check_name(topology, f"nodes[{node.rank}].executor", node.executor, known)
    _check_codecs(topology, bundle)
    check_emulation(topology, bundle)
    return bundle_to_run(topology, bundle)


def _check_name(topology: Topology, key: str, found: str, known: Iterable[str]) -> None:
    """What a topology may name but only this version's registries, or the bundle, can tell."""
    if found not in known:
        raise TopologyError(
            f"{topology.path or topology.name}: {key}: found {found!r}, expected one of {', '.join(known)}; correct the topology"
        )


def _check_codecs(topology: Topology, bundle: Bundle) -> None:
    """That the bundle can do what the links name: has a learned codec, or tells what codecs cost."""
    for index, link in enumerate(topology.links):
        key = f"{topology.path or topology.name}: links[{index}].codec: found {link.codec}"
        if link.codec == "bottleneck":
            try:
                load_bottleneck(bundle)
            except BundleError as exc:
                raise TopologyError(f"{key}, which bundle {bundle.name} cannot do: {exc}") from exc
        if link.codec == AUTO_CODEC and measured_codecs(bundle) == (NO_CODEC,):
            # No recipe measures codecs of students: most of them have one stage and send nothing but raw inputs.
            way = "such as int8+zstd" if bundle.students else "or make the bundle anew with `zpipe train`"
            raise TopologyError(
                f"{key}, expected a bundle whose manifest says what codecs cost ({bundle.name} does not); name one codec, {way}"
            )


def reach(bundle: Bundle) -> tuple[float, ...]:
    """Per stage the share of samples that get there at the default operating point, as measured on the calibration split.

    Every student gets every sample, so of students it begins with 1 in each.
    """
    shares = bundle.default_point.calibration.exit_shares
    return tuple(max(0.0, 1.0 - sum(shares[chain[0] : stage])) for chain in bundle.chains for stage in chain)


def lane_bytes(bundle: Bundle, codec: str = NO_CODEC) -> dict[int, float]:
    """{stage: bytes of one task that waits for it, on a link of that codec}; `auto` begins with `none`."""
    sizes = row_bytes(bundle, NO_CODEC if codec == AUTO_CODEC else codec)
    return {stage: float(size) for stage, size in enumerate(sizes)}


def input_is_cheaper(bundle: Bundle, sizes: Mapping[int, float]) -> bool:
    """Whether raw inputs are fewer bytes per sample than what is left to send after stage 0 (`offload_input: auto`).

    Args:
        bundle: says how many samples are left.
        sizes: {stage: bytes of one task that waits for it, on a link}.
    """
    return len(bundle.stages) == 1 or sizes[0] < sizes[1] * reach(bundle)[1]


def lane_order(bundle: Bundle, sizes: Mapping[int, float]) -> tuple[int, ...]:
    """Stages by the multiply-adds a neighbour takes over per byte sent to it: what a scarce link carries first.

    Args:
        bundle: as for `input_is_cheaper`.
        sizes: as for `input_is_cheaper`.
    """
    reached = reach(bundle)
    macs = [share * spec.macs for share, spec in zip(reached, bundle.stages, strict=True)]
    relief = [
        sum(macs[stage : chain.stop]) / max(reached[stage], 1e-9) / sizes[stage] for chain in bundle.chains for stage in chain
    ]
    return tuple(sorted(range(len(macs)), key=lambda stage: -relief[stage]))


def _mean_bytes(topology: Topology, bundle: Bundle, rank: int) -> dict[int, float]:
    """{stage: bytes of one task that waits for it}, over the links of one node; uncoded where it has none."""
    codecs = [link.codec for peer in topology.neighbours(rank) if (link := topology.link(rank, peer))] or [NO_CODEC]
    sizes = [lane_bytes(bundle, codec) for codec in codecs]
    return {stage: sum(each[stage] for each in sizes) / len(sizes) for stage in sizes[0]}


def node_config(topology: Topology, bundle: Bundle, rank: int, *, source: SourceConfig | None, runs: int = 1) -> NodeConfig:
    """What the topology and the bundle say about one node, in the policy's words; `runs`: batches its executor takes at once."""
    node = topology.node(rank)
    neighbours = []
    for peer in topology.neighbours(rank):
        link = topology.link(rank, peer)
        assert link is not None
        neighbours.append(
            NeighbourConfig(
                rank=peer,
                lanes_out=topology.lanes(rank, peer),
                lanes_in=topology.lanes(peer, rank),
                window_out=link.window,
                window_in=link.window,
                lane_bytes=lane_bytes(bundle, link.codec),
                bandwidth_bps=link.bandwidth_bps,
                latency_seconds=link.latency_seconds,
                stages=topology.node(peer).stages,
                fed_by_us_alone=not any(topology.lanes(other, peer) for other in topology.neighbours(peer) if other != rank),
            )
        )
    return NodeConfig(
        rank=rank,
        stages=node.stages,
        gates=exit_gates(bundle),
        neighbours=tuple(neighbours),
        nearer={spec.rank: topology.nearer(rank, spec.rank) for spec in topology.sources if spec.rank != rank},
        beside={spec.rank: topology.beside(rank, spec.rank) for spec in topology.sources if spec.rank != rank},
        farther=_farther(topology, rank),
        max_batch=node.max_batch,
        runs=runs,
        own_slots=node.slots,
        frame_rows={spec.index: min(FRAME_ROWS, FRAME_BYTES // spec.input.bytes) for spec in bundle.stages},
        offload=topology.policy.offload,
        output_threshold=topology.policy.output_threshold,
        lane_order=lane_order(bundle, _mean_bytes(topology, bundle, rank)),
        order=topology.policy.order,
        classes=topology.classes,
        min_share=topology.min_share,
        max_batch_low=topology.policy.max_batch_low,
        ageing_seconds=topology.policy.ageing_seconds,
        macs=tuple(float(spec.macs) for spec in bundle.stages),
        reach=reach(bundle),
        chains=_chains(topology, rank),
        report_seconds=topology.policy.report_interval_seconds,
        source=source,
    )


def exit_gates(bundle: Bundle) -> ExitGates:
    """What a node needs to know of every stage's gate."""
    return ExitGates(
        temperatures=tuple(spec.exit_head.temperature if spec.exit_head else 1.0 for spec in bundle.stages),
        ends=tuple(stage == chain[-1] for chain in bundle.chains for stage in chain),
        scores=bool(bundle.students),
    )


def seconds_per_task(policy: NodePolicy, peer: int, stage: int) -> float:
    """What one task for `stage` costs the slower of this node, which makes it, and the neighbour that takes it.

    0 while neither is known. Tasks come no oftener on that link than this: `codec: auto` lets a link keep up with it.
    """
    report = policy.neighbour(peer).report
    taking = report.service_seconds.get(stage, 0.0) if report is not None else 0.0
    return max(taking, policy.service_seconds.get(stage - 1, 0.0))


def _farther(topology: Topology, rank: int) -> dict[int, tuple[int, ...]]:
    """{source: neighbours to which its raw inputs may go on from here}."""
    found: dict[int, list[int]] = {}
    for peer in topology.neighbours(rank):
        if 0 in topology.node(peer).stages:
            for source in topology.farther(rank, peer):
                found.setdefault(source, []).append(peer)
    return {source: tuple(peers) for source, peers in found.items()}


def _chains(topology: Topology, rank: int) -> dict[int, tuple[int, int]]:
    """{source: the ranks before and behind this node on its chain}; none where it is not on it, or nothing goes along chains."""
    if not OFFLOADS[topology.policy.offload](topology.policy.output_threshold).chained:
        return {}
    neighbours = {node.rank: topology.neighbours(node.rank) for node in topology.nodes}
    hosts = [node.rank for node in topology.nodes if node.stages]
    found = {}
    for spec in topology.sources:
        way = [-1, *chain_of(spec.rank, neighbours, hosts), -1]
        if rank in way:
            index = way.index(rank)
            found[spec.rank] = way[index - 1], way[index + 1]
    return found


def source_config(
    spec: SourceSpec,
    bundle: Bundle,
    *,
    exit_point: str,
    admission: str | None = None,
    when_full: str | None = None,
    redundancy: Redundancy = "hedged",
) -> SourceConfig:
    """How samples enter at one source.

    Args:
        spec: what the topology says.
        bundle: its operating points are the exit ladder.
        exit_point: `default`, `no-exit`, or an operating point's name.
        admission, when_full: instead of what the topology says; a strategy other than the topology's starts with its defaults.
        redundancy: the topology's, where the bundle has students.

    Raises:
        ConfigError: no operating point of that name, or none reaches the accuracy the source wants.
    """
    name = admission or spec.admission.name
    for option, found, known in (("admission", name, ADMISSIONS), ("when_full", when_full, WAITING_SAMPLES)):
        if found is not None and found not in known:
            raise ConfigError(f"{option}: found {found!r}, expected one of {', '.join(known)}")
    return SourceConfig(
        session=0,  # drawn when the pipeline starts
        ladder=exit_ladder(bundle, exit_point, accuracy=spec.accuracy),
        admission=name,
        options=spec.admission.options if name == spec.admission.name else {},
        when_full=when_full or spec.admission.when_full,  # type: ignore[arg-type]
        waiting=spec.admission.waiting if when_full in (None, spec.admission.when_full) else 0,
        fanout=_fanout(bundle, redundancy),
    )


def _fanout(bundle: Bundle, redundancy: Redundancy) -> FanoutConfig | None:
    if bundle.join is None:
        return None
    return FanoutConfig(
        firsts=tuple(chain[0] for chain in bundle.chains),
        ends=tuple(chain[-1] for chain in bundle.chains),
        bias=bundle.join.bias,
        temperatures=bundle.join.temperatures,
        redundancy=redundancy,
    )


def exit_ladder(bundle: Bundle, exit_point: str, *, accuracy: float = 0.0) -> ExitLadder:
    """The bundle's operating points, cheapest first, starting at the one asked for.

    With a wanted accuracy (0..1) the accuracy table's thresholds for it are put among them and taken instead of `default`.

    Raises:
        BundleError: no operating point of that name, no accuracy table, or none of it reaches that accuracy.
    """
    if exit_point == NO_EXIT:
        return no_exit(len(bundle.stages))
    ladder = {point.thresholds: point.calibration.mean_macs for point in bundle.operating_points}
    if exit_point != DEFAULT_POINT:
        chosen = bundle.point(exit_point).thresholds
    elif accuracy > 0.0:
        promise = bundle.promise(accuracy)
        chosen = promise.thresholds
        ladder.setdefault(chosen, promise.calibration.mean_macs)
    else:
        chosen = bundle.default_point.thresholds
    thresholds = tuple(sorted(ladder, key=lambda vector: ladder[vector]))
    return ExitLadder(thresholds, thresholds.index(chosen))


def promises(topology: Topology, bundle: Bundle, *, exit_point: str | None = None) -> dict[int, tuple[float, Promise]]:
    """{rank: (the accuracy it wants, what the accuracy table promises)} of the sources that want one.

    Args:
        topology: checked against the bundle.
        bundle: has the table.
        exit_point: instead of the topology's; where one is named, no source gets what it wants.

    Raises:
        BundleError: as `exit_ladder`.
    """
    if (exit_point or topology.policy.exit_point) != DEFAULT_POINT:
        return {}
    return {spec.rank: (spec.accuracy, bundle.promise(spec.accuracy)) for spec in topology.sources if spec.accuracy > 0.0}


def fixed_thresholds(config: SourceConfig) -> tuple[float, ...] | None:
    """The thresholds that all samples of a source carry; None where its admission moves them."""
    return None if config.admission in MOVES_THRESHOLDS else config.ladder.thresholds[config.ladder.default]


def compared(
    topology: Topology,
    names: Iterable[str],
    *,
    exit_point: str | None = None,
    admission: str | None = None,
) -> list[Topology]:
    """The topology and what it is compared with by name, in this order; what a command line changes is in all of them.

    A name is that of a baseline, or of an offload strategy, which brings its service order. A run of one of these must change
    neither exit point, admission nor strategy again: that is what they take away.

    Raises:
        BundleError: its bundle is missing or changed.
        TopologyError: no such baseline or strategy, or the topology is wrong.
    """
    policy = replace(topology.policy, exit_point=exit_point or topology.policy.exit_point)
    sources = tuple(
        spec
        if admission in (None, spec.admission.name)
        else replace(spec, admission=replace(spec.admission, name=admission, options={}))
        for spec in topology.sources
    )
    changed = replace(topology, policy=policy, sources=sources)
    stage_count = len(load_checked(changed).stages)
    return [changed, *[_compared_with(changed, name, stage_count) for name in names]]


def _compared_with(topology: Topology, name: str, stage_count: int) -> Topology:
    if name in BASELINES:
        return baseline(topology, name, stage_count=stage_count)
    _check_name(topology, "--compare", name, dict.fromkeys((*BASELINES, *OFFLOADS)))
    return replace(override(topology, offload=name), name=f"{topology.name}/{name}")
