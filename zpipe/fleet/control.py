"""Nodes started, stopped and looked at on their boards.

By their systemd units where these are installed, else as processes of their own, each with a file of its number and a log in the
board's folder. Every board is asked at the same time; one that does not answer costs its time limit and its own rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from zpipe.deploy import STOP_SECONDS, Layout, layout
from zpipe.errors import ZpipeError, one_line
from zpipe.fleet.connection import CONNECT_SECONDS, Link, connected
from zpipe.fleet.hosts import Board
from zpipe.runtime.observer import Observer
from zpipe.topology import Topology

#: `serving`: a node answers at its address; `running`: its process is there; `starting`: it does not serve yet; `restarting`: it
#: failed and systemd will try again; `stopped`: nobody wants it to run; `dead`: it ended by itself; `unknown`: its board is silent.
State = Literal["serving", "running", "starting", "restarting", "stopped", "dead", "unknown"]

#: In these a node's process is there.
UP: tuple[State, ...] = ("serving", "running", "starting")
#: What a board may take to answer.
ASK_SECONDS = 20.0
#: A node that starts is waited for so long; where a GPU's engines are built it takes minutes more, and is said to be starting.
START_SECONDS = 20
#: For nodes to let an observer in, and to answer it.
LOOK_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One rank as its board sees it.

    Attributes:
        how: `systemd` or `process`; "" where its board did not say.
        pid: of its process, 0 = none.
        age_seconds: since it was started; None where that is not known.
        session: the number of this start, as the node says; 0 = it did not.
        restarts: of its unit, by itself.
        line: the last of its log, or what is wrong.
        did: what was done: "already" runs, "killed" because it did not end; "" = what was asked for.
    """

    rank: int
    board: Board
    state: State = "unknown"
    how: str = ""
    pid: int = 0
    age_seconds: float | None = None
    session: int = 0
    restarts: int = 0
    line: str = ""
    did: str = ""

    @property
    def up(self) -> bool:
        """Whether its process is there."""
        return self.state in UP


@dataclass(frozen=True, slots=True)
class Fleet:
    """Boards, and how to speak of nodes there.

    Attributes:
        folder: on each board, as in `zpipe push`.
        program: the zpipe there; "" = looked for.
        seconds: for a connection.
    """

    topology: Topology
    boards: Sequence[Board]
    folder: str
    program: str = ""
    seconds: float = CONNECT_SECONDS
    places: Layout = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", layout(self.topology))

    @property
    def stem(self) -> str:
        """Of the topology's files of process ids and logs."""
        return self.places.topology.rpartition("/")[2].removesuffix(".yaml")


async def start(fleet: Fleet, *, wait: int = START_SECONDS, arguments: tuple[str, ...] = ()) -> list[NodeStatus]:
    """Starts every node that does not run, and waits until each serves or has failed.

    Args:
        fleet: where.
        wait: seconds for each.
        arguments: of `zpipe node`, for those without a unit.
    """

    async def of(link: Link) -> list[tuple[str, str]]:
        ranks, places = link.board.ranks, fleet.places
        words: list[str | int] = [fleet.program, places.unit, fleet.stem, places.topology, _joined(ranks), wait, *arguments]
        return await link.ask("start", fleet.folder, *words, seconds=ASK_SECONDS + (wait + 5) * len(ranks))

    return await _everywhere(fleet, of)


async def stop(fleet: Fleet) -> list[NodeStatus]:
    """Lets every node finish what it holds and end; one that does not in time is killed."""

    async def of(link: Link) -> list[tuple[str, str]]:
        words = (fleet.folder, fleet.places.unit, fleet.stem, _joined(link.board.ranks), STOP_SECONDS)
        return await link.ask("stop", *words, seconds=ASK_SECONDS + (STOP_SECONDS + 5) * len(link.board.ranks))

    return await _everywhere(fleet, of)


