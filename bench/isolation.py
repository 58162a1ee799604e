"""What a source of a high class suffers from one of a low class, and the other way round, on emulated boards.

    python -m bench.isolation                            all of it in the simulator, 5 seeds, about 6 minutes
    python -m bench.isolation isolation --shapes line    a part of it
    python -m bench.isolation starvation --seeds 2
    python -m bench.isolation live                       real nodes and sockets, and the simulator beside them, about 8 minutes
    python -m bench.isolation live --shapes mesh         half of it; the rows of other shapes stay as they were recorded
    python -m bench.isolation chaos --seeds 3            real nodes, killed and cut off while both sources offer, about 8 minutes
    python -m bench.isolation isolation --offload fifo   by another policy; nothing is recorded

`isolation`: the low source offers 20 times its fair share (half of what the boards can do), or always has samples waiting; the
high one sends at 0.3 of what they can do. Its mean latency is held against

    1.1 x (latency alone + boards x residual + links x frame),

where `residual` is what is left on average of a low batch when somebody comes, E[S^2] / 2 E[S] of those that ran (no batch is
broken off, so a queue that always let high ones pass would still cost that), and `frame` the time a frame of low tasks takes on a
link, once for each link and board that a high sample has to share. With `max_batch_low` 1 it is also held against 1.7 x alone.
Sources are admitted as slots and credit let them (`fixed`), in one more setting as is the default (`aimd`).
`starvation`: the high source always has samples waiting; the low one's share of the time in which it waits at a board is held
against `min_share` at each board, and so is its share of what ran where links keep boards idle; every sample of either has to end
once. `live`: mean latency per source within 5 % of the simulator's. `chaos`: nothing lost, and the high class still the faster one
among what was open during a repair.

Shapes: a line of four boards, a stage on each, whose two sources are further nodes before it; a mesh of five boards with all
stages, two of which are the sources. `-slow`: links of 20 Mbit/s that carry 100 KB per sample and hop, else 1 Gbit/s and 16 KB.
Writes bench/results/isolation.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from bench import isolation_live
from bench.isolation_sim import HIGH, LOW, SHAPES, Case, simulate
from bench.made import commit
from bench.sim_live import interval
from zpipe.report import machine
from zpipe.topology import AdmissionSpec

RESULTS = Path(__file__).parent / "results" / "isolation.json"
PARTS = ("isolation", "starvation", "live", "chaos")

#: What issue 9 wants.
MOST_OVER_BOUND, MOST_OVER_ALONE = 1.1, 1.7
#: The high source's rate as a share of what the boards can do, the low one's as a multiple of half of it.
HIGH_SHARE, LOW_TIMES = 0.3, 20.0
BATCHES = (1, 4, 8)
#: What a topology's sources have that name no admission; the other settings let all in that slots and credit do.
DEFAULT_ADMISSION = AdmissionSpec().name
MIN_SHARES = (0.0, 0.05, 0.2)
#: Of `min_share`, of the time in which a low task waits at a board: while one is on its way to the next, none waits there.
NEARLY = 0.9
#: A board where a low task waits less of the time than this says nothing: it gets there what it asks for.
OFTEN = 0.1
#: Boards that are busy for less of the time wait for links.
BUSY = 0.9
#: Of arrivals, in virtual time.
SECONDS = 40.0
#: A low sample under the least share waits for those before it: 80 of them at a twentieth of the boards' time.
STARVATION_DEADLINE = 600.0


def policy(offload: str, **keys: Any) -> dict[str, Any]:
    """The topology's `policy:`; classes matter to `pa-mdi` alone."""
    return {"offload": offload, "offload_input": True, **keys}


def run_all(cases: Sequence[Case], note: str) -> list[dict[str, Any]]:
    """Figures of each, two at a time."""
    started, found = time.monotonic(), []
    with ProcessPoolExecutor(2) as pool:
        for number, figures in enumerate(pool.map(simulate, cases), 1):
            found.append(figures)
            if sys.stderr.isatty() or number == len(cases):
                end = "\n" if number == len(cases) else ""
                said = f"\r\033[K{note}: {number} of {len(cases)} runs, {time.monotonic() - started:.0f} s"
                print(said, end=end, file=sys.stderr, flush=True)
    return found


