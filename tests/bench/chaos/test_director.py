"""A director with processes and links that only note what is done to them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

import pytest

from tests.runtime.mesh import run, turns_until
from zpipe.bench.chaos.director import Director
from zpipe.bench.chaos.schedule import Fault, Link
from zpipe.errors import ConfigError


class Processes:
    """Ranks 1 and 2; a restart takes until the test lets it end."""

    ranks: tuple[int, ...] = (1, 2)

    def __init__(self) -> None:
        self.done: list[tuple[str, int]] = []
        self.may_return = asyncio.Event()
        self.may_return.set()
        self.broken = False

    def kill(self, rank: int) -> None:
        self.done.append(("kill", rank))

    def terminate(self, rank: int) -> None:
        self.done.append(("terminate", rank))

    def pause(self, rank: int) -> None:
        self.done.append(("pause", rank))

    def resume(self, rank: int) -> None:
        self.done.append(("resume", rank))

    async def restart(self, rank: int) -> None:
        self.done.append(("restart", rank))
        await self.may_return.wait()
        if self.broken:
            raise ConfigError(f"node {rank} ended at start")
        self.done.append(("back", rank))


class Links:
    """Notes every order."""

    def __init__(self) -> None:
        self.done: list[tuple[str, Link, float | None]] = []

    async def stall(self, link: Link, seconds: float) -> None:
        self.done.append(("stall", link, seconds))

    async def limit(self, link: Link, bandwidth_bps: float | None) -> None:
        self.done.append(("limit", link, bandwidth_bps))

    async def reset(self, link: Link) -> None:
        self.done.append(("reset", link, None))

    async def corrupt(self, link: Link, share: float) -> None:
        self.done.append(("corrupt", link, share))

    async def flip(self, link: Link) -> None:
        self.done.append(("flip", link, None))

    async def damage(self) -> dict[str, dict[str, int]]:
        return {}


def director(faults: Sequence[Fault], processes: Processes, links: Links | None = None) -> Director:
    made = Director(faults, processes=processes, links=links, started_at=time.monotonic())
    made.start()
    return made


def test_killed_node_is_started_again_and_the_event_says_when_it_was_back() -> None:
    async def main() -> None:
        processes = Processes()
        made = director([Fault(0.0, "kill", 2), Fault(0.0, "terminate", 1)], processes)
        await turns_until(lambda: [name for name, _ in processes.done].count("back") == 2)
        await made.finish()
        assert processes.done[:2] == [("kill", 2), ("restart", 2)]
        assert ("terminate", 1) in processes.done
        for event in made.events:
            assert event.back_after_seconds == event.lasted_seconds is not None
        await made.abort()

    run(main)


def test_stopped_node_goes_on_after_its_time_and_has_not_been_away() -> None:
    async def main() -> None:
        processes = Processes()
        made = director([Fault(0.0, "stop", 1, seconds=0.01)], processes)
        await turns_until(lambda: len(processes.done) == 2)
        assert processes.done == [("pause", 1), ("resume", 1)]
        await made.finish()
        (event,) = made.events
        assert event.back_after_seconds is None
        assert event.lasted_seconds is not None

    run(main)


def test_faults_come_at_their_times_and_not_before() -> None:
    async def main() -> None:
        processes = Processes()
        made = director([Fault(0.02, "stop", 1), Fault(math.inf, "kill", 2)], processes)
        await turns_until(lambda: bool(made.events))
        assert made.events[0].at_seconds >= 0.02
        await made.finish()
        assert ("kill", 2) not in processes.done

    run(main)


def test_fault_on_a_node_that_is_not_back_is_skipped_and_says_so() -> None:
    async def main() -> None:
        processes = Processes()
        processes.may_return.clear()
        made = director([Fault(0.0, "kill", 2), Fault(0.0, "stop", 2, seconds=9.0), Fault(0.0, "kill", 1)], processes)
        await turns_until(lambda: len(made.events) == 3)
        processes.may_return.set()
        await made.finish()
        assert [event.skipped for event in made.events] == ["", "node 2 was not back yet", ""]
        assert ("pause", 2) not in processes.done

    run(main)


def test_rolling_takes_one_node_after_another_each_once_the_last_is_back() -> None:
    async def main() -> None:
        processes = Processes()
        made = director([Fault(0.0, "rolling")], processes)
        await turns_until(lambda: ("back", 2) in processes.done)
        await made.finish()
        assert processes.done == [(what, rank) for rank in (1, 2) for what in ("terminate", "restart", "back")]
        assert [event.fault.target for event in made.events] == ["node 1", "node 2"]

    run(main)


def test_end_of_the_run_takes_back_what_goes_on() -> None:
    async def main() -> None:
        processes, links = Processes(), Links()
        forever = [
            Fault(0.0, "stop", 1, seconds=1000.0),
            Fault(0.0, "kill", 2, seconds=1000.0),
            Fault(0.0, "down", None, (0, 1), 1000.0),
            Fault(0.0, "slow", None, (0, 2), 1000.0, 1e6),
            Fault(0.0, "corrupt", None, (1, 2), math.inf, 0.01),
        ]
        made = director(forever, processes, links)
        await turns_until(lambda: len(made.events) == 5 and len(links.done) == 3)
        assert all(event.lasted_seconds is None for event in made.events)
        await made.finish()
        assert {("resume", 1), ("back", 2)} <= set(processes.done)
        assert links.done[:3] == [("stall", (0, 1), 1000.0), ("limit", (0, 2), 1e6), ("corrupt", (1, 2), 0.01)]
        assert set(links.done[3:]) == {("stall", (0, 1), 0.0), ("limit", (0, 2), None), ("corrupt", (1, 2), 0.0)}

    run(main)


def test_reset_and_flip_are_over_at_once() -> None:
    async def main() -> None:
        links = Links()
        made = director([Fault(0.0, "reset", None, (0, 1)), Fault(0.0, "flip", None, (0, 2))], Processes(), links)
        await turns_until(lambda: len(links.done) == 2)
        await made.finish()
        assert links.done == [("reset", (0, 1), None), ("flip", (0, 2), None)]

    run(main)


def test_node_that_does_not_come_back_ends_the_run_with_its_own_line() -> None:
    async def main() -> None:
        processes = Processes()
        processes.broken = True
        made = director([Fault(0.0, "kill", 2)], processes)
        with pytest.raises(ConfigError, match=r"^node 2 ended at start$"):
            await made.failed
        with pytest.raises(ConfigError, match=r"^node 2 ended at start$"):
            await made.finish()
        await made.abort()

    run(main)


def test_abort_leaves_nothing_running() -> None:
    async def main() -> None:
        processes = Processes()
        processes.may_return.clear()
        before = asyncio.all_tasks()
        made = director([Fault(0.0, "kill", 2), Fault(1000.0, "kill", 1)], processes)
        await turns_until(lambda: ("restart", 2) in processes.done)
        await made.abort()
        assert asyncio.all_tasks() == before
        assert made.failed.cancelled()

    run(main)
