"""What a trace holds, and what ends it: never the node."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.policy.build import INTO, task
from zpipe import __version__
from zpipe.errors import ConfigError
from zpipe.policy import NodePolicy
from zpipe.policy.exits import ExitGates
from zpipe.policy.messages import PeerUp, StageCompleted, TaskReceived, TimerFired
from zpipe.policy.state import NeighbourConfig, NodeConfig
from zpipe.trace import Recorder, codec, replay
from zpipe.trace.recorder import BUFFER_BYTES

#: A node with the last stage, whose only neighbour sends it tasks.
CONFIG = NodeConfig(
    rank=1,
    stages=(2,),
    gates=ExitGates((1.0, 1.0, 1.0)),
    neighbours=(NeighbourConfig(0, lanes_in=(2,), window_in=8),),
    nearer={0: (0,)},
)


def parts(path: Path) -> list[Any]:
    """The header, the rounds and the end of a trace, as they are written."""
    with path.open("rb") as file:
        return list(msgpack.Unpacker(file, strict_map_key=False))


class Recorded:
    """A policy behind a recorder."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.notes: list[str] = []
        self.policy = NodePolicy(CONFIG, rng=random.Random(7))
        self.recorder = Recorder(path, self.policy, seed=7, note=self.notes.append, **options)
        self.now = 0.0

    def serve(self, tasks: int) -> None:
        """One task after the other comes, runs and is answered."""
        self.recorder.handle_all([PeerUp(0, INTO, outgoing=False)], now=self.now)
        for number in range(tasks):
            self.now += 0.25
            self.recorder.handle_all([TaskReceived(0, INTO, [task(number, 2, number)])], now=self.now)
            self.recorder.handle_all([StageCompleted(number, [True], [3], [0.9], 0.125, [0])], now=self.now + 0.125)

    def parts(self) -> list[Any]:
        return parts(self.path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.trace"


def test_a_trace_begins_with_all_that_a_fresh_policy_needs(path: Path) -> None:
    recorded = Recorded(path)
    recorded.recorder.close()
    header, end = recorded.parts()
    assert {key: header[key] for key in ("trace", "zpipe", "rank", "seed")} == {
        "trace": 2,
        "zpipe": __version__,
        "rank": 1,
        "seed": 7,
    }
    assert dict(zip(header["fields"]["NodeConfig"], header["config"], strict=True))["nearer"] == {0: [0]}
    assert end == {"end": "closed"}


def test_events_are_written_as_they_came_though_the_policy_changes_their_tasks(path: Path) -> None:
    recorded = Recorded(path)
    recorded.recorder.handle_all([PeerUp(0, INTO, outgoing=False)], now=1.0)
    arrived = task(0, 2, 0)
    recorded.recorder.handle_all([TaskReceived(0, INTO, [arrived])], now=2.0)
    recorded.recorder.close()
    header, _, (now, [[kind, _, _, [row]]], commands), _ = recorded.parts()
    peer = header["fields"]["Task"].index("peer")
    assert (now, kind, row[peer]) == (2.0, "TaskReceived", -1)
    assert arrived.peer == 0
    (run,) = [command for command in commands if command[0] == "RunStage"]
    assert run[3][0][peer] == 0


def test_a_trace_ends_at_its_limit_with_a_note_and_the_node_goes_on(path: Path) -> None:
    recorded = Recorded(path, limit_bytes=8_000)
    recorded.serve(50)
    recorded.recorder.close()
    assert recorded.policy.counts.exited == 50
    assert path.stat().st_size < 8_000 + len(codec.pack({"end": "limit"}))
    (note,) = recorded.notes
    found = re.fullmatch(r".*/node.trace: the trace ends after (\d+) rounds, at its limit of 8000 bytes", note)
    assert found is not None
    result = replay(path)
    assert result.difference is None
    assert result.ended == "at its size limit"
    assert result.rounds == int(found[1]) > 0


def test_of_a_killed_node_a_quarter_of_a_second_is_lost_at_most(path: Path) -> None:
    recorded = Recorded(path)
    (header,) = recorded.parts()
    assert header["trace"] == 2
    recorded.serve(4)
    assert recorded.now - 0.25 <= recorded.parts()[-1][0] < recorded.now + 0.125
    recorded.recorder.close()


def test_what_waits_is_written_when_it_is_much_however_short_the_time(path: Path) -> None:
    recorded = Recorded(path)
    recorded.recorder.handle_all([PeerUp(0, INTO, outgoing=False)], now=0.0)
    for number in range(1000):
        recorded.recorder.handle_all([TimerFired()] * 64, now=1e-6 * number)
    assert path.stat().st_size > 10 * BUFFER_BYTES
    recorded.recorder.close()
    assert len(recorded.parts()) == 1 + 1001 + 1


def test_an_event_that_cannot_be_written_leaves_whole_rounds(path: Path) -> None:
    recorded = Recorded(path)
    recorded.serve(2)
    strange: Any = [TaskReceived(0, INTO, [task(2, 2, 2), object()])]  # type: ignore[list-item]
    with pytest.raises(TypeError, match="a trace holds events, commands and their parts, not object"):
        recorded.recorder.handle_all(strange, now=9.0)
    recorded.recorder.close()
    result = replay(path)
    assert (result.difference, result.ended) == (None, "when the node was closed")
    assert result.rounds >= 4  # what waited may be lost: the packer forgets it


@pytest.mark.parametrize("tasks", [1, 500], ids=["while-closing", "while-running"])
def test_a_full_disk_ends_the_trace_with_one_note_and_the_node_goes_on(tasks: int) -> None:
    recorded = Recorded(Path("/dev/full"))
    recorded.serve(tasks)
    recorded.recorder.close()
    assert recorded.policy.counts.exited == tasks
    assert recorded.notes == ["/dev/full: the trace ends here, it cannot be written any more (No space left on device)"]


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none/x: found that it cannot be written \(No such file or directory\), "):
        Recorded(tmp_path / "none" / "x")


def test_a_node_that_is_started_again_leaves_the_traces_of_its_former_lives(path: Path) -> None:
    lives = []
    for tasks in (1, 2, 3):
        lives.append(Recorded(path))
        lives[-1].serve(tasks)
        lives[-1].recorder.close()
    names = ["node.trace", "node-1.trace", "node-2.trace"]
    assert [life.recorder.path.name for life in lives] == names
    assert [replay(path.with_name(name)).rounds for name in names] == [3, 5, 7]
    assert [life.notes for life in lives] == [
        [],
        *([f"{path}: found a file there, so the trace goes to {path.with_name(name)}"] for name in names[1:]),
    ]


def test_a_folder_is_no_file_for_a_trace(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found that it cannot be written \(Is a directory\), "):
        Recorded(tmp_path)


def test_the_round_in_which_a_policy_breaks_is_in_the_trace_and_replays(path: Path) -> None:
    recorded = Recorded(path)
    recorded.serve(2)
    with pytest.raises(KeyError):
        recorded.recorder.handle_all([TimerFired(), StageCompleted(99, [True], [3], [0.9], 0.125)], now=9.0)
    assert recorded.parts()[-2][2] == {"raised": "KeyError: 99"}
    result = replay(path)
    assert result.difference is None
    assert result.rounds == 6
    assert result.ended == "when its policy broke, KeyError: 99"


def test_closing_twice_writes_one_end(path: Path) -> None:
    recorded = Recorded(path)
    recorded.recorder.close()
    recorded.recorder.close()
    assert len(recorded.parts()) == 2