async def restart(fleet: Fleet, *, wait: int = START_SECONDS, arguments: tuple[str, ...] = ()) -> list[NodeStatus]:
    """`stop`, then `start`, of each board by itself: another board's trouble holds none up."""

    async def one(board: Board) -> list[NodeStatus]:
        only = Fleet(fleet.topology, [board], fleet.folder, fleet.program, fleet.seconds)
        stopped = await stop(only)
        return (
            stopped
            if any(node.up or node.state == "unknown" for node in stopped)
            else await start(only, wait=wait, arguments=arguments)
        )

    found = await asyncio.gather(*[one(board) for board in fleet.boards])
    return sorted((node for nodes in found for node in nodes), key=lambda node: node.rank)


async def status(fleet: Fleet) -> list[NodeStatus]:
    """What runs: as the boards see it, and, beside that, which nodes answer at their addresses from here."""

    async def of(link: Link) -> list[tuple[str, str]]:
        words = (fleet.folder, fleet.places.unit, fleet.stem, _joined(link.board.ranks))
        return await link.ask("status", *words, seconds=ASK_SECONDS)

    nodes, sessions = await asyncio.gather(_everywhere(fleet, of), _sessions(fleet.topology))
    return [
        replace(node, state="serving", session=sessions[node.rank]) if node.state == "running" and node.rank in sessions else node
        for node in nodes
    ]


async def tail(fleet: Fleet, lines: int) -> list[tuple[NodeStatus, list[str]]]:
    """Of each node the last lines of its log; nothing, and why in its `line`, where its board says nothing."""
    found: dict[int, list[str]] = {}

    async def of(link: Link) -> list[tuple[str, str]]:
        words = (fleet.places.unit, fleet.stem, _joined(link.board.ranks), lines)
        answers = await link.ask("logs", fleet.folder, *words, seconds=ASK_SECONDS)
        for rank, rows in _by_rank(answers).items():
            found[rank] = [value for word, value in rows if word == "line"]
        return answers

    return [(node, found.get(node.rank, [])) for node in await _everywhere(fleet, of)]


# ---- helpers -------------------------------------------------------------------------------------


async def _everywhere(fleet: Fleet, of: Callable[[Link], Awaitable[list[tuple[str, str]]]]) -> list[NodeStatus]:
    """Every board at once; rows by rank."""

    async def one(board: Board) -> list[NodeStatus]:
        try:
            async with connected(board, fleet.seconds) as link:
                found = _by_rank(await of(link))
        except ZpipeError as exc:
            return [NodeStatus(rank, board, line=str(exc)) for rank in board.ranks]
        return [_status(rank, board, dict(found.get(rank, []))) for rank in board.ranks]

    rows = await asyncio.gather(*[one(board) for board in fleet.boards])
    return sorted((node for nodes in rows for node in nodes), key=lambda node: node.rank)


def _by_rank(answers: Sequence[tuple[str, str]]) -> dict[int, list[tuple[str, str]]]:
    """What a shell's start-up files print before the first rank is passed over."""
    found: dict[int, list[tuple[str, str]]] = {}
    rows: list[tuple[str, str]] = []
    for word, value in answers:
        if word == "rank" and value.isdigit():
            rows = found.setdefault(int(value), [])
        else:
            rows.append((word, value))
    return found


def _status(rank: int, board: Board, said: dict[str, str]) -> NodeStatus:
    states: dict[str, State] = {each: each for each in ("running", "restarting", "stopped", "dead")}
    state = states.get(said.get("state", ""), "unknown")
    if state == "running" and "waiting" in said:
        state = "starting"
    did = "already" if "already" in said else "killed" if "killed" in said else ""
    pid, age, restarts = (int(said[word]) if said.get(word, "").isdigit() else None for word in ("pid", "age", "restarts"))
    line = one_line(said.get("line", ""))
    return NodeStatus(rank, board, state, said.get("how", ""), pid or 0, age, 0, restarts or 0, line, did)


async def _sessions(topology: Topology) -> dict[int, int]:
    """{rank: session} of the nodes that answer; nothing where that cannot be asked."""
    found: dict[int, int] = {}
    try:
        async with Observer(topology) as observer:
            await observer.arrived(LOOK_SECONDS)
            for seen in await observer.look(LOOK_SECONDS):
                if seen.up and seen.stats is not None:
                    found[seen.rank] = int(seen.stats["session"])
    except ZpipeError:  # no secret of any rank is here
        return {}
    return found


def _joined(ranks: Sequence[int]) -> str:
    return ",".join(map(str, ranks))
