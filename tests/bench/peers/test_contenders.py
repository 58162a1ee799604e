"""Each light contender carries a few samples and answers what the whole network does. Nothing here is timed."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.peers import contender, rounds, source
from bench.peers.load import Answers, Load, pump
from bench.peers.meter import Meter, StageTime
from bench.peers.rounds import MODES, Mode
from bench.peers.table import print_rows
from bench.peers.work import WORKLOADS, Job, Stages, Workload, prepare

#: Light enough for a test, and any two stages differ in what they take and give.
TINY = Workload("tiny", 8192, 1e-6)
LIGHT = ("z", "z'", "a", "a'", "f")
HAS_ONNX = importlib.util.find_spec("onnx") is not None


@pytest.mark.parametrize(
    ("workload", "mode"), [(WORKLOADS["digits"], Mode("batch-4", 4, 16)), (TINY, MODES["latency"])], ids=["digits", "spin"]
)
def test_contenders_answer_what_the_whole_network_does(workload: Workload, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "FIRST_WARM_SECONDS", 0.01)
    monkeypatch.setattr(rounds, "WARM_SECONDS", 0.01)
    rows = rounds.measure(workload, mode, LIGHT, rounds=1, seconds=0.05, note=lambda line: None)
    assert [row["contender"] for row in rows] == list(LIGHT)
    for row in rows:
        whole = row["contender"] == "f"
        if whole and not (workload.synthetic or HAS_ONNX):  # joining the stages into one network takes it
            assert row["fell"] == "No module named 'onnx'"
            continue
        assert "fell" not in row, row
        assert row["processes"]["median"] == (1 if whole else 4)
        assert row["hz"]["median"] > 0


# ---- what is not here --------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path) -> Job:
    bundle, hosted = prepare(TINY, tmp_path, samples=8)
    return Job(TINY.name, bundle, hosted, 2, 4, str(tmp_path), str(tmp_path))


def test_contender_whose_library_is_missing_says_which(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contender.CONTENDERS, "x", ("no_such_library", "nobody's"))
    said = io.StringIO()
    asyncio.run(source.obey("x", job, said))
    assert json.loads(said.getvalue()) == {"unavailable": "No module named 'bench.peers.no_such_library'"}


def test_contender_without_figures_is_named_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(contender.CONTENDERS, "x", ("no_such_library", "nobody's"))
    print_rows([{"contender": "x", "fell": "No module named 'no_such_library'"}], "digits", "batch-1")
    assert "nobody's" in (printed := capsys.readouterr().out)
    assert "not counted: No module named 'no_such_library'" in printed


# ---- the closed loop ---------------------------------------------------------------------------


def carried(job: Job, change: Callable[[int, Answers], Answers]) -> dict[str, Any]:
    """A load whose messages pass all ranks in this process; `change` may alter what comes back."""
    ranks = [Stages(job, rank) for rank in range(4)]
    back: deque[tuple[int, Answers]] = deque()

    def send(number: int, batch: Answers) -> None:
        for rank in ranks[1:]:
            batch = rank.run(batch)
        back.append((number, change(number, batch)))

    load = Load(job, batch=job.batch, warm_seconds=0.0, seconds=0.01)
    pump(load, ranks[0].run, send, lambda wait: back.popleft() if wait else None)
    return load.result()


def test_right_answers_are_none_wrong(job: Job) -> None:
    result = carried(job, lambda number, answers: answers)
    assert result["wrong"] == 0
    assert 2 <= result["samples"] <= result["all_samples"]


def test_one_wrong_label_is_seen(job: Job) -> None:
    def wrong(number: int, answers: Answers) -> Answers:
        if number == 0:
            answers[0, 1] += 1
        return answers

    assert carried(job, wrong)["wrong"] == 1


def test_answer_to_another_sample_is_wrong(job: Job) -> None:
    result = carried(job, lambda number, answers: answers[:, ::-1])
    assert result["wrong"] > 0


def test_meter_adds_up_stages_of_several_processes(tmp_path: Path) -> None:
    path = tmp_path / "meter"
    Meter.create(path)
    first, second = Meter(path), Meter(path)
    before = first.total()
    first.add(0, 0.25, 0.125, 2)
    second.add(3, 0.5, 0.25, 2)
    assert first.total().since(before) == StageTime(0.75, 0.375, 4)


def test_every_byte_tells_in_a_spinning_stages_answer(job: Job) -> None:
    last = Stages(job, 3)
    batch = np.zeros(last.shape, last.dtype)
    labels = []
    for place in range(8):  # within a word
        batch[:] = 0
        batch[0, 80 + place] = 1
        labels.append(last.run(batch)[0, 0])
    assert len(set(labels)) == 8
