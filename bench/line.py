"""The line of four, measured: what exits save, what zpipe costs beside the stages, what overload does, what a long run leaves.

    python -m bench.line                 all of it, about 12 minutes
    python -m bench.line exits overload  some of it

Every figure is the median of interleaved rounds of whole `zpipe bench` runs, since these machines are shared; ranges are over
rounds. All nodes share the cores of one machine, so throughput measures the sum of their computing. Writes bench/results/line.json.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.made import commit
from zpipe.bundle import load_bundle

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "line.json"
BUNDLE = load_bundle("digits-mobilenetv2", verify=False)
LOWEST = BUNDLE.operating_points[0].name
#: Samples under way in the closed loop that measures capacity: enough for full batches at every node.
WINDOW = 64


def bench(*options: str) -> dict[str, Any]:
    """One `zpipe bench` run of the line; its report."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        command = [sys.executable, "-m", "zpipe", "bench", "--topology", "line4.yaml", "--json", str(file), *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
        return json.loads(file.read_text())  # type: ignore[no-any-return]


def closed(*options: str, seed: int, count: int = 4000) -> dict[str, Any]:
    """Closed loop, no pacing: capacity."""
    return bench("--count", str(count), "--window", str(WINDOW), "--admission", "fixed", "--seed", str(seed), *options)


def offered(rate: float, *options: str, seed: int, seconds: float = 8.0) -> dict[str, Any]:
    """Poisson arrivals."""
    return bench("--duration", str(seconds), "--rate", f"{rate:.0f}", "--seed", str(seed), *options)


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def show(name: str, values: dict[str, float] | float, unit: str = "", form: str = ",.2f") -> None:
    if isinstance(values, dict):
        print(f"  {name:<58}{values['median']:>12{form}} {unit}   [{values['low']:{form}}, {values['high']:{form}}]", flush=True)
    else:
        print(f"  {name:<58}{values:>12{form}} {unit}", flush=True)


# ---- the parts ---------------------------------------------------------------------------------


def exits(rounds: int = 5) -> dict[str, Any]:
    """Throughput with exits over the same run without; multiply-adds; accuracy."""
    ratios, shares, accuracy, with_hz, without_hz = [], [], [], [], []
    for seed in range(rounds):
        on, off = closed(seed=seed), closed("--policy", "no-exit", seed=seed)
        with_hz.append(on["throughput_hz"])
        without_hz.append(off["throughput_hz"])
        ratios.append(on["throughput_hz"] / off["throughput_hz"])
        shares.append(on["mean_macs_share"])
        accuracy.append(on["accuracy"])
    found = {
        "with_hz": spread(with_hz),
        "no_exit_hz": spread(without_hz),
        "ratio": spread(ratios),
        "macs_share": spread(shares),
        "accuracy": spread(accuracy),
    }
    show("closed loop, exits at the default point", found["with_hz"], "Hz", ",.0f")
    show("closed loop, --policy no-exit", found["no_exit_hz"], "Hz", ",.0f")
    show("ratio (wanted >= 1.8)", found["ratio"], "x")
    show("multiply-adds of the full network (wanted <= 0.4)", found["macs_share"])
    found["lost_points"] = _lost_points()
    show("accuracy lost on test, points, 95 % over digits (wanted <= 0.5)", found["lost_points"])
    return found


def _lost_points() -> dict[str, float]:
    """The default point against the last exit on the whole test set, as the bundle's recipe computed it, paired by sample."""
    manifest = json.loads((BUNDLE.path / "manifest.json").read_text(encoding="utf-8"))
    point = next(point for point in manifest["operating_points"] if point["name"] == BUNDLE.default_point.name)
    lost = point["test"]["accuracy_lost"]
    return {"median": 100 * lost["value"], "low": 100 * lost["low"], "high": 100 * lost["high"]}


def overhead(rounds: int = 5) -> dict[str, Any]:
    """CPU outside the stages, per task and hop."""
    runs = {
        "batch 1, exits (wanted <= 400)": ("--max-batch", "1"),
        "batch 1, no-exit (wanted <= 400)": ("--max-batch", "1", "--policy", "no-exit"),
        "max_batch 8, exits: half the batches are small": (),
        "max_batch 8, no-exit: full batches (wanted <= 120)": ("--policy", "no-exit"),
    }
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for seed in range(rounds):
        for name, options in runs.items():
            report = closed(*options, seed=seed)
            seen[name].append((report["overhead_us_per_task"], report["cpu_efficiency"]))
    found = {
        name: {"overhead_us": spread([o for o, _ in pairs]), "cpu_efficiency": spread([e for _, e in pairs])}
        for name, pairs in seen.items()
    }
    for name, figures in found.items():
        show(name, figures["overhead_us"], "us", ",.0f")
        show("    CPU in stages", figures["cpu_efficiency"])
    return found


