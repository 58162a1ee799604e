"""The two families of curves: accuracy at a given data rate, data rate at a given accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from zpipe.bench.suites import settings
from zpipe.bench.suites.settings import Scale, Setting
from zpipe.bench.suites.work import Case, Progress, run_cases
from zpipe.bundle import Bundle, load_bundle
from zpipe.codecs import row_bytes
from zpipe.configure import prepare
from zpipe.emulation import replay_codec
from zpipe.errors import BundleError
from zpipe.model import NEVER_EXIT, OperatingPoint
from zpipe.plan import Bound, exit_reach, rate_bound
from zpipe.sim import SimOptions
from zpipe.topology import NO_EXIT, Topology


def present(scale: Scale) -> tuple[list[Setting], list[str]]:
    """The settings that can be run here, and what is missing for the others, one line each."""
    found, missing = [], []
    for name in scale.settings:
        where = settings.setting(name)
        try:
            load_bundle(where.bundle, verify=False)
        except BundleError:
            missing.append(f"{where.title}: left out, bundle {where.bundle} is not there (make it with `zpipe train`)")
        else:
            found.append(where)
    return found, missing


# ---- data rate at a given accuracy -----------------------------------------------------------------


async def rate_at_accuracy(where: Sequence[Setting], scale: Scale, *, progress: Progress) -> list[dict[str, Any]]:
    """Per setting, topology, policy and operating point the rate that a closed loop reaches, and the highest there could be."""
    cases = [case for setting in where for name in scale.topologies for case in _capacity_cases(setting, name, scale)]
    return await run_cases(cases, scale.seeds, progress=progress)


def _capacity_cases(where: Setting, name: str, scale: Scale) -> Iterator[Case]:
    bundle = load_bundle(where.bundle, verify=False)
    rounds = -(-scale.samples // bundle.evaluation_samples)
    topology = settings.topology_in(where, name)
    for policy, variant in settings.variants(topology, stage_count=len(bundle.stages)).items():
        points = [None] if policy == "no-exit" else spread_points(bundle, scale.points)
        for point in points:
            best = bound_of(variant, bundle, point)
            options = SimOptions(
                variant,
                count=rounds * bundle.evaluation_samples,
                window=settings.WINDOW,
                admission="fixed",
                exit_point=point.name if point else None,
                device=settings.DEVICE,
            )
            labels = {"setting": where.name, "topology": name, "policy": policy, "point": point.name if point else NO_EXIT}
            yield Case(labels | {"bound_hz": best.rate_hz, "limits": list(best.limits)}, options)


def spread_points(bundle: Bundle, count: int) -> list[OperatingPoint]:
    """So many of the bundle's points that let samples exit, evenly spread over its list, its default point among them."""
    exits = [point for point in bundle.operating_points if point.thresholds[0] < NEVER_EXIT]
    step = (len(exits) - 1) / max(1, count - 1)
    chosen = {round(step * index) for index in range(count)}
    default = exits.index(bundle.default_point)
    if default not in chosen:
        chosen.remove(min(chosen, key=lambda index: abs(index - default)))
    return [exits[index] for index in sorted(chosen | {default})]


def bound_of(topology: Topology, bundle: Bundle, point: OperatingPoint | None) -> Bound:
    """The highest rate by the linear program, with the exits that the replayed answers lead to; None: no exits."""
    prepared, _ = prepare(topology)
    thresholds = point.thresholds if point else (NEVER_EXIT,) * len(bundle.stages)
    confidences = bundle.replay(replay_codec(topology)).confidences
    return rate_bound(prepared, bundle, reach=exit_reach(confidences, thresholds), device=settings.DEVICE)


# ---- accuracy at a given data rate -----------------------------------------------------------------


async def accuracy_at_rate(where: Sequence[Setting], scale: Scale, *, progress: Progress) -> list[dict[str, Any]]:
    """Per setting, topology, policy and data rate: what `mdi-threshold` makes of it, rejected and late samples counted as such."""
    chosen = [setting for setting in where if setting.name in scale.rate_settings]
    cases = [case for setting in chosen for name in scale.topologies for case in _given_rate_cases(setting, name, scale)]
    return await run_cases(cases, scale.seeds, progress=progress)


def _given_rate_cases(where: Setting, name: str, scale: Scale) -> Iterator[Case]:
    bundle = load_bundle(where.bundle, verify=False)
    topology = settings.topology_in(where, name)
    found = settings.variants(topology, stage_count=len(bundle.stages))
    # Where nothing adapts, the point is fixed; elsewhere thresholds may go down to the cheapest one.
    fixed = {"no-exit": None, "mdi-static": bundle.default_point}
    bounds = {policy: bound_of(variant, bundle, fixed.get(policy, bundle.operating_points[0])) for policy, variant in found.items()}
    highest = max(bound.rate_hz for bound in bounds.values())
    for policy, variant in found.items():
        for share in scale.rates:
            options = SimOptions(
                variant,
                duration=scale.seconds,
                rate_hz=round(share * highest, 1),
                # mdi-static is what adapts nothing
                admission=None if policy == "mdi-static" else "mdi-threshold",
                when_full="deadline",
                deadline=settings.DEADLINE_SECONDS,
                device=settings.DEVICE,
            )
            labels = {"setting": where.name, "topology": name, "policy": policy, "offered_hz": options.rate_hz}
            yield Case(labels | {"bound_hz": bounds[policy].rate_hz}, options)


# ---- what is cheaper to send -----------------------------------------------------------------------


def cuts(where: Sequence[Setting]) -> list[dict[str, Any]]:
    """Per bundle and cut: bytes a sample costs there on the average under the suite's codec, beside those of its raw input."""
    rows = []
    for setting in {each.bundle: each for each in where}.values():
        bundle = load_bundle(setting.bundle, verify=False)
        thresholds = bundle.default_point.thresholds
        reached = exit_reach(bundle.replay(settings.CODEC).confidences, thresholds)
        sizes = row_bytes(bundle, settings.CODEC)
        for stage in range(1, len(bundle.stages)):
            mean = sizes[stage] * reached[stage]
            rows.append(
                {
                    "bundle": bundle.name,
                    "cut": stage,
                    "codec": settings.CODEC,
                    "bytes": sizes[stage],
                    "reach": reached[stage],
                    "mean_bytes": mean,
                    "input_bytes": sizes[0],
                    "cheaper": mean < sizes[0],
                }
            )
    return rows