def capacities(shapes: Iterable[str], offload: str, batches: Iterable[int]) -> dict[tuple[str, int], float]:
    """{(shape, max_batch): samples a second of the low source alone, which always has some}."""
    keys = list(product(shapes, batches))
    cases = [Case(shape, {LOW: math.inf}, 60.0, policy(offload), batch, seed=99) for shape, batch in keys]
    return {key: found[str(LOW)]["hz"] for key, found in zip(keys, run_all(cases, "capacity"), strict=True)}


# ---- isolation -------------------------------------------------------------------------------------


def isolation(shapes: Sequence[str], offload: str, seeds: int) -> list[dict[str, Any]]:
    """A row for each shape, max_batch and low load."""
    known = capacities(shapes, offload, BATCHES)
    settings = [(batch, 0, "fixed") for batch in BATCHES]  # max_batch, max_batch_low (0: as the node's), admission
    if offload == "pa-mdi":
        settings += [(max(BATCHES), 1, "fixed"), (max(BATCHES), 0, DEFAULT_ADMISSION)]
    keys, cases = [], []
    for shape, (batch, low_batch, admission), seed in product(shapes, settings, range(seeds)):
        most_hz = known[shape, batch]
        keyed = policy(offload, **({"max_batch_low": low_batch} if low_batch else {}))
        for load, low_hz in (("alone", 0.0), ("20x", LOW_TIMES * most_hz / 2.0), ("always", math.inf)):
            rates = {HIGH: HIGH_SHARE * most_hz, **({LOW: low_hz} if low_hz else {})}
            keys.append((shape, batch, low_batch, admission, load))
            cases.append(Case(shape, rates, SECONDS, keyed, batch, seed, admission=admission))
    runs: dict[tuple[str, int, int, str, str], list[dict[str, Any]]] = {}
    for key, found in zip(keys, run_all(cases, "isolation"), strict=True):
        runs.setdefault(key, []).append(found)
    rows = []
    for key, both in runs.items():
        shape, batch, low_batch, admission, load = key
        if load != "alone":
            alone = runs[shape, batch, low_batch, admission, "alone"]
            rows.append({**isolation_row(shape, batch, low_batch, load, known[shape, batch], alone, both), "admission": admission})
    return rows


def isolation_row(
    shape: str, batch: int, low_batch: int, load: str, most_hz: float, alone: list[dict[str, Any]], both: list[dict[str, Any]]
) -> dict[str, Any]:
    high, low = [run[str(HIGH)] for run in both], [run[str(LOW)] for run in both]
    calm = [run[str(HIGH)] for run in alone]
    residuals = [here["boards"] * there["residual"] for here, there in zip(high, low, strict=True)]
    frames = [here["links"] * there["frame_rows"] * SHAPES[shape].frame_seconds for here, there in zip(high, low, strict=True)]
    bounds = [
        MOST_OVER_BOUND * (before["mean"] + residual + frame)
        for before, residual, frame in zip(calm, residuals, frames, strict=True)
    ]
    over_bound = interval([here["mean"] / bound for here, bound in zip(high, bounds, strict=True)])
    over_alone = interval([here["mean"] / before["mean"] for here, before in zip(high, calm, strict=True)])
    row: dict[str, Any] = {
        "shape": shape,
        "max_batch": batch,
        "max_batch_low": low_batch or batch,
        "low_load": load,
        "alone_ms": 1e3 * _mean(calm, "mean"),
        "residual_ms": 1e3 * sum(residuals) / len(residuals),
        "frames_ms": 1e3 * sum(frames) / len(frames),
        "bound_ms": 1e3 * sum(bounds) / len(bounds),
        "measured_ms": 1e3 * _mean(high, "mean"),
        "over_bound": over_bound,
        "over_alone": over_alone,
        "boards": _mean(high, "boards"),
        "links": _mean(high, "links"),
        "low_hz": _mean(low, "hz"),
        "low_share_of_rest": _mean(low, "hz") / (most_hz - _mean(high, "hz")),
        "low_batch_mean": _mean(low, "batch_mean"),
        "broken": sum(_broken(run) for run in both),
    }
    row["held"] = row["broken"] == 0 and over_bound[0] <= 1.0 and (row["max_batch_low"] > 1 or over_alone[0] <= MOST_OVER_ALONE)
    return row


