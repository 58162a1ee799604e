"""What a plan starts from, as numbers: seconds per stage and board, bytes per stage and codec, memory, who is linked to whom."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from zpipe.boards import Board, Boards
from zpipe.bundle import SCORE_BYTES, Bundle, lossy_part
from zpipe.codecs import accuracy_lost, measured_codecs, row_bytes
from zpipe.errors import ConfigError
from zpipe.model import AUTO_CODEC, NO_CODEC, OperatingPoint, StageSpec
from zpipe.plan.memory import PROCESS_BYTES, stage_memory
from zpipe.topology import LinkSpec

#: Codecs that cost no more accuracy than this, 0..1, may be chosen where a link leaves that open.
MOST_LOST = 0.005
#: What a message has beside its rows, and each row beside its activation (zpipe.sim.sizes counts exactly); and Ethernet, IPv4 and
#: TCP around each segment.
HEADER_BYTES, ROW_BYTES, PACKET_BYTES, SEGMENT_BYTES = 37.0, 105.0, 66.0, 1448.0
#: What a batch's Credit and its Results take on their way back, and each task's Result of it.
ANSWER_BYTES, RESULT_BYTES = 200.0, 50.0
#: A batch that takes longer is made smaller as long as a row then takes this share more at most: what a batch costs beside its rows
#: is milliseconds, while all its rows, and everything behind them, wait for the last. ResNet-50 at 224 pixels on small boards, in
#: batches of 8 on one channel: half of the samples were sent a second time, and the rate was half of what it is in ones.
BATCH_SECONDS, BATCH_LOSS = 1.0, 0.01


@dataclass(frozen=True, slots=True)
class Problem:
    """One network at one operating point, and the boards to run it on.

    Attributes:
        boards: who and how linked.
        stages: of the bundle.
        reach: P(a sample gets to stage k); of a student's stages: gets so far in it.
        weight_bytes: of each stage's file.
        sizes: {codec: bytes of one row that waits for stage k}, those that cost less accuracy first.
        open: the codecs of a link that leaves its codec open; () = all of `sizes`.
    """

    boards: Boards
    stages: tuple[StageSpec, ...]
    reach: tuple[float, ...]
    weight_bytes: tuple[float, ...]
    sizes: Mapping[str, tuple[float, ...]]
    open: tuple[str, ...] = ()

    # ---- boards --------------------------------------------------------------------------------

    def seconds(self, board: int, stage: int, entered: int = 0) -> float:
        """A task's share of a busy board's time.

        A busy board gets full batches of what comes in; of these, those that stay go on together, as older samples go first. So a
        batch of stage k has as many rows as are left of a full one.

        Args:
            board: where.
            stage: of which tasks.
            entered: the stage at which samples come to this board.
        """
        return self.batch_share(board, stage, self.reach[stage] / self.reach[entered] if self.reach[entered] else 0.0)

    def batch_share(self, board: int, stage: int, fullness: float) -> float:
        """A task's share of a batch that has this share, 0..1, of the rows it may have, but one at least."""
        there = self.boards.boards[board]
        rows = max(1.0, there.max_batch * fullness)
        return there.batch_seconds(self.stages[stage], rows) / rows

    def lone_seconds(self, board: int, stage: int) -> float:
        """A task that comes alone."""
        return self.boards.boards[board].batch_seconds(self.stages[stage], 1)

    def room(self, board: int) -> float:
        """Bytes that stages may take there."""
        there = self.boards.boards[board]
        measured = there.measured.process_bytes if there.measured is not None else None
        return there.memory_bytes - (PROCESS_BYTES if measured is None else measured)

    def memory(self, board: int, stage: int) -> float:
        """Bytes the stage adds to its node: as measured there, else by `zpipe.plan.memory`."""
        there, spec = self.boards.boards[board], self.stages[stage]
        if there.measured is not None and stage in there.measured.stage_bytes:
            return there.measured.stage_bytes[stage]
        ends = spec.input.bytes + (spec.output.bytes if spec.output is not None else 0)
        return stage_memory(self.weight_bytes[stage], ends, there.max_batch)

    def holds(self, board: int, stages: Iterable[int]) -> bool:
        """Whether these stages fit together."""
        return sum(self.memory(board, stage) for stage in stages) <= self.room(board)

    @property
    def survive(self) -> list[float]:
        """P(a sample that gets to stage k goes on to k + 1)."""
        return [after / before if before else 0.0 for before, after in pairwise(self.reach)]

    # ---- links ---------------------------------------------------------------------------------

    def link_bytes(self, link: LinkSpec, codec: str = "", *, alone: bool = False) -> tuple[float, ...]:
        """Bytes on that link of one task that waits for stage k, with packets and headers.

        Where samples are always waiting a message has a full batch, which shares them; no message has more rows.

        Args:
            link: one of the boards'.
            codec: instead of the link's own; where both leave it open, for each stage the smallest that may be used.
            alone: a message of one task.
        """
        rows = 1 if alone else max(self.boards.boards[board].max_batch for board in link.between)
        name = codec or link.codec
        names = (self.open or tuple(self.sizes)) if name == AUTO_CODEC else (name,)
        # Answers go the other way, which is another link, but for a medium that all of them share.
        answers = ANSWER_BYTES / rows + RESULT_BYTES if link.medium else 0.0
        return tuple(
            _on_link(rows * (min(sizes) + ROW_BYTES) + HEADER_BYTES) / rows + answers
            for sizes in zip(*(self.sizes[each] for each in names), strict=True)
        )

    def within(self, codecs: Sequence[str]) -> Problem:
        """The same with these codecs on links that leave theirs open; () = as it is."""
        return replace(self, open=tuple(codecs)) if codecs else self

    @property
    def families(self) -> list[tuple[str, ...]]:
        """Sets of open codecs that may stand beside each other in one topology, and beside those that links name.

        A topology has one lossy codec (`zpipe.emulation`). In order of accuracy: `none` and what costs nothing, then these beside
        one lossy codec.
        """
        named = {lossy_part(link.codec) for link in self.boards.links if link.codec != AUTO_CODEC} - {NO_CODEC}
        names = self.open or tuple(self.sizes)
        lossy = [part for part in dict.fromkeys(map(lossy_part, names)) if part != NO_CODEC and named <= {part}]
        plain = tuple(name for name in names if lossy_part(name) == NO_CODEC)
        return [plain, *((*plain, *(name for name in names if lossy_part(name) == part)) for part in lossy)]

    @property
    def smallest_families(self) -> list[tuple[str, ...]]:
        """Families of which no other has fewer bytes at every stage: a best plan has codecs of one of these."""
        least = {
            family: [min(sizes) for sizes in zip(*(self.sizes[name] for name in family), strict=True)] for family in self.families
        }
        found: list[tuple[str, ...]] = []
        for family in reversed(self.families):
            if not any(all(a <= b for a, b in zip(least[other], least[family], strict=True)) for other in found):
                found = [other for other in found if any(a < b for a, b in zip(least[other], least[family], strict=True))]
                found.append(family)
        return found

    def link_seconds(self, link: LinkSpec, codec: str = "", *, alone: bool = False) -> tuple[float, ...]:
        """Seconds one task that waits for stage k keeps the link busy, as in `link_bytes`; 0 where nothing limits it."""
        return tuple(8.0 * size / link.bandwidth_bps for size in self.link_bytes(link, codec, alone=alone))

    # ---- the same, a little different ----------------------------------------------------------

    def with_faster_board(self, board: int, factor: float) -> Problem:
        """One board so many times faster."""
        boards = list(self.boards.boards)
        boards[board] = replace(boards[board], faster=boards[board].faster * factor)
        return replace(self, boards=replace(self.boards, boards=tuple(boards)))

    def with_faster_link(self, index: int, factor: float) -> Problem:
        """One link with so many times the bandwidth; where it shares a medium, the medium."""
        medium = self.boards.links[index].medium
        links = tuple(
            replace(link, bandwidth_bps=link.bandwidth_bps * factor) if at == index or (medium and link.medium == medium) else link
            for at, link in enumerate(self.boards.links)
        )
        return replace(self, boards=replace(self.boards, links=links))

    def with_one_more(self, board: int) -> Problem:
        """One more board of that kind: at the end of a line, else linked as that one is, and to it."""
        boards = self.boards
        new = len(boards.boards)
        last = [link for link in boards.links if link.between == (new - 2, new - 1)]
        if boards.shape == "line" and last:
            links = [replace(last[0], between=(new - 1, new))]
        else:
            near = [link for link in boards.links if board in link.between]
            links = [replace(link, between=(sum(link.between) - board, new)) for link in near]
            links += [replace(near[0], between=(board, new))] if near else [LinkSpec((board, new), codec=AUTO_CODEC)]
        added = replace(boards.boards[board], name=f"another {boards.boards[board].name}")
        return replace(self, boards=replace(boards, boards=(*boards.boards, added), links=(*boards.links, *links)))


