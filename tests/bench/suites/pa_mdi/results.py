"""Results of the suite as they might have come out, made from few numbers."""

from __future__ import annotations

from typing import Any

from zpipe.bench.suites.pa_mdi.claims import claims
from zpipe.bench.suites.pa_mdi.settings import CLOSED, COMPARED, MDI, OPEN, PA_MDI, SETTINGS
from zpipe.report import machine

LOADS = {OPEN: (0.4, 1.2), CLOSED: (2.0, 8.0)}
#: Mean inference time of the time-sensitive source and of the others over the least there is, light and heavy load.
TIMES = {PA_MDI: ((1.1, 1.1), (1.3, 9.0)), MDI: ((1.3, 1.3), (6.0, 6.0)), **dict.fromkeys(COMPARED, ((4.0, 4.0), (8.0, 8.0)))}


def row(
    setting: str, sources: int, kind: str, place: int, policy: str, times: tuple[float, float], least_ms: float
) -> dict[str, Any]:
    means = [times[0], *[times[1]] * (sources - 1)]
    return {
        "setting": setting,
        "sources": sources,
        "kind": kind,
        "load": LOADS[kind][place],
        "policy": policy,
        "ranks": list(range(sources)),
        "latency_ms": [[least_ms * each, 0.01 * least_ms] for each in means],
        "latency_p95_ms": [[2.0 * least_ms * each, 0.0] for each in means],
        "answered": [[1.0, 0.0]] * sources,
        "busy": [[0.5, 0.01]] * 6,
        "served": [[0.3, *[0.1] * (sources - 1)]] * 6,
        "rate_hz": [10.0, 0.1],
        "bytes_per_sample": [1e5, 1e3],
        "resubmitted": 0,
        "broken": 0,
    }


def results(times: dict[str, Any] = TIMES, *, live: float | None = 0.02, broken: int = 0) -> dict[str, Any]:
    """All settings.

    Args:
        times: {policy: (time-sensitive, others) over the least, at light and at heavy load}.
        live: by how much the simulator is off, as a fraction; None: not run.
        broken: samples of the first run.
    """
    settings: list[dict[str, Any]] = [
        {
            "name": each.name,
            "title": each.title,
            "why": each.why,
            "devices": list(each.devices),
            "sources": list(each.sources),
            "capacity_hz": each.capacity_hz,
            "least_ms": 100.0,
            "published": dict(each.published),
            "network": each.profile().name,
            "macs": [10, 20],
            "cut_bytes": [4000],
            "input_bytes": 3072,
            "cut_why": "a stage is a stage",
        }
        for each in SETTINGS
    ]
    rows = [
        row(setting["name"], sources, kind, place, policy, times[policy][place], 100.0)
        for setting in settings
        for sources in (2, 3)
        for kind in LOADS
        for place in (0, 1)
        for policy in times
    ]
    rows[0]["broken"] = broken
    for each in rows:
        if each["policy"] == PA_MDI:
            place = LOADS[each["kind"]].index(each["load"])
            each["reduction"] = {name: [1.0 - times[PA_MDI][place][0] / times[name][place][0], 0.01] for name in COMPARED}
    found: dict[str, Any] = {"settings": settings, "sweep": rows, "live": [] if live is None else [live_row(live)]}
    return {
        "schema": "zpipe.suite/1",
        "suite": "pa-mdi",
        "quick": True,
        "commit": None,
        "machine": machine(),
        "seconds": 100,
        "seeds": [0, 1, 2],
        "missing": [],
        "broken": [f"{settings[0]['name']}: {broken} samples lost, answered twice or hanging"] if broken else [],
        "claims": claims(found),
        **found,
    }


def live_row(off: float) -> dict[str, Any]:
    return {
        "setting": "gpt2",
        "sources": 2,
        "kind": OPEN,
        "load": 0.6,
        "policy": PA_MDI,
        "ranks": [0, 1],
        "runs": 2,
        "latency_ms": [[270.0, 1.0], [300.0, 1.0]],
        "simulated_ms": [[270.0 * (1.0 + off), 1.0], [300.0, 1.0]],
        "difference": [[off, 0.01], [0.0, 0.01]],
        "cores_busy": 0.3,
        "broken": 0,
        "how": "2 sources, 2 runs of each row: emulated boxes.",
    }
