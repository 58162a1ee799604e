"""One simulated run: warm up, offer, report; the steps and the report of `zpipe.bench.run`."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from zpipe.bundle import Bundle, load_bundle
from zpipe.calibrate.drift import drift_rows
from zpipe.configure import compared, fixed_thresholds, node_config, prepare, promises, source_config
from zpipe.errors import ConfigError
from zpipe.load import POISSON, Order, SourceLoad, Span, run_span, samples_of, shares, source_loads
from zpipe.policy.delivery import SourceConfig
from zpipe.policy.messages import Resolve
from zpipe.report import RunLog, build_report, copies_grown, link_rows, merged, node_rows, policy_words, sources_grown
from zpipe.series import AdmissionSeries
from zpipe.service import load_service
from zpipe.sim.faults import NodeFault, check_faults, never_there
from zpipe.sim.hop import HopProfile, load_hop_profile
from zpipe.sim.offer import ClosedLoop, Offering, OpenLoop
from zpipe.sim.packing import Packing
from zpipe.sim.service import Service, device_service, measured_service, replayed
from zpipe.sim.world import World
from zpipe.topology import SourceSpec, Topology, load_topology, override
from zpipe.topology.generate import generate

#: Takes a line for people and the fraction done, 0..1.
Progress = Callable[[str, float], None]

#: Nodes whose topology names no device are this board, unless the caller names another.
DEFAULT_DEVICE = "raspberry-pi-4"
#: What generated topologies run where the caller names no other bundle.
DEFAULT_BUNDLE = "digits-mobilenetv2"
#: Samples under way at each source while warming up (as in `zpipe.bench.offering`).
WARM_UP_WINDOW = 16
#: Progress is told so often, in simulated seconds.
PROGRESS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class SimOptions:
    """What one simulated run does; `None` leaves the topology's value. With several sources, counts and rates are sums over them.

    Attributes:
        topology: file, name, or a topology.
        count, duration: samples or seconds to offer, whichever ends first; the evaluation set once if neither is given.
        window: samples under way in the closed loop of each source.
        rate_hz: None = closed loop; `inf` = as fast as admission lets in; else arrivals per second.
        arrivals: `poisson`, `constant`, or a file of arrival times, which several sources take in turns.
        rates: {name or rank of a source: its arrivals per second}, instead of what the topology says; the others have that.
        exit_point: an operating point or `no-exit`.
        offload: an offload strategy, with the service order that comes with it.
        redundancy: of students, `failover`, `hedged` or `all`, instead of the topology's.
        warm_up: samples before the measured ones.
        accuracy: that every source wants; the bundle's accuracy table has thresholds for it.
        severity: only evaluation samples of these severities.
        device: profile of every node whose topology names none.
        service: a file of measured service times (`zpipe.service`) instead of device profiles, or {rank: file} for some nodes.
        hop: a measured profile of what nodes take beside, or a file of one.
        check: every node asserts its invariants after each round of decisions; several times slower.
        faults: of nodes (`zpipe.sim.faults`), none by default.
    """

    topology: str | Path | Topology
    count: int | None = None
    duration: float | None = None
    window: int = 32
    rate_hz: float | None = None
    arrivals: str = POISSON
    rates: Mapping[str | int, float] = field(default_factory=dict)
    exit_point: str | None = None
    admission: str | None = None
    when_full: str | None = None
    redundancy: str | None = None
    max_batch: int | None = None
    bundle: str | None = None
    deadline: float | None = None
    seed: int = 0
    warm_up: int = 200
    accuracy: float | None = None
    severity: tuple[int, ...] | None = None
    offload: str | None = None
    device: str = DEFAULT_DEVICE
    service: Path | Mapping[int, Path] | None = None
    hop: HopProfile | Path | None = None
    check: bool = False
    faults: tuple[NodeFault, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("window", 1), ("warm_up", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}: found {value!r}, expected at least {least}")
        for name in ("duration", "rate_hz", "deadline"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ConfigError(f"{name}: found {value!r}, expected a number above 0")


def simulate(topology: str | Path | Topology, **options: Any) -> dict[str, Any]:
    """The report of a run of this topology that only took place on a virtual clock; the same for the same seed.

    Args:
        topology: a topology, its file or its name.
        options: as `SimOptions` lists them: `count`, `duration`, `window`, `rate_hz`, `arrivals`, `rates`, `exit_point`,
            `admission`, `when_full`, `redundancy`, `max_batch`, `bundle`, `deadline`, `seed`, `warm_up`, `accuracy`, `severity`,
            `offload`, `device`, `service`, `hop`, `check`, `faults`.

    Raises:
        ConfigError: topology, bundle or an option is wrong.
    """
    return run_sim(SimOptions(topology, **options))[0]


def run_sim(options: SimOptions, *, progress: Progress = lambda line, done: None) -> tuple[dict[str, Any], RunLog]:
    """Runs it.

    Returns:
        The report (design section 7) and the log behind it.

    Raises:
        ConfigError: topology, bundle or an option is wrong.
    """
    progress("starting", 0.0)
    return _Run(options, progress).run()


def compare_sim(options: SimOptions, names: Sequence[str], *, progress: Progress = lambda line, done: None) -> list[dict[str, Any]]:
    """The reports of the options' topology and of what it is compared with, run one after the other under the same load.

    Args:
        options: of all runs.
        names: of baselines or offload strategies.
        progress: told how far it is.

    Raises:
        ConfigError: as `run_sim`, or one of the names is none of a baseline or strategy.
    """
    topology = _overridden(options)
    variants = compared(topology, names, exit_point=options.exit_point, admission=options.admission)
    plain = replace(options, exit_point=None, admission=None, offload=None, redundancy=None)
    return [run_sim(replace(plain, topology=each), progress=partial(_told, progress, each.name))[0] for each in variants]


def _told(progress: Progress, name: str, line: str, done: float) -> None:
    progress(line if line == "starting" else f"{name}: {line}", done)


class _Run:
    """One world, its sources' programs, and the two looks at its counters."""

    def __init__(self, options: SimOptions, progress: Progress) -> None:
        self.options = options
        self.progress = progress
        self.topology, self.bundle = _prepared(options)
        check_faults(options.faults, self.topology)
        self.loads = source_loads(
            self.topology, arrivals=options.arrivals, rate_hz=options.rate_hz, rates=options.rates, seed=options.seed
        )
        self.world = _world(self.topology, self.bundle, options)
        self.world.checked = options.check
        labels, self.severity = (known.tolist() for known in self.bundle.evaluation_labels())
        self.samples = samples_of(self.severity, options.severity)
        self.offerings = {
            spec.rank: Offering(
                self.world, spec, self.bundle, deadline_seconds=options.deadline or spec.deadline_seconds, labels=labels
            )
            for spec in self.topology.sources
        }
        self.world.resolved = self._resolved
        self.ended = 0
        self._offering = 0  #: sources that still offer, or wait for outcomes

    def run(self) -> tuple[dict[str, Any], RunLog]:
        """Warms up, offers, reports."""
        world, options = self.world, self.options
        if options.warm_up:
            self.progress("warming up", 0.0)
            self._warm_up(options.warm_up)
        span = run_span(
            count=options.count,
            duration=options.duration,
            arrivals=options.arrivals,
            evaluation_samples=len(self.samples),
            loads=list(self.loads.values()),
        )
        for offering in self.offerings.values():
            offering.log = RunLog(first=offering.next_sample, source=offering.spec.rank)
        before, started_at, events = world.stats(), world.now, world.events
        world.absences.schedule(options.faults)
        series = AdmissionSeries([world.nodes[rank] for rank in self.offerings])
        self._record(series, started_at)
        self._show_progress(span, started_at)
        self._offer(span)
        seconds = world.now - started_at
        logs = [offering.log for offering in self.offerings.values() if offering.log is not None]
        for log in logs:
            log.ended(now=world.now)
        log = merged(logs)
        report = self._report(log, before, world.stats(), series, seconds, world.events - events)
        return report, log

    # ---- loads ---------------------------------------------------------------------------------

    def _warm_up(self, samples: int) -> None:
        """A closed loop at each source; the measured samples then begin with whole rounds of the evaluation set again."""
        parts = shares(samples, [SourceLoad()] * len(self.offerings))
        for (rank, offering), part in zip(self.offerings.items(), parts, strict=True):
            order = Order(self.samples, seed=self.loads[rank].seed)
            self._start(offering, partial(ClosedLoop, order=order, span=Span(samples=part), window=WARM_UP_WINDOW))
        self._run_loads()

    def _offer(self, span: Span) -> None:
        parts = shares(span.samples, list(self.loads.values()))
        for (rank, offering), part in zip(self.offerings.items(), parts, strict=True):
            load = self.loads[rank]
            order, mine, times = Order(self.samples, seed=load.seed), replace(span, samples=part), load.times()
            if times is not None:
                self._start(offering, partial(OpenLoop, order=order, times=mine.of(times)))
            else:
                self._start(offering, partial(ClosedLoop, order=order, span=mine, window=load.window(self.options.window)))
        self._run_loads()

    def _start(self, offering: Offering, load: Callable[..., OpenLoop | ClosedLoop]) -> None:
        self._offering += 1
        offering.begin(load(offering, done=self._load_done))

    def _run_loads(self) -> None:
        if self._offering:
            self.world.run()

    def _load_done(self) -> None:
        self._offering -= 1
        if not self._offering:
            self.world.stop()

    # ---- while it runs -------------------------------------------------------------------------

    def _resolved(self, rank: int, resolve: Resolve) -> None:
        self.ended += 1
        self.offerings[rank].resolved(resolve)

    def _record(self, series: AdmissionSeries, started_at: float) -> None:
        series.record(self.world.now - started_at)
        self.world.call_at(self.world.now + series.step_seconds, lambda: self._record(series, started_at))

    def _show_progress(self, span: Span, started_at: float) -> None:
        offered = sum(len(offering.log) for offering in self.offerings.values() if offering.log is not None)
        done = max(offered / span.samples, min(1.0, (self.world.now - started_at) / span.seconds))
        self.progress("simulating", done)
        self.world.call_at(self.world.now + PROGRESS_SECONDS, lambda: self._show_progress(span, started_at))

    # ---- after it ------------------------------------------------------------------------------

    def _report(
        self,
        log: RunLog,
        before: list[dict[str, Any]],
        after: list[dict[str, Any]],
        series: AdmissionSeries,
        seconds: float,
        events: int,
    ) -> dict[str, Any]:
        options, topology, bundle = self.options, self.topology, self.bundle
        policy = topology.policy
        admissions = dict.fromkeys(offering.source.config.admission for offering in self.offerings.values())
        nodes = node_rows(before, after, seconds)
        hosting = [node for node in nodes if node["stages"]]
        report = build_report(
            log,
            topology=topology.name,
            bundle=bundle.name,
            policy=policy_words(options.exit_point or policy.exit_point, admissions, policy.redundancy if bundle.students else ""),
            seed=options.seed,
            seconds=seconds,
            stage_macs=[spec.macs for spec in bundle.stages],
            nodes=nodes,
            links=link_rows(before, after, seconds, limits=topology.limits),
            series=series.rows,
            memory=[],
            second_results=sources_grown(before, after, "second_results", self.offerings),
            resubmitted=sources_grown(before, after, "resubmitted", self.offerings),
            copies=copies_grown(before, after, self.offerings) if bundle.students else None,
            shared_machine=False,
            simulated=True,
            generated_inputs=bundle.evaluation_generated,
            severity=self.severity,
            operating_points=bundle.operating_points,
            linked=list(topology.limits),
            sources=topology.sources,
            promises=promises(topology, bundle, exit_point=options.exit_point),
            drift=drift_rows(log, bundle, {rank: fixed_thresholds(each.source.config) for rank, each in self.offerings.items()}),
            parts=() if bundle.join is None else bundle.join.test,
        )
        return report | {
            "events": events,
            "nodes_running_share": sum(1 for node in hosting if node["tasks"]) / len(hosting),
            "service": _service_name(topology, options),
        }


