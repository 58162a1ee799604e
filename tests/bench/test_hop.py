"""What a hop takes, told from traces: lateness against the device's schedule, and what a byte costs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.executors.tiny import gate
from zpipe.bench.hop import DEVICE, QUANTILES, Measured, per_byte, quantiles
from zpipe.bundle import load_bundle
from zpipe.devices import load_device, service_seconds
from zpipe.model import SampleKey, Task
from zpipe.policy.messages import Event, RunStage, StageCompleted

BUNDLE = load_bundle("digits-mobilenetv2", verify=False)
SERVICE = service_seconds(load_device(DEVICE), BUNDLE.stages[0], 1)


def _run(number: int) -> RunStage:
    return RunStage(number, 0, (Task(SampleKey(0, 1, number), 1, 0, ()),), gate(1))


def _rounds(*lates: float, idle: float) -> list[Any]:
    """Batches one after the other, each told so late; the last one comes when the device has been idle for a while."""
    rounds: list[Any] = [(10.0, [], [_run(0)])]
    for number, late in enumerate(lates, 1):
        ended: list[Event] = [StageCompleted(number - 1, [True], [0], [1.0], SERVICE)]
        more = number < len(lates)
        rounds.append((10.0 + number * SERVICE + late, ended, [_run(number)] if more else []))
    last = rounds[-1][0] + idle
    return [*rounds, (last, [], [_run(99)]), (last + SERVICE + 0.001, [StageCompleted(99, [True], [0], [1.0], SERVICE)], [])]


def test_a_busy_devices_lateness_does_not_add_up_and_an_idle_ones_is_told_apart() -> None:
    measured = Measured()
    measured._device(_rounds(0.0004, 0.006, 0.003, idle=0.5), 10.0, BUNDLE)
    assert measured.busy == pytest.approx([0.006, 0.003])
    assert measured.idle == pytest.approx([0.0004, 0.001])


def test_what_a_byte_costs_is_told_from_sizes_with_enough_frames() -> None:
    frames = [(size, 0.001 + 2e-9 * size) for size in (1000, 100_000) for _ in range(30)]
    assert per_byte(frames) == pytest.approx(2e-9)
    assert per_byte([*frames, (500_000, 1.0)]) == pytest.approx(2e-9)
    assert per_byte(frames[:30]) == 0.0


def test_one_stall_in_a_thousand_is_no_property_of_a_hop() -> None:
    found = quantiles([0.001] * 999 + [1.0])
    assert len(found) == QUANTILES + 1
    assert max(found) == 0.001
