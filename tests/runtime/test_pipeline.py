"""The library's face: what a caller may do, may do wrong, and gets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zpipe
from tests.runtime.mesh import HALF, run, turns_until
from zpipe.model import Outcome
from zpipe.runtime.driver import Driver
from zpipe.topology import load_topology, override

IMAGE = np.zeros((3, 32, 32), np.uint8)


def pipeline(**options: Any) -> zpipe.Pipeline:
    """One node, this process: nothing is started."""
    return zpipe.Pipeline.local(replace(load_topology("local"), bundle=str(HALF)), **options)


def slow(**admission: Any) -> zpipe.Pipeline:
    """Admits one sample a second, so that the others wait."""
    topology = override(load_topology("local"), bundle=str(HALF), admission={"name": "fixed", "rate_hz": 1.0, **admission})
    return zpipe.Pipeline.local(topology)


def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {"__name__": "example"})
    name, confidence, *_, stage = capsys.readouterr().out.split()
    assert name in "0123456789"
    assert 0.0 < float(confidence) <= 1.0
    assert int(stage) in range(5)


def test_submit_answers_with_what_the_bundle_calls_the_label() -> None:
    async def main() -> None:
        async with pipeline() as p:
            images = p.bundle.evaluation().images
            results = await asyncio.gather(*[p.submit(image) for image in images[:40]])
            assert [result.sample for result in results] == list(range(40))
            assert all(result.class_name == p.bundle.classes[result.label] for result in results)
            assert all(result.attempts == 1 and result.latency_seconds > result.service_seconds > 0 for result in results)

    run(main)


@pytest.mark.parametrize("x", [np.zeros((32, 32, 3), np.uint8), np.zeros((3, 32, 32), np.float32), [[1, 2]], None])
def test_a_wrong_input_is_rejected_and_the_pipeline_lives_on(x: Any) -> None:
    async def main() -> None:
        async with pipeline() as p:
            with pytest.raises(zpipe.SampleRejected, match=r"input: found .*, expected uint8 \[3, 32, 32\]"):
                await p.submit(x)
            assert (await p.submit(IMAGE)).sample == 0

    run(main)


@pytest.mark.parametrize("deadline", [float("nan"), "soon"])
def test_a_deadline_that_is_no_number_is_rejected_and_the_pipeline_lives_on(deadline: Any) -> None:
    async def main() -> None:
        async with pipeline() as p:
            for _ in range(2):
                with pytest.raises(zpipe.SampleRejected, match="deadline: found"):
                    await p.submit(IMAGE, deadline=deadline)
            assert (await p.submit(IMAGE, deadline=float("inf"))).sample == 0
            assert (await p.submit(IMAGE, deadline=10**400)).sample == 1

    run(main)


def test_a_sample_that_waits_past_its_deadline_expires() -> None:
    async def main() -> None:
        async with slow() as p:
            await p.submit(IMAGE)
            with pytest.raises(zpipe.SampleExpired, match="waiting for admission"):
                await p.submit(IMAGE, deadline=0.05)
            with pytest.raises(zpipe.SampleExpired):
                await p.submit(IMAGE, deadline=-1.0)

    run(main)


def test_a_cancelled_submit_ends_its_sample() -> None:
    async def main() -> None:
        async with slow() as p:
            await p.submit(IMAGE)
            waiting = asyncio.ensure_future(p.submit(IMAGE))
            await turns_until(lambda: p.source.waiting_count > 0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert p.source.open_count == 0
            assert p.driver.inputs == {}

    run(main)


def test_closing_ends_open_samples_as_failed_and_refuses_new_ones() -> None:
    async def main() -> None:
        outcomes: list[Outcome] = []
        async with slow() as p:
            for _ in range(5):
                p.offer(IMAGE, outcomes.append)
        assert len(outcomes) == 5
        assert {outcome.kind for outcome in outcomes} <= {"failed", "result"}
        assert sum(outcome.kind == "failed" for outcome in outcomes) >= 4
        with pytest.raises(zpipe.PipelineClosed):
            await p.submit(IMAGE)
        with pytest.raises(zpipe.PipelineClosed):
            await p.stats()
        await p.aclose()

    run(main)


def test_a_pipeline_is_opened_once() -> None:
    async def main() -> None:
        p = pipeline()
        with pytest.raises(zpipe.PipelineClosed, match="not started"):
            await p.submit(IMAGE)
        async with p:
            with pytest.raises(zpipe.PipelineClosed, match="opened once"):
                await p.__aenter__()
            await p.submit(IMAGE)
        with pytest.raises(zpipe.PipelineClosed, match="opened once"):
            await p.__aenter__()

    run(main)


def test_of_two_pipelines_the_one_started_later_has_the_later_session() -> None:
    async def main() -> None:
        first, second = pipeline(), pipeline()
        async with second:
            pass
        async with first:
            assert first.source.config.session >= second.source.config.session
            assert first.source.config.session == first.driver.session

    run(main)


def test_two_pipelines_live_in_one_process() -> None:
    async def main() -> None:
        async with pipeline() as one, pipeline() as two:
            results = await asyncio.gather(*[p.submit(IMAGE) for p in (one, two) for _ in range(20)])
            assert len(results) == 40

    run(main)


def test_stream_yields_one_outcome_per_input_and_raises_for_none() -> None:
    async def frames() -> AsyncIterator[Any]:
        for number in range(30):
            yield IMAGE if number != 7 else np.zeros(3)

    async def main() -> None:
        async with pipeline() as p:
            kinds = {outcome.sample: outcome.kind async for outcome in p.stream(frames(), ahead=4)}
            assert kinds == {number: "rejected" if number == 7 else "result" for number in range(30)}

    run(main)


def test_a_stream_given_up_cancels_what_it_started() -> None:
    async def main() -> None:
        async with slow() as p:
            stream = p.stream([IMAGE] * 50, ahead=10)
            async for _ in stream:
                break
            await stream.aclose()
            assert p.source.open_count == 0
            with pytest.raises(zpipe.ConfigError, match="ahead: found 0"):
                await p.stream([IMAGE], ahead=0).__anext__()

    run(main)


def test_an_iterable_that_raises_ends_the_stream_with_its_error() -> None:
    async def frames() -> AsyncIterator[Any]:
        yield IMAGE
        raise OSError("camera unplugged")

    async def main() -> None:
        async with pipeline() as p:
            with pytest.raises(OSError, match="camera unplugged"):
                async for _ in p.stream(frames()):
                    pass
            await p.submit(IMAGE)

    run(main)


@pytest.mark.parametrize(("when_full", "rejected"), [("latest", [1, 2, 3]), ("deadline", [3, 4])])
def test_a_full_room_rejects_as_its_mode_says(when_full: str, rejected: list[int]) -> None:
    """Rule D4: sample 0 is admitted; the room holds 1 (latest) or 2 (deadline, set so)."""

    async def main() -> None:
        outcomes: list[Outcome] = []
        waiting = 1 if when_full == "latest" else 2
        async with slow(when_full=when_full, waiting=waiting) as p:
            for _ in range(5):
                p.offer(IMAGE, outcomes.append)
            await turns_until(lambda: len(outcomes) >= len(rejected))
            assert sorted(outcome.sample for outcome in outcomes if outcome.kind == "rejected") == rejected

    run(main)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"admission": "bogus"}, "admission: found 'bogus', expected one of fixed"),
        ({"when_full": "bogus"}, "when_full: found 'bogus', expected one of block"),
        ({"deadline": -1.0}, "deadline: found -1.0, expected seconds above 0"),
        ({"deadline": float("nan")}, "deadline: found nan"),
        ({"exit_point": "bogus"}, "operating point: found 'bogus'"),
    ],
)
def test_a_wrong_option_is_said_before_anything_starts(options: dict[str, Any], message: str) -> None:
    with pytest.raises(zpipe.ConfigError, match=re.escape(message)):
        pipeline(**options)


def test_after_an_internal_error_open_samples_fail_and_later_calls_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with slow() as p:
            await p.submit(IMAGE)
            waiting = asyncio.ensure_future(p.submit(IMAGE))
            await turns_until(lambda: p.source.waiting_count > 0)

            def broken(self: Driver, command: Any) -> None:
                raise ZeroDivisionError("a mistake of ours")

            monkeypatch.setattr(Driver, "_perform", broken)
            p.offer(IMAGE, lambda outcome: None, deadline=-1.0)  # resolves at once, so a command is performed
            with pytest.raises(zpipe.SampleFailed, match="a mistake of ours"):
                await waiting
            with pytest.raises(zpipe.PipelineClosed, match="a mistake of ours"):
                await p.submit(IMAGE)

    run(main)


def test_the_synchronous_facade_submits_streams_and_closes() -> None:
    topology = replace(load_topology("local"), bundle=str(HALF))
    p = zpipe.SyncPipeline.local(topology)
    with pytest.raises(zpipe.PipelineClosed):
        p.submit(IMAGE)
    with p:
        images = p.pipeline.bundle.evaluation().images[:30]
        first = p.submit(images[0])
        later = [p.submit_later(image) for image in images]
        assert later[0].result().label == first.label
        assert len({future.result().sample for future in later}) == 30
        assert sorted(outcome.kind for outcome in p.stream(images)) == ["result"] * 30
        assert [stats["rank"] for stats in p.stats()] == [0]
    p.close()
    with pytest.raises(zpipe.PipelineClosed, match="opened once"):
        p.__enter__()
