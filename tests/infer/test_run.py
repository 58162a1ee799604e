"""Inputs through a pipeline: order, bounds, what ends a run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest

from tests.runtime.mesh import HALF, run
from zpipe.errors import ConfigError
from zpipe.infer import Answer, InferOptions, Plan, Skipped, Tally, prepare_inference, run_inference
from zpipe.infer.items import Entry, Item, Source, Wanted
from zpipe.infer.run import WINDOW, Progress
from zpipe.model import Outcome

IMAGE = np.zeros((3, 32, 32), np.uint8)


class Backwards:
    """Stands for a pipeline that answers each five inputs in reverse; the middle one fails."""

    next_sample = 7
    launcher = None

    async def __aenter__(self) -> Backwards:  # noqa: PYI034 - Self is Python 3.11
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def stream(self, inputs: AsyncIterable[Any], *, ahead: int) -> AsyncGenerator[Outcome, None]:
        held: list[Outcome] = []
        number = self.next_sample
        async for _ in inputs:
            held.insert(0, Outcome(number, "failed" if number % 5 == 4 else "rejected", 0.0, 1, None, "no"))
            number += 1
            if len(held) == 5:
                for outcome in held:
                    yield outcome
                held.clear()
        for outcome in held:
            yield outcome


class Numbers:
    """A source of so many inputs that knows how far it was read."""

    live = False

    def __init__(self, count: int, *, bad: tuple[int, ...] = ()) -> None:
        self.read = 0
        self._count = count
        self._bad = bad

    def count(self) -> int | None:
        return self._count

    def items(self, wanted: Wanted) -> Iterator[Item | Skipped]:
        for number in range(self._count):
            if wanted("n", number):
                self.read = number + 1
                yield Skipped(f"number {number}") if number in self._bad else Item(Entry("n", number), IMAGE)


def given(
    source: Any,
    *,
    count: int | None = None,
    wanted: Wanted = lambda name, frame: True,
    stop_at: int = -1,
    progress: Progress = lambda line, done: None,
) -> Any:
    """Runs a source through the stand-in: (frames answered, causes of what was skipped, tally)."""
    answers: list[Answer] = []
    skipped: list[str] = []
    tally = Tally()

    async def answered(answer: Answer) -> bool:
        answers.append(answer)
        return len(answers) != stop_at

    async def main() -> None:
        plan = Plan(InferOptions("local", ("n",), count=count), cast(Any, Backwards()), cast("list[Source]", [source]), live=False)
        await run_inference(
            plan,
            answered=answered,
            skipped=lambda each: skipped.append(each.cause),
            progress=progress,
            tally=tally,
            wanted=wanted,
        )

    run(main)
    assert not [thread for thread in threading.enumerate() if thread.name == "zpipe-inputs"]
    return [answer.entry.frame for answer in answers], skipped, tally


def test_answers_come_in_the_order_of_the_inputs() -> None:
    frames, skipped, tally = given(Numbers(23, bad=(3, 22)))
    assert frames == [number for number in range(23) if number not in (3, 22)]
    assert skipped == ["number 3", "number 22"]
    assert (tally.answered, tally.skipped, tally.kinds["failed"], tally.fell_short) == (21, 2, 4, True)


def test_what_was_answered_earlier_is_passed_over() -> None:
    frames, _, tally = given(Numbers(12), wanted=lambda name, frame: (frame or 0) % 2 == 0)
    assert frames == [0, 2, 4, 6, 8, 10]
    assert (tally.answered, tally.passed) == (6, 6)


@pytest.mark.parametrize("how", [{"count": 10}, {"stop_at": 10}])
def test_a_run_ends_where_it_is_told_to_and_reads_no_further_than_its_window(how: dict[str, Any]) -> None:
    source = Numbers(1_000_000)
    frames, _, _ = given(source, **how)
    assert frames == list(range(10))
    assert source.read <= 10 + WINDOW + 1


def test_a_source_that_gives_nothing_for_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpipe.infer.run.QUIET_SECONDS", 0.0)
    named = threading.Event()

    class Silent(Numbers):
        def items(self, wanted: Wanted) -> Iterator[Item | Skipped]:
            assert named.wait(30.0)
            yield from super().items(wanted)

    lines: list[str] = []

    def progress(line: str, done: float) -> None:
        lines.append(line)
        if line == "waiting for n":
            named.set()

    frames, _, _ = given(Silent(2), progress=progress)
    assert frames == [0, 1]
    assert lines.count("waiting for n") == 1


def test_an_error_of_the_reading_ends_the_run() -> None:
    class Broken(Numbers):
        def items(self, wanted: Wanted) -> Iterator[Item | Skipped]:
            yield Item(Entry("n", 0), IMAGE)
            raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        given(Broken(5))


def test_a_run_that_is_cancelled_while_it_reads_ends_its_reader() -> None:
    class Slow(Numbers):
        reading = threading.Event()

        def items(self, wanted: Wanted) -> Iterator[Item | Skipped]:
            while wanted("n", 0):
                self.reading.set()
                yield Item(Entry("n", 0), IMAGE)

    source = Slow(1)

    async def never(answer: Answer) -> bool:
        await asyncio.get_running_loop().create_future()
        return True

    async def main() -> None:
        plan = Plan(InferOptions("local", ("n",)), cast(Any, Backwards()), cast("list[Source]", [source]), live=True)
        arguments: dict[str, Callable[..., Any]] = {"answered": never, "skipped": print, "progress": lambda line, done: None}
        task = asyncio.ensure_future(run_inference(plan, **arguments, tally=Tally()))
        await asyncio.to_thread(source.reading.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    assert not [thread for thread in threading.enumerate() if thread.name == "zpipe-inputs"]


def test_a_million_inputs_need_no_more_memory_than_the_window() -> None:
    class Large(Numbers):
        alive = most = 0

        def items(self, wanted: Wanted) -> Iterator[Item | Skipped]:
            import weakref

            for number in range(5 * WINDOW):
                image = np.zeros((3, 4, 4), np.uint8)
                Large.alive += 1
                Large.most = max(Large.most, Large.alive)
                weakref.finalize(image, self.gone)
                yield Item(Entry("n", number), image)
                del image

        @staticmethod
        def gone() -> None:
            Large.alive -= 1

    frames, _, _ = given(Large(0))
    assert frames == list(range(5 * WINDOW))
    assert Large.most <= WINDOW + 10


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"attach": True, "bundle": "x"}, "--bundle, --executor and --device concern every node"),
        ({"executor": "emulated", "device": "raspberry-pi-4/2"}, "expected nodes that compute; add --executor onnx"),
        ({"exit_point": "best"}, "best"),
        ({"inputs": ("absent.png",)}, "absent.png: found nothing there"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(options: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare_inference(InferOptions(**{"topology": "local", "inputs": (str(HALF / "evaluation.npz"),), **options}))
    assert cause in str(caught.value)
    assert "\n" not in str(caught.value)
