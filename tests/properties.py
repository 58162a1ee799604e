"""How many examples a property is tried on, by the Hypothesis profile in HYPOTHESIS_PROFILE.

ci       the same ones on every run: a failure in CI is a failure here
again    a fifth of these, for the other versions of Python: what no version changes was found on the first
explore  twenty times as many, and new ones
"""

from __future__ import annotations

import os
from fractions import Fraction

from hypothesis import HealthCheck, settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
TIMES = {"ci": Fraction(1), "again": Fraction(1, 5), "explore": Fraction(20)}[PROFILE]


def examples(count: int) -> settings:
    """For a test that wants another number than Hypothesis' 100 of them."""
    return settings(max_examples=int(count * TIMES))


# No deadline, and no complaint that examples are slow to make: both measure how busy the machine is.
settings.register_profile(
    PROFILE,
    examples(100),
    derandomize=PROFILE != "explore",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(PROFILE)
