"""The command: which contenders, workloads and modes; prints the table, writes the results and the plot."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.made import commit
from bench.peers import rounds
from bench.peers.contender import CONTENDERS
from bench.peers.plot import write_plot
from bench.peers.rounds import MODES
from bench.peers.table import print_rows
from bench.peers.work import WORKLOADS
from zpipe.report import machine
from zpipe.report.machine import version

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "peers.json"
#: Stages that only write what they send are there for the bytes a second, which one mode says.
SKIPPED = {("wire-1m", "batch-8"), ("wire-1m", "latency")}

PACKAGES = ("torch", "ray", "dora-rs", "grpcio")

#: Longer rounds are not interleaved any more.
MOST_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the contenders end with this process
    for workload, mode in _wanted(options):
        note = _note(f"{workload}, {mode}: ")
        started = time.monotonic()
        rows = rounds.measure(
            WORKLOADS[workload], MODES[mode], options.only, rounds=options.rounds, seconds=options.seconds, note=note
        )
        note("")
        print_rows(rows, workload, mode)
        if options.json is not None:
            about = {"rounds": options.rounds, "round_seconds": options.seconds, "seconds": round(time.monotonic() - started)}
            _keep(options.json, f"{workload}, {mode}", {**about, "rows": rows})


def _wanted(options: argparse.Namespace) -> list[tuple[str, str]]:
    """What is measured, in its order; what is left out is said."""
    pairs = [(workload, mode) for workload in options.workload for mode in options.mode]
    for workload, mode in pairs:
        if (workload, mode) in SKIPPED:
            modes = ", ".join(other for other in MODES if (workload, other) not in SKIPPED)
            print(f"{workload}, {mode}: left out, {workload} is for the bytes a second ({modes})", file=sys.stderr)
    return [pair for pair in pairs if pair not in SKIPPED]


def _keep(path: Path, name: str, measured: dict[str, Any]) -> None:
    """Puts one workload in one mode beside those measured before, and draws them all."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"schema": "zpipe.peers/1", "measured": {}}
    peers = {package: version(package) for package in PACKAGES}
    results["measured"][name] = {"commit": commit(), "machine": {**machine(), "peers": peers}, **measured}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_plot([row for each in results["measured"].values() for row in each["rows"]], path.with_suffix(".svg"))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="zpipe against other ways to carry samples")
    parser.add_argument("--only", type=_some_of(CONTENDERS), default=list(CONTENDERS), help="contenders, such as z,a,a'")
    parser.add_argument("--workload", type=_some_of(WORKLOADS), default=list(WORKLOADS), help=", ".join(WORKLOADS))
    parser.add_argument("--mode", type=_some_of(MODES), default=list(MODES), help=", ".join(MODES))
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=None, help="of each round")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 1 second")
    parser.add_argument(
        "--json",
        type=Path,
        default=None,
        help=f"put the figures in this file, and a plot beside it; {RESULTS.name} where all contenders run, not --quick",
    )
    options = parser.parse_args(arguments)
    if options.only == list(CONTENDERS) and not options.quick:
        options.json = options.json or RESULTS
    if options.rounds is None:
        options.rounds = 3 if options.quick else 9
    if options.seconds is None:
        options.seconds = 1.0 if options.quick else 1.5
    if options.rounds < 1 or not 0.0 < options.seconds <= MOST_SECONDS:
        parser.error(f"found {options.rounds} rounds of {options.seconds:g} s, expected at least 1 of up to {MOST_SECONDS:g} s")
    if options.json is not None and options.json.is_dir():
        parser.error(f"--json: found the folder {options.json}, expected a file")
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json: found no folder {options.json.parent}, expected one to write in")
    return options


def _some_of(known: dict[str, object]):  # type: ignore[no-untyped-def]
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"found {name!r}, expected some of {', '.join(known)}")
        return names

    return parse


def _note(prefix: str) -> rounds.Note:
    def note(line: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{prefix}{line}", end="", file=sys.stderr, flush=True)

    return note


if __name__ == "__main__":
    main()