def check_useful(problem: Problem) -> None:
    """That each board can hold some stage; a source need not.

    Raises:
        ConfigError: one cannot; says what the smallest stage takes there.
    """
    boards = problem.boards
    for at, board in enumerate(boards.boards):
        least = min(problem.memory(at, stage) for stage in range(len(problem.stages)))
        if at != boards.source and least > problem.room(at):
            needed = (board.memory_bytes - problem.room(at) + least) / 1e6
            raise ConfigError(
                f"{boards.path or boards.name}: found {board.name} with {board.memory_bytes / 1e6:.0f} MB, which holds no stage of "
                f"this network, expected {needed:.0f} MB or more (the node itself and its smallest stage); give it more, leave it "
                "out, or cut the network finer (`zpipe split`)"
            )


def make_problem(bundle: Bundle, boards: Boards, *, point: OperatingPoint | None, most_lost: float = MOST_LOST) -> Problem:
    """The numbers of a bundle at an operating point.

    Args:
        bundle: a real one, or its emulation.
        boards: to run it on.
        point: whose exit shares count, as measured on the calibration split; None = no exits.
        most_lost: codecs that cost no more accuracy than this may be chosen.

    Raises:
        ConfigError: a link names a codec that the bundle has no figures for.
    """
    shares = point.calibration.exit_shares if point is not None else (0.0,) * len(bundle.stages)
    reach = tuple(max(0.0, 1.0 - sum(shares[chain[0] : stage])) for chain in bundle.chains for stage in chain)
    names = [name for name in measured_codecs(bundle) if max(0.0, accuracy_lost(bundle, name)) <= most_lost]
    named = dict.fromkeys(link.codec for link in boards.links if link.codec != AUTO_CODEC)
    for name in named:
        if name == "bottleneck" and bundle.bottleneck_file is None:
            raise ConfigError(
                f"{boards.path or boards.name}: links: found codec {name!r}, which bundle {bundle.name} has no weights for, "
                "expected another; leave it out and the planner chooses"
            )
    ordered = sorted(dict.fromkeys([*names, *named]), key=lambda name: _lost(bundle, name))
    sized = tuple(replace(board, max_batch=_batch_rows(board, bundle.stages)) for board in boards.boards)
    return Problem(
        replace(boards, boards=sized),
        bundle.stages,
        reach,
        _weight_bytes(bundle),
        {name: tuple(map(float, row_bytes(bundle, name))) for name in ordered},
        tuple(name for name in ordered if name in names),
    )


