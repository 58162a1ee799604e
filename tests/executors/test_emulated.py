"""The emulated executor: a board's time on an absolute schedule, and answers that were recorded."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.executors.tiny import EVALUATION, FakeClock, gate, host_rows, images, tiny_bundle, tiny_emulation
from zpipe.bundle import Bundle, indexed_rows
from zpipe.devices import load_device, service_seconds
from zpipe.errors import BundleError, ConfigError, ExecutorError
from zpipe.executors import make_executor
from zpipe.executors.emulated import GRACE_SECONDS, RECORDED_SAMPLES, EmulatedExecutor, Schedule
from zpipe.model import NEVER_EXIT

DEVICE = "jetson-nano/8"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_emulation(tmp_path_factory.mktemp("emulation"))


# ---- the schedule ------------------------------------------------------------------------------


def test_an_idle_device_starts_when_the_batch_comes() -> None:
    schedule = Schedule()
    assert schedule.take(0.5, now=10.0) == 10.5
    assert schedule.take(0.5, now=20.0) == 20.5


def test_a_busy_device_starts_when_it_is_free() -> None:
    schedule = Schedule()
    schedule.take(0.5, now=10.0)
    assert schedule.take(0.5, now=10.1) == 11.0
    assert schedule.take(0.25, now=10.2) == 11.25


def test_a_batch_within_the_grace_counts_as_having_waited_and_one_after_it_does_not() -> None:
    schedule = Schedule()
    schedule.take(0.5, now=10.0)
    assert schedule.take(0.5, now=10.5 + 0.9 * GRACE_SECONDS) == 11.0
    late = 11.0 + 1.1 * GRACE_SECONDS
    assert schedule.take(0.5, now=late) == late + 0.5


def test_a_batch_that_waited_starts_at_the_end_of_the_one_before_however_late_it_comes() -> None:
    schedule = Schedule()
    schedule.take(0.5, now=10.0)
    assert schedule.take(0.5, now=10.5 + 5 * GRACE_SECONDS, waited=True) == 11.0
    assert schedule.take(0.5, now=13.0) == 13.5


@pytest.mark.parametrize(("late", "waited"), [(0.9 * GRACE_SECONDS, False), (5 * GRACE_SECONDS, True)])
def test_lateness_of_the_host_never_adds_up(bundle: Bundle, late: float, waited: bool) -> None:
    clock = FakeClock(late=late)
    executor = EmulatedExecutor(bundle, [0], DEVICE, clock=clock)
    service = service_seconds(load_device(DEVICE), bundle.stages[0], 4)
    for _ in range(100):
        executor.run(0, bundle.evaluation().images[:4], gate(4))
        if waited:
            executor.waited()
    assert clock.sleeps == pytest.approx([service * count for count in range(1, 101)])


def test_that_a_batch_waited_holds_for_that_batch_alone(bundle: Bundle) -> None:
    clock = FakeClock(late=5 * GRACE_SECONDS)
    executor = EmulatedExecutor(bundle, [0], DEVICE, clock=clock)
    service = service_seconds(load_device(DEVICE), bundle.stages[0], 1)
    executor.run(0, bundle.evaluation().images[:1], gate(1))
    executor.waited()
    for _ in range(2):
        executor.run(0, bundle.evaluation().images[:1], gate(1))
    assert clock.sleeps == pytest.approx([service, 2 * service, 3 * service + clock.late])


def test_a_batch_takes_the_time_of_its_device_stage_and_rows(bundle: Bundle) -> None:
    clock = FakeClock()
    executor = EmulatedExecutor(bundle, [0, 2], DEVICE, clock=clock)
    rows = bundle.evaluation().images
    expected = 0.0
    for stage, batch in itertools.product((0, 2), (1, 8)):
        inputs = rows[:batch] if stage == 0 else indexed_rows(np.zeros((batch, 32), np.float32))
        output = executor.run(stage, inputs, gate(batch, stage=stage, last=stage == 2))
        assert output.wall_seconds == service_seconds(load_device(DEVICE), bundle.stages[stage], batch)
        expected += output.wall_seconds
    assert clock.time == pytest.approx(expected)


def test_warm_up_does_not_sleep_and_says_the_devices_time(bundle: Bundle) -> None:
    clock = FakeClock()
    executor = EmulatedExecutor(bundle, [1, 2], DEVICE, clock=clock)
    assert executor.warm_up(8) == {stage: service_seconds(load_device(DEVICE), bundle.stages[stage], 1) for stage in (1, 2)}
    assert clock.sleeps == []


def test_it_never_runs_on_the_event_loop_and_its_cpu_is_its_own(bundle: Bundle) -> None:
    executor = EmulatedExecutor(bundle, [0], DEVICE, clock=FakeClock())
    assert not executor.inline
    executor.warm_up(1)
    assert 0.0 < executor.run(0, bundle.evaluation().images[:1], gate(1)).cpu_seconds < 0.005


# ---- what it says ------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.6, 0.8, NEVER_EXIT])
def test_labels_confidences_and_exits_are_those_of_the_real_executor_sample_by_sample(bundle: Bundle, threshold: float) -> None:
    emulated = make_executor("emulated", bundle, range(3), device=DEVICE, clock=FakeClock())
    real = make_executor("onnx", tiny_bundle(), range(3))
    for sample in range(EVALUATION):
        row, tensor = bundle.evaluation().images[sample][None], images(EVALUATION)[sample][None]
        for stage in range(3):
            wanted = gate(1, threshold, stage=stage, last=stage == 2)
            found, expected = emulated.run(stage, row, wanted), real.run(stage, tensor, wanted)
            assert (found.exited, found.labels) == (expected.exited, expected.labels)
            assert found.confidences == expected.confidences
            if found.exited[0]:
                break
            row, tensor = host_rows(found), host_rows(expected)


def test_each_row_has_its_own_threshold(bundle: Bundle) -> None:
    executor = EmulatedExecutor(bundle, [0], DEVICE, clock=FakeClock())
    rows = bundle.evaluation().images[:6]
    thresholds = (0.0, NEVER_EXIT, 0.0, NEVER_EXIT, NEVER_EXIT, 0.0)
    assert executor.run(0, rows, replace(gate(6), thresholds=thresholds)).exited == [t == 0.0 for t in thresholds]
    with pytest.raises(ExecutorError, match="found 5 thresholds for 6 rows"):
        executor.run(0, rows, gate(5))


def test_an_activation_is_its_samples_index_and_bytes_that_were_really_computed(bundle: Bundle) -> None:
    executor = EmulatedExecutor(bundle, [0], DEVICE, clock=FakeClock())
    output = executor.run(0, bundle.evaluation().images[::-1], gate(EVALUATION))
    activation = host_rows(output)
    assert activation[:, :4].copy().view("<u4")[:, 0].tolist() == list(range(EVALUATION))[::-1]
    real = make_executor("onnx", tiny_bundle(), [0]).run(0, images(EVALUATION), gate(EVALUATION))
    computed = {row.tobytes() for row in host_rows(real)}
    sent = {row[4:].tobytes() for row in activation}
    assert sent < computed
    assert len(sent) == RECORDED_SAMPLES


def test_the_table_of_its_codec_is_used(tmp_path: Path) -> None:
    bundle = tiny_emulation(tmp_path)
    plain = bundle.replay()
    tables: dict[str, Any] = {"label.none": plain.labels, "confidence.none": plain.confidences}
    other: dict[str, Any] = {"label.int8": plain.labels[::-1], "confidence.int8": plain.confidences[::-1]}
    np.savez(tmp_path / "replay.npz", **tables, **other)
    executor = EmulatedExecutor(bundle, [0], DEVICE, codec="int8", clock=FakeClock())
    labels = executor.run(0, bundle.evaluation().images, gate(EVALUATION)).labels
    assert labels == plain.labels[::-1, 0].tolist() != plain.labels[:, 0].tolist()
    with pytest.raises(BundleError, match=r"label\.fp16"):
        EmulatedExecutor(bundle, [0], DEVICE, codec="fp16").warm_up(1)


# ---- what it refuses ---------------------------------------------------------------------------


def test_a_real_bundle_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"found bundle tiny itself, .*bundle\.emulated\(\)"):
        EmulatedExecutor(tiny_bundle(), [0], DEVICE)


def test_an_unknown_device_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"did you mean jetson-nano\?"):
        EmulatedExecutor(bundle, [0], "jetson-nan")


def test_a_device_too_fast_to_be_emulated_is_refused_and_one_slow_enough_named(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"found 'jetson-nano/2', which does stage 1 in 2\.4 ms, .* name 'jetson-nano/5'"):
        EmulatedExecutor(bundle, [1], "jetson-nano/2")
    assert EmulatedExecutor(bundle, [1], "jetson-nano/5").stages == (1,)


def test_an_index_outside_the_evaluation_set_is_refused(bundle: Bundle) -> None:
    executor = EmulatedExecutor(bundle, [0], DEVICE, clock=FakeClock())
    rows = bundle.evaluation().images[:2].copy()
    rows[1, :4] = 255
    with pytest.raises(ExecutorError, match="found evaluation index 4294967295, expected one below 64"):
        executor.run(0, rows, gate(2))


def test_a_gate_other_than_the_recorded_one_is_refused(bundle: Bundle) -> None:
    executor = EmulatedExecutor(bundle, [0], DEVICE, clock=FakeClock())
    for other in (replace(gate(1), rule="entropy"), replace(gate(1), temperature=0.71)):
        with pytest.raises(ExecutorError, match="with which its confidences were recorded"):
            executor.run(0, bundle.evaluation().images[:1], other)