def show_isolation(rows: Sequence[dict[str, Any]]) -> None:
    print(
        f"{'shape':<10}{'batch':>6}{'low':>4} {'admission':<10}{'low load':<9}"
        f"{'alone':>7} +{'residual':>9} +{'frames':>7} x1.1 ={'bound':>7}"
        f"{'measured':>9}  of bound      over alone     low/s  of the rest"
    )
    for row in rows:
        most = f"<= {MOST_OVER_ALONE:g}" if row["max_batch_low"] == 1 else ""
        print(
            f"{row['shape']:<10}{row['max_batch']:>6}{row['max_batch_low']:>4} {row['admission']:<10}{row['low_load']:<9}"
            f"{row['alone_ms']:>7.0f} +"
            f"{row['residual_ms']:>9.0f} +{row['frames_ms']:>7.0f} x1.1 ={row['bound_ms']:>7.0f}{row['measured_ms']:>9.0f}"
            f"  {_plus_minus(row['over_bound'])}  {_plus_minus(row['over_alone'])} {most:<6}{row['low_hz']:>6.1f}"
            f"{row['low_share_of_rest']:>8.0%}  {_verdict(row)}",
            flush=True,
        )
    for shape in dict.fromkeys(row["shape"] for row in rows):
        mine = [row for row in rows if row["shape"] == shape]
        parts = ", ".join(f"{key} {_mean(mine, f'{key}_ms'):.0f}" for key in ("alone", "residual", "frames", "bound", "measured"))
        print(f"mean over settings, {shape}: {parts} ms")


# ---- starvation ------------------------------------------------------------------------------------


def starvation(shapes: Sequence[str], offload: str, seeds: int) -> list[dict[str, Any]]:
    """A row for each shape and least share."""
    keys, cases = [], []
    for shape, share, seed in product(shapes, MIN_SHARES, range(seeds)):
        keys.append((shape, share))
        keyed = policy(offload, min_share=share)
        cases.append(Case(shape, {HIGH: math.inf, LOW: math.inf}, SECONDS, keyed, max(BATCHES), seed, STARVATION_DEADLINE))
    runs: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for key, found in zip(keys, run_all(cases, "starvation"), strict=True):
        runs.setdefault(key, []).append(found)
    return [_starvation_row(shape, share, found) for (shape, share), found in runs.items()]


def _starvation_row(shape: str, share: float, runs: list[dict[str, Any]]) -> dict[str, Any]:
    high, low = [run[str(HIGH)] for run in runs], [run[str(LOW)] for run in runs]
    busy = _mean(high, "share") + _mean(low, "share")
    boards = [
        sum(run["share_by_board"][board] for run in low) / waited
        for board in range(len(low[0]["share_by_board"]))
        if (waited := sum(run["waited_by_board"][board] for run in low)) >= OFTEN * len(low)
    ]
    row = {
        "shape": shape,
        "min_share": share,
        "low_share": _mean(low, "share"),
        "low_share_while_waiting": sum(run["share"] for run in low) / max(1e-9, sum(run["waited"] for run in low)),
        "low_share_at_worst_board": min(boards, default=math.nan),
        "low_share_of_busy": _mean(low, "share") / busy,
        "busy": busy,
        "high_hz": _mean(high, "hz"),
        "low_hz": _mean(low, "hz"),
        "low_ms": 1e3 * _mean(low, "mean"),
        "low_max_ms": 1e3 * max(run["max"] for run in low),
        "low_kinds": {kind: sum(run["kinds"].get(kind, 0) for run in low) for kind in ("result", "expired", "rejected", "failed")},
        "broken": sum(_broken(run) for run in runs),
    }
    unanswered = row["low_kinds"]["expired"] + row["low_kinds"]["failed"]
    got = min([*boards, row["low_share_of_busy"]] if busy < BUSY or not boards else boards)
    row["held"] = row["broken"] == 0 and (share == 0.0 or (not unanswered and got >= NEARLY * share))
    return row


