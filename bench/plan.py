"""Plans against brute force, against the simulator, and against equal cuts.

    python -m bench.plan                   all; writes bench/results/plan.json
    python -m bench.plan brute             one part: brute (a minute), simulated (four), models (half an hour, and needs the extra
                                           `train`), sparse (five), equal (five) or rocoin (a minute)

*brute*: random small networks and boards. Lines: every order and every cut is tried; the best must be the plan's. Meshes: every set
of stages on every board is tried, each with the linear program of `zpipe.plan.bounds` (throughput), every board for every stage
with the time added up (latency); the plan may be 2 % worse.
*simulated*: what plans for every bundle predict, and what the simulator gives where samples are always waiting, with a seed that
no trial used. Exit shares are those of the evaluation set here, which is what the simulator replays; a plan knows those of the
calibration set.
*models*: the same for every reference network in four and five stages, with random weights (`zpipe train --random`), whose exits
each take half of what comes to them; `--bundles DIR` keeps the bundles (3 GB), and takes those that are there.
*sparse*: random boards with random links between some of them, random memory and operating points: how far what is delivered, on
paper and simulated, is from what no placement exceeds. Here nodes that decide by what they see fall short; nothing is left out.
*equal*: boards of three speeds (topologies/devices/mixed.yaml): the plan against slices of equal multiply-adds in the order of the
file, in the simulator and live, emulated.
*rocoin*: groups of boards for students against every grouping there is (`bench.groups`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, permutations, product
from pathlib import Path
from typing import Any

from bench.groups import rocoin
from bench.made import commit
from bench.predictions import BUNDLES, models, simulated, trial
from zpipe.boards import Board, Boards, load_boards, parse_boards
from zpipe.bundle import Bundle, load_bundle
from zpipe.errors import ConfigError, TopologyError
from zpipe.model import AUTO_CODEC, ExitHead, OperatingPoint, PointMetrics, StageSpec, TensorSpec
from zpipe.plan import equal_cuts, make_plan, problem, rate_bound, to_yaml
from zpipe.plan.layout import Layout, latency_seconds, loads, rate_hz
from zpipe.plan.planner import solve, to_topology
from zpipe.plan.problem import Problem
from zpipe.report import machine
from zpipe.sim import simulate
from zpipe.topology import LinkSpec, PolicySpec, Topology, check, from_dict

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "plan.json"
#: What the issue asks of a mesh's plan.
MESH_SLACK = 0.02
#: Sparse meshes, and seconds for each.
SPARSE_CASES, SPARSE_SECONDS = 24, 10.0


# ---- small random cases ------------------------------------------------------------------------


def random_case(seed: int, *, devices: int, stages: int, linked: float, medium: bool = False) -> tuple[Problem, Bundle]:
    """A network and boards of random sizes and speeds; some memory limits, some links missing."""
    rng = random.Random(seed)
    shares = [1.0]
    for _ in range(stages - 1):
        shares.append(shares[-1] * rng.uniform(0.2, 1.0))
    tensors = [TensorSpec("uint8", (rng.choice([500, 2_000, 8_000, 30_000]),)) for _ in range(stages)]
    specs = tuple(
        StageSpec(at, "", tensors[at], tensors[at + 1] if at + 1 < stages else None, ExitHead(10, 1.0), rng.randint(5, 60) * 10**6)
        for at in range(stages)
    )
    boards = tuple(
        Board(f"b{at}", f"raspberry-pi-3/{rng.choice([0.25, 0.5, 1, 2, 4])}", memory_bytes=rng.choice([math.inf, math.inf, 140e6]))
        for at in range(devices)
    )
    links = tuple(
        LinkSpec(
            pair,
            rng.choice([math.inf, 20e6, 5e6, 1e6]) if not medium else 10e6,
            rng.choice([0.0, 0.001, 0.01]),
            codec=AUTO_CODEC,
            medium="air" if medium else "",
        )
        for pair in combinations(range(devices), 2)
        if rng.random() < linked
    )
    weights = tuple(rng.choice([1e6, 10e6, 15e6]) for _ in range(stages))
    sizes = {"none": tuple(float(tensor.bytes) for tensor in tensors)}
    metrics = PointMetrics(1.0, tuple(a - b for a, b in pairwise([*shares, 0.0])), 0.0)
    point = OperatingPoint("only", (0.9,) * stages, metrics, metrics)
    nothing: dict[str, Any] = {"evaluation_file": None, "evaluation_samples": 0, "replay_file": None}
    bundle = Bundle("random", Path(), ("a",), None, specs, (point,), point, "", 0, **nothing)
    return Problem(Boards("random", boards, links), specs, tuple(shares), weights, sizes), bundle


def best_line(case: Problem, goal: str) -> float:
    """The least cost of all lines there are: seconds per sample of the busiest, or of a lone sample; added up here, by hand."""
    count, others = len(case.stages), range(1, len(case.boards.boards))
    best = math.inf
    for used in range(len(others) + 1):
        for order in permutations(others, used):
            for cuts in combinations(range(count), used):
                ends = [0, *cuts, count]
                line = [(board, ends[at], ends[at + 1]) for at, board in enumerate((0, *order))]
                best = min(best, _line_cost(case, line, goal))
    return best


def _line_cost(case: Problem, line: Sequence[tuple[int, int, int]], goal: str) -> float:
    busy, airtime, alone = [0.0], 0.0, 0.0
    for board, first, end in line:
        if first == end and board:
            return math.inf
        if not case.holds(board, range(first, end)):
            return math.inf
        busy.append(sum(case.reach[k] * case.seconds(board, k, first) for k in range(first, end)))
        alone += sum(case.reach[k] * case.lone_seconds(board, k) for k in range(first, end))
    for (a, _, _), (b, first, _) in pairwise(line):
        link = case.boards.link(a, b)
        if link is None:
            return math.inf
        seconds = case.reach[first] * case.link_seconds(link, alone=goal == "latency")[first]
        alone += seconds + 2.0 * case.reach[first] * link.latency_seconds
        if link.medium:
            airtime += seconds
        else:
            busy.append(seconds)
    return alone if goal == "latency" else max(*busy, airtime)


def best_mesh_rate(case: Problem, bundle: Bundle) -> float:
    """The highest bound of all placements there are; the bound counts no headers, so the case must not either."""
    stages, boards = range(len(case.stages)), case.boards
    subsets = [choice for size in range(len(case.stages) + 1) for choice in combinations(stages, size)]
    able = [[each for each in subsets if not each or case.holds(board, each)] for board in range(len(boards.boards))]
    best = 0.0
    for hosted in product(*able):
        topology = _topology(case, hosted)
        try:
            check(topology, len(case.stages))
            best = max(best, rate_bound(topology, bundle, reach=case.reach, device="").rate_hz)
        except TopologyError:  # some stage has no host, or no way to it
            continue
    return best


def _topology(case: Problem, hosted: Sequence[tuple[int, ...]]) -> Topology:
    layout = Layout(dict(enumerate(hosted)), {}, {}, frozenset(link.between for link in case.boards.links), 0.0, "")
    found = to_topology(case, layout, {})
    return replace(found, policy=PolicySpec(offload="mdi", offload_input="yes"))


def best_mesh_latency(case: Problem) -> float:
    """The least time of all placements with one host for each stage, over all links there are or those of the way alone."""
    boards = range(len(case.boards.boards))
    best = math.inf
    every = frozenset(link.between for link in case.boards.links)
    for where in product(boards, repeat=len(case.stages)):
        hosted = {board: tuple(k for k, at in enumerate(where) if at == board) for board in boards}
        if not all(case.holds(board, stages) for board, stages in hosted.items() if stages):
            continue
        way = [(a, b, k) for k, (a, b) in enumerate(pairwise((0, *where))) if a != b]
        if any(case.boards.link(a, b) is None for a, b, _ in way):
            continue
        hosted = {board: stages for board, stages in hosted.items() if stages or board == 0}
        among = frozenset(pair for pair in every if all(board in hosted for board in pair))
        for links in (frozenset((min(a, b), max(a, b)) for a, b, _ in way), among):
            run = {(board, k): case.reach[k] for k, board in enumerate(where)}
            sent = {each: case.reach[each[2]] for each in way}
            best = min(best, latency_seconds(case, Layout(hosted, run, sent, links, 0.0, ""), {}))
    return best


def against_brute_force(cases: int) -> Iterator[dict[str, Any]]:
    """A row for each case: half lines, half meshes, both goals, every other one on one channel."""
    for seed in range(cases):
        goal, mesh = ("throughput", "latency")[seed % 2], seed % 4 >= 2
        medium = seed % 8 in (0, 2)
        sizes = {"devices": 3, "stages": 3} if mesh and goal == "throughput" else {"devices": 4, "stages": 4}
        case, bundle = random_case(seed, **sizes, linked=0.8, medium=medium)
        yield {"seed": seed, "shape": "mesh" if mesh else "line", "goal": goal, **compare(case, bundle, goal, mesh=mesh)}


def compare(case: Problem, bundle: Bundle, goal: Any, *, mesh: bool) -> dict[str, Any]:
    """The plan's value and the best there is, in seconds per sample; None where there is no placement."""
    if mesh and goal == "throughput":
        with _without_headers():
            rate = best_mesh_rate(case, bundle)
            best = 1.0 / rate if rate else math.inf
            planned = _planned(case, goal, mesh=mesh)
    else:
        best = best_mesh_latency(case) if mesh else best_line(case, goal)
        planned = _planned(case, goal, mesh=mesh)
    if math.isinf(best) or math.isinf(planned):
        # A plan where there is none, or none where there is one, is worse than any.
        return {"best": None if math.isinf(best) else best, "planned": None if math.isinf(planned) else planned, "worse": None}
    return {"best": best, "planned": planned, "worse": planned / best - 1.0}


