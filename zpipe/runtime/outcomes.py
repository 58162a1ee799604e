"""How samples end, as the caller sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zpipe.bundle import parts_of
from zpipe.errors import SampleExpired, SampleFailed, SampleRejected
from zpipe.model import Outcome, Result
from zpipe.policy.messages import Resolve


def outcome_of(resolve: Resolve, classes: Sequence[str]) -> Outcome:
    """What the caller is told of a sample; `classes`: their names, by label."""
    result, row = None, resolve.row
    if row is not None:
        result = Result(
            sample=resolve.sample,
            label=row.label,
            class_name=classes[row.label],
            confidence=row.confidence,
            exit_stage=row.exit_stage,
            latency_seconds=resolve.latency_seconds,
            queued_seconds=row.queued_seconds,
            service_seconds=row.service_seconds,
            attempts=resolve.attempts,
            missing=parts_of(resolve.missing),
        )
    return Outcome(resolve.sample, resolve.kind, resolve.latency_seconds, resolve.attempts, result, resolve.cause)


def result_or_raise(outcome: Outcome) -> Result:
    """The result of an outcome.

    Raises:
        SampleRejected, SampleExpired, SampleFailed: it has none.
    """
    if outcome.result is not None:
        return outcome.result
    kinds: Mapping[str, type[SampleRejected | SampleExpired | SampleFailed]] = {
        "rejected": SampleRejected,
        "expired": SampleExpired,
        "failed": SampleFailed,
    }
    raise kinds[outcome.kind](f"sample {outcome.sample} {outcome.kind}: {outcome.cause}", sample=outcome.sample)