def overload(rounds: int = 3) -> dict[str, Any]:
    """Three times more samples than the line can take, per admission strategy; goodput against C of the same round."""
    found: dict[str, Any] = {}
    for admission in ("mdi-rate", "aimd"):
        rows = []
        for seed in range(rounds):
            before = closed(seed=seed)["throughput_hz"]
            report = offered(3 * before, "--admission", admission, "--when-full", "latest", seed=seed)
            capacity = (before + closed(seed=seed)["throughput_hz"]) / 2
            rows.append((report["goodput_hz"] / capacity, report))
        found[admission] = _overload(f"{admission} at 3 C: goodput / C (wanted >= 0.9)", rows)
    return found


def threshold(rounds: int = 3) -> dict[str, Any]:
    """Arrivals given, thresholds adapt: at 0.9 and at 3 times what the line can take at its cheapest operating point."""
    return {"0.9 C(lowest)": _threshold(rounds, 0.9), "3 C(lowest)": _threshold(rounds, 3.0)}


def _overload(title: str, rows: list[tuple[float, dict[str, Any]]]) -> dict[str, Any]:
    queues = [max(node["queue_p95"] for node in report["nodes"]) for _, report in rows]
    found = {
        "goodput_share": spread([share for share, _ in rows]),
        "queue_p95_by_node": [[node["queue_p95"] for node in report["nodes"]] for _, report in rows],
        "queueing_p95_ms": spread([report["queueing_ms"]["p95"] for _, report in rows]),
        "counts": [report["counts"] for _, report in rows],
        "series": rows[-1][1]["series"],
    }
    show(title, found["goodput_share"])
    show("    longest p95 of a queue, tasks", spread([float(q) for q in queues]), "", ",.0f")
    show("    p95 of the queueing delay", found["queueing_p95_ms"], "ms", ",.0f")
    return found


def _threshold(rounds: int, factor: float) -> dict[str, Any]:
    options = ("--admission", "mdi-threshold", "--when-full", "deadline", "--deadline", "2")
    rows, accuracy_gaps, rejected = [], [], []
    for seed in range(rounds):
        before = closed("--policy", LOWEST, seed=seed)["throughput_hz"]
        report = offered(factor * before, *options, seconds=12.0, seed=seed)
        capacity = (before + closed("--policy", LOWEST, seed=seed)["throughput_hz"]) / 2
        rows.append((report["goodput_hz"] / capacity, report))
        accuracy_gaps.append(100 * (report["accuracy"] - _table_accuracy(_mean_point(report))))
        rejected.append(float(report["counts"]["rejected"] + report["counts"]["expired"]))
    title = f"mdi-threshold at {factor:g} C(lowest): goodput / C(lowest)"
    found = _overload(title + (" (wanted >= 0.9)" if factor > 1 else ""), rows)
    found["accuracy_gap_points"] = spread(accuracy_gaps)
    found["not_admitted"] = spread(rejected)
    found["mean_point"] = spread([_mean_point(report) for _, report in rows])
    show("    accuracy less the table's at the mean point, points", found["accuracy_gap_points"])
    show("    mean point used, of 0 .. " + str(len(BUNDLE.operating_points) - 1), found["mean_point"])
    show("    rejected or expired" + (" (wanted 0)" if factor < 1 else ""), found["not_admitted"], "", ",.0f")
    return found


def _mean_point(report: dict[str, Any]) -> float:
    """Index of the operating point, averaged over the samples admitted at it."""
    rows = [row for row in report["series"] if row["admitted_hz"]]
    return sum(row["point"] * row["admitted_hz"] for row in rows) / sum(row["admitted_hz"] for row in rows)


def _table_accuracy(point: float) -> float:
    """The test column of the table, straight lines between its points."""
    points = BUNDLE.operating_points
    low = min(int(point), len(points) - 2)
    return points[low].test.accuracy + (point - low) * (points[low + 1].test.accuracy - points[low].test.accuracy)


def long(samples: int = 24_000) -> dict[str, Any]:
    """Samples without an outcome, memory between the 5,000th and the 20,000th."""
    report = bench("--count", str(samples), "--window", str(WINDOW))
    counts = report["counts"]
    found: dict[str, Any] = {"counts": counts, "rss_mb": {}}
    show("submitted", float(counts["submitted"]), "", ",.0f")
    show("lost + duplicate + hung (wanted 0)", float(counts["lost"] + counts["duplicate"] + counts["hung"]), "", ",.0f")
    for rank in range(len(report["nodes"])):
        marks = [(row["results"], row["rss_mb"][rank]) for row in report["memory"]]
        early = max(mb for results, mb in marks if results <= 5000)
        late = max(mb for results, mb in marks if 5000 <= results <= 20_000)
        found["rss_mb"][rank] = {"to_5000": early, "to_20000": late}
        show(f"node {rank}: peak RSS to the 5,000th, then to the 20,000th", late - early, f"MB more than {early:.1f}")
    return found


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "exits": exits,
    "overhead": overhead,
    "overload": overload,
    "threshold": threshold,
    "long": long,
}


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise SystemExit(f"found {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names or list(PARTS):
        print(f"{name}: {PARTS[name].__doc__}", flush=True)
        started = time.monotonic()
        found = PARTS[name]()
        machine = bench("--count", "1", "--warm-up", "0")["machine"]
        results[name] = {"commit": commit(), "machine": machine, "seconds": round(time.monotonic() - started), **found}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
