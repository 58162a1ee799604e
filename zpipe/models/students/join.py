"""What every set of parts knows: a temperature from calibration, accuracy there and on test; and the bundle's operating points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Evaluation, Join, parts_of
from zpipe.calibrate.metrics import answers_of, bootstrap, expected_calibration_error, fit_temperature
from zpipe.calibrate.points import NO_EXIT, choose_default, exit_of, threshold_vectors
from zpipe.model import NEVER_EXIT, PointMetrics

Json = dict[str, Any]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Chains = Sequence[range]


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """What all students said about a split.

    Attributes:
        scores: `[samples, stages, classes] float32`, of every exit.
        samples: the split.
    """

    scores: Floats
    samples: Evaluation


def fit_join(bias: Floats, chains: Chains, calibration: Said, test: Said) -> Join:
    """Temperatures from calibration, one per set of parts; both accuracies.

    Args:
        bias: of the joining classifier, `[classes]`.
        chains: the stages of each student.
        calibration, test: what they said.
    """
    parts, guess = len(chains), 1.0 / len(bias)
    ends = [chain[-1] for chain in chains]
    temperatures = [1.0]
    for mask in range(1, 2**parts):
        logits = sum(calibration.scores[:, ends[part]] for part in parts_of(mask)) + bias
        temperatures.append(fit_temperature(np.asarray(logits, np.float32), calibration.samples.labels))
    unmeasured = Join(tuple(bias.tolist()), tuple(temperatures), (guess,) * 2**parts, (guess,) * 2**parts)
    measured = [
        [guess, *(float(right_with(unmeasured, chains, said, mask).mean()) for mask in range(1, 2**parts))]
        for said in (calibration, test)
    ]
    return Join(unmeasured.bias, unmeasured.temperatures, *(tuple(values) for values in measured))


def right_with(join: Join, chains: Chains, said: Said, mask: int) -> Bools:
    """Whether each sample is answered rightly by this set of parts, without early exits, `[samples]`."""
    ends = [chains[part][-1] for part in parts_of(mask)]
    labels, _ = join.answers(said.scores[:, ends], parts_of(mask))
    return np.asarray(labels == said.samples.labels)


def join_row(join: Join) -> Json:
    """The manifest's `join`."""
    return {
        "bias": list(join.bias),
        "temperatures": list(join.temperatures),
        "accuracy": {"calibration": list(join.calibration), "test": list(join.test)},
    }


def set_rows(join: Join, chains: Chains, said: Said) -> list[Json]:
    """Of each set of parts: accuracy, what it loses against all of them (paired by sample), how far its confidences are off."""
    everything = right_with(join, chains, said, 2 ** len(chains) - 1)
    rows = []
    for mask in range(1, 2 ** len(chains)):
        ends = [chains[part][-1] for part in parts_of(mask)]
        labels, confidences = join.answers(said.scores[:, ends], parts_of(mask))
        right = np.asarray(labels == said.samples.labels)
        rows.append(
            {
                "parts": list(parts_of(mask)),
                "accuracy": asdict(bootstrap(right, said.samples.digit)),
                "lost": asdict(bootstrap(everything.astype(np.float64) - right, said.samples.digit)),
                "ece": expected_calibration_error(confidences, right),
            }
        )
    return rows


# ---- operating points --------------------------------------------------------------------------


def point_rows(
    join: Join,
    chains: Chains,
    calibration: Said,
    test: Said,
    *,
    temperatures: Sequence[float],
    stage_macs: Sequence[int],
    least: float,
) -> tuple[list[Json], str]:
    """The manifest's `operating_points`, all parts in, and the name of the default, chosen from calibration alone.

    Args:
        join: of the students.
        chains: the stages of each.
        calibration, test: what they said.
        temperatures: of every exit alone, by stage: its confidence decides whether a sample leaves there.
        stage_macs: multiply-adds of each stage.
        least: the default's threshold is no lower.
    """
    ends = {chain[-1] for chain in chains}
    vectors = threshold_vectors([stage not in ends for stage in range(len(stage_macs))])
    if len(ends) == len(stage_macs):
        vectors = {NO_EXIT: vectors[NO_EXIT]}
    columns = [
        {name: _measure(join, chains, said, vector, temperatures, stage_macs) for name, vector in vectors.items()}
        for said in (calibration, test)
    ]
    fitted = {name: metrics for name, (metrics, _) in columns[0].items()}
    # At a student's last stage nothing leaves early, which would make every vector's least value that of `never`.
    default = choose_default(fitted, {name: _early(vector, ends) for name, vector in vectors.items()}, least=least)
    rows = []
    for name, vector in vectors.items():
        row: Json = {"name": name, "thresholds": list(vector)}
        for key, said, column in zip(("calibration", "test"), (calibration, test), columns, strict=True):
            metrics, right = column[name]
            lost = column[NO_EXIT][1].astype(np.float64) - right
            row[key] = {**asdict(metrics), "accuracy_lost": asdict(bootstrap(lost, said.samples.digit))}
        rows.append(row)
    return rows, default


def _early(vector: Sequence[float], ends: set[int]) -> tuple[float, ...]:
    return tuple(limit for stage, limit in enumerate(vector) if stage not in ends) or (NEVER_EXIT,)


def _measure(
    join: Join, chains: Chains, said: Said, vector: Sequence[float], temperatures: Sequence[float], stage_macs: Sequence[int]
) -> tuple[PointMetrics, Bools]:
    confidences = answers_of(said.scores, temperatures, said.samples.labels).confidences
    count = len(said.scores)
    chosen, shares, macs = [], [], np.zeros(count)
    for chain in chains:
        stages = slice(chain[0], chain[-1] + 1)
        exits = exit_of(confidences[:, stages], vector[stages])
        chosen.append(np.take_along_axis(said.scores[:, stages], exits[:, None, None], 1)[:, 0])
        shares += (np.bincount(exits, minlength=len(chain)) / count).tolist()
        macs += np.cumsum(stage_macs[stages])[exits]
    labels, _ = join.answers(np.stack(chosen, 1), range(len(chains)))
    right = np.asarray(labels == said.samples.labels)
    return PointMetrics(float(right.mean()), tuple(shares), float(macs.mean())), right
