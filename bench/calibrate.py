"""What calibration does to the bundles here, what their accuracy tables promise and keep, and how the drift test behaves.

    python -m bench.calibrate              about two minutes; writes bench/results/calibrate.json and bench/results/calibrate/*.png

*Outage* at target 0.8 and 0.9 without temperatures, with one, and with one per exit, its relative change beside the published
one; *missed deadlines* on line4 with links of 20 Mbit/s and 5 ms and boards like a Raspberry Pi 4. *Tables*: how many targets hold
on the test split under each rule, and by how much they fall short. *Drift*: alarms in runs drawn from the evaluation set (597
digits of other writers, the same mix) and from its hardest severities alone, many seeds each.

`python -m bench.experiments.overconfident` is the same for a network that is surer than right.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bench.made import commit
from zpipe.bundle import Bundle, load_bundle
from zpipe.calibrate.drift import ALPHA, Reference
from zpipe.calibrate.plots import write_plots
from zpipe.calibrate.points import exit_of
from zpipe.calibrate.run import CalibrateOptions, calibrate
from zpipe.calibrate.study import Study
from zpipe.calibrate.table import DEFAULT_RULE, RULES
from zpipe.report import machine
from zpipe.topology import load_topology, override

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "calibrate.json"
PLOTS = ROOT / "bench" / "results" / "calibrate"

BUNDLES = ("digits-mobilenetv2", "digits-mobilenetv2-half", "digits96-mobilenetv2")
#: Runs of each length that the drift test looks at.
RUNS, LENGTHS = 1000, (100, 500, 2000)


def study(name: str, *, rule: Any) -> Study:
    topology = override(load_topology("line4"), bundle=name, bandwidth="20 Mbit/s", latency="5 ms")
    return calibrate(CalibrateOptions(name, rule=rule, topology=topology))


def outage(report: dict[str, Any]) -> dict[str, Any]:
    """The figures, without the curves that the pictures have."""
    exits = {
        name: [row["test"] | {"temperature": row["temperature"]} for row in found["exits"]]
        for name, found in report["variants"].items()
    }
    return {"exits": exits, "outage": report["outage"], "by_window": report["outage_by_window"], "severities": report["severities"]}


def late(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Missed deadlines at a few deadlines, as shares of the mean time without temperatures."""
    missed = report["missed_deadlines"]
    rows = []
    for curve in missed["curves"]:
        mean = curve["mean_seconds"]["none"]
        for factor in (0.8, 1.0, 1.25, 2.0):
            index = int(np.argmin(np.abs(np.array(missed["deadline_seconds"]) - factor * mean)))
            shares = {name: values[index] for name, values in curve["variants"].items()}
            rows.append({"target": curve["target"], "deadline_seconds": missed["deadline_seconds"][index], "missed": shares})
    return rows


def kept(report: dict[str, Any]) -> dict[str, Any]:
    """How many targets of a table hold on test, and the largest shortfall in points."""
    rows = report["accuracy_table"]["rows"]
    short = [row["target"] - row["test"]["accuracy"] for row in rows]
    return {
        "targets": len(rows),
        "kept_on_test": sum(each <= 0 for each in short),
        "largest_shortfall_points": 100 * max(0.0, *short),
        "highest_target": rows[-1]["target"],
        "of_95": next(({"threshold": row["thresholds"][0], "test": row["test"]} for row in rows if row["target"] == 0.95), None),
    }


def drift(bundle: Bundle) -> list[dict[str, Any]]:
    """Share of runs with an alarm, by what comes in and how long it is looked at."""
    thresholds = bundle.default_point.thresholds
    reference = Reference.of(bundle, thresholds)
    assert reference is not None
    confidences = bundle.replay().confidences
    exits = exit_of(confidences, thresholds)
    taken = np.take_along_axis(confidences, exits[:, None], 1)[:, 0]
    severity, rng = bundle.evaluation().severity, np.random.default_rng(0)
    rows = []
    for inputs, levels in (("the mix", range(5)), ("severity 3 and 4", (3, 4)), ("severity 4", (4,))):
        among = np.flatnonzero(np.isin(severity, list(levels)))
        for length in LENGTHS:
            found = [reference.compare(exits[mine], taken[mine]) for mine in rng.choice(among, (RUNS, length))]
            p_values = np.array([1.0 if each is None else each.p_value for each in found])  # None: nothing to say, no alarm
            alarms = {f"p<{level:g}": float((p_values < level).mean()) for level in (0.01, ALPHA)}
            rows.append({"inputs": inputs, "samples": length, "runs": RUNS, "alarms": alarms})
    return rows


def main() -> None:
    found: dict[str, Any] = {}
    for name in BUNDLES:
        bundle, row = load_bundle(name), {}
        for rule in RULES:
            report = study(name, rule=rule).report
            row[f"table_{rule}"] = kept(report)
            if rule == DEFAULT_RULE:
                row |= outage(report) | {"missed_deadlines": late(report)}
                pictures = [file.rename(file.with_name(f"{name}-{file.name}")) for file in write_plots(report, PLOTS)]
                print(f"{name}: {', '.join(str(file.relative_to(ROOT)) for file in pictures)}")
        row["drift"] = drift(bundle)
        found[name] = row
        show(name, row, report["published_relative_drop"])
    document = {"commit": commit(), "machine": machine(), "published_relative_drop": report["published_relative_drop"]}
    RESULTS.write_text(json.dumps({**document, "bundles": found}, indent=1) + "\n")


def show(name: str, row: dict[str, Any], published: dict[str, float]) -> None:
    for each in row["outage"]:
        for variant, values in each["variants"].items():
            drop = each["relative_drop"].get(variant)
            beside = (
                "" if variant == "none" else f", {'–' if drop is None else f'{drop:+.0%}'} (published {published[variant]:+.0%})"
            )
            print(
                f"{name}: target {each['target']:g}, {variant}: outage {values['outage']:.4f}{beside}; "
                f"{values['left_early']:.1%} leave early, "
                f"{values['accuracy_of_early']:.1%} of them right; {values['macs_share']:.3f} of the compute"
            )
    for each in row["missed_deadlines"]:
        shares = ", ".join(f"{variant} {share:.3f}" for variant, share in each["missed"].items())
        print(f"{name}: target {each['target']:g}, deadline {1e3 * each['deadline_seconds']:.1f} ms: missed {shares}")
    for rule in RULES:
        table = row[f"table_{rule}"]
        print(
            f"{name}: rule {rule}: {table['kept_on_test']} of {table['targets']} targets kept on test, short by at most "
            f"{table['largest_shortfall_points']:.2f} points; the highest is {table['highest_target']:.2%}"
        )
    for each in row["drift"]:
        alarms = ", ".join(f"{level} {share:.3f}" for level, share in each["alarms"].items())
        print(f"{name}: drift, {each['inputs']}, {each['samples']} samples: alarms {alarms} of {each['runs']} runs")


if __name__ == "__main__":
    main()
