"""Which codec a link takes under `codec: auto`: the one that costs least accuracy among those with which the link keeps up.

A link keeps up with a stage when it brings a task in less time than the nodes at its ends take for one: it is not the
bottleneck then, whatever else it carries. For tasks of stage s come at most as often as the receiver can run s, so links that
need a share BUSY of that time for each stage they carry are busy for at most that share of all time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from zpipe.bundle import Bundle, lossy_part
from zpipe.codecs.base import Codec
from zpipe.model import CODECS, NO_CODEC

#: Share of a task's time that its link may take: queues grow steeply above it.
BUSY = 0.8
#: A more accurate codec is taken again only where it would need no more than this: a bandwidth that is measured with an error of
#: a quarter either way changes nothing.
RETURN = 0.5
#: A choice stands this long: several Reports and Credits, so that the next one rests on what this one has changed.
REVIEW_SECONDS = 1.0
#: Weight of a new frame in the mean size of a packed codec's rows.
SIZE_GAIN = 0.1


class Candidate(NamedTuple):
    """A codec that a link might use: bytes of one row of a stage's input, and the fraction of samples it costs."""

    name: str
    row_bytes: float
    lost: float


def choose_codec(candidates: Sequence[Candidate], *, bandwidth_bps: float, seconds_per_task: float, current: str) -> str:
    """The name of the candidate to use from now on.

    1. Candidates are ordered by what they cost in accuracy, equal ones (and those that happened to gain) as given.
    2. The first is taken that needs at most BUSY of the time; where none does, the one with the fewest bytes.
    3. From a codec that keeps up, a change comes only to one that costs less and needs at most RETURN of the time.

    Args:
        candidates: at least one, `current` among them.
        bandwidth_bps: of the link, bits per second; `inf` = nothing showed a limit.
        seconds_per_task: what the slower of the two nodes takes for a task; 0 = not known yet, and nothing changes.
        current: the one in use.
    """
    if seconds_per_task <= 0.0:
        return current
    ordered = sorted(candidates, key=lambda candidate: max(0.0, candidate.lost))
    share = {each.name: 8.0 * each.row_bytes / bandwidth_bps / seconds_per_task for each in ordered}
    limit = RETURN if share[current] <= BUSY else BUSY
    for candidate in ordered:
        if candidate.name == current and share[current] <= BUSY:
            return current
        if share[candidate.name] <= limit:
            return candidate.name
    return min(ordered, key=lambda candidate: candidate.row_bytes).name


def measured_codecs(bundle: Bundle) -> tuple[str, ...]:
    """`none` and the codecs whose cost in accuracy the bundle's manifest tells: among these `auto` chooses."""
    return tuple(name for name in CODECS if name == NO_CODEC or lossy_part(name) in bundle.codecs)


def accuracy_lost(bundle: Bundle, name: str) -> float:
    """The fraction of samples a measured codec costs."""
    return 0.0 if name == NO_CODEC else bundle.codecs[lossy_part(name)].lost


class CodecChoice:
    """The choices of one node on links with `codec: auto`, for each neighbour and stage apart.

    Args:
        bundle: tells what each codec costs.
        codecs: {(name, stage): codec}; it chooses among those that were measured.
    """

    def __init__(self, bundle: Bundle, codecs: Mapping[tuple[str, int], Codec]) -> None:
        # A codec that would change nothing at a stage is left out there; an image is coded without loss or not at all.
        self._candidates: dict[int, list[Candidate]] = {}
        for (name, stage), codec in sorted(codecs.items(), key=lambda item: CODECS.index(item[0][0])):
            if codec.name == name and name in measured_codecs(bundle):
                lost = accuracy_lost(bundle, name) if stage else 0.0
                self._candidates.setdefault(stage, []).append(Candidate(name, float(codec.typical_row_bytes), lost))
        self._chosen: dict[tuple[int, int], str] = {}
        self._due_at: dict[tuple[int, int], float] = {}

    def current(self, peer: int, stage: int) -> str:
        """The codec in use; `none` at first."""
        return self._chosen.get((peer, stage), NO_CODEC)

    def is_due(self, peer: int, stage: int, *, now: float) -> bool:
        """Whether it is time to look again."""
        return now >= self._due_at.get((peer, stage), now)

    def review(self, peer: int, stage: int, *, bandwidth_bps: float, seconds_per_task: float, now: float) -> str:
        """Looks again; the arguments are those of `choose_codec`. Returns what is in use from now on."""
        key = peer, stage
        self._due_at[key] = now + REVIEW_SECONDS
        self._chosen[key] = choose_codec(
            self._candidates[stage],
            bandwidth_bps=bandwidth_bps,
            seconds_per_task=seconds_per_task,
            current=self.current(peer, stage),
        )
        return self._chosen[key]

    def packed(self, name: str, stage: int, row_bytes: float) -> None:
        """A frame of a packed codec had so many bytes per row."""
        self._candidates[stage] = [
            each._replace(row_bytes=each.row_bytes + SIZE_GAIN * (row_bytes - each.row_bytes)) if each.name == name else each
            for each in self._candidates[stage]
        ]
