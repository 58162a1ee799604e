"""What became of every sample of a run, by number."""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zpipe.model import Outcome

#: What an outcome may be late by before its sample counts as hung (design section 7).
HUNG_SECONDS = 0.1
KINDS = ("", "result", "rejected", "expired", "failed")
#: Different causes kept apart in a report; a cause that names a sample must not make it grow with the run.
MOST_CAUSES = 20


class RunLog:
    """What became of every sample of a run, by number. Columns of plain arrays: 80 bytes a sample, however long the run.

    Args:
        first: the number of the run's first sample; they follow each other from there.
        source: the rank where they enter.

    Attributes:
        causes: {why samples ended without a result: how many}; at most MOST_CAUSES, then "other causes".
        strangers: outcomes of numbers that were never offered.
    """

    def __init__(self, *, first: int = 0, source: int = 0) -> None:
        self.first = first
        self.source = source
        self._source, self._sample = array("i"), array("l")
        self._index, self._truth, self._kind = array("l"), array("l"), array("b")
        self._label, self._stage, self._attempts = array("l"), array("b"), array("l")
        self._confidence, self._latency, self._queued, self._deadline = array("d"), array("d"), array("d"), array("d")
        self._late, self._missing = array("b"), array("B")
        self._repeated: set[int] = set()  # both are empty in a run that keeps the promise, so a set costs nothing
        self._hung: set[int] = set()
        self.causes: Counter[str] = Counter()
        self.strangers = 0

    def __len__(self) -> int:
        return len(self._kind)

    @property
    def duplicate(self) -> int:
        """Samples whose outcome was seen more than once."""
        return len(self._repeated)

    @property
    def hung(self) -> int:
        """Samples seen open too long after their deadline."""
        return len(self._hung)

    def submitted(self, sample: int, index: int, truth: int, *, deadline: float) -> None:
        """A sample is about to be offered: `index` into the evaluation set, `truth` its label, `deadline` on the caller's clock."""
        assert sample == self.first + len(self), "samples of a run are numbered without gaps"
        self._source.append(self.source)
        self._sample.append(sample)
        self._index.append(index)
        self._truth.append(truth)
        self._deadline.append(deadline)
        for column in (self._kind, self._attempts, self._late, self._missing):
            column.append(0)
        for column in (self._label, self._stage):
            column.append(-1)
        for values in (self._confidence, self._latency, self._queued):
            values.append(math.nan)

    def outcome(self, outcome: Outcome, *, now: float) -> None:
        """A sample ended; `now` on the clock of the deadlines."""
        row = outcome.sample - self.first
        if not 0 <= row < len(self):
            self.strangers += 1
            return
        if self._kind[row]:
            self._repeated.add(row)
            return
        self._kind[row] = KINDS.index(outcome.kind)
        self._attempts[row] = outcome.attempts
        self._latency[row] = outcome.latency_seconds
        self._late[row] = now > self._deadline[row]
        if now > self._deadline[row] + HUNG_SECONDS:
            self._hung.add(row)
        if outcome.kind != "result":
            cause = f"{outcome.kind}: {outcome.cause or 'no cause given'}"
            self.causes[cause if cause in self.causes or len(self.causes) < MOST_CAUSES else "other causes"] += 1
        if outcome.result is not None:
            result = outcome.result
            self._label[row], self._stage[row] = result.label, result.exit_stage
            self._confidence[row] = result.confidence
            self._queued[row] = outcome.latency_seconds - result.service_seconds
            if result.missing:
                self._missing[row] = sum(1 << part for part in result.missing)

    def ended(self, *, now: float) -> None:
        """The run is over: what is open past its deadline now is hung."""
        for row, (kind, deadline) in enumerate(zip(self._kind, self._deadline, strict=True)):
            if not kind and now > deadline + HUNG_SECONDS:
                self._hung.add(row)

    @property
    def deadlines(self) -> Sequence[float]:
        """Of each sample, on the caller's clock."""
        return self._deadline

    @property
    def broken(self) -> dict[str, Counter[int]]:
        """{`duplicate` or `hung`: {source: samples}}."""
        return {
            name: Counter(self._source[row] for row in rows) for name, rows in (("duplicate", self._repeated), ("hung", self._hung))
        }

    def columns(self) -> dict[str, np.ndarray[Any, Any]]:
        """The log as arrays `[samples]`; `kind` indexes KINDS, bit p of `missing` stands for part p."""
        return {
            "source": np.array(self._source),
            "index": np.array(self._index),
            "truth": np.array(self._truth),
            "kind": np.array(self._kind),
            "late": np.array(self._late, dtype=np.bool_),
            "label": np.array(self._label),
            "stage": np.array(self._stage),
            "attempts": np.array(self._attempts),
            "confidence": np.array(self._confidence),
            "latency": np.array(self._latency),
            "queued": np.array(self._queued),
            "missing": np.array(self._missing),
        }

    def append(self, other: RunLog) -> None:
        """Takes over another source's samples, behind those that are here."""
        rows = len(self)
        for name, column in vars(other).items():
            if isinstance(column, array):
                getattr(self, name).extend(column)
        self._repeated |= {rows + row for row in other._repeated}
        self._hung |= {rows + row for row in other._hung}
        self.strangers += other.strangers
        for cause, times in other.causes.items():
            self.causes[cause if cause in self.causes or len(self.causes) < MOST_CAUSES else "other causes"] += times

    def save(self, file: Path) -> None:
        """Writes it down for another process; `load` reads it."""
        columns = {name: np.array(column) for name, column in vars(self).items() if isinstance(column, array)}
        rest = {
            "first": self.first,
            "source": self.source,
            "repeated": sorted(self._repeated),
            "hung": sorted(self._hung),
            "causes": dict(self.causes),
            "strangers": self.strangers,
        }
        np.savez(file, rest=np.array(json.dumps(rest)), **columns)  # type: ignore[arg-type]

    @classmethod
    def load(cls, file: Path) -> RunLog:
        """What `save` wrote."""
        with np.load(file, allow_pickle=False) as saved:
            rest = json.loads(str(saved["rest"]))
            log = cls(first=rest["first"], source=rest["source"])
            for name, column in vars(log).items():
                if isinstance(column, array):
                    column.frombytes(saved[name].tobytes())
        log._repeated, log._hung = set(rest["repeated"]), set(rest["hung"])
        log.causes, log.strangers = Counter(rest["causes"]), rest["strangers"]
        return log

    def samples_jsonl(self, path: Path) -> None:
        """One JSON line per sample: its id, its index in the evaluation set, how it ended, what was answered and what is true."""
        with path.open("w", encoding="utf-8") as file:
            for row in range(len(self)):
                answered = KINDS[self._kind[row]] == "result"
                line: dict[str, Any] = {
                    "source": self._source[row],
                    "id": self._sample[row],
                    "index": self._index[row],
                    "outcome": KINDS[self._kind[row]] or None,
                    "label": self._label[row] if answered else None,
                    "truth": self._truth[row],
                    "confidence": self._confidence[row] if answered else None,
                    "exit_stage": self._stage[row] if answered else None,
                    "latency_ms": 1e3 * self._latency[row] if self._kind[row] else None,
                    "attempts": self._attempts[row],
                }
                if self._missing[row]:
                    line["missing"] = [part for part in range(8) if self._missing[row] >> part & 1]
                file.write(json.dumps(line) + "\n")


def merged(logs: Sequence[RunLog]) -> RunLog:
    """The logs of several sources as one, for the report; nothing more is to be logged in it."""
    if len(logs) == 1:
        return logs[0]
    whole = RunLog()
    for log in logs:
        whole.append(log)
    return whole