class _without_headers:  # noqa: N801 - reads as a context manager
    """The bound knows no headers: for a comparison the plan must not, either."""

    def __enter__(self) -> None:
        names = ("HEADER_BYTES", "ROW_BYTES", "PACKET_BYTES", "ANSWER_BYTES", "RESULT_BYTES")
        self._kept = {name: getattr(problem, name) for name in names}
        for name in names:
            setattr(problem, name, 0.0)

    def __exit__(self, *error: object) -> None:
        for name, value in self._kept.items():
            setattr(problem, name, value)


def _planned(case: Problem, goal: Any, *, mesh: bool) -> float:
    try:
        layout = solve(case, goal, "mesh" if mesh else "line", time_limit=30.0)
    except ConfigError:
        return math.inf
    return latency_seconds(case, layout, {}) if goal == "latency" else 1.0 / rate_hz(loads(case, layout, {}))


def brute(cases: int) -> dict[str, Any]:
    started, rows = time.monotonic(), []
    for row in against_brute_force(cases):
        rows.append(row)
        limit = MESH_SLACK if row["shape"] == "mesh" else 1e-6
        row["holds"] = row["worse"] <= limit + 1e-6 if row["worse"] is not None else row["best"] is row["planned"] is None
        if not row["holds"]:
            print(f"seed {row['seed']}: {row['shape']}, {row['goal']}: planned {row['planned']}, best {row['best']}", flush=True)
        if len(rows) % 20 == 0:
            print(f"{time.monotonic() - started:6.0f} s  {len(rows)} of {cases} cases", file=sys.stderr, flush=True)
    for shape in ("line", "mesh"):
        for goal in ("throughput", "latency"):
            some = [row for row in rows if (row["shape"], row["goal"]) == (shape, goal)]
            gaps = [row["worse"] for row in some if row["worse"] is not None]
            held = sum(row["holds"] for row in some)
            worst = f"{100 * max(gaps):.3f} %" if gaps else "-"
            print(
                f"{shape} {goal:<11} {held} of {len(some)} hold, worst {worst}; {len(some) - len(gaps)} cannot be placed",
                flush=True,
            )
    return {"cases": rows}


