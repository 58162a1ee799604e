"""Whole evaluations as one command: `zpipe bench --suite mdi-exit`.

`settings.py`    what is varied, with the reason for every figure; `variants`: a topology under each policy
`curves.py`      the paper's two families: accuracy at a given data rate, data rate at a given accuracy, with the bounds
`admission.py`   admission over time, and the sweep of its constants
`live.py`        emulated boards over real links, and real computing
`claims.py`      what was to be shown, computed from the tables
`page.py`        the page: `plots.py` its figures, `tables.py` its tables, `page.css`
`terminal.py`    the claims in the terminal
`work.py`        many simulations on all cores

Source: the shape of MDI-Exit's evaluation (arXiv:2408.05247): its topologies and our line4, its two families of curves, its
baselines No-EE (`no-exit`), DDI and Local.
"""

from __future__ import annotations

import importlib.util
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

from zpipe.bench.suites import admission, curves, settings
from zpipe.bench.suites.claims import claims
from zpipe.bench.suites.live import live_parts
from zpipe.bench.suites.settings import FULL, QUICK, Scale, Setting
from zpipe.bench.suites.work import Progress
from zpipe.bundle import load_bundle
from zpipe.errors import BackendUnavailable, ConfigError
from zpipe.report import machine

__all__ = ["SCHEMA", "SUITES", "check_suite", "run_suite"]

SCHEMA = "zpipe.suite/1"
#: {name: (full, quick)}
SUITES = {"mdi-exit": (FULL, QUICK)}


async def run_suite(name: str, *, quick: bool, progress: Progress) -> dict[str, Any]:
    """Runs an evaluation; JSON values only.

    Raises:
        ConfigError, BackendUnavailable: as `check_suite`; or no bundle that it needs is there.
    """
    check_suite(name)
    return await run_scale(name, SUITES[name][quick], progress=progress, quick=quick)


def check_suite(name: str) -> None:
    """Before anything runs.

    Raises:
        ConfigError: no suite has that name.
        BackendUnavailable: the extra `suite` is not installed.
    """
    if name not in SUITES:
        raise ConfigError(f"--suite: found {name!r}, expected one of {', '.join(SUITES)}")
    absent = [package for package in ("matplotlib", "scipy") if importlib.util.find_spec(package) is None]
    if absent:
        raise BackendUnavailable(f"--suite: found no {' and no '.join(absent)}, expected both; run: pip install 'zpipe[suite]'")


async def run_scale(name: str, scale: Scale, *, progress: Progress, quick: bool, live: bool = True) -> dict[str, Any]:
    """The same at any scale; without the live parts, only simulations."""
    started = time.monotonic()
    where, missing = curves.present(scale)
    if not where:
        raise ConfigError(f"suite {name}: found none of its bundles, expected one: {'; '.join(missing)}")
    told = partial(_told, progress)
    found: dict[str, Any] = {
        "settings": [_described(setting) for setting in where],
        "rate_at_accuracy": await curves.rate_at_accuracy(where, scale, progress=told("data rate at a given accuracy", 0.0, 0.4)),
        "accuracy_at_rate": await curves.accuracy_at_rate(where, scale, progress=told("accuracy at a given data rate", 0.4, 0.8)),
        "cuts": curves.cuts(where),
    }
    first = where[0]
    load_hz = _default_rate(found, first)
    found["over_time"] = await admission.over_time(first, scale, load_hz=load_hz, progress=told("admission over time", 0.8, 0.84))
    found["sweep"] = await admission.sweep(first, scale, progress=told("constants", 0.84, 0.9))
    found["live"] = await live_parts(scale, progress=told("live", 0.9, 1.0)) if live else {"where": "not run", "rows": []}
    return {
        "schema": SCHEMA,
        "suite": name,
        "quick": quick,
        "commit": _commit(),
        "machine": machine(),
        "seconds": round(time.monotonic() - started),
        "seeds": list(scale.seeds),
        "missing": missing,
        "broken": _broken(found),
        "claims": claims(found, where),
        **_rounded(found),
    }


def _told(progress: Progress, name: str, start: float, end: float) -> Progress:
    """Progress of a part, as a stretch of the whole."""
    return lambda line, done: progress(f"{name}", start + (end - start) * done)


def _broken(found: dict[str, Any]) -> list[str]:
    """Runs in which samples were lost, answered twice or left hanging, a line each."""
    labels = ("setting", "topology", "policy", "point", "offered_hz", "admission", "constant", "value", "boards")
    rows = [*found["rate_at_accuracy"], *found["accuracy_at_rate"], *found["over_time"], *found["sweep"], *found["live"]["rows"]]
    return [
        f"{', '.join(str(row[label]) for label in labels if label in row)}: {row['broken']} samples lost, answered twice or hanging"
        for row in rows
        if row["broken"]
    ]


def _default_rate(found: dict[str, Any], where: Setting) -> float:
    """What the mesh of the series carries at the bundle's default point, under MDI-Exit."""
    name = load_bundle(where.bundle, verify=False).default_point.name
    wanted = (where.name, admission.TOPOLOGY, settings.MDI, name)
    rows = [row for row in found["rate_at_accuracy"] if (row["setting"], row["topology"], row["policy"], row["point"]) == wanted]
    return float(rows[0]["rate_hz"][0])


def _described(setting: Setting) -> dict[str, Any]:
    bundle = load_bundle(setting.bundle, verify=False)
    return {
        "name": setting.name,
        "title": setting.title,
        "why": setting.why,
        "bundle": bundle.name,
        "default_point": bundle.default_point.name,
        "default_accuracy": bundle.default_point.test.accuracy,
    }


def _rounded(value: Any) -> Any:
    """Six significant digits: more would be noise, and bytes."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _commit() -> str | None:
    """Of the checkout that this package is run from; None where it is installed, or git is absent."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
