"""The delivery protocol explored exhaustively: every order of events and faults in small meshes of the policy the boards run.

    python -m bench.model_check          all cases, about 6 minutes
    python -m bench.model_check 3 5      the third and the fifth

In every state: the nodes' invariants, at most one outcome per sample and none too early, no credit given twice, no task forgotten
that the other end still holds, no attempt without a reason. From every state, with no further fault: every sample ends, no slot and
no credit stays lost. What is explored, and what is not, is written in tests/policy/explore. Writes bench/results/model-check.json.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from bench.made import commit
from tests.policy.explore.cases import LARGE
from tests.policy.explore.nodes import MOMENT_SECONDS
from tests.policy.explore.search import Found, explore
from zpipe.report.machine import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "model-check.json"
COLUMNS = "{:<25} {:>7} {:>6}  {:<32} {:>9} {:>12} {:>6} {:>8} {:>7}"
HEAD = COLUMNS.format("mesh", "samples", "until", "faults on one path", "states", "transitions", "depth", "run on", "seconds")


def row(found: Found) -> dict[str, Any]:
    """What one case showed, for the file."""
    case = found.case
    return {
        "mesh": case.name,
        "nodes": len(case.shape.stages),
        "links": case.shape.links,
        "stages": case.shape.stages,
        "window": case.shape.window,
        "deadlines": case.deadlines,
        "sources": {rank: {"class": case.shape.sources[rank], "samples": len(each)} for rank, each in case.offers.items()},
        "faults": {name: count for name, count in case.faults._asdict().items() if count},
        "ranks": case.ranks,
        "moments": case.moments,
        "states": found.states,
        "transitions": found.transitions,
        "depth": found.depth,
        "states_run_on": found.run_on,
        "node_states": found.node_states,
        "node_steps": found.node_steps,
        "complete": found.complete,
        "violation": found.violation,
        "seconds": round(found.seconds, 1),
    }


def line(found: Found) -> str:
    """The same for the eye; `until` is the time explored, later times are run in one order."""
    case = found.case
    figures = f"{found.states:,}", f"{found.transitions:,}", found.depth, f"{found.run_on:,}", f"{found.seconds:.1f}"
    until = f"{case.moments * MOMENT_SECONDS:.1f} s"
    return COLUMNS.format(case.name, sum(map(len, case.offers.values())), until, str(case.faults), *figures) + "  cut short" * (
        not found.complete
    )


def main(names: list[str]) -> int:
    """Explores and prints; 1 where a violation was found."""
    wrong = [name for name in names if not name.isdigit() or not 1 <= int(name) <= len(LARGE)]
    if wrong:
        raise SystemExit(f"found {wrong[0]!r}, expected numbers from 1 to {len(LARGE)}")
    started, rows, violated = time.monotonic(), [], False
    print(HEAD, flush=True)
    for case in [LARGE[int(name) - 1] for name in names] or LARGE:
        found = explore(case)
        print(line(found), flush=True)
        print("".join(f"    {text}\n" for text in found.violation), end="", flush=True)
        violated = violated or bool(found.violation)
        rows.append(row(found))
    states, transitions = sum(entry["states"] for entry in rows), sum(entry["transitions"] for entry in rows)
    seconds = round(time.monotonic() - started)
    print(f"{states:,} states, {transitions:,} transitions, {'A VIOLATION' if violated else 'no violation'}, {seconds} s")
    if not names:
        totals = {"states": states, "transitions": transitions, "violations": sum(bool(entry["violation"]) for entry in rows)}
        facts = {"commit": commit(), "machine": machine(), "seconds": seconds}
        RESULTS.write_text(json.dumps({"schema": "zpipe.model-check/1", **facts, "totals": totals, "cases": rows}, indent=1) + "\n")
    return int(violated)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
