"""The closed loop at the source, the same for every contender: what to send next, what came back, and when."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.peers.meter import Meter, StageTime
from bench.peers.work import Job

#: Batches of another size, and a network in one file, round differently.
CONFIDENCE_SLACK = 2e-4

Answers = npt.NDArray[np.float32]


class Load:
    """One run: some seconds of warming up, then the measured ones; what is under way at their end is waited for.

    Args:
        job: window and files.
        batch: samples in one message as the contender sends it.
        warm_seconds, seconds: how long.

    Attributes:
        in_flight: messages under way.
        over: nothing more is to be sent.
    """

    def __init__(self, job: Job, *, batch: int, warm_seconds: float, seconds: float) -> None:
        shared = Path(job.shared)
        self._answers: Answers = np.load(shared / "answers.npy")
        inputs = np.load(shared / "inputs.npy")
        self._batches = [inputs[start : start + batch] for start in range(0, len(inputs) - batch + 1, batch)]
        self._batch = batch
        self._limit = max(1, job.window // batch)
        self._meter = Meter(job.meter_path)
        self._warm_seconds, self._seconds = warm_seconds, seconds
        self._came: list[tuple[int, Answers, float]] = []  #: message, its answers, when
        self._sent: list[float] = []  #: when, by message
        self._started = self._began = self._ended = 0.0  #: the first message; the measured time
        self._begin: StageTime | None = None
        self._before = 0  #: messages that had come when the measured time began
        self._first = self._end = StageTime()
        self.in_flight = 0
        self.over = False

    @property
    def has_room(self) -> bool:
        return self.in_flight < self._limit

    @property
    def finished(self) -> bool:
        """Nothing more to send, nothing under way."""
        return self.over and not self.in_flight

    def next(self) -> tuple[int, npt.NDArray[Any]] | None:
        """The next message's number, from 0, and its batch; None once the time is over. Ask only while there is room."""
        now = time.perf_counter()
        number = len(self._sent)
        if not number:
            self._started, self._first = now, self._meter.total()
        if self._begin is None and now >= self._started + self._warm_seconds:
            self._began, self._begin, self._before = now, self._meter.total(), len(self._came)
        # However busy the machine: a run measures one message at least.
        if self._begin is not None and now >= self._began + self._seconds and len(self._came) > self._before:
            if not self.over:
                self.over, self._ended, self._end = True, now, self._meter.total()
            return None
        self._sent.append(now)
        self.in_flight += 1
        return number, self._batches[number % len(self._batches)]

    def done(self, number: int, answers: Answers) -> None:
        """A message came back: `[2, batch]`, labels and confidences."""
        self.in_flight -= 1
        self._came.append((number, answers, time.perf_counter()))

    def result(self) -> dict[str, Any]:
        """Plain values, once `finished`."""
        assert self._begin is not None, "the run ended while it warmed up"
        measured = [entry for entry in self._came if self._began <= entry[2] <= self._ended]
        latencies = [when - self._sent[number] for number, _, when in measured] or [0.0]
        stages = self._end.since(self._begin)
        samples = self._batch * len(measured)
        return {
            "samples": samples,
            "all_samples": self._batch * len(self._sent),
            "wrong": self._wrong(),
            "seconds": self._ended - self._began,
            "latency_seconds": statistics.fmean(latencies),
            "latency_p50_seconds": statistics.median(latencies),
            "stage_seconds": stages.wall_seconds / max(1, samples),
            "all_stage_cpu_seconds": self._meter.total().since(self._first).cpu_seconds,
        }

    def _wrong(self) -> int:
        """Samples without the right answer, or with more than one."""
        right = 0
        seen = set()
        for number, answers, _ in self._came:
            start = self._batch * (number % len(self._batches))
            expected = self._answers[:, start : start + self._batch]
            if number in seen or answers.shape != expected.shape:
                continue
            seen.add(number)
            close = np.abs(answers[1] - expected[1]) <= CONFIDENCE_SLACK
            right += int(np.count_nonzero((answers[0] == expected[0]) & close))
        return self._batch * max(len(self._sent), len(self._came)) - right


def pump(
    load: Load,
    run: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    send: Callable[[int, npt.NDArray[Any]], None],
    receive: Callable[[bool], tuple[int, Answers] | None],
) -> None:
    """The source of a contender that blocks.

    Args:
        load: says what and when.
        run: stage 0.
        send: takes a message's number and its activation.
        receive: the next message that came back; None where there is none and it was not told to wait.
    """
    while not load.finished:
        while load.has_room and (item := load.next()) is not None:
            number, batch = item
            send(number, run(batch))
            while (back := receive(False)) is not None:
                load.done(*back)
        if load.in_flight and (back := receive(True)) is not None:
            load.done(*back)
