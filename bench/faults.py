"""Every sample has exactly one outcome, measured: runs in which nodes are killed and stopped and links fail, in turn with calm.

    python -m bench.faults                                    all of it, about 80 minutes
    python -m bench.faults mesh3 line4-replicas --fault kill  some of it; replaces those rows of bench/results/faults.json
    python -m bench.faults line4 --fault dead                 the line without replicas: its middle node dead for ten seconds
    python -m bench.faults mesh3 --fault kill --samples 5000 --calm 5 --dry    a look, not to be kept

Boards are emulated, with real sockets and processes: else they would share the cores of this machine, and a node that is dead would
leave its share to the rest. Their profiles are chosen so that some 300 samples a second leave most of the machine idle; what a run
took of its cores, and what everybody took, is part of each row. Faults and calm alternate within one run of the same processes
(`--calm` seconds each), so that a throughput is compared with its neighbours in time.

repair: from a fault to the first result that needed another attempt (`zpipe.bench.chaos.timeline`). wrong: results with another
label than the bundle's recording gives at these thresholds, with faults or without.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.made import commit
from zpipe.report import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "faults.json"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a topology is run with: profile of all boards, and samples under way (enough to keep the source's board busy)."""

    device: str
    window: int = 64


#: No stage takes less than 5 ms (zpipe.emulation); a board that computes in batches is slowed down until the source's has no more
#: than some 300 samples a second.
SETTINGS = {"mesh3": Setting("jetson-nano/4"), "line4-replicas": Setting("jetson-nano/6"), "line4": Setting("jetson-nano/6")}
REPLICATED = ("mesh3", "line4-replicas")
#: {name: spec}, in turn with calm.
FAULTS = {
    "kill": "kill every 5s",
    "stop": "stop 2s every 5s",
    "reset": "reset every 5s",
    "down": "down 2s every 5s",
    "corrupt": "corrupt 1%",
    "flip": "flip every 2s",
    "rolling": "rolling every 20s",
}
DEADLINE_SECONDS = 10.0
#: The line without replicas: {name: (deadline, seconds in all)}; node 2, the only one with its stage, is dead from 10 s to 20 s.
DEAD = "kill 10s node 2 at 10s"
DEAD_RUNS = {"dead, deadline 30 s": (30.0, 60.0), "dead, deadline 2 s": (2.0, 35.0)}
#: What an outcome may be late by (design section 7).
LATE_SECONDS = 0.1


def topology_file(name: str, device: str, folder: Path) -> Path:
    """The topology with another device at every node: what its file names would go before --device."""
    document = yaml.safe_load((ROOT / "topologies" / f"{name}.yaml").read_text(encoding="utf-8"))
    for node in document["nodes"]:
        node["device"] = device
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    return file


def machine_seconds() -> float:
    """CPU seconds all processes of this machine have used since it started (Linux)."""
    fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
    idle = int(fields[3]) + int(fields[4])
    return (sum(map(int, fields[:8])) - idle) / os.sysconf("SC_CLK_TCK")


def bench(name: str, chaos: str, *, deadline: float, seed: int, load: tuple[str, str]) -> dict[str, Any]:
    """One `zpipe bench --chaos` run; its report, with `cores_busy` of it and its children and `machine_busy` of all."""
    setting = SETTINGS[name]
    with tempfile.TemporaryDirectory() as folder:
        report_file = Path(folder) / "report.json"
        topology = topology_file(name, setting.device, Path(folder))
        command = [sys.executable, "-m", "zpipe", "bench", "--topology", str(topology), "--executor", "emulated"]
        command += ["--window", str(setting.window), "--deadline", str(deadline), "--seed", str(seed), "--warm-up", "1000"]
        command += [*load, "--chaos", chaos, "--json", str(report_file)]
        started, all_before = time.monotonic(), machine_seconds()
        running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(running.pid, 0)  # with all of its own that it has waited for
        wall = time.monotonic() - started
        if not report_file.exists():
            raise SystemExit(f"{' '.join(command)}: exit code {os.waitstatus_to_exitcode(status)} and no report")
        report: dict[str, Any] = json.loads(report_file.read_text(encoding="utf-8"))
    if not any("skipped" not in event for event in report["chaos"]["timeline"]):
        raise SystemExit(f"{name}, {chaos}: found no fault in {report['seconds']:.0f} s, expected some; ask for more --samples")
    cores = len(os.sched_getaffinity(0))
    report["cores_busy"] = (used.ru_utime + used.ru_stime) / wall / cores
    report["machine_busy"] = (machine_seconds() - all_before) / wall / cores
    return report


