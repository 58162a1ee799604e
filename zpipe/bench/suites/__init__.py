"""Whole evaluations as one command: `zpipe bench --suite mdi-exit`, and `pa-mdi`, `rocoin`.

What all have:
`work.py`        many simulations on all cores
`statistics.py`  means over seeds with their intervals
`judging.py`     a claim and its cases
`frame.py`       a page's frame; `drawing.py` how figures look; `page.css`
`terminal.py`    the claims in the terminal

mdi-exit, one network over several boards:
`mdi_exit.py`    what is run, in order
`settings.py`    what is varied, with the reason for every figure; `variants`: a topology under each policy
`curves.py`      the paper's two families: accuracy at a given data rate, data rate at a given accuracy, with the bounds
`admission.py`   admission over time, and the sweep of its constants
`live.py`        emulated boards over real links, and real computing
`claims.py`      what was to be shown, computed from the tables
`page.py`        the page: `plots.py` its figures, `tables.py` its tables
Source: the shape of MDI-Exit's evaluation (arXiv:2408.05247): its topologies and our line4, its two families of curves, its
baselines No-EE (`no-exit`), DDI and Local.

pa-mdi, several sources of which one is in a hurry: `pa_mdi/`.

rocoin, students on boards that fail: `rocoin/`.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import time
from pathlib import Path
from typing import Any

from zpipe.bench.suites import mdi_exit, pa_mdi, rocoin
from zpipe.bench.suites.work import Progress
from zpipe.errors import BackendUnavailable, ConfigError
from zpipe.report import machine

__all__ = ["SCHEMA", "SUITES", "check_suite", "render_suite", "run_suite"]

SCHEMA = "zpipe.suite/1"
#: {name: what runs it}: each has `FULL` and `QUICK`, how much is run, and `measure`.
SUITES: dict[str, Any] = {"mdi-exit": mdi_exit, "pa-mdi": pa_mdi, "rocoin": rocoin}
#: {name: the module that renders its page}; imported where one is, as it needs matplotlib.
_PAGES = {"mdi-exit": "page", "pa-mdi": "pa_mdi.page", "rocoin": "rocoin.page"}


async def run_suite(name: str, *, quick: bool, progress: Progress) -> dict[str, Any]:
    """Runs an evaluation; JSON values only.

    Raises:
        ConfigError, BackendUnavailable: as `check_suite`; or no bundle that it needs is there.
    """
    check_suite(name)
    suite = SUITES[name]
    return await run_scale(name, suite.QUICK if quick else suite.FULL, progress=progress, quick=quick)


def render_suite(found: dict[str, Any]) -> str:
    """The page of what `run_suite` returned: HTML that needs nothing else."""
    page: str = importlib.import_module(f"{__name__}.{_PAGES[found['suite']]}").render_page(found)
    return page


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


async def run_scale(name: str, scale: Any, *, progress: Progress, quick: bool, live: bool = True) -> dict[str, Any]:
    """The same at any scale of that suite; without the live parts, only simulations."""
    started = time.monotonic()
    found = await SUITES[name].measure(scale, progress=progress, live=live)
    return {
        "schema": SCHEMA,
        "suite": name,
        "quick": quick,
        "commit": _commit(),
        "machine": machine(),
        "seconds": round(time.monotonic() - started),
        "seeds": list(scale.seeds),
        **_rounded(found),
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
