"""Where a task goes after a stage ran: this node's own input queue, or a neighbour (rules A1-A3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True)
class Candidate:
    """A neighbour that hosts the stage a task waits for and has credit for it now.

    Attributes:
        transfer_seconds: D, one activation to it.
        backlog_seconds: |I| * Gamma there, as last reported, plus what was sent since.
    """

    peer: int
    transfer_seconds: float
    backlog_seconds: float

    @property
    def cost_seconds(self) -> float:
        """D + |I| * Gamma: until the task is done waiting there."""
        return self.transfer_seconds + self.backlog_seconds


class Offload(Protocol):
    """A strategy; both answers concern a stage that this node hosts as well. Where it does not, there is no choice."""

    def keep(self, *, input_length: int, output_length: int) -> bool:
        """Whether a task whose next stage is hosted here goes to I rather than O."""

    def choose(self, candidates: Sequence[Candidate], *, here_seconds: float | None) -> Candidate | None:
        """The neighbour for the head of a lane, None to keep it waiting.

        Args:
            candidates: at least one.
            here_seconds: |I| * Gamma of this node, None when it does not host the stage.
        """


class LocalOffload:
    """Runs whatever this node hosts; offloads only what it must."""

    def keep(self, *, input_length: int, output_length: int) -> bool:
        return True

    def choose(self, candidates: Sequence[Candidate], *, here_seconds: float | None) -> Candidate | None:
        if here_seconds is not None:
            return None
        return min(candidates, key=lambda candidate: candidate.cost_seconds)


class CheapestOffload:
    """Deterministic minimum of D + |I| * Gamma over this node and its neighbours."""

    def keep(self, *, input_length: int, output_length: int) -> bool:
        return input_length == 0

    def choose(self, candidates: Sequence[Candidate], *, here_seconds: float | None) -> Candidate | None:
        best = min(candidates, key=lambda candidate: candidate.cost_seconds)
        if here_seconds is not None and here_seconds <= best.cost_seconds:
            return None
        return best


OFFLOADS: dict[str, type[Offload]] = {"local": LocalOffload, "cheapest": CheapestOffload}
