"""The pipeline for programs without asyncio: threads, child processes, and closing while calls are open."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import zpipe
from tests.runtime.mesh import HALF, PATIENCE_SECONDS
from zpipe.topology import load_topology, override

IMAGE = np.zeros((3, 32, 32), np.uint8)


@pytest.fixture
def local() -> Iterator[zpipe.SyncPipeline]:
    with zpipe.SyncPipeline.local(replace(load_topology("local"), bundle=str(HALF))) as pipeline:
        yield pipeline


def slow() -> zpipe.SyncPipeline:
    """Admits one sample a second, so that the others wait."""
    admission = {"name": "fixed", "rate_hz": 1.0}
    return zpipe.SyncPipeline.local(override(load_topology("local"), bundle=str(HALF), admission=admission))


def loop_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "zpipe-loop"]


def test_two_threads_get_their_own_answers(local: zpipe.SyncPipeline) -> None:
    images = local.bundle.evaluation().images[:60]
    expected = [local.submit(image).label for image in images]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda index: local.submit(images[index % 60]), range(240)))
    assert [answer.label for answer in answers] == expected * 4
    assert sorted(answer.sample for answer in answers) == list(range(60, 300))


@pytest.mark.parametrize("wrong", [np.zeros((32, 32, 3), np.uint8), np.zeros((3, 32, 32)), None])
def test_wrong_input_is_rejected_and_the_pipeline_lives_on(local: zpipe.SyncPipeline, wrong: Any) -> None:
    with pytest.raises(zpipe.SampleRejected, match="input: found"):
        local.submit(wrong)
    with pytest.raises(zpipe.SampleRejected, match="input: found"):
        local.submit_later(wrong).result(PATIENCE_SECONDS)
    assert [outcome.kind for outcome in local.stream([wrong, IMAGE])].count("result") == 1


def test_other_ranks_are_processes_started_from_its_thread() -> None:
    topology = override(load_topology("line2"), bundle=str(HALF))
    with zpipe.SyncPipeline.local(topology) as pipeline:
        images = pipeline.pipeline.bundle.evaluation().images[:50]
        assert [outcome.kind for outcome in pipeline.stream(images, ahead=8)] == ["result"] * 50
        assert [stats["rank"] for stats in pipeline.stats()] == [0, 1]
        launcher = pipeline.pipeline.launcher
        assert launcher is not None
    assert [process.returncode for process in launcher.processes.values()] == [0]
    assert loop_threads() == []


def test_closing_ends_calls_of_other_threads_as_failed() -> None:
    with slow() as pipeline:
        waiting = [pipeline.submit_later(IMAGE) for _ in range(5)]
        waiting[0].result(PATIENCE_SECONDS)
    ends = [failure_of(future) for future in waiting[1:]]
    assert {type(end) for end in ends} <= {zpipe.SampleFailed, zpipe.PipelineClosed}
    with pytest.raises(zpipe.PipelineClosed):
        pipeline.submit(IMAGE)


def test_offer_returns_at_once_and_tells_every_end(local: zpipe.SyncPipeline) -> None:
    images = local.pipeline.bundle.evaluation().images[:60]
    expected = [local.submit(image).label for image in images]
    outcomes: queue.SimpleQueue[zpipe.Outcome] = queue.SimpleQueue()
    frame = np.empty_like(images[0])
    for image in images:
        frame[:] = image  # a camera that writes where it wrote before
        local.offer(frame, outcomes.put)
    frame[:] = 0
    ends = sorted((outcomes.get(timeout=PATIENCE_SECONDS) for _ in images), key=lambda outcome: outcome.sample)
    assert [end.result.label for end in ends if end.result] == expected
    local.offer(IMAGE, outcomes.put, deadline=-1.0)
    assert outcomes.get(timeout=PATIENCE_SECONDS).kind == "expired"
    with pytest.raises(zpipe.SampleRejected, match="input: found"):
        local.offer(frame[0], outcomes.put)
    with pytest.raises(zpipe.SampleRejected, match="deadline: found"):
        local.offer(frame, outcomes.put, deadline=float("nan"))


def test_frame_submitted_for_later_is_copied_before(local: zpipe.SyncPipeline) -> None:
    image = local.pipeline.bundle.evaluation().images[0]
    expected, frame = local.submit(image).confidence, image.copy()
    held = threading.Event()
    local._loop.call_soon_threadsafe(held.wait, PATIENCE_SECONDS)  # the loop does not come to it before
    answer = local.submit_later(frame)
    frame[:] = 0
    held.set()
    assert answer.result(PATIENCE_SECONDS).confidence == expected


def test_every_offer_has_one_end_when_the_pipeline_closes() -> None:
    ends: list[zpipe.Outcome] = []
    pipeline = slow()
    with pipeline:
        for _ in range(20):
            pipeline.offer(IMAGE, ends.append)
    assert len(ends) == 20
    assert {end.kind for end in ends} <= {"result", "failed"}
    with pytest.raises(zpipe.PipelineClosed):
        pipeline.offer(IMAGE, ends.append)
    assert len(ends) == 20


def test_offer_to_a_pipeline_that_broke_ends_as_failed(local: zpipe.SyncPipeline) -> None:
    outcomes: queue.SimpleQueue[zpipe.Outcome] = queue.SimpleQueue()
    local._loop.call_soon_threadsafe(local.pipeline._on_broken, zpipe.ZpipeError("a bug"))
    local.offer(IMAGE, outcomes.put)
    end = outcomes.get(timeout=PATIENCE_SECONDS)
    assert (end.sample, end.kind, end.cause) == (-1, "failed", "a bug")


def failure_of(future: Future[zpipe.Result]) -> BaseException | None:
    return future.exception(PATIENCE_SECONDS)


def test_stream_given_up_cancels_what_it_started_and_the_pipeline_lives_on(local: zpipe.SyncPipeline) -> None:
    taken: list[int] = []

    def endless() -> Iterator[npt.NDArray[Any]]:
        while True:
            taken.append(1)
            yield IMAGE

    stream = local.stream(endless(), ahead=4)
    assert next(stream).kind == "result"
    stream.close()  # type: ignore[attr-defined]
    assert local.submit(IMAGE).label >= 0
    before = len(taken)
    local.submit(IMAGE)
    assert len(taken) == before


def test_closing_ends_a_stream_that_another_thread_reads() -> None:
    pipeline = slow()
    first = threading.Event()
    kinds: list[str] = []

    def read() -> None:
        for outcome in pipeline.stream([IMAGE] * 8, ahead=8):
            kinds.append(outcome.kind)
            first.set()

    with pipeline:
        reader = threading.Thread(target=read)
        reader.start()
        assert first.wait(PATIENCE_SECONDS)
    reader.join(PATIENCE_SECONDS)
    assert not reader.is_alive()
    assert kinds[0] == "result"
    assert set(kinds[1:]) <= {"result", "failed"}


def test_iterable_that_raises_ends_the_stream_with_its_error(local: zpipe.SyncPipeline) -> None:
    def frames() -> Iterator[npt.NDArray[Any]]:
        yield IMAGE
        raise OSError("camera unplugged")

    with pytest.raises(OSError, match="camera unplugged"):
        list(local.stream(frames()))
    local.submit(IMAGE)


def test_start_that_fails_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise zpipe.BundleError("stage0.onnx: broken")

    monkeypatch.setattr("zpipe.runtime.pipeline.executor_for", broken)
    with pytest.raises(zpipe.BundleError, match="broken"):
        slow().__enter__()
    assert loop_threads() == []
