"""The simulator's message sizes against what the wire really makes of such messages."""

from __future__ import annotations

import numpy as np
import pytest

from zpipe.model import Credit, LostRow, Report, ResultRow, SampleKey, Task
from zpipe.sim import sizes
from zpipe.wire import Blocked, CreditUpdate, Lost, Message, ReportUpdate, Results, TaskBatch, encode

SESSION = 1_780_000_000_000
NOW = 1000.0


def encoded(message: Message) -> int:
    return len(encode(message, now=NOW, transit_seconds=0.002)[0])


def task(number: int, *, source: int, sample: int, exits: int) -> Task:
    return Task(
        key=SampleKey(source, SESSION, sample),
        attempt=1,
        stage=2,
        thresholds=(0.95,) * exits,
        number=number,
        oldest=max(0, sample - 40),
        queued_seconds=0.012,
        service_seconds=0.034,
        deadline=NOW + 29.0,
        born=NOW - 0.5,
    )


@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize(("source", "sample"), [(0, 3), (200, 70_000), (999, 200)])
@pytest.mark.parametrize("exits", [0, 5])
def test_task_headers_are_as_long_as_on_the_wire(rows: int, source: int, sample: int, exits: int) -> None:
    tasks = [task(120 + index, source=source, sample=sample + index, exits=exits) for index in range(rows)]
    batch = TaskBatch(source, SESSION + 5, "none", 2, tasks, np.zeros((rows, 4), np.float32))
    assert sizes.task_header(source, "none", 2, tasks) == encoded(batch)
    tasks[0].yielded_seconds = 0.012
    assert sizes.task_header(source, "none", 2, tasks) == encoded(batch)


@pytest.mark.parametrize("rows", [1, 40])
def test_results_are_as_long_as_on_the_wire(rows: int) -> None:
    found = [ResultRow(SampleKey(999, SESSION, 100 + index), 1, 2, 7, 0.75, 0.01, 0.02) for index in range(rows)]
    assert sizes.results(300, found) == encoded(Results(300, found))
    for classes in (10, 100):
        for row in found:
            row.scores, row.yielded_seconds = bytes(4 * classes), 0.0005 * (classes == 10)
        assert sizes.results(300, found) == encoded(Results(300, found))


@pytest.mark.parametrize(
    "credit",
    [
        Credit(SESSION, 0, (), 16, {}, -1.0),
        Credit(SESSION, 70_000, (69_990, 69_995), 70_014, {}, 0.25),
        Credit(SESSION, 500, tuple(range(300, 500)), 510, {1: 3, 2: 1}, 0.25, (20, 290)),
        Credit(SESSION, 500, (), 510, clear={0: 4, 200: 300}),
    ],
)
def test_credits_are_as_long_as_on_the_wire(credit: Credit) -> None:
    assert sizes.credit(3, credit) == encoded(CreditUpdate(3, credit))


@pytest.mark.parametrize("stages", [0, 1, 5, 12])
def test_reports_are_as_long_as_on_the_wire(stages: int) -> None:
    seconds = dict.fromkeys(range(stages), 0.01)
    report = Report(150, 3, seconds, seconds)
    assert sizes.report(3, report) == encoded(ReportUpdate(3, report))
    classes = dict.fromkeys((0, 1, 200)[:stages], 0.5)
    report = Report(150, 3, seconds, seconds, True, classes, classes, {0: 2**stages}, {300: (1e9, 0.0)})
    assert sizes.report(3, report) == encoded(ReportUpdate(3, report))


def test_blocked_and_lost_are_as_long_as_on_the_wire() -> None:
    assert sizes.blocked(3, 129) == encoded(Blocked(3, SESSION, 129))
    rows = [
        LostRow(SampleKey(2, SESSION, 9), 1, "peer-lost: node 3: nothing heard for 5.0 s"),
        LostRow(SampleKey(2, SESSION, 9), 1, "x", part=3),
    ]
    assert sizes.lost(3, rows) == encoded(Lost(3, rows))


def test_packets_and_frames_cost_what_they_do_on_ethernet() -> None:
    assert sizes.on_link(100) == 100 + 2 + sizes.PACKET_BYTES
    header, payload = 120, 32_768
    packets = -(-(header + 2 + payload + 9) // sizes.SEGMENT_BYTES)
    assert sizes.on_link(header, payload) == header + 2 + payload + 9 + packets * sizes.PACKET_BYTES