# ---- making the world ----------------------------------------------------------------------------


def generated(shape: str, *, nodes: int, sources: int, bundle: str | None = None, seed: int = 0) -> Topology:
    """A large topology for a bundle (`zpipe.topology.generate` says which shapes there are).

    Raises:
        ConfigError: there is no such shape or bundle, or a number is out of range.
    """
    name = bundle or DEFAULT_BUNDLE
    stages = len(load_bundle(name, verify=False).stages)
    return generate(shape, nodes=nodes, sources=sources, stages=stages, bundle=name, seed=seed)


def _prepared(options: SimOptions) -> tuple[Topology, Bundle]:
    return prepare(_overridden(options))


def _overridden(options: SimOptions) -> Topology:
    topology = options.topology if isinstance(options.topology, Topology) else load_topology(options.topology)
    return override(
        topology,
        max_batch=options.max_batch,
        bundle=options.bundle,
        offload=options.offload,
        accuracy=options.accuracy,
        redundancy=options.redundancy,
    )


def _world(topology: Topology, bundle: Bundle, options: SimOptions) -> World:
    sources = {spec.rank: _source(spec, topology, bundle, options) for spec in topology.sources}
    packing = Packing(topology, bundle)
    hop = options.hop if isinstance(options.hop, HopProfile) else load_hop_profile(options.hop) if options.hop else HopProfile()
    return World(
        topology,
        [node_config(topology, bundle, node.rank, source=sources.get(node.rank)) for node in topology.nodes],
        service=_service(topology, bundle, options),
        answers=[replayed(bundle, codec) for codec in packing.tables],
        pack=packing.pack,
        hop=hop,
        seed=options.seed,
        dead=never_there(options.faults),
    )


