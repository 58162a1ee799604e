"""Device profiles: their arithmetic, their names, and that each says where it comes from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from zpipe.bundle import load_bundle
from zpipe.devices import device_names, load_device, service_seconds
from zpipe.errors import ConfigError

STAGES = load_bundle(Path(__file__).parents[1] / "engines" / "digits-mobilenetv2").stages


@pytest.mark.parametrize("name", device_names())
def test_every_profile_is_possible_and_names_its_source(name: str) -> None:
    device = load_device(name)
    assert "/" not in name
    assert 0.0 < device.macs_per_second < math.inf
    assert 0.0 <= device.fixed_seconds < 1.0
    assert " ms" in device.source


def test_reference_takes_the_time_it_was_measured_at() -> None:
    total = sum(service_seconds(load_device("reference"), stage, 1) for stage in STAGES)
    assert total == pytest.approx(0.00206, rel=0.01)


@pytest.mark.parametrize(
    ("name", "milliseconds"), [("raspberry-pi-3", 158.80), ("raspberry-pi-4", 93.48), ("raspberry-pi-5", 16.38)]
)
def test_a_cpu_profile_reproduces_the_benchmark_it_cites(name: str, milliseconds: float) -> None:
    assert 0.300e9 / load_device(name).macs_per_second == pytest.approx(milliseconds / 1e3, rel=0.005)
    assert f"{milliseconds:.2f} ms" in load_device(name).source


@pytest.mark.parametrize(("name", "small", "large"), [("jetson-nano", 12.99, 93.12), ("jetson-orin-nano", 3.83, 9.41)])
def test_a_gpu_profile_lies_on_the_line_through_both_benchmarks_it_cites(name: str, small: float, large: float) -> None:
    device = load_device(name)
    for macs, milliseconds in ((0.300e9, small), (3.8e9, large)):
        assert 5 * device.fixed_seconds + macs / device.macs_per_second == pytest.approx(milliseconds / 1e3, rel=0.01)
        assert f"{milliseconds} ms" in device.source


def test_batching_buys_nothing_on_a_cpu_and_something_on_a_gpu() -> None:
    cpu, gpu = load_device("raspberry-pi-4"), load_device("jetson-nano")
    assert service_seconds(cpu, STAGES[0], 8) == pytest.approx(8 * service_seconds(cpu, STAGES[0], 1))
    assert service_seconds(gpu, STAGES[0], 8) < 4 * service_seconds(gpu, STAGES[0], 1)


@pytest.mark.parametrize("name", ["raspberry-pi-3", "jetson-nano"])
@pytest.mark.parametrize("batch", [1, 8])
def test_a_divisor_makes_all_of_it_slower(name: str, batch: int) -> None:
    slower = load_device(f"{name}/4")
    assert slower.name == f"{name}/4"
    assert service_seconds(slower, STAGES[1], batch) == pytest.approx(4 * service_seconds(load_device(name), STAGES[1], batch))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("rasberry-pi-4", "did you mean raspberry-pi-4?"),
        ("rasberry-pi-4/4", "did you mean raspberry-pi-4?"),
        ("", "expected one of reference, "),
        ("reference/", "expected a number from 0.001 to 1000 after the slash"),
        ("reference/0", "expected a number from 0.001 to 1000 after the slash"),
        ("reference/-2", "expected a number from 0.001 to 1000 after the slash"),
        ("reference/1e300", "expected a number from 0.001 to 1000 after the slash"),
        ("reference/inf", "expected a number from 0.001 to 1000 after the slash"),
        ("reference/slow", "expected a number from 0.001 to 1000 after the slash"),
        ("reference/4/4", "expected a number from 0.001 to 1000 after the slash"),
    ],
)
def test_a_name_that_is_not_there_is_refused_in_one_line(name: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as info:
        load_device(name)
    assert f"found {name!r}" in str(info.value)
    assert complaint in str(info.value)
    assert "\n" not in str(info.value)
