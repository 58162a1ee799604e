"""The suite `rocoin`: students on groups of boards, while boards fail.

`settings.py`    the boards and how each system uses them, with the reason for every figure
`plans.py`       which boards fail, and when
`sweep.py`       the simulations: over the probability of failure, with stalling boards, with up to a hundred of them
`groups.py`      the whole evaluation set with a board of every group gone, and with each whole group gone
`live.py`        some of it over real sockets with emulated boards that are killed and stopped, beside the simulator
`claims.py`      what was to be shown, computed from the tables
`page.py`        the page; `figures.py`

Source: RoCoIn (arXiv:2406.14185), the questions it asks; its boards, rates and figures are not known to us.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from zpipe.bench.suites.rocoin import settings, sweep
from zpipe.bench.suites.rocoin.claims import LIVE, SIMULATED, STUDENTS, claims
from zpipe.bench.suites.rocoin.groups import group_rows
from zpipe.bench.suites.rocoin.live import live_rows
from zpipe.bench.suites.rocoin.settings import FULL, NETWORK_BUNDLE, QUICK, STUDENTS_BUNDLE, Bundles, Scale
from zpipe.bench.suites.work import Progress
from zpipe.bundle import MANIFEST, Bundle, load_bundle
from zpipe.devices import load_device

__all__ = ["FULL", "QUICK", "measure"]


async def measure(scale: Scale, *, progress: Progress, live: bool = True, bundles: Bundles | None = None) -> dict[str, Any]:
    """Everything that the page shows.

    Raises:
        BundleError: a bundle that it needs is not there.
    """
    bundles = bundles or Bundles(load_bundle(STUDENTS_BUNDLE), load_bundle(NETWORK_BUNDLE))
    told = partial(_told, progress)
    found: dict[str, Any] = {
        "settings": _described(bundles),
        "systems": _systems(bundles, scale),
        "students": _students(bundles),
        "failures": await sweep.run_rows(sweep.failure_cases(bundles, scale), progress=told("boards that fail", 0.0, 0.45)),
        "groups": await group_rows(bundles, scale, progress=told("groups", 0.45, 0.55)),
        "stalls": await sweep.run_rows(sweep.stall_cases(bundles, scale), progress=told("boards that stall", 0.55, 0.65)),
        "sizes": await sweep.run_rows(sweep.size_cases(bundles, scale), progress=told("up to 100 devices", 0.65, 0.8)),
        "live": await live_rows(bundles, scale, progress=told("live", 0.8, 1.0)) if live else [],
    }
    return {"missing": [], "broken": _broken(found), "claims": claims(found), **found}


def _told(progress: Progress, name: str, start: float, end: float) -> Progress:
    return lambda line, done: progress(name, start + (end - start) * done)


def _described(bundles: Bundles) -> list[dict[str, Any]]:
    """Where claims are judged."""
    return [
        {"name": STUDENTS, "title": f"the bundle {bundles.students.name} as it is"},
        {"name": SIMULATED, "title": "the simulator"},
        {"name": LIVE, "title": "emulated boards, real processes and sockets"},
    ]


def _systems(bundles: Bundles, scale: Scale) -> dict[str, Any]:
    boards = bundles.parts * scale.replicas
    return {
        "boards": boards,
        "stalling_boards": bundles.parts * scale.stalling_replicas,
        "parts": bundles.parts,
        "device": settings.DEVICE,
        "macs_per_second": load_device(settings.DEVICE).macs_per_second,
        "rate_hz": bundles.rate_hz,
        "samples": scale.samples,
        "draws": scale.draws,
        "stalling_samples": scale.stalling_samples,
        "rows": [dict(settings.of_boards(system, bundles, boards=boards)) for system in settings.SYSTEMS],
    }


def _students(bundles: Bundles) -> dict[str, Any]:
    """What the students are, beside the network they come from."""
    students, network = bundles.students, bundles.network
    join = students.join
    assert join is not None
    return {
        "bundle": students.name,
        "network": network.name,
        "rows": [
            {
                "part": student.part,
                "stages": list(student.stages),
                "filters": len(student.filters),
                "parameters": student.parameters,
                "bytes": student.bytes,
                "int8_bytes": student.bytes - 3 * student.parameters,
                "macs": sum(students.stages[stage].macs for stage in student.stages),
            }
            for student in students.students
        ],
        "network_parameters": parameters(network),
        "network_bytes": settings.file_bytes(network, range(len(network.stages))),
        "network_macs": network.full_macs,
        "network_accuracy": network.operating_points[-1].test.accuracy,
        "network_default_accuracy": network.default_point.test.accuracy,
        "accuracy": list(join.test),
    }


def parameters(bundle: Bundle) -> int:
    """Of all its stages, as its recipe counted them; 0 where the manifest does not say."""
    stages = json.loads((bundle.path / MANIFEST).read_text(encoding="utf-8"))["stages"]
    return sum(int(stage.get("parameters", 0)) for stage in stages)


def _broken(found: dict[str, Any]) -> list[str]:
    """Runs in which samples were lost, answered twice or left hanging, a line each."""
    labels = ("system", "redundancy", "case", "model", "probability", "stalling", "gone", "when", "boards")
    rows = [*found["failures"], *found["groups"], *found["stalls"], *found["sizes"], *found["live"]]
    said = [(row, ", ".join(f"{label} {row[label]}" for label in labels if label in row)) for row in rows if row["broken"]]
    return [f"{case}: {row['broken']} samples lost, answered twice or hanging" for row, case in said]
