"""Which answer each sample ought to get: the bundle's recording, walked with the thresholds in use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Bundle, Replay, parts_of
from zpipe.executors.gate import recorded_decision
from zpipe.model import GateSpec
from zpipe.policy.exits import ExitLadder


@dataclass(frozen=True, slots=True)
class Answers:
    """What each evaluation sample gets.

    Attributes:
        labels, stages: `[samples]`, the label and the exit where it is given; of students no exit gives it (-1).
        joined: `[sets of parts, samples]`, of students the label by which parts were missing, as bits; None of one chain.
    """

    labels: npt.NDArray[np.int64]
    stages: npt.NDArray[np.int64]
    joined: npt.NDArray[np.int64] | None = None


def right_answers(bundle: Bundle, ladder: ExitLadder, *, admission: str, codec: str) -> Answers | None:
    """What a run without faults answers, wherever its samples go; None where its thresholds move, so that nobody can say.

    Args:
        bundle: with a replay.
        ladder: of the source; its default point is used.
        admission: the source's strategy.
        codec: whose table of the replay is used.

    Raises:
        BundleError: it has no replay for the codec.
    """
    if admission == "mdi-threshold" and len(ladder) > 1:
        return None
    replay, thresholds = bundle.replay(codec), ladder.thresholds[ladder.default]
    exits = [_exits(bundle, replay, chain, thresholds) for chain in bundle.chains]
    samples = np.arange(len(replay.labels))
    if bundle.join is None or replay.scores is None:
        (stages,) = exits
        return Answers(replay.labels[samples, stages].astype(np.int64), stages)
    scores = np.stack([replay.scores[samples, stages] for stages in exits], axis=1)
    joined = np.full((2**bundle.join.parts, len(samples)), -1)
    for missing in range(len(joined) - 1):  # one part is always in
        present = parts_of(len(joined) - 1 - missing)
        joined[missing], _ = bundle.join.answers(scores[:, present], present)
    return Answers(joined[0], np.full(len(samples), -1), joined)


def _exits(bundle: Bundle, replay: Replay, chain: range, thresholds: tuple[float, ...]) -> npt.NDArray[np.int64]:
    """`[samples]`, the stage of this chain at which each leaves it."""
    count = len(replay.labels)
    found = np.full(count, -1)
    for stage in chain:
        head = bundle.stages[stage].exit_head
        if head is None:
            continue
        gate = GateSpec("max-probability", head.temperature, (thresholds[stage],) * count, stage == chain[-1])
        decision = recorded_decision(replay.labels[:, stage], replay.confidences[:, stage], gate)
        found[np.array(decision.exited) & (found < 0)] = stage
    return found
