"""Where a task goes after a stage ran: this node's own input queue, or a neighbour (rules A1-A4, A6)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence


@dataclass(slots=True)
class Candidate:
    """A neighbour that hosts the stage a task waits for and has credit for it now.

    Attributes:
        transfer_seconds: D, this task's activation to it.
        backlog_seconds: |I| * Gamma there, as last reported, plus what was sent since, less what was released since.
        input_length: |I| there, estimated likewise.
        report: number of the Report the estimate rests on.
        work_seconds: that this task will take there, of strategies that look ahead, else 0; their backlog is that before its class.
    """

    peer: int
    transfer_seconds: float
    backlog_seconds: float
    input_length: int = 0
    report: int = 0
    work_seconds: float = 0.0

    @property
    def cost_seconds(self) -> float:
        """D + |I| * Gamma: until the task is done waiting there; with what it takes itself, until it is done."""
        return self.transfer_seconds + self.backlog_seconds + self.work_seconds


@dataclass(slots=True)
class Here:
    """This node, which hosts the stage the task waits for as well.

    Attributes:
        backlog_seconds: |I| * Gamma, with what runs and what waits in O and may be taken back.
        output_length: |O|.
        work_seconds: as of a Candidate.
    """

    backlog_seconds: float
    output_length: int
    work_seconds: float = 0.0

    @property
    def cost_seconds(self) -> float:
        """As of a Candidate; nothing is to be carried."""
        return self.backlog_seconds + self.work_seconds


class Offload(Protocol):
    """A strategy; both answers concern a stage that this node hosts as well. Where it does not, there is no choice.

    Attributes:
        weighs: its choice rests on the load of neighbours, so it wants to be told at once when that changes.
        looks_ahead: it is told what is before a task's class, and what the task will take itself (A6).
        withholds: nodes may say which stages they would rather not serve for a class (A8).
        chained: each source's tasks go along its chain of nodes (A9); `LEFT_FREE` or `BLIND`, "" where they do not.
    """

    weighs: bool
    looks_ahead: bool
    withholds: bool
    chained: str

    def keep(self, *, stage: int, input_length: int, output_length: int) -> bool:
        """Whether a task whose next stage is hosted here goes to I rather than O; raw inputs count in |I| wherever they wait."""

    def shorter_than(self, output_length: int) -> float:
        """Only neighbours with |I| below it can be chosen while |O| is that long: nothing else is asked of the others.

        It does not fall while |O| grows.
        """

    def choose(
        self, candidates: Sequence[Candidate], here: Here, *, may_throw: Callable[[Candidate], bool], rng: random.Random
    ) -> Candidate | None:
        """The neighbour for the head of a lane, None to keep it waiting.

        Args:
            candidates: at least one, the cheapest first.
            here: this node.
            may_throw: whether dice may be thrown for that candidate: once per head, neighbour and Report (rule A4).
            rng: the dice.
        """


#: How strategies that share stages out along a chain of nodes (A9) take a node's rate: all of it, or what other sources leave free.
BLIND, LEFT_FREE = "blind", "left-free"


class Plain:
    """What strategies do that know neither classes nor chains."""

    looks_ahead = False
    withholds = False
    chained = ""


class LocalOffload(Plain):
    """Runs whatever this node hosts; offloads only what it must."""

    weighs = False

    def keep(self, *, stage: int, input_length: int, output_length: int) -> bool:
        return True

    def shorter_than(self, output_length: int) -> float:
        return -math.inf

    def choose(
        self, candidates: Sequence[Candidate], here: Here, *, may_throw: Callable[[Candidate], bool], rng: random.Random
    ) -> Candidate | None:
        return None


class CheapestOffload(Plain):
    """Deterministic minimum of D + |I| * Gamma over this node and its neighbours."""

    weighs = True

    def keep(self, *, stage: int, input_length: int, output_length: int) -> bool:
        return input_length == 0

    def shorter_than(self, output_length: int) -> float:
        return math.inf

    def choose(
        self, candidates: Sequence[Candidate], here: Here, *, may_throw: Callable[[Candidate], bool], rng: random.Random
    ) -> Candidate | None:
        best = candidates[0]
        return None if here.cost_seconds <= best.cost_seconds else best


class DdiOffload(CheapestOffload):
    """Data-distributed inference: raw inputs go to the cheapest node, and whoever runs stage 0 runs the rest."""

    def keep(self, *, stage: int, input_length: int, output_length: int) -> bool:
        return stage > 0 or input_length == 0


class MdiOffload(Plain):
    """The probabilistic rule of MDI-Exit.

    Source: MDI-Exit (arXiv:2408.05247), our reading of Alg. 1 (keep) and Alg. 2 (choose). Differs: |I| * Gamma is a sum over the
    stages queued, with what runs and what waits in O for a stage hosted here, since this node takes that back when it is idle (A3):
    credits keep I short, so that a node whose samples all wait in O would look idle and send none. The candidate with the smallest
    D + |I| * Gamma is asked first; rules A3 and A4 keep it live.

    Args:
        output_threshold: T_O of Alg. 1, tasks.
    """

    weighs = True

    def __init__(self, output_threshold: int) -> None:
        self._output_threshold = output_threshold

    def keep(self, *, stage: int, input_length: int, output_length: int) -> bool:
        return input_length == 0 or output_length > self._output_threshold

    def shorter_than(self, output_length: int) -> float:
        return output_length

    def choose(
        self, candidates: Sequence[Candidate], here: Here, *, may_throw: Callable[[Candidate], bool], rng: random.Random
    ) -> Candidate | None:
        for candidate in candidates:
            if candidate.input_length >= self.shorter_than(here.output_length):
                continue
            cost = candidate.cost_seconds
            if cost < here.backlog_seconds:
                return candidate
            if here.backlog_seconds > 0.0 and may_throw(candidate) and rng.random() < here.backlog_seconds / cost:
                return candidate
        return None


class FifoOffload(CheapestOffload):
    """The earliest end: the least D + what is before it + what it takes itself, over this node and its neighbours (A6).

    The baseline `fifo`: what `pa-mdi` is without priorities, first come, first served.
    """

    looks_ahead = True

    def keep(self, *, stage: int, input_length: int, output_length: int) -> bool:
        return False  # where it ends first is asked at once, and again as long as it waits


class PaMdiOffload(FifoOffload):
    """Priority-aware MDI: the earliest end, where only what is of a task's class or above it counts as before it.

    Source: PA-MDI (arXiv:2412.12371), our reading. The published cost of a neighbour, (transfer + age + work * compute + backlog) /
    (gamma * alpha), has age, gamma and alpha of the task alone, which are the same for all neighbours, so they choose none of them:
    they say which of several tasks goes first, and stand in the service order (A7), gamma as the order of classes. Its RTC and CTC
    are rule C8, its model allocation rule A8.
    """

    withholds = True


class ChainOffload(Plain):
    """Each source's stages are shared out along its chain of nodes, in proportion to their measured rates (A9).

    `ar-mdi` takes a node's whole rate, blind to other sources; `ms-mdi` what other sources leave free. Neither has priorities.
    Source: AR-MDI and MS-MDI as PA-MDI (arXiv:2412.12371) compares with them, our reading; layers in proportion to rates
    along a circle of workers as in AR-MDI. Differs: a task whose next node is gone goes to any other that takes it.

    Of a few coarse stages on a full mesh of equal nodes both often come to the same allocation: what others leave free is nearly
    the same everywhere, a stage is nobody's half, and raw inputs go one hop (S3).

    Args:
        chained: `BLIND` or `LEFT_FREE`.
    """

    weighs = False

    def __init__(self, chained: str) -> None:
        self.chained = chained

    def keep(self, *, stage: int, input_length: int, output_length: int) -> bool:
        return True  # of what the chain leaves open, such as raw inputs

    def shorter_than(self, output_length: int) -> float:
        return math.inf

    def choose(
        self, candidates: Sequence[Candidate], here: Here, *, may_throw: Callable[[Candidate], bool], rng: random.Random
    ) -> Candidate | None:
        return candidates[0]


#: {name in a topology: what makes the strategy, given T_O}
OFFLOADS: dict[str, Callable[[int], Offload]] = {
    "local": lambda output_threshold: LocalOffload(),
    "cheapest": lambda output_threshold: CheapestOffload(),
    "ddi": lambda output_threshold: DdiOffload(),
    "mdi": MdiOffload,
    "fifo": lambda output_threshold: FifoOffload(),
    "pa-mdi": lambda output_threshold: PaMdiOffload(),
    "ar-mdi": lambda output_threshold: ChainOffload(BLIND),
    "ms-mdi": lambda output_threshold: ChainOffload(LEFT_FREE),
}
