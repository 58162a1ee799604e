"""What the calibration data cannot say: too few originals, classes without a sample, temperatures that nothing determines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from zpipe.calibrate.metrics import TEMPERATURE_RANGE, Floats, Ints, wilson_interval
from zpipe.errors import ConfigError

#: Originals that a bundle's table and temperatures need at least. So many, all answered rightly, prove 88.6 %; of fewer
#: a single one moves a temperature by a tenth and more.
LEAST_ORIGINALS = 30

#: Classes that a warning names.
_NAMED = 5


def require_originals(digit: Ints) -> None:
    """Before anything is computed that would be written.

    Raises:
        ConfigError: fewer than LEAST_ORIGINALS.
    """
    found = len(np.unique(digit))
    if found < LEAST_ORIGINALS:
        proved = 100 * wilson_interval(1.0, max(1, found))[0]
        raise ConfigError(
            f"--write: found {found} original image{'s' * (found != 1)} to calibrate with, expected at least {LEAST_ORIGINALS}: "
            f"all of them right would prove only {proved:.0f} %; give more (half tests where there is no test set)"
        )


def doubts(
    logits: Floats,
    labels: Ints,
    digit: Ints,
    *,
    classes: Sequence[str],
    stages: Sequence[int],
    temperatures: Sequence[float],
) -> list[str]:
    """Lines for people; none where all is well.

    Args:
        logits: of the calibration split, `[samples, exits, classes]`.
        labels: what is true, `[samples]`.
        digit: which original a sample shows, `[samples]`.
        classes: by label.
        stages: of each exit.
        temperatures: fitted, one per exit.
    """
    return [*_few(digit), *_absent(labels, classes), *_unfitted(logits, labels, stages, temperatures)]


def _few(digit: Ints) -> Iterator[str]:
    found = len(np.unique(digit))
    if found < LEAST_ORIGINALS:
        yield f"only {found} original image{'s' * (found != 1)} to calibrate with: --write takes no fewer than {LEAST_ORIGINALS}"


def _absent(labels: Ints, classes: Sequence[str]) -> Iterator[str]:
    absent = np.setdiff1d(np.arange(len(classes)), labels)
    if len(absent):
        names = ", ".join(classes[label] for label in absent[:_NAMED])
        more = f" and {len(absent) - _NAMED:,} more" if len(absent) > _NAMED else ""
        yield f"no calibration sample of {len(absent):,} of {len(classes):,} classes: {names}{more}; nothing is promised for them"


def _unfitted(logits: Floats, labels: Ints, stages: Sequence[int], temperatures: Sequence[float]) -> Iterator[str]:
    least, most = TEMPERATURE_RANGE
    always = [stage for column, stage in enumerate(stages) if bool((logits[:, column].argmax(-1) == labels).all())]
    if always:
        names = f"exit{'s' * (len(always) > 1)} {', '.join(map(str, always))}"
        yield f"{names}: right on all {len(labels):,} calibration samples, so no temperature can be fitted; give harder ones"
    for stage, temperature in zip(stages, temperatures, strict=True):
        if not 1.01 * least < temperature < 0.99 * most:
            yield f"exit {stage}: its temperature ran to {temperature:.3g}, the end of the range; the labels or the head are wrong"
