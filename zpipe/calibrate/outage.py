"""Outage and missed deadlines: how often a promise is broken over a window of samples.

A *window* is so many samples in a row. It is in *outage* when the samples of it that left early are right less often than the
target; a window that nobody left early cannot be. It *misses its deadline* when it is in outage, or when its mean time is longer
than allowed. Both are shares of the windows into which shuffled samples are cut, over several shuffles.

Source: arXiv:2010.16335 and its journal version, our reading, with the windows as its authors' published experiments have them.
The confidence that lets a sample leave is there the target itself: who trusts the confidence needs no table.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from zpipe.calibrate.metrics import Bools, Doubles, Floats, Ints

#: Shuffles of the samples, and the seed of the first.
ROUNDS, SEED = 200, 0


@lru_cache(maxsize=1)
def windows(samples: int, size: int, *, rounds: int = ROUNDS, seed: int = SEED) -> Ints:
    """Indices `[windows, size]`: the samples shuffled `rounds` times and cut; what does not fill a window is left out.

    Fewer samples than a window are one window. A study asks for the same again and again: the last are kept, read-only.
    """
    rng = np.random.default_rng(seed)
    size = min(size, samples)
    whole = samples // size
    cut = np.concatenate([rng.permutation(samples)[: whole * size].reshape(whole, size) for _ in range(rounds)]).astype(np.int64)
    cut.flags.writeable = False
    return cut


def in_outage(right: Bools, early: Bools, target: float, cut: Ints) -> Bools:
    """Which windows `[windows]` are in outage.

    Args:
        right: whether each sample is answered rightly where it left, `[samples]`.
        early: whether it left before the last stage, `[samples]`.
        target: 0..1.
        cut: indices `[windows, size]`.
    """
    left = early[cut].sum(1)
    # Not a rounding error below: 0.7 * 10 is more than 7 in binary.
    return np.asarray((right & early)[cut].sum(1) < target * left - 1e-9)


def missed(outage: Bools, seconds: Floats | Doubles, limits: Sequence[float], cut: Ints) -> list[float]:
    """Share of windows that miss each deadline: too late in the mean, or in outage.

    Args:
        outage: `[windows]`, from `in_outage`.
        seconds: each sample's time, `[samples]`.
        limits: deadlines in seconds.
        cut: indices `[windows, size]`.
    """
    mean = seconds[cut].mean(1)
    return [float(((mean > limit) | outage).mean()) for limit in limits]
