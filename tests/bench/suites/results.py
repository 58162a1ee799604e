"""Results of a suite, made by hand: two policies that differ, on one mesh, in one setting."""

from __future__ import annotations

from typing import Any

from zpipe.bench.suites import settings
from zpipe.bench.suites.claims import claims

SETTING = settings.setting("32px-20")
POLICIES = ("mdi", "mdi+inputs", "no-exit", "local", "ddi")
RATES = {"mdi": 126.34, "mdi+inputs": 221.3, "no-exit": 64.15, "local": 73.97, "ddi": 220.97}


def results(**changes: Any) -> dict[str, Any]:
    """What `run_suite` returns."""
    found: dict[str, Any] = {
        "schema": "zpipe.suite/1",
        "suite": "mdi-exit",
        "quick": True,
        "commit": "c0ffee1",
        "machine": {
            "cpu": "A Board",
            "cores": 2,
            "os": "Linux 6",
            "python": "3.11.7",
            "versions": {"numpy": "2.4.6", "uvloop": None},
        },
        "seconds": 90,
        "seeds": [0, 1],
        "settings": [
            {
                "name": SETTING.name,
                "title": SETTING.title,
                "why": SETTING.why,
                "bundle": SETTING.bundle,
                "default_point": "t0.95",
                "default_accuracy": 0.97,
            }
        ],
        "missing": [],
        "broken": [],
        "rate_at_accuracy": [row for policy in POLICIES for row in _capacity(policy)],
        "accuracy_at_rate": [_given(policy, rate) for policy in POLICIES for rate in (50.0, 150.0)],
        "cuts": [
            {
                "bundle": SETTING.bundle,
                "cut": 1,
                "codec": "int8",
                "bytes": 24624,
                "reach": 0.3648,
                "mean_bytes": 8983.4,
                "input_bytes": 3072,
                "cheaper": False,
            }
        ],
        "over_time": [_admission(name) for name in ("mdi-rate", "aimd", "mdi-threshold")],
        "sweep": [{"constant": "T_O", "value": value, "default": value == 50, **_means(value)} for value in (25, 50)],
        "live": {"where": "on loopback, links without limits: no root", "rows": [_live(97.5)]},
    }
    found |= changes
    return found | {"claims": claims(found, [SETTING])}


def _capacity(policy: str) -> list[dict[str, Any]]:
    points = {"no-exit": 0.975} if policy == "no-exit" else {"t0.50": 0.91, "t0.95": 0.971}
    return [
        {
            "setting": SETTING.name,
            "topology": "mesh3",
            "policy": policy,
            "point": point,
            "bound_hz": 1.25 * RATES[policy],
            "limits": ["node 0"],
            "accuracy": [accuracy, 0.0],
            **_figures(RATES[policy], 1.0),
        }
        for point, accuracy in points.items()
    ]


def _figures(rate: float, answered: float) -> dict[str, Any]:
    return {
        "rate_hz": [rate, 0.5],
        "answered": [answered, 0.0],
        "latency_ms": [651.8, 0.4],
        "latency_p95_ms": [1073.2, 6.5],
        "bytes_per_sample": [4321.0, 12.0],
        "macs_share": [0.29, 0.0],
        "raw_inputs": [0.0, 0.0],
        "exits": [0.6, 0.2, 0.1, 0.05, 0.05],
        "broken": 0,
    }


def _given(policy: str, rate: float) -> dict[str, Any]:
    answered = min(1.0, RATES[policy] / rate)
    return {
        "setting": SETTING.name,
        "topology": "mesh3",
        "policy": policy,
        "offered_hz": rate,
        "bound_hz": RATES[policy],
        "accuracy": [0.97, 0.001],
        "right": [0.97 * answered, 0.001],
        **_figures(min(rate, RATES[policy]), answered),
    }


def _means(value: float) -> dict[str, Any]:
    return {
        "rate_hz": [125.0 + value / 100.0, 0.7],
        "accuracy": [0.97, 0.002],
        "latency_ms": [796.9, 8.8],
        "latency_p95_ms": [1022.5, 30.7],
        "admitted_hz": [124.7, 2.3],
        "admitted_std_hz": [27.57, 6.01],
        "queue_p95": [58.7, 1.4],
        "broken": 0,
    }


def _admission(name: str) -> dict[str, Any]:
    series = [{"t": float(t), "admitted_hz": 120.0 + t, "result_hz": 119.0, "queue": 10.0 + t, "point": 6.0} for t in range(1, 5)]
    return {"admission": name, **_means(0.0), "series": series}


def _live(rate: float) -> dict[str, Any]:
    return {
        "topology": "mesh3",
        "policy": "mdi",
        "boards": "emulated raspberry-pi-3",
        "samples": 600,
        "rate_hz": rate,
        "accuracy": 0.971,
        "latency_ms": 500.0,
        "latency_p95_ms": 900.0,
        "bytes_per_sample": 9275.0,
        "broken": 0,
        "simulated_hz": 100.0,
    }
