"""Lines for people, under a flood of reasons to say one."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from tests.runtime.mesh import live, run, topology, turns_until
from zpipe.runtime.notes import FEW, PERIOD_SECONDS, Notes
from zpipe.wire import Bye, Hello, encode


class Reader:
    """Who reads the notes, on a clock that is moved by hand."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.waiting: list[Callable[[], None] | None] = []
        self.notes = Notes(self.lines.append, later=self.later)

    def later(self, seconds: float, call: Callable[[], None]) -> _Timer:
        assert seconds == PERIOD_SECONDS
        self.waiting.append(call)
        return _Timer(self, len(self.waiting) - 1)

    def period_ends(self) -> list[str]:
        """What was said since the last end, and at this one."""
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            if call is not None:
                call()
        said = self.lines.copy()
        self.lines.clear()
        return said


class _Timer:
    def __init__(self, reader: Reader, index: int) -> None:
        self.reader, self.index = reader, index

    def cancel(self) -> None:
        self.reader.waiting[self.index] = None


def test_a_few_lines_are_said_and_then_the_last_with_the_number_of_the_others() -> None:
    reader = Reader()
    for number in range(100):
        reader.notes(f"line {number}", "refused")
    assert len(reader.waiting) == 1, "one timer, however many lines"
    few = [f"line {number}" for number in range(FEW)]
    assert reader.lines == few
    assert reader.period_ends() == [*few, f"line 99 (and {99 - FEW} more like it in 10 s)"]
    assert (reader.notes.held_back, len(reader.notes)) == (100 - FEW, 0)
    reader.notes("again", "refused")
    assert reader.lines == ["again"]


@pytest.mark.parametrize("count", range(1, FEW + 2))
def test_where_nothing_is_left_out_nothing_is_said_of_more(count: int) -> None:
    reader = Reader()
    for number in range(count):
        reader.notes(f"line {number}", 1)
    assert reader.period_ends() == [f"line {number}" for number in range(count)]


def test_a_flood_of_one_kind_hides_no_other_and_what_has_no_kind_is_always_said() -> None:
    reader = Reader()
    for _ in range(50):
        reader.notes("stranger", "refused")
        reader.notes("bans")
    reader.notes("lost node 2", 2)
    assert reader.lines.count("bans") == 50
    assert reader.lines[-1] == "lost node 2"
    assert len(reader.notes) == 2


def test_closing_says_what_was_held_back_at_once() -> None:
    reader = Reader()
    for number in range(FEW + 2):
        reader.notes(f"line {number}", 1)
    reader.notes.close()
    assert reader.lines[FEW:] == [f"line {FEW + 1} (and 1 more like it in 10 s)"]
    assert reader.waiting == [None]


def test_an_output_that_fails_stops_nobody() -> None:
    def full(line: str) -> None:
        raise OSError(28, "No space left on device")

    notes = Notes(full)
    notes("a line")
    assert notes.failed == 1


def test_an_output_with_fewer_letters_gets_them_escaped() -> None:
    said: list[bytes] = []
    notes = Notes(lambda line: said.append(line.encode("ascii")))
    notes("7 µs: \ud800")
    assert said == [rb"7 \xb5s: \ud800"]
    assert notes.failed == 0


# ---- strangers and neighbours of a live node -----------------------------------------------------


def test_a_stranger_cannot_write_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Hellos of another topology, whose name would clear the terminal and forge a line: each is refused, few are told of."""

    async def main() -> None:
        async with live(topology([[0], [1, 2, 3, 4]])) as mesh:
            transport, node = mesh.drivers[0].transport, mesh.drivers[1]
            channel = transport.open(mesh.topology.node(1).address, data=False)
            await turns_until(lambda: channel.connected)
            evil = {**mesh.topology.canonical(), "name": "\x1b[2J\nnode 1 bans node 0: fake" + "A" * 10_000}
            frames = encode(Hello(0, "peer", 2**40, 2**40, mesh.bundle.digest, "sha256:x", evil))
            for _ in range(40):
                assert transport.send_control(channel, frames)
            await turns_until(lambda: node.peers.hellos_refused == 40)
            assert node.stats()["notes_held_back"] == 40 - FEW
            assert len(node.notes) == 1

    with caplog.at_level(logging.INFO, logger="zpipe.node"):
        run(main)
    lines = [record.getMessage() for record in caplog.records if "refused node" in record.getMessage()]
    assert len(lines) == FEW + 1
    assert lines[-1].endswith(f"A... there (and {40 - FEW - 1} more like it in 10 s)")
    for line in lines:
        assert line.startswith(r"node 1 refused node 0: name is test here, \x1b[2J\nnode 1 bans node 0: fakeAAA")
        assert line.isprintable()
        assert len(line) < 400


def test_a_link_that_flaps_is_told_of_a_few_times(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with live(topology([[0], [1, 2, 3, 4]])) as mesh:
            source, server = mesh.drivers[0].peers, mesh.drivers[1]
            for _ in range(10):
                epoch = source.outgoing[1].epoch
                server.transport.send_control(server.peers.incoming[0].channel, encode(Bye(1, "\x1b[2Jno\nmore")))
                await turns_until(lambda epoch=epoch: source.outgoing[1].ready and source.outgoing[1].epoch > epoch)  # type: ignore[misc]

    with caplog.at_level(logging.INFO, logger="zpipe.node"):
        run(main)
    lines = [
        record.getMessage() for record in caplog.records if record.getMessage().startswith(("node 0 connected", "node 0 lost"))
    ]
    lost = r"node 0 lost node 1 (\x1b[2Jno\nmore); trying again"
    connected = "node 0 connected to node 1"
    assert lines == [connected, lost, connected, lost, f"{connected} (and {21 - FEW - 1} more like it in 10 s)"]
