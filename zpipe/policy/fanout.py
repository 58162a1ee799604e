"""Students that share a sample: what a source has to know of them (RoCoIn, arXiv:2406.14185)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Redundancy = Literal["failover", "hedged", "all"]


@dataclass(frozen=True, slots=True)
class FanoutConfig:
    """The students, one per part of each sample, and the classifier that joins what they say.

    It is plain data, since a node's configuration goes into its trace and a replay starts from that. Who hosts which student is
    not in it: the lanes of the node's links say so.

    Attributes:
        firsts, ends: per part, the first and the last stage of its student, in the bundle's flat numbering.
        redundancy: how many replicas of a student are given each sample: one, and another one when that is lost (`failover`) or
            late (`hedged`), or `all` of them.
        bias: of the joining classifier, one per class; added to the sum of what the students say.
        temperatures: 2 ** parts of them: that of the set of parts that are in, as bits, part 0 the lowest; the first is no set's.
    """

    firsts: tuple[int, ...]
    ends: tuple[int, ...]
    bias: tuple[float, ...]
    temperatures: tuple[float, ...]
    redundancy: Redundancy = "hedged"