def _service(topology: Topology, bundle: Bundle, options: SimOptions) -> Service:
    """Measured times where a board has some, its device's profile elsewhere."""
    files = _service_files(topology, options)
    loaded = {file: load_service(file, bundle) for file in dict.fromkeys(files.values())}
    measured = measured_service({rank: loaded[file] for rank, file in files.items()}, rng=random.Random(f"{options.seed}/service"))
    if len(files) == len(topology.nodes):
        return measured
    assumed = device_service(topology, bundle, device=options.device)
    return lambda rank, stage, rows: (measured if rank in files else assumed)(rank, stage, rows)


def _service_files(topology: Topology, options: SimOptions) -> Mapping[int, Path]:
    """{rank: the file of its measured times}."""
    if options.service is None or isinstance(options.service, Path):
        return {} if options.service is None else dict.fromkeys(range(len(topology.nodes)), options.service)
    for rank in options.service:
        if not 0 <= rank < len(topology.nodes):
            raise ConfigError(f"service: found rank {rank}, expected one of 0 to {len(topology.nodes) - 1} of {topology.name}")
    return options.service


def _source(spec: SourceSpec, topology: Topology, bundle: Bundle, options: SimOptions) -> SourceConfig:
    config = source_config(
        spec,
        bundle,
        exit_point=options.exit_point or topology.policy.exit_point,
        admission=options.admission,
        when_full=options.when_full,
        redundancy=topology.policy.redundancy,
    )
    return replace(config, session=1)


def _service_name(topology: Topology, options: SimOptions) -> str:
    """Where the service times come from, for people."""
    files = _service_files(topology, options)
    names = sorted(
        {files[node.rank].name if node.rank in files else node.device or options.device for node in topology.nodes if node.stages}
    )
    return ", ".join(names)
