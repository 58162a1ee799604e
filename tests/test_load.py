"""What is offered, and when."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import pytest

from zpipe.errors import ConfigError
from zpipe.load import Order, Span, arrival_times, constant, poisson, read_trace


def test_the_same_seed_gives_the_same_order_and_the_same_arrivals() -> None:
    first, second = Order(7, seed=5), Order(7, seed=5)
    assert [first.next() for _ in range(50)] == [second.next() for _ in range(50)]
    assert list(islice(poisson(100.0, seed=5), 50)) == list(islice(poisson(100.0, seed=5), 50))
    assert list(islice(poisson(100.0, seed=5), 50)) != list(islice(poisson(100.0, seed=6), 50))


def test_order_visits_every_sample_before_any_again() -> None:
    order = Order(7, seed=0)
    assert sorted(order.next() for _ in range(7)) == list(range(7))


def test_poisson_arrivals_have_the_rate_and_the_spread_they_should() -> None:
    times = list(islice(poisson(200.0, seed=1), 20_000))
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(1 / 200.0, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.03)


def test_constant_arrivals_do_not_drift() -> None:
    assert list(islice(constant(3.0), 4)) == [0.0, 1 / 3.0, 2 / 3.0, 1.0]
    assert next(islice(constant(3.0), 3_000_000, None)) == 1_000_000.0


def test_a_span_ends_by_samples_or_by_seconds() -> None:
    assert list(Span(samples=2).of(constant(10.0))) == [0.0, 0.1]
    assert list(Span(seconds=0.25).of(constant(10.0))) == [0.0, 0.1, 0.2]
    assert list(Span(samples=2, seconds=0.05).of(constant(10.0))) == [0.0]
    assert list(Span().of([1.0, 2.0])) == [1.0, 2.0]


def test_a_trace_is_read_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    file.write_text("# seconds\n0.5\n\n0.5\n 1e0 \n")
    assert list(read_trace(file)) == [0.5, 0.5, 1.0]
    assert list(arrival_times(str(file), None, seed=0) or ()) == [0.5, 0.5, 1.0]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0.1\nsoon\n", r"trace\.txt:2: found 'soon', expected a number of seconds from 0\.1 "),
        ("0.1\n1e300\n", r"trace\.txt:2: found '1e300', expected a number of seconds from 0\.1 .* to 1e\+06"),
        ("0.1\n0.05\n", r"trace\.txt:2: found '0\.05', expected a number of seconds from 0\.1 "),
        ("-1\n", r"trace\.txt:1: found '-1'"),
        ("inf\n", r"trace\.txt:1: found 'inf'"),
        ("nan\n", r"trace\.txt:1: found 'nan'"),
        ("# nothing\n", r"trace\.txt: found no arrival times"),
    ],
)
def test_a_trace_that_is_none_names_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "trace.txt"
    file.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_trace(file)


def test_a_rate_beside_a_file_and_constant_without_a_rate_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="constant without a rate"):
        arrival_times("constant", None, seed=0)
    with pytest.raises(ConfigError, match="and --rate 5"):
        arrival_times(str(tmp_path / "trace.txt"), 5.0, seed=0)
    with pytest.raises(ConfigError, match="cannot be read"):
        arrival_times(str(tmp_path / "trace.txt"), None, seed=0)


def test_without_rate_or_file_the_loop_is_closed() -> None:
    assert arrival_times("poisson", None, seed=0) is None
    assert arrival_times("poisson", math.inf, seed=0) is None