def show_starvation(rows: Sequence[dict[str, Any]]) -> None:
    print(
        f"{'shape':<10}{'min_share':>10}{'low share':>10}{'of what ran':>12}{'of waiting':>12}{'worst board':>12}{'high/s':>8}"
        f"{'low/s':>7}{'low mean s':>11}{'most s':>8}  low samples"
    )
    for row in rows:
        kinds = ", ".join(f"{count} {kind}" for kind, count in row["low_kinds"].items() if count)
        print(
            f"{row['shape']:<10}{row['min_share']:>10.2f}{row['low_share']:>10.3f}{row['low_share_of_busy']:>12.3f}"
            f"{row['low_share_while_waiting']:>12.3f}{row['low_share_at_worst_board']:>12.3f}{row['high_hz']:>8.1f}"
            f"{row['low_hz']:>7.2f}{row['low_ms'] / 1e3:>11.2f}{row['low_max_ms'] / 1e3:>8.2f}  {kinds}  {_verdict(row)}",
            flush=True,
        )


# ---- what both use ---------------------------------------------------------------------------------


def _mean(runs: Sequence[dict[str, Any]], key: str) -> float:
    return sum(float(run[key]) for run in runs) / len(runs)


def _broken(run: dict[str, Any]) -> int:
    """Samples without an outcome, or with two."""
    return sum(int(each["kinds"]["lost"] + each["kinds"]["duplicate"]) for each in run.values())


def _plus_minus(found: Sequence[float]) -> str:
    mean, half = found
    return f"{mean:5.2f}" + ("       " if math.isnan(half) else f" ±{half:4.2f} ")


def _verdict(row: dict[str, Any]) -> str:
    return f"LOST OR TWICE: {row['broken']}" if row["broken"] else "held" if row["held"] else "FALLS SHORT"


def _keep(part: str, rows: Sequence[dict[str, Any]], **about: Any) -> None:
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"schema": "zpipe.isolation/1"}
    made = {"commit": commit(), "machine": machine(), "command": "python -m bench.isolation " + " ".join(sys.argv[1:])}
    if part == "live":  # each shape takes minutes, so it may be measured alone
        mine = {row["shape"] for row in rows}
        known = [row for row in results.get(part, {"rows": []})["rows"] if row["shape"] not in mine]
        rows = sorted([*known, *({**row, "made": {**made, **about}} for row in rows)], key=lambda row: str(row["shape"]))
    results[part] = {**made, **about, "rows": rows}
    RESULTS.write_text(json.dumps(results, indent=1).replace("NaN", "null") + "\n", encoding="utf-8")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.isolation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; the first two if none")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--offload", default="pa-mdi", help="strategy; figures of another than pa-mdi are not recorded")
    options = parser.parse_args()
    options.parts = options.parts or list(PARTS[:2])
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"found {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    if options.seeds < 1:
        parser.error(f"--seeds: found {options.seeds}, expected at least 1")
    return options


def main() -> None:
    options = _parse()
    held = True
    for part in options.parts:
        if part == "isolation":
            rows = isolation(options.shapes, options.offload, options.seeds)
            show_isolation(rows)
        elif part == "live":
            rows = isolation_live.compare([shape for shape in options.shapes if shape in isolation_live.SHAPES], options.seeds)
        elif part == "chaos":
            rows = isolation_live.chaos(options.seeds)
        else:
            rows = starvation(options.shapes, options.offload, options.seeds)
            show_starvation(rows)
        if options.offload == "pa-mdi":
            _keep(part, rows, seeds=options.seeds)
        held = held and all(row["held"] for row in rows)
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