def row_of(name: str, fault: str, spec: str, deadline: float, seed: int, report: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run."""
    chaos, counts = report["chaos"], report["counts"]
    return {
        "topology": name,
        "fault": fault,
        "spec": spec,
        "device": SETTINGS[name].device,
        "window": SETTINGS[name].window,
        "deadline_seconds": deadline,
        "seed": seed,
        "counts": counts,
        "result_share": counts["result"] / counts["submitted"],
        "causes": report["causes"],
        "strangers": report["strangers"],
        "labels": chaos["labels"],
        "summary": chaos["summary"],
        "throughput_hz": report["throughput_hz"],
        "throughput": chaos["throughput"],
        "calm": chaos["calm"],
        "expired_late_seconds": chaos["expired_late_seconds"],
        "damage": chaos["damage"],
        "bad_frames": chaos["bad_frames"],
        "nodes_ended": chaos["nodes_ended"],
        "latency_ms": report["latency_ms"],
        "seconds": report["seconds"],
        "cores_busy": report["cores_busy"],
        "machine_busy": report["machine_busy"],
        "timeline": chaos["timeline"],
        "commit": commit(),
        "command": "python -m bench.faults " + " ".join(sys.argv[1:]),
        "machine": machine(),
    }


def broken(row: dict[str, Any]) -> int:
    """Samples with no outcome, with two, with one too late, or with a wrong one."""
    wrong = row["labels"]["other_label"] if row["labels"] else 0
    return int(sum(row["counts"][key] for key in ("lost", "duplicate", "hung")) + row["strangers"] + wrong)


def show(row: dict[str, Any]) -> None:
    """The figures of one run, in the words of the promise."""
    counts, throughput = row["counts"], row["throughput"]
    print(f"\n{row['topology']}, {row['fault']}: {row['spec']}, deadline {row['deadline_seconds']:g} s")
    ends = ", ".join(f"{kind} {counts[kind]:,}" for kind in ("result", "rejected", "expired", "failed"))
    line("samples", f"{counts['submitted']:,}: {ends}; {100 * row['result_share']:.3f} % results")
    for cause, times in row["causes"].items():
        line("", f"{times:,} {cause}")
    if row["labels"] is not None:
        wrong = f"{row['labels']['other_label']:,} labels, {row['labels']['other_exit']:,} exits of {row['labels']['compared']:,}"
    else:
        wrong = "not to be said: the thresholds moved"
    line("lost, duplicate, hung; wrong", f"{counts['lost']}, {counts['duplicate']}, {counts['hung']}; {wrong}")
    for action, found in row["summary"].items():
        took = " ".join(f"{key} {_figure(found['repaired_after_seconds'][key])}" for key in ("p50", "p99", "max"))
        whole, back = found["all_repaired_after_seconds"]["max"], found["back_after_seconds"]["max"]
        said = f"{found['events']} times, {found['skipped']} skipped, {found['harmless']} harmless; repair {took} s"
        line(action, f"{said}, all within {_figure(whole)} s, back within {_figure(back)} s")
    if throughput["ratio"] is not None:
        ratios = ", ".join(f"{100 * cycle['ratio']:.0f}" for cycle in throughput["cycles"] if cycle["ratio"] is not None)
        said = f"{throughput['faults_hz']:.0f} with faults, {throughput['calm_hz']:.0f} in the calm"
        line("results/s", f"{said}: {100 * throughput['ratio']:.1f} % (cycles: {ratios})")
        calm = row["calm"]
        line("sent again in the calm", f"{calm['sent_again']:,} of {calm['results']:,} results")
    line("resubmitted, second results", f"{counts['resubmitted']:,}, {counts['second_results']:,}")
    if row["damage"]:
        sums = {key: sum(link[key] for link in row["damage"].values()) for key in ("messages", "corrupted", "flipped")}
        said = f"{sums['corrupted']:,} of {sums['messages']:,} messages damaged, {sums['flipped']:,} bits flipped elsewhere"
        besides = f", besides what {row['nodes_ended']:,} ended processes took along" if row.get("nodes_ended") else ""
        line("damage", f"{said}; nodes refused {row['bad_frames']:,} frames{besides}")
    busy = f"{100 * row['cores_busy']:.0f} % of the cores, {100 * row['machine_busy']:.0f} % with everybody else"
    line("took", f"{row['seconds']:.0f} s, {busy}")
    print("  holds" if not broken(row) else f"  BROKEN: {broken(row):,}", flush=True)


def line(name: str, text: str) -> None:
    print(f"  {name:<30}{text}", flush=True)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# ---- the runs ----------------------------------------------------------------------------------


def in_turn(name: str, fault: str, *, samples: int, calm: float, seed: int) -> dict[str, Any]:
    """One fault again and again, in turn with calm."""
    spec = f"{FAULTS[fault]}; calm {calm:g}s"
    report = bench(name, spec, deadline=DEADLINE_SECONDS, seed=seed, load=("--count", str(samples)))
    return row_of(name, fault, spec, DEADLINE_SECONDS, seed, report)


def dead(case: str, *, seed: int) -> dict[str, Any]:
    """The line of four whose node 2 nobody can stand in for, dead for ten seconds."""
    deadline, seconds = DEAD_RUNS[case]
    report = bench("line4", DEAD, deadline=deadline, seed=seed, load=("--duration", str(seconds)))
    row = row_of("line4", case, DEAD, deadline, seed, report)
    series, (event,) = report["chaos"]["outcomes_per_step"], report["chaos"]["timeline"]
    back = event["at_seconds"] + event["back_after_seconds"]
    # What was submitted before the node was back may expire until one deadline later, what came after may not.
    after = int(back + deadline + LATE_SECONDS) // series["step_seconds"] + 1
    row["back_at_seconds"] = back
    row["without_result_after_it_was_back"] = sum(sum(series[kind][after:]) for kind in ("rejected", "expired", "failed"))
    row["results_after_it_was_back"] = sum(series["result"][after:])
    return row


def show_dead(row: dict[str, Any]) -> None:
    show(row)
    late = row["expired_late_seconds"]
    line("expired", f"{row['counts']['expired']:,}, the latest {_figure(late)} s after its deadline (at most {LATE_SECONDS:g})")
    said = f"{row['results_after_it_was_back']:,} results, {row['without_result_after_it_was_back']:,} without"
    line(f"from {row['back_at_seconds']:.1f} s + deadline on", said)


def keep(row: dict[str, Any]) -> None:
    """Writes a row in place of the same case's."""
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []
    rows = [other for other in rows if (other["topology"], other["fault"]) != (row["topology"], row["fault"])]
    rows.append(_rounded(row))
    rows.sort(key=lambda other: (other["topology"], other["fault"]))
    RESULTS.write_text(json.dumps({"schema": "zpipe.faults/1", "rows": rows}, indent=1) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    """Microseconds say nothing here, and a timeline is long."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("topologies", nargs="*", metavar="TOPOLOGY", help=f"some of {', '.join(SETTINGS)}; all if none is given")
    parser.add_argument("--fault", action="append", choices=[*FAULTS, "dead"], help="these only; dead: of line4")
    parser.add_argument("--samples", type=int, default=100_000, help="of each run with faults in turn with calm")
    parser.add_argument("--calm", type=float, default=60.0, help="seconds of calm, then as many with faults, and so on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="write nothing down")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.topologies if name not in SETTINGS]
    if unknown:
        raise SystemExit(f"found {unknown[0]!r}, expected some of {', '.join(SETTINGS)}")
    names, wanted = arguments.topologies or list(SETTINGS), arguments.fault or [*FAULTS, "dead"]
    failed = 0
    for name in names:
        if name in REPLICATED:
            for fault in [fault for fault in FAULTS if fault in wanted]:
                row = in_turn(name, fault, samples=arguments.samples, calm=arguments.calm, seed=arguments.seed)
                show(row)
                failed += broken(row)
                if not arguments.dry:
                    keep(row)
        elif "dead" in wanted:
            for case in DEAD_RUNS:
                row = dead(case, seed=arguments.seed)
                show_dead(row)
                failed += broken(row) + row["without_result_after_it_was_back"]
                if not arguments.dry:
                    keep(row)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
