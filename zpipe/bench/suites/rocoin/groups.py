"""The whole evaluation set, once with all boards, once with a board of every group gone, once with each whole group gone.

A part that is missing changes answers, a replica that is missing must not: so answers are compared sample by sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.bench.suites.rocoin import plans
from zpipe.bench.suites.rocoin.plans import Plan
from zpipe.bench.suites.rocoin.settings import DEAD, DYING, REDUNDANCIES, Bundles, Scale, system_named
from zpipe.bench.suites.rocoin.sweep import Row, options, outcomes_of
from zpipe.bench.suites.statistics import Interval, interval
from zpipe.bench.suites.work import Progress, run_all
from zpipe.report import RunLog
from zpipe.sim import Death, SimOptions, run_sim

#: What is gone: no board, one of every group, or a whole group.
SOUND, ONE_OF_EACH, GROUP = "none", "one of every group", "group"
#: Of the run's time, when they die that are not dead from the start.
DYING_AT = 0.5


def lost_boards(gone: str, *, boards: int, parts: int) -> tuple[int, ...]:
    """Ranks; `gone` is one of the words above, a group followed by its part."""
    if gone == SOUND:
        return ()
    if gone == ONE_OF_EACH:
        return tuple(range(1, parts + 1))
    return plans.group_of(int(gone.split()[1]), boards=boards, parts=parts)


def _plan(gone: str, when: str, boards: int, parts: int, seconds: float) -> Plan:
    ranks = lost_boards(gone, boards=boards, parts=parts)
    return tuple(Death(rank, DYING_AT * seconds) if when == DYING else Death(rank) for rank in ranks)


async def group_rows(bundles: Bundles, scale: Scale, *, progress: Progress) -> list[Row]:
    """A row for each redundancy, what is gone, and when: accuracy, and what it is less than with all boards."""
    parts, boards = bundles.parts, bundles.parts * scale.replicas
    names = [
        (SOUND, DEAD),
        *((gone, when) for gone in (ONE_OF_EACH, *(f"{GROUP} {part}" for part in range(parts))) for when in (DEAD, DYING)),
    ]
    wanted: dict[Any, SimOptions] = {
        (redundancy, gone, when): options(
            system_named(f"rocoin-{redundancy}"),
            bundles,
            boards=boards,
            plan=partial(_plan, gone, when, boards, parts),
            seed=scale.seeds[0],
            samples=bundles.students.evaluation_samples,
        )
        for redundancy in REDUNDANCIES
        for gone, when in names
    }
    found = await run_all(wanted, answers, progress=progress)
    digits = bundles.students.evaluation().digit
    return [
        _row(found[redundancy, gone, when], found[redundancy, SOUND, DEAD], digits)
        | {"redundancy": redundancy, "gone": gone, "when": when, "boards": boards}
        for redundancy, gone, when in wanted
    ]


def answers(given: SimOptions) -> Row:
    """In a process of the pool: the run's outcomes, and its answer to every sample of the evaluation set."""
    report, log = run_sim(given)
    return outcomes_of(report, log) | answers_of(log)


def answers_of(log: RunLog) -> Row:
    """{`labels`, `hits`: by index into the evaluation set; -1 where there is no answer, and whether it was right}."""
    columns = log.columns()
    order = np.argsort(columns["index"], kind="stable")
    labels = columns["label"][order]
    return {"labels": labels.tolist(), "hits": (labels == columns["truth"][order]).tolist()}


def _row(run: Row, sound: Row, digits: npt.NDArray[np.int64]) -> Row:
    return {
        "submitted": run["submitted"],
        "answered": run["answered"],
        "accuracy": run["right"] / run["submitted"],
        "drop": drop(sound["hits"], run["hits"], digits),
        "other_answers": int((np.array(sound["labels"]) != np.array(run["labels"])).sum()),
        "latency_ms": float(np.mean(run["latencies_ms"])) if run["answered"] else None,
        "latency_p99_ms": float(np.quantile(run["latencies_ms"], 0.99)) if run["answered"] else None,
        "broken": run["broken"],
    }


def drop(before: Sequence[bool], after: Sequence[bool], digits: npt.NDArray[np.int64]) -> Interval:
    """By how much accuracy is less, with half of its 95 % interval over the digits that were drawn.

    Images of one digit in several severities are no independent samples, and are taken together.
    """
    less = np.array(before, float) - np.array(after, float)
    images = np.bincount(np.unique(digits, return_inverse=True)[1])
    sums = np.bincount(np.unique(digits, return_inverse=True)[1], weights=less)
    mean, half = interval((sums / images.mean()).tolist())
    return [mean, half]
