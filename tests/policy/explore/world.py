"""The world around the nodes: what belongs to a state of it, and the faults and cases there are.

Time stands still while frames travel and executors work; it goes from one moment (MOMENT_SECONDS) to a later one, the next at which
some timer is due, when nothing else is left to happen. One that goes on earlier is a fault, `slow`: frames, executors or timers
took that long. Clocks are shared. What may happen, in every state and every order:

- a frame arrives; planes and directions are FIFO by themselves, nothing orders them among each other;
- an executor is done; a timer that is due fires; the program submits the next sample;
- an end notices that its connection broke; a broken one is made anew by its sender, with the receiver's PeerUp first and the
  sender's ahead of all that the receiver then says (the answer to Hello); a node that died comes back, empty, in a new session;
- within the budget of faults: a frame is lost, or arrives twice; a connection breaks: its frames vanish, or (`linger`) its tasks
  still arrive in any later order, or (`refuse`) sends are refused until the sender notices; a node dies with all it holds; a node
  stops (SIGSTOP) and goes on at any later time; a node is told to leave (`drain`), or its executor is lost (`break_down`), and it
  leaves when it may, to come back as one that died would; an executor raises; the program cancels a sample; time passes early.
  Counted like them: two things are ready at a node and it is told of both `together`, as the runtime does.

Nothing is left out because it would come to the same: every order is taken, also of what happens at different nodes. Orders that
lead to one state go on as one. States are compared as a whole, by value, never by a hash alone; as with the nodes, parts that were
met before are named by where they stand in a table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.policy.mesh import Shape

#: A node that died, in place of its state.
DEAD = -1
#: The receiver's answer to Hello, in place of a message.
HELLO = -1
#: A deadline that nothing explored here reaches, seconds.
FAR = 1e6

Action = tuple[Any, ...]


def named(source: int, session: int, sample: int) -> str:
    """A sample in words."""
    return f"{session}.{sample}" + (f" of node {source}" if source else "")


class Faults(NamedTuple):
    """How often each of these may happen on one path."""

    lose: int = 0
    repeat: int = 0
    cut: int = 0
    linger: int = 0
    refuse: int = 0
    restart: int = 0
    stop: int = 0
    drain: int = 0
    break_down: int = 0
    fail: int = 0
    cancel: int = 0
    slow: int = 0
    together: int = 0

    def __str__(self) -> str:
        return (
            ", ".join(f"{count} {name}" for name, count in zip(self._fields, self, strict=True) if count).replace("_", " ")
            or "none"
        )


@dataclass(frozen=True)
class Case:
    """One mesh with its samples and faults.

    Attributes:
        deadlines: seconds after its submission, one per sample of rank 0.
        others: {rank: the same of another source}; what each submits when is free of what the others do.
        moments: time is explored up to this moment; what comes later is run in one order.
        leaves_at: {sample: the stage at which it exits}.
        ranks: those that may die, stop, leave or break down.
    """

    name: str
    shape: Shape
    faults: Faults
    deadlines: tuple[float, ...] = (FAR,)
    moments: int = 4
    leaves_at: dict[int, int] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()
    others: dict[int, tuple[float, ...]] = field(default_factory=dict)

    @property
    def offers(self) -> dict[int, tuple[float, ...]]:
        """{source: deadlines of its samples}."""
        return {0: self.deadlines, **self.others}


class Connection(NamedTuple):
    """What one sender opened to one receiver, and the frames on it.

    Attributes:
        whole: frames pass.
        ready, accepted: whether the sender, and the receiver, believes in it.
        told: what the sender ("lost" or "refused") and the receiver ("lost") will notice in a moment; "" for nothing.
        refuses: a task sent before the sender noticed the end is refused, rather than lost.
        data, out, back, stray: messages under way: tasks, control of the sender, control of the receiver, its tasks after
            it ended.
    """

    epoch: int = 0
    whole: bool = False
    ready: bool = False
    accepted: bool = False
    told: tuple[str, str] = ("", "")
    refuses: bool = False
    data: tuple[int, ...] = ()
    out: tuple[int, ...] = ()
    back: tuple[int, ...] = ()
    stray: tuple[int, ...] = ()


class Story(NamedTuple):
    """What happened so far, as far as it matters.

    Attributes:
        lives: how often each node was born.
        open: (source, session, sample, moment of its deadline) of each sample without an outcome.
        ended: (source, session, sample) of each with one.
        submitted: samples so far of each source, over all its sessions.
        stopped: nodes that stand still.
    """

    lives: tuple[int, ...]
    open: tuple[tuple[int, int, int, float], ...] = ()
    ended: tuple[tuple[int, int, int], ...] = ()
    submitted: tuple[int, ...] = (0,)
    stopped: tuple[int, ...] = ()


class World(NamedTuple):
    """A state: the moment, and numbers of the nodes' states, the connections, the story, the faults left."""

    moment: int
    nodes: tuple[int, ...]
    connections: tuple[int, ...]
    story: int
    left: int


class Table:
    """Values that were met, by number."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, value: Any) -> int:
        number = self._numbers.get(value)
        if number is None:
            number = self._numbers[value] = len(self.values)
            self.values.append(value)
        return number
