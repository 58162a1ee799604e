"""Pages whose figures are not looked at need not draw them: each takes a tenth of a second."""

from __future__ import annotations

import pytest

from zpipe.bench.suites import plots

FIGURES = ("rate_at_accuracy", "accuracy_at_rate", "over_time", "exit_shares", "bytes_per_sample")


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FIGURES:
        assert hasattr(plots, name)
        monkeypatch.setattr(plots, name, lambda *data, **options: "<svg ></svg>")
