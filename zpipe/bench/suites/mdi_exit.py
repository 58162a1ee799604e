"""The suite `mdi-exit`: one network with exits over several boards, each topology under each policy."""

from __future__ import annotations

from functools import partial
from typing import Any

from zpipe.bench.suites import admission, curves, settings
from zpipe.bench.suites.claims import claims
from zpipe.bench.suites.live import live_parts
from zpipe.bench.suites.settings import FULL, QUICK, Scale, Setting
from zpipe.bench.suites.work import Progress
from zpipe.bundle import load_bundle
from zpipe.errors import ConfigError

__all__ = ["FULL", "QUICK", "measure"]


async def measure(scale: Scale, *, progress: Progress, live: bool = True) -> dict[str, Any]:
    """Everything that the page shows.

    Raises:
        ConfigError: none of its bundles is there.
    """
    where, missing = curves.present(scale)
    if not where:
        raise ConfigError(f"suite mdi-exit: found none of its bundles, expected one: {'; '.join(missing)}")
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
    return {"missing": missing, "broken": _broken(found), "claims": claims(found, where), **found}


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
