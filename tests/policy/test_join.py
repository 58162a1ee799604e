"""The joining classifier: float32 sums whatever the order, a confidence calibrated for just the parts that are in (F2)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpipe.policy.join import join, read_scores

scores = st.lists(st.floats(-1e4, 1e4, width=32), min_size=5, max_size=5)


@given(st.dictionaries(st.integers(0, 2), scores, min_size=1), scores, st.lists(st.floats(0.1, 10.0), min_size=8, max_size=8))
def test_it_is_the_softmax_of_float32_sums_at_the_temperature_of_the_parts_that_are_in(
    parts: dict[int, list[float]], bias: list[float], temperatures: list[float]
) -> None:
    label, confidence = join(parts, bias, temperatures)
    rising = [np.array(parts[part], np.float32) for part in sorted(parts)]
    logits = sum(rising[1:], rising[0]) + np.array(bias, np.float32)
    assert logits.dtype == np.float32
    scaled = logits.astype(np.float64) / temperatures[sum(1 << part for part in parts)]
    exponents = np.exp(scaled - scaled.max())
    assert label == int(logits.argmax())
    assert confidence == pytest.approx(exponents.max() / exponents.sum())
    assert join(dict(reversed(parts.items())), bias, temperatures) == (label, confidence)


@given(scores)
def test_scores_are_read_to_the_last_bit(values: list[float]) -> None:
    assert read_scores(np.asarray(values, "<f4").tobytes(), 5) == tuple(values)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_what_is_no_sane_number_is_no_score(bad: float) -> None:
    assert read_scores(np.asarray([1.0, bad, 0.0], "<f4").tobytes(), 3) is None
    assert read_scores(np.zeros(4, "<f4").tobytes(), 3) is None