# ---- sparse meshes ---------------------------------------------------------------------------------


def sparse_boards(seed: int) -> tuple[str, Boards]:
    """An operating point and 3 to 5 boards, each linked to the next and now and then to others."""
    rng = random.Random(seed)
    count = rng.randint(3, 5)
    names = [f"b{at}" for at in range(count)]
    devices: list[dict[str, Any]] = []
    for name in names:
        device = rng.choice(["raspberry-pi-3", "raspberry-pi-4", "jetson-nano", "raspberry-pi-3/4"])
        held = rng.choice([{}, {"memory": f"{rng.choice([100, 110, 130, 300])} MB"}])
        devices.append({"name": name, "device": device, **held})
    links = [
        {"between": list(pair), "bandwidth": f"{rng.choice([2, 10, 50, 100])} Mbit/s", "latency": f"{rng.choice([0.2, 1, 3])} ms"}
        for pair in combinations(names, 2)
        if names.index(pair[1]) == names.index(pair[0]) + 1 or rng.random() < 0.5
    ]

    def none(file: str) -> Any:
        raise AssertionError(file)

    value = {"devices": devices, "links": links}
    point = rng.choice(["default", "no-exit", "t0.99", "t0.80"])
    return point, parse_boards(value, file=f"sparse {seed}", path=None, measured=none)