def _weight_bytes(bundle: Bundle) -> tuple[float, ...]:
    """Of each stage; a student that only costs says what all of its stages have, which is shared out evenly here."""
    if bundle.costs_only and bundle.students:
        return tuple(student.bytes / len(student.stages) for student in bundle.students for _ in student.stages)
    return tuple(float(size) for size in bundle.stage_file_bytes())


def _batch_rows(board: Board, stages: Sequence[StageSpec]) -> int:
    """As many as the board takes, or fewer where so many take long."""

    def row_seconds(stage: StageSpec, rows: int) -> float:
        return board.batch_seconds(stage, rows) / rows

    slow = [stage for stage in stages if board.batch_seconds(stage, board.max_batch) > BATCH_SECONDS]
    most = {stage.index: (1.0 + BATCH_LOSS) * row_seconds(stage, board.max_batch) for stage in slow}
    rows = board.max_batch
    while rows > 1 and any(board.batch_seconds(stage, rows) > BATCH_SECONDS for stage in slow):
        if any(row_seconds(stage, rows - 1) > most[stage.index] for stage in slow):
            break
        rows -= 1
    return rows


def answer_seconds(link: LinkSpec, classes: int) -> float:
    """Seconds that a lone Result with so many scores keeps a link busy."""
    return 8.0 * _on_link(RESULT_BYTES + SCORE_BYTES * classes) / link.bandwidth_bps


def _on_link(size: float) -> float:
    return size + PACKET_BYTES * math.ceil(size / SEGMENT_BYTES)


def _lost(bundle: Bundle, name: str) -> float:
    known = name in measured_codecs(bundle)
    return max(0.0, accuracy_lost(bundle, name)) if known else math.inf


def named(board: Board, memory: bool = False) -> str:
    """For people."""
    held = f", {board.memory_bytes / 1e6:.0f} MB" if memory and board.memory_bytes < math.inf else ""
    return f"{board.name} ({board.device}{held})"
