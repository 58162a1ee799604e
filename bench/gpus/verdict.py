"""The figures that are promised for a GPU, and whether they were found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.gpus.network import CLAIMED_BATCH

#: Gate and copy of the decisions: this share of the stage's engine time, or so many microseconds, whichever is larger.
GATE_SHARE, GATE_US = 0.05, 30.0
#: Of the un-split engine's throughput: with exits off at least, with half leaving at each exit above.
LEAST_OF_UNSPLIT, HALF_OF_UNSPLIT = 0.8, 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One claim about one backend.

    Attributes:
        claim: what.
        wanted, found: in the same words.
        holds: whether.
    """

    claim: str
    wanted: str
    found: str
    holds: bool


def verdicts(found: Mapping[str, Any], *, line_claimed: bool) -> Iterator[Verdict]:
    """The claims about one network on one backend.

    Args:
        found: what `measure` gave.
        line_claimed: whether the line's throughput is promised of this network, or only shown.
    """
    yield _gate(found["stages"])
    yield _bytes(found["crossings"])
    if line_claimed:
        yield from _line(found["line"])


def _gate(stages: Mapping[str, Any]) -> Verdict:
    """The stage that comes nearest to its bound, or exceeds it most."""
    rows = [
        (row["gate"]["median"], max(GATE_US, GATE_SHARE * row["engine"]["median"]), stage)
        for stage, sizes in stages.items()
        for row in sizes
        if row["batch"] == CLAIMED_BATCH and row["gate"] is not None
    ]
    gate, bound, stage = max(rows, key=lambda row: row[0] / row[1])
    wanted = f"<= {100 * GATE_SHARE:.0f} % of the stage or {GATE_US:.0f} us"
    return Verdict(
        f"gate + decision copy at batch {CLAIMED_BATCH}", wanted, f"{gate:.1f} us, bound {bound:.1f} (stage {stage})", gate <= bound
    )


def _bytes(crossings: list[Mapping[str, Any]]) -> Verdict:
    wrong = [row["stage"] for row in crossings if row["to_host"] != row["expected"]]
    crossed, without = (sum(row[key] for row in crossings) for key in ("to_host", "uncompacted"))
    found = f"{crossed:,} bytes, {without:,} without compaction"
    return Verdict(
        "bytes to the host = survivors x activation + 16 + 16 b",
        "every stage",
        f"{found}; other at stages {wrong}" if wrong else found,
        not wrong,
    )


def _line(rows: list[Mapping[str, Any]]) -> Iterator[Verdict]:
    for row in rows:
        if row["batch"] != CLAIMED_BATCH:
            continue
        for way in ("together", "apart"):
            off, half = row["of_unsplit"][way]["median"], row["of_unsplit"][f"{way}, half leave"]["median"]
            claim = f"line4 {way} against the un-split engine at batch {CLAIMED_BATCH}"
            yield Verdict(f"{claim}, exits off", f">= {LEAST_OF_UNSPLIT:.2f}", f"{off:.2f}", off >= LEAST_OF_UNSPLIT)
            yield Verdict(f"{claim}, half leave at each exit", f"> {HALF_OF_UNSPLIT:.2f}", f"{half:.2f}", half > HALF_OF_UNSPLIT)
