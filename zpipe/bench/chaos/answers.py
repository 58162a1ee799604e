"""Which answer each sample ought to get: the bundle's recording, walked with the thresholds in use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Bundle
from zpipe.executors.gate import recorded_decision
from zpipe.model import GateSpec
from zpipe.policy.exits import ExitLadder


@dataclass(frozen=True, slots=True)
class Answers:
    """Attributes: labels, stages: `[evaluation samples]`, the label each gets and the exit where it gets it."""

    labels: npt.NDArray[np.int64]
    stages: npt.NDArray[np.int64]


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
    count = len(replay.labels)
    labels, stages = np.full(count, -1), np.full(count, -1)
    for spec, threshold in zip(bundle.stages, thresholds, strict=True):
        if spec.exit_head is None:
            continue
        last = spec.index == len(bundle.stages) - 1
        gate = GateSpec("max-probability", spec.exit_head.temperature, (threshold,) * count, last)
        decision = recorded_decision(replay.labels[:, spec.index], replay.confidences[:, spec.index], gate)
        leaves = np.array(decision.exited) & (stages < 0)
        labels[leaves], stages[leaves] = replay.labels[leaves, spec.index], spec.index
    return Answers(labels, stages)