def sparse(cases: int, count: int) -> dict[str, Any]:
    bundle, rows = load_bundle(BUNDLES[0], verify=False), []
    for seed in range(cases):
        point, boards = sparse_boards(seed)
        try:
            plan = make_plan(
                bundle, boards, point=point, shape="mesh", time_limit=SPARSE_SECONDS, trial=trial, clock=time.monotonic
            )
        except ConfigError as exc:
            print(f"sparse {seed:<3} {exc}", flush=True)
            rows.append({"seed": seed, "error": str(exc)})
            continue
        found = simulate(plan.topology, rate_hz=math.inf, admission="fixed", count=count, warm_up=count // 5, seed=2)
        simulated_hz, bound = float(found["throughput_hz"]), plan.layout.bound
        rows.append(
            {
                "seed": seed,
                "point": point,
                "bound": bound,
                "proven": not plan.layout.timed_out,
                "predicted": plan.rate_hz,
                "simulated": simulated_hz,
                "holds": plan.rate_hz <= bound * (1.0 + 1e-9),
            }
        )
        print(
            f"sparse {seed:<3} {point:<8} bound {bound:7.1f}  paper {100 * (plan.rate_hz / bound - 1.0):+6.1f} %  "
            f"simulated {100 * (simulated_hz / bound - 1.0):+6.1f} %",
            flush=True,
        )
    for kind in ("predicted", "simulated"):
        shares = sorted(row[kind] / row["bound"] for row in rows if "bound" in row)
        print(
            f"{kind} against the bound: median {shares[len(shares) // 2]:.3f}, worst {shares[0]:.3f} of {len(shares)}", flush=True
        )
    return {"sparse": rows}


# ---- equal cuts ------------------------------------------------------------------------------------


def equal(count: int, *, live: bool) -> dict[str, Any]:
    bundle, boards = load_bundle(BUNDLES[0], verify=False), load_boards("mixed")
    plans = {
        "equal cuts": to_equal(bundle, boards),
        "planned line": make_plan(bundle, boards, shape="line", name="line").topology,
        "planned mesh": make_plan(bundle, boards, shape="mesh", name="mesh", trial=trial).topology,
    }
    rows: dict[str, dict[str, float]] = {}
    for name, topology in plans.items():
        found = simulate(topology, rate_hz=math.inf, admission="fixed", count=count)["throughput_hz"]
        rows[name] = {"simulated": found}
        if live:
            rows[name]["live"] = live_rate(topology, count)
        first = rows["equal cuts"]
        said = "  ".join(f"{kind} {rate:6.1f}/s, {rate / first[kind]:.2f} times equal cuts" for kind, rate in rows[name].items())
        print(f"{name:<13} {[list(node.stages) for node in topology.nodes]}  {said}", flush=True)
    return {"equal": rows}


def to_equal(bundle: Bundle, boards: Boards) -> Topology:
    """Slices of equal multiply-adds, in the order of the file: what one does without a planner."""
    count = len(boards.boards)
    ends = [0, *(at + 1 for at in equal_cuts([float(spec.macs) for spec in bundle.stages], count)), len(bundle.stages)]
    nodes = [
        {"rank": rank, "stages": list(range(a, b)), "device": boards.boards[rank].device}
        for rank, (a, b) in enumerate(pairwise(ends))
    ]
    return from_dict({"name": "equal", "bundle": bundle.name, "nodes": nodes, "links": "line"})


def live_rate(topology: Topology, count: int) -> float:
    """Results a second of `zpipe bench` with emulated boards."""
    with tempfile.TemporaryDirectory() as folder:
        file, report = Path(folder) / f"{topology.name}.yaml", Path(folder) / "report.json"
        file.write_text(to_yaml(topology, "of bench.plan"))
        command = [sys.executable, "-m", "zpipe", "bench", "--topology", str(file), "--executor", "emulated", "--rate", "max"]
        command += ["--admission", "fixed", "--count", str(count), "--json", str(report)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
        return float(json.loads(report.read_text())["throughput_hz"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["brute", "simulated", "models", "sparse", "equal", "rocoin"])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--count", type=int, default=10_000, help="most samples of a simulated run")
    parser.add_argument("--bundles", type=Path, help="models: where the reference networks are, or are put")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="models: processes")
    parser.add_argument("--no-live", action="store_true", help="equal: the simulator alone")
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"schema": "zpipe.plan/1"}
    made = commit()
    for part in arguments.parts:
        if part == "brute":
            found |= brute(arguments.cases)
        elif part == "simulated":
            found |= simulated(arguments.count)
        elif part == "models":
            found |= models(arguments.count, arguments.bundles, arguments.jobs)
        elif part == "sparse":
            found |= sparse(SPARSE_CASES, arguments.count // 2)
        elif part == "equal":
            found |= equal(arguments.count // 2, live=not arguments.no_live)
        elif part == "rocoin":
            found |= rocoin(arguments.cases)
        else:
            parser.error(f"found part {part!r}, expected brute, simulated, models, sparse, equal or rocoin")
        found.setdefault("made", {})[part] = {"machine": machine(), "commit": made, "command": f"python -m bench.plan {part}"}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
