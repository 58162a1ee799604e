"""Results of the suite as they might have come out, made from few numbers."""

from __future__ import annotations

from typing import Any

from zpipe.bench.suites.rocoin.claims import LIVE, SIMULATED, STUDENTS, claims
from zpipe.bench.suites.rocoin.settings import DEAD, DYING, REDUNDANCIES, STALLINGS, SYSTEMS
from zpipe.bench.suites.rocoin.sweep import COMPARED
from zpipe.report import machine

PROBABILITIES = (0.0, 0.5)
#: Right answers of all samples at the highest probability.
RIGHT = {"rocoin-failover": 0.9, "rocoin-hedged": 0.9, "rocoin-all": 0.9, "chain-replicas": 0.6, "copies": 0.92}


def figures(right: float, *, p99_ms: float = 300.0, tasks: float = 3.0) -> dict[str, Any]:
    """What every row of the simulations has; without right answers, without any."""
    answers = right > 0.0
    return {
        "right": [right, 0.01],
        "answered": [1.0 if answers else 0.0, 0.0],
        "right_of_answered": [right, 0.01] if answers else None,
        "latency_ms": [100.0, 5.0] if answers else None,
        "latency_p50_ms": [90.0, 5.0] if answers else None,
        "latency_p99_ms": [p99_ms, 20.0] if answers else None,
        "p99_ms_of_seeds": [0.9 * p99_ms, p99_ms, 1.1 * p99_ms] if answers else [None] * 3,
        "tasks": [tasks, 0.0],
        "busy_ms": [60.0, 1.0],
        "sent_kb": [9.0, 0.1],
        "resubmitted": 2,
        "second_results": 1,
        "broken": 0,
    }


def group(redundancy: str, gone: str, when: str, *, less: float, other: int, answered: int) -> dict[str, Any]:
    return {
        "redundancy": redundancy,
        "gone": gone,
        "when": when,
        "boards": 9,
        "submitted": 100,
        "answered": answered,
        "accuracy": 0.95 - less,
        "drop": [less, 0.004],
        "other_answers": other,
        "latency_ms": 100.0,
        "latency_p99_ms": 200.0,
        "broken": 0,
    }


def live_row(case: str, *, p99_ms: float = 200.0, off: float = 0.02, answered: int = 200) -> dict[str, Any]:
    values = {"right": 0.95, "latency_ms": 100.0, "latency_p99_ms": p99_ms, "tasks": 3.0}
    simulated = values | {"latency_ms": 100.0 * (1.0 + off)}
    return {
        "case": case,
        "title": f"what happens: {case}",
        "system": "rocoin-failover" if case == "stall-failover" else "rocoin-hedged",
        "boards": 9,
        "runs": 2,
        "samples": 200,
        "answered": answered,
        **{name: [value, 0.01] for name, value in values.items()},
        **{f"simulated_{name}": [value, 0.01] for name, value in simulated.items()},
        **{f"difference_{name}": [simulated[name] / value - 1.0, 0.01] for name, value in values.items()},
        "resubmitted": 3,
        "simulated_resubmitted": 2,
        "second_results": 1,
        "broken": 0,
        "cores_busy": 0.2,
        "how": "Each board a process.",
    }


def results(
    *,
    less: float = 0.02,
    without: float = 0.93,
    other: int = 0,
    answered: int = 100,
    parameters: int = 700_000,
    student_bytes: int = 1_200_000,
    hedged_ms: float = 150.0,
    live: float | None = 0.02,
    live_answered: int = 200,
    broken: int = 0,
) -> dict[str, Any]:
    """All settings.

    Args:
        less: accuracy that a whole group costs.
        without: accuracy on the test split of the second part alone; 0.95 with both.
        other: answers that differ with one board of every group gone; `answered`: of 100.
        parameters: of all students; the network has two million.
        student_bytes: of each student's file.
        hedged_ms: its 99th percentile with stalls; failover has 400 ms.
        live: by how much the simulator is off, as a fraction; None: not run.
        live_answered: of 200.
        broken: samples of the first run.
    """
    failures = [
        {"system": system.name, "model": model, "probability": at, "boards": 9}
        | figures(RIGHT.get(system.name, 0.0) if at else 0.95)
        for model in (DEAD, DYING)
        for system in SYSTEMS
        for at in PROBABILITIES
    ]
    failures[0]["broken"] = broken
    stalls = [
        {"system": name, "stalling": kind, "boards": 15}
        | figures(
            0.95,
            p99_ms=120.0 if kind == "none" else hedged_ms if name == "rocoin-hedged" else 400.0,
            tasks={"rocoin-all": 15.0, "rocoin-hedged": 3.3}.get(name, 3.0),
        )
        for kind in ("none", *(each.name for each in STALLINGS))
        for name in COMPARED
    ]
    groups = []
    for redundancy in REDUNDANCIES:
        groups.append(group(redundancy, "none", DEAD, less=0.0, other=0, answered=100))
        for when in (DEAD, DYING):
            groups.append(group(redundancy, "one of every group", when, less=0.0, other=other, answered=answered))
            groups += [
                group(redundancy, f"group {part}", when, less=less / (1 + part), other=5, answered=answered) for part in range(2)
            ]
    students = {
        "bundle": "digits-rocoin",
        "network": "digits-mobilenetv2",
        "rows": [
            {
                "part": part,
                "stages": [part],
                "filters": 640,
                "parameters": parameters // 2,
                "bytes": student_bytes,
                "int8_bytes": student_bytes - 3 * (parameters // 2),
                "macs": 5_000_000,
            }
            for part in range(2)
        ],
        "network_parameters": 2_000_000,
        "network_bytes": 9_000_000,
        "network_macs": 88_000_000,
        "network_accuracy": 0.96,
        "network_default_accuracy": 0.95,
        "accuracy": [0.1, 0.93, without, 0.95],
    }
    systems = {
        "boards": 9,
        "stalling_boards": 15,
        "parts": 3,
        "device": "raspberry-pi-3/4",
        "macs_per_second": 4.7e8,
        "rate_hz": 5.5,
        "samples": 120,
        "draws": 6,
        "stalling_samples": 400,
        "rows": [
            {
                "system": system.name,
                "title": system.title,
                "boards": 9,
                "used": 9 if system.replicated else 3,
                "groups": [[0], [1], [2, 3]],
                "most_bytes": 1_000_000,
                "compute_ms": [10.0, 20.0, 30.0],
            }
            for system in SYSTEMS
        ],
    }
    cases = ("one-of-each", "group", "stall-failover", "stall-hedged")
    found: dict[str, Any] = {
        "settings": [{"name": name, "title": f"the {name}"} for name in (STUDENTS, SIMULATED, LIVE)],
        "systems": systems,
        "students": students,
        "failures": failures,
        "groups": groups,
        "stalls": stalls,
        "sizes": [{"system": name, "boards": boards, "probability": 0.2} | figures(0.9) for boards in (9, 99) for name in COMPARED],
        "live": []
        if live is None
        else [
            live_row(case, off=live, p99_ms=hedged_ms if case == "stall-hedged" else 400.0, answered=live_answered)
            for case in cases
        ],
    }
    return {
        "schema": "zpipe.suite/1",
        "suite": "rocoin",
        "quick": True,
        "commit": None,
        "machine": machine(),
        "seconds": 100,
        "seeds": [0, 1, 2],
        "missing": [],
        "broken": [f"system rocoin-failover: {broken} samples lost, answered twice or hanging"] if broken else [],
        "claims": claims(found),
        **found,
    }
