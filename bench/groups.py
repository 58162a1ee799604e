"""Groups of boards for students (zpipe.plan.grouping) against every grouping there is: `python -m bench.plan rocoin`.

*Small*: 2 or 3 students and up to 7 boards of random speeds, failures, memory and ways; every board is tried in every group and in
none, and each group's mean is added up over which of its boards live. Against the best: what grouping by speed and linear
assignment give alone, what exchanging boards adds, from further starts as well (not proven), and the search as a whole. Where no
grouping misses as seldom as asked, the planner must say so, with the least that there is.
*Simulated*: the plan for the students of digits-rocoin on topologies/devices/star.yaml, in the simulator, with every set of its
boards dead in turn and weighted by how often that happens: how often a part is missing, how long a sample takes that gets all of
them, and accuracy (by the join's on test images, of which some are shown here); and how many results a second there are while all
live and samples are always waiting. Each beside what the plan said.
*Large*: up to 100 boards and 8 students; how far the plan is from a bound that few can reach (every part at a board of its own that
never fails), and the search's seconds of CPU.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

from zpipe.boards import load_boards
from zpipe.bundle import load_bundle
from zpipe.plan import plan_groups
from zpipe.plan.grouping import TooFew, find_groups, first_groups, holds, improved, linear_assignment
from zpipe.plan.groups import Case
from zpipe.sim import Death, SimOptions, capacity, run_sim

#: Boards and students of the large cases.
LARGE = ((16, 4), (40, 8), (100, 8))
#: What is simulated, and P(a part is missing) that its plan keeps.
STUDENTS, DEVICES, MISSING = "digits-rocoin", "star", 0.05
#: Samples for each set of dead boards: the first ones measure links; one a second, so that each is alone.
WARM_UP, SAMPLES = 20, 300
#: Where samples are always waiting.
BUSY_SAMPLES = 3000


def random_groups(seed: int, *, boards: int, parts: int) -> Case:
    """Students of random sizes; some boards have room for small ones alone."""
    rng = random.Random(seed)
    speeds = [rng.choice([1, 2, 4, 8]) * rng.uniform(0.8, 1.2) for _ in range(boards)]
    ways = [rng.choice([0.001, 0.005, 0.02]) for _ in range(boards)]
    rooms = [rng.choice([3, 3, 3, 2, 1]) for _ in range(boards)]
    work = [rng.uniform(0.005, 0.04) for _ in range(parts)]
    sizes = [rng.choice([1, 2, 3]) for _ in range(parts)]
    seconds = tuple(
        tuple(
            way + work[part] / speed if sizes[part] <= room else math.inf
            for way, speed, room in zip(ways, speeds, rooms, strict=True)
        )
        for part in range(parts)
    )
    return Case(seconds, tuple(rng.choice([0.05, 0.1, 0.2, 0.3]) for _ in range(boards)), rng.choice([0.01, 0.03, 0.1]))


def every_grouping(case: Case) -> tuple[float, float]:
    """The least mean of a slowest group that misses as seldom as asked (`inf`: none does), and the least that any can miss."""

    @cache
    def group(part: int, mask: int) -> tuple[float, float]:
        """Mean time of the fastest that lives and P(none lives), over which boards live; `inf` and 1 where they cannot host it."""
        members = [board for board in case.boards if mask >> board & 1]
        if not members or any(case.seconds[part][board] == math.inf for board in members):
            return math.inf, 1.0
        total = alive = 0.0
        for living in product((False, True), repeat=len(members)):
            pairs = list(zip(members, living, strict=True))
            chance = math.prod(1.0 - case.failures[board] if lives else case.failures[board] for board, lives in pairs)
            if any(living):
                alive += chance
                total += chance * min(case.seconds[part][board] for board, lives in pairs if lives)
        return total / alive, 1.0 - alive

    best, least = math.inf, 1.0
    for where in product(range(len(case.parts) + 1), repeat=len(case.boards)):
        masks = [sum(1 << board for board, part in enumerate(where) if part == each) for each in case.parts]
        found = [group(part, mask) for part, mask in enumerate(masks)]
        missing = max(each for _, each in found)
        least = min(least, missing)
        if missing <= case.missing + 1e-12:
            best = min(best, max(seconds for seconds, _ in found))
    return best, least


def small(cases: int) -> Iterator[dict[str, Any]]:
    """A row for each case: seconds of the slowest group, None where there is none."""
    for seed in range(cases):
        rng = random.Random(seed)
        parts = rng.choice([2, 3])
        case = random_groups(seed, boards=rng.randint(parts + 1, 9 - parts), parts=parts)
        best, least = every_grouping(case)
        row: dict[str, Any] = {"seed": seed, "boards": len(case.boards), "parts": parts, "best": best if best < math.inf else None}
        try:
            found = find_groups(case)
        except TooFew as few:
            yield row | {"holds": best == math.inf and math.isclose(few.least, least, rel_tol=1e-6), "least": few.least}
            continue
        assign = linear_assignment()
        first = [groups for groups in first_groups(case, assign) if holds(case, groups)]
        steps = {
            "assigned": min((case.slowest_seconds(groups) for groups in first), default=math.inf),
            "exchanged": min((case.slowest_seconds(improved(case, groups, assign)) for groups in first), default=math.inf),
            "not proven": case.slowest_seconds(find_groups(case, most_steps=0).needed),
            "planned": case.slowest_seconds(found.needed),
        }
        row |= {key: value / best - 1.0 if value < math.inf else None for key, value in steps.items()}
        before, after = (max(map(case.part_missing, groups)) for groups in (found.needed, found.groups))
        row |= {
            "spares": sum(map(len, found.groups)) - sum(map(len, found.needed)),
            "missing": before,
            "missing with spares": after,
        }
        yield row | {"holds": found.proven and abs(row["planned"]) < 1e-9}


def simulated() -> dict[str, dict[str, float]]:
    """{figure: what the plan said, what the simulator found}."""
    bundle = load_bundle(STUDENTS, verify=False)
    assert bundle.join is not None
    found = plan_groups(bundle, load_boards(DEVICES), missing=MISSING)
    ranks = {board: rank for rank, board in enumerate(found.plan.layout.hosted)}
    hosts = [board for board in ranks if board != found.plan.problem.boards.source]
    all_in = seconds = right = 0.0
    missing = [0.0] * len(found.groups)
    for seed, lives in enumerate(product((True, False), repeat=len(hosts))):
        chance = math.prod(1.0 - f if up else f for f, up in zip((found.case.failures[at] for at in hosts), lives, strict=True))
        dead = tuple(Death(ranks[board]) for board, up in zip(hosts, lives, strict=True) if not up)
        load: dict[str, Any] = {"count": SAMPLES, "rate_hz": 1.0, "arrivals": "constant", "warm_up": WARM_UP, "seed": seed}
        options = SimOptions(found.plan.topology, **load, faults=dead)
        log = run_sim(options)[1].columns()
        right += chance * float((log["label"] == log["truth"]).mean())
        for part in range(len(missing)):
            missing[part] += chance * float((log["missing"] >> part & 1).mean())
        if not log["missing"].any():
            all_in += chance
            seconds += chance * float(log["latency"].mean())
    planned = {
        "all parts in": found.case.all_in(found.groups),
        "a part missing at most": max(map(found.case.part_missing, found.groups)),
        "latency_ms": 1e3 * found.all_in_seconds,
        "accuracy": found.case.accuracy(found.groups, bundle.join.test),
        "results/s": found.plan.rate_hz,
    }
    measured = {
        "all parts in": all_in,
        "a part missing at most": max(missing),
        "latency_ms": 1e3 * seconds / all_in,
        "accuracy": right,
        "results/s": capacity(found.plan.topology, samples=BUSY_SAMPLES),
    }
    return {name: {"planned": planned[name], "simulated": measured[name]} for name in planned}


def large() -> Iterator[dict[str, Any]]:
    for boards, parts in LARGE:
        for seed in range(4):
            case = replace(random_groups(seed, boards=boards, parts=parts), missing=0.05)
            began = time.process_time()
            found = find_groups(case)
            seconds, worse = time.process_time() - began, case.slowest_seconds(found.needed) / found.bound - 1.0
            yield {"seed": seed, "boards": boards, "parts": parts, "proven": found.proven, "above bound": worse, "cpu_s": seconds}


def rocoin(cases: int) -> dict[str, Any]:
    rows = []
    for row in small(cases):
        rows.append(row)
        if not row["holds"]:
            print(f"seed {row['seed']}: {row}", flush=True)
    placed = [row for row in rows if "planned" in row]
    held = sum(row["holds"] for row in rows)
    print(f"rocoin {held} of {len(rows)} hold; {len(rows) - len(placed)} cannot be had, and the least that is missing is right")
    for step in ("assigned", "exchanged", "not proven", "planned"):
        gaps = sorted(row[step] for row in placed if row[step] is not None)
        best = sum(gap < 1e-9 for gap in gaps)
        mean, worst = 100 * sum(gaps) / len(gaps), 100 * gaps[-1]
        none = f", {len(placed) - len(gaps)} found none" if len(gaps) < len(placed) else ""
        print(f"  {step:<12} best in {best} of {len(placed)}, mean {mean:.2f} % above it, worst {worst:.1f} %{none}", flush=True)
    spare = sorted(row["missing"] / row["missing with spares"] for row in placed if row["spares"])
    print(f"  spare boards in {len(spare)}: a part is missing {spare[len(spare) // 2]:.1f} times less often at most (median)")
    live = simulated()
    for name, both in live.items():
        print(f"  {name}: planned {both['planned']:.4f}, simulated {both['simulated']:.4f}", flush=True)
    far = []
    for row in large():
        far.append(row)
        said = "proven" if row["proven"] else f"{100 * row['above bound']:.1f} % above the bound"
        print(f"  {row['boards']:>3} boards, {row['parts']} students: {said}, {row['cpu_s']:.1f} s of CPU", flush=True)
    return {"rocoin": {"small": rows, "simulated": live, "large": far}}
