"""This machine as the doctor sees it."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from zpipe.doctor import machine as doctor


def test_loopback_that_fails_gives_its_reason() -> None:
    def broken() -> str:
        raise TimeoutError

    finding = doctor.zeromq(broken)
    assert (finding.status, finding.found, finding.required) == ("broken", "TimeoutError", True)


@pytest.mark.parametrize(
    ("governor", "driver", "status"),
    [
        ("powersave", "acpi-cpufreq", "warning"),
        ("powersave", "intel_pstate", "ok"),
        ("schedutil", "cppc_cpufreq", "ok"),
        ("performance", "acpi-cpufreq", "ok"),
    ],
)
def test_governor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, governor: str, driver: str, status: str) -> None:
    (tmp_path / "scaling_governor").write_text(f"{governor}\n")
    (tmp_path / "scaling_driver").write_text(f"{driver}\n")
    monkeypatch.setattr(doctor, "GOVERNOR", tmp_path / "scaling_governor")
    (finding,) = doctor.governor()
    assert finding.status == status


def test_governor_that_cannot_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "GOVERNOR", tmp_path / "scaling_governor")
    assert doctor.governor() == []


def test_coarse_clock_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_clock_steps", lambda count: iter([0.004] * count))
    assert doctor.clock().status == "warning"


@pytest.mark.parametrize(
    ("limit", "status", "found"),
    [
        ((1024, 1024), "warning", "1024 for a process, expected 4096"),
        ((1024, 524_288), "ok", "1024 for a process, which a node raises to 65536"),
        ((20_000, 20_000), "ok", "20000 for a process"),
    ],
)
def test_descriptors(monkeypatch: pytest.MonkeyPatch, limit: tuple[int, int], status: str, found: str) -> None:
    monkeypatch.setattr(doctor, "limits", lambda: limit)
    (finding,) = doctor.descriptors()
    assert finding.status == status
    assert finding.found.startswith(found)


def test_descriptors_without_a_limit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpipe.descriptors.resource", None)
    assert doctor.descriptors() == []


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: types.SimpleNamespace(available=2e8, total=1e9))
    finding = doctor.memory()
    assert finding.status == "warning"
    assert finding.found.startswith("0.2 of 1.0 GB free, expected 500 MB")
