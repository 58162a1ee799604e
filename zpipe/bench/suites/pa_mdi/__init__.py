"""The suite `pa-mdi`: several sources share the boxes, and one of them is in a hurry.

`settings.py`    testbeds, loads and policies, with the reason for every figure
`profiles.py`    what the networks cost; `bundles.py` as bundles that can be simulated and emulated
`sweep.py`       the simulations: mean inference time of each source over load, under each policy
`live.py`        some of it over real sockets with emulated boxes, beside the simulator
`claims.py`      what was to be shown, computed from the tables
`page.py`        the page; `figures.py`

Source: the shape of PA-MDI's evaluation (arXiv:2412.12371): its three testbeds and networks, its baselines AR-MDI and MS-MDI in
our reading (`zpipe.policy`).
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from zpipe.bench.suites.pa_mdi import settings
from zpipe.bench.suites.pa_mdi.bundles import write_bundle
from zpipe.bench.suites.pa_mdi.claims import claims
from zpipe.bench.suites.pa_mdi.live import live_rows
from zpipe.bench.suites.pa_mdi.settings import FULL, QUICK, Scale, Setting, topology_in
from zpipe.bench.suites.pa_mdi.sweep import Row, swept
from zpipe.bench.suites.work import Progress

__all__ = ["FULL", "QUICK", "measure"]


async def measure(scale: Scale, *, progress: Progress, live: bool = True) -> dict[str, Any]:
    """Everything that the page shows."""
    where = [settings.setting(name) for name in scale.settings]
    with tempfile.TemporaryDirectory(prefix="zpipe-pa-mdi-") as scratch:
        bundles = {each.name: write_bundle(each.profile(), Path(scratch) / each.name).path for each in where}
        found: dict[str, Any] = {
            "settings": [_described(each, bundles[each.name]) for each in where],
            "sweep": await swept(where, scale, bundles, progress=partial(_told, progress, "mean inference time", 0.0, 0.8)),
            "live": await live_rows(scale, Path(scratch), progress=partial(_told, progress, "live", 0.8, 1.0)) if live else [],
        }
    return {"missing": [], "broken": _broken(found), "claims": claims(found), **found}


def _told(progress: Progress, name: str, start: float, end: float, line: str, done: float) -> None:
    progress(name, start + (end - start) * done)


def _described(where: Setting, bundle: Path) -> dict[str, Any]:
    profile = where.profile()
    topology = topology_in(where, settings.FIFO, bundle=str(bundle), sources=len(where.sources))
    return {
        "name": where.name,
        "title": where.title,
        "why": where.why,
        "devices": list(where.devices),
        "links": [list(link.between) for link in topology.links],
        "bandwidth": where.bandwidth,
        "latency": where.latency,
        "sources": list(where.sources),
        "capacity_hz": where.capacity_hz,
        "least_ms": 1e3 * where.least_seconds(topology),
        "published": dict(where.published),
        "network": profile.name,
        "macs": [stage.macs for stage in profile.stages],
        "cut_bytes": [stage.output.bytes for stage in profile.stages[:-1]],
        "input_bytes": profile.input.bytes,
        "cut_why": profile.why,
    }


def _broken(found: dict[str, Any]) -> list[str]:
    """Runs in which samples were lost, answered twice or left hanging, a line each."""
    rows: list[Row] = [*found["sweep"], *found["live"]]
    labels = ("setting", "sources", "kind", "load", "policy")
    return [
        f"{', '.join(str(row[label]) for label in labels)}: {row['broken']} samples lost, answered twice or hanging"
        for row in rows
        if row["broken"]
    ]
