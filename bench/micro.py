"""The micro-benchmarks against the last recorded baseline: `make bench-micro`, or

    python -m bench.micro                        all, about 4 minutes; prints each figure and its ratio to the baseline
    python -m bench.micro micro_wire -k Task     some files, some benchmarks (pytest's -k)
    python -m bench.micro --record               and makes them the baseline, bench/results/micro.json

Compared are least times: on a machine that others use, too, anything else measures the others. The lower quartile is printed as the
spread, by how much it lies above the least; a ratio within both spreads is no change. `micro_machine` runs beside whatever is asked
for: it has nothing of zpipe in it, so its ratio says how much faster the machine itself was; the last column is the ratio with that
taken out. Times are per unit: a task and hop, an event, a round trip, else a call.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.made import commit
from zpipe.report import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "micro.json"
FILES = ("machine", "wire", "codec", "policy", "transport", "executor", "sim")
#: Rounds at least so long, so that the clock is none of it, and no benchmark longer than this where its rounds are not fixed.
ROUND_SECONDS, SECONDS = "0.0002", "0.4"
REFERENCE = "machine plain_python"

#: What issue 7 wants.
MOST_POLICY_US, LEAST_EVENTS_HZ = 15.0, 100_000.0

Rows = dict[str, dict[str, Any]]


def measure(files: list[str], expression: str) -> Rows:
    """{benchmark: figures, microseconds a unit}."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "benchmark.json"
        options = [f"--benchmark-min-time={ROUND_SECONDS}", f"--benchmark-max-time={SECONDS}", f"--benchmark-json={file}"]
        paths = [f"bench/micro_{name}.py" for name in files]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-only", "--benchmark-quiet"]
        only = ["-k", f"({expression}) or plain_python"] if expression else []
        done = subprocess.run([*command, *options, *only, *paths], cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(done.stdout)
        found = json.loads(file.read_text())["benchmarks"]
    rows = {_name(each["fullname"]): _row(each) for each in found}
    if expression and set(rows) <= {REFERENCE}:
        where = ", ".join(f"micro_{name}" for name in files)
        raise SystemExit(f"-k: found no benchmark that matches {expression!r} in {where}, expected one")
    return rows


def _name(fullname: str) -> str:
    """`bench/micro_wire.py::test_encode[Credit]` -> `wire encode[Credit]`."""
    path, _, test = fullname.partition("::")
    return f"{Path(path).stem.removeprefix('micro_')} {test.removeprefix('test_')}"


def _row(each: dict[str, Any]) -> dict[str, Any]:
    stats, extra = each["stats"], dict(each["extra_info"])
    unit = 1e6 / extra.pop("units", 1)
    figures = {"us": stats["min"], "us_quartile": stats["q1"], "us_median": stats["median"]}
    return {name: value * unit for name, value in figures.items()} | {"rounds": stats["rounds"], **extra}


# ---- what is printed -----------------------------------------------------------------------------


def show(rows: Rows, baseline: dict[str, Any]) -> None:
    """Every benchmark beside its baseline."""
    before: Rows = baseline.get("benchmarks", {})
    if before:
        print(f"baseline: {baseline['commit']} of {baseline['date']}, {baseline['machine']['cpu']}")
        if (here := machine()["cpu"]) != baseline["machine"]["cpu"]:
            print(f"this machine is another one ({here}): the ratios compare machines as well as commits")
    slower = rows[REFERENCE]["us"] / before[REFERENCE]["us"] if REFERENCE in before else 1.0
    print(f"{'microseconds a unit, least of many rounds':<58}{'now':>10}{'spread':>8}{'before':>10}{'ratio':>7}{'adjusted':>9}")
    for name, row in rows.items():
        old = before.get(name, {})
        spread = f"{row['us_quartile'] / row['us'] - 1.0:.0%}"
        print(_line(name, row["us"], spread, old.get("us"), None if name.startswith("machine ") else slower))
        for kind, cost in row.get("us_by_event", {}).items():
            print(_line(f"    {kind}", cost, "", old.get("us_by_event", {}).get(kind), slower))


def _line(name: str, cost: float, spread: str, before: float | None, slower: float | None) -> str:
    line = f"{name:<58}{cost:>10,.2f}{spread:>8}"
    if before is not None:
        line += f"{before:>10,.2f}{cost / before:>7.2f}" + (f"{cost / before / slower:>9.2f}" if slower is not None else "")
    return line


def show_figures(rows: Rows) -> None:
    """What issue 7 asks for, of what was measured."""
    print()
    for name in ("line4-1", "line4-8", "mesh-3-1", "mesh-3-8"):
        if row := rows.get(f"policy policy_per_task_and_hop[{name}]"):
            said = f"{row['events']:.1f} events in {row['rounds_per_task']:.1f} rounds a task"
            print(f"policy per task and hop, {name:<34}{row['us']:>10,.1f} us   wanted <= {MOST_POLICY_US:g}; {said}")
    for shape in ("hub", "mesh"):
        costs = {count: rows.get(f"policy policy_per_task_and_hop[{shape}-{count}-1]") for count in (2, 4, 8, 16)}
        known = {count: row["us"] for count, row in costs.items() if row}
        if len(known) > 1:
            least, most = min(known), max(known)
            said = ", ".join(f"{count}: {us:.1f}" for count, us in known.items())
            growth = f"{known[most] / known[least]:.2f} times for {most // least} times the neighbours"
            print(f"policy by neighbours, {shape:<36}{said} us; {growth}, wanted no more than those")
    for name, row in rows.items():
        if name.startswith("sim "):
            print(f"{name:<58}{1e6 / row['us']:>10,.0f} events a second   wanted >= {LEAST_EVENTS_HZ:,.0f}")
    for batch in (1, 8):
        if row := rows.get(f"executor executor_run[{batch}]"):
            cost = f"{row['overhead_us']:>10,.1f} us beside {row['us'] - row['overhead_us']:,.0f}"
            print(f"executor over bare ONNX Runtime, batch {batch:<19}{cost}; median of pairs")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"of {', '.join(f'micro_{name}' for name in FILES)}; all if none")
    parser.add_argument("-k", dest="expression", default="", help="only benchmarks that match, as pytest's -k")
    parser.add_argument("--record", action="store_true", help="make what is measured the baseline")
    options = parser.parse_args()
    names = [Path(name).stem.removeprefix("micro_") for name in options.files] or list(FILES)
    if unknown := [name for name in names if name not in FILES]:
        raise SystemExit(f"found {unknown[0]!r}, expected some of {', '.join(f'micro_{name}' for name in FILES)}")
    rows = measure(list(dict.fromkeys(["machine", *names])), options.expression)
    baseline = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    show(rows, baseline)
    show_figures(rows)
    if options.record:
        _record(rows, baseline)


def _record(rows: Rows, baseline: dict[str, Any]) -> None:
    """A part of them can only join a baseline of the same commit and machine."""
    whole = {file for file in FILES if any(name.startswith(f"{file} ") for name in rows)} == set(FILES)
    made = commit()
    about = {"commit": made, "date": datetime.date.today().isoformat(), "machine": machine()}
    if not whole and (baseline.get("commit"), baseline.get("machine")) != (made, about["machine"]):
        raise SystemExit(f"--record: found some of the benchmarks and a baseline of {baseline.get('commit')}, expected all of them")
    spread = statistics.median(row["us_quartile"] / row["us"] - 1.0 for row in rows.values())
    kept = {} if whole else baseline.get("benchmarks", {})
    RESULTS.write_text(json.dumps({**about, "median_spread": spread, "benchmarks": {**kept, **rows}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
