"""The neighbours of one node: connections, credit, reports, silence (rules L1, C3-C6, R1, R5)."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from zpipe.model import LostRow
from zpipe.policy.clearance import Clearance
from zpipe.policy.credit import IncomingLink, OutgoingLink
from zpipe.policy.estimates import LinkEstimate
from zpipe.policy.messages import BanPeer, GrantCredit, ResetLink, SendBlocked, SendReport
from zpipe.policy.state import Neighbour

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Sized

    from zpipe.model import Report, SampleKey
    from zpipe.policy.credit import Sent
    from zpipe.policy.messages import (
        BlockedReceived,
        Command,
        CreditReceived,
        PeerLost,
        PeerUp,
        ReportReceived,
        SendCompleted,
        SendFailed,
    )
    from zpipe.policy.state import NeighbourConfig, NodeConfig, NodeCounts


#: A node with nothing to tell still says so this often.
HEARTBEAT_SECONDS = 1.0
#: A neighbour that owes us a Report is suspected after so many more are missing ...
MISSED_REPORTS = 3
#: ... and the lateness its Reports show, so many times over (as RFC 6298 takes deviations).
LATENESS_FACTOR = 4.0
#: A Blocked that nothing answers for so long says that its data plane is stuck, while the neighbour itself is heard: TCP sends a
#: lost segment again after 0.2 s, and when that is lost too after 0.6 s ...
STUCK_SECONDS = 0.7
#: ... twice as long after each reset that brought nothing, up to this factor: a link may be slower than anybody thought.
STUCK_FACTOR = 64

_OUTSTANDING = attrgetter("outstanding")


class Links:
    """Keeps both ends of every link, and says what was lost when one breaks.

    Attributes:
        neighbours: #: {rank: its present state}.
        incoming: #: {rank: the receiving end of its link}, where it may send us tasks.
        takers: #: {lane: neighbours that take it}.
        returned: a way to some neighbour is open that was not before; its reader clears it.
        changed: some neighbour may be able to take what it was not before, or its wait has to be noted anew; its reader clears it.
    """

    def __init__(self, config: NodeConfig, counts: NodeCounts) -> None:
        self._config = config
        self._counts = counts
        self._parts = config.gates.parts
        classes = config.classes
        self.neighbours = {
            neighbour.rank: Neighbour(
                neighbour,
                _outgoing(neighbour, lower=classes[:-1]) if neighbour.lanes_out else None,
                IncomingLink(neighbour.lanes_in, neighbour.window_in, highest=classes[-1] if len(classes) > 1 else 0)
                if neighbour.lanes_in
                else None,
            )
            for neighbour in config.neighbours
        }
        self.returned = False
        self.changed = True
        self._largest = {n.rank: max((n.lane_bytes.get(lane, 0.0) for lane in n.lanes_out), default=0.0) for n in config.neighbours}
        self.incoming = {rank: n.incoming for rank, n in self.neighbours.items() if n.incoming is not None}
        self._clearance = None
        if len(classes) > 1 and self.incoming:
            pool = max(link.window for link in self.incoming.values()) // 2 + 2 * config.max_batch
            self._clearance = Clearance(classes[:-1], self.incoming.values(), pool=pool)
        self._outgoing = [n.outgoing for n in self.neighbours.values() if n.outgoing is not None]
        lanes = {lane for neighbour in config.neighbours for lane in neighbour.lanes_out}
        order = [lane for lane in config.lane_order if lane in lanes]
        lanes_in_order = [*order, *sorted(lanes.difference(order))]
        self.takers = {lane: [n for n in self.neighbours.values() if lane in n.config.lanes_out] for lane in lanes_in_order}

    # ---- events --------------------------------------------------------------------------------

    def heard(self, peer: int, now: float) -> Neighbour | None:
        """Any message is a sign of life (R5); None for a rank that is no neighbour."""
        neighbour = self.neighbours.get(peer)
        if neighbour is not None:
            neighbour.heard_at = now
            if neighbour.suspected:
                neighbour.suspected, self.returned, self.changed = False, True, True
        return neighbour

    def on_credit(self, event: CreditReceived, commands: list[Command], now: float) -> list[LostRow]:
        """Takes in a Credit; returns what never arrived (C7), or all that is outstanding there where it is a lie (R7)."""
        neighbour = self.heard(event.peer, now)
        link = neighbour.outgoing if neighbour is not None else None
        if neighbour is None or link is None or link.epoch != event.credit.epoch:
            self._counts.wrong_epoch_credit += 1
            return []
        if not link.believable(event.credit):
            said = f"expected {event.credit.expected}, limit {event.credit.limit}"
            return self.ban(event.peer, f"credit beyond the window: {said}, with {link}", commands)
        self.changed = True
        expected = link.expected
        missed = link.credit(event.credit, now=now)
        if link.expected > expected:
            neighbour.stuck_factor = 1
        self._counts.frames_missed += len(missed)
        return self._lost(missed, f"frame-lost: on the way to node {event.peer}") if missed else []

    def on_blocked(self, event: BlockedReceived, now: float) -> None:
        neighbour = self.heard(event.peer, now)
        if neighbour is not None and neighbour.incoming is not None and neighbour.incoming.epoch == event.epoch:
            neighbour.incoming.settle_blocked(event.next_number)

    def on_report(self, event: ReportReceived, now: float) -> None:
        neighbour = self.heard(event.peer, now)
        if neighbour is not None:
            self.changed = True
            neighbour.take_in(event.report, interval_seconds=self._config.report_seconds, now=now)

    def on_peer_up(self, event: PeerUp, now: float) -> list[LostRow]:
        """Opens a direction; a repeat of what stands changes nothing (L1). Returns what an unnoticed end of the old one lost."""
        neighbour = self.heard(event.peer, now)
        if neighbour is None:
            return []
        self.returned = self.changed = True
        lost: list[LostRow] = []
        link = neighbour.outgoing if event.outgoing else neighbour.incoming
        if link is None or link.epoch != event.epoch:
            if event.outgoing:
                neighbour.arrived_then = 0
                lost = self._close(neighbour, "peer-lost: it connected anew")
            if link is not None:
                link.open(event.epoch)
        if event.outgoing:
            neighbour.sends = True
            _credit_again(neighbour)
        else:
            neighbour.receives = True
        return lost

    def on_peer_lost(self, event: PeerLost) -> list[LostRow]:
        """Closes a direction; a second time changes nothing. Returns what was outstanding (R1)."""
        neighbour = self.neighbours.get(event.peer)
        if neighbour is None:
            return []
        lost: list[LostRow] = []
        if event.outgoing:
            neighbour.sends = False
            lost = self._close(neighbour, f"peer-lost: node {event.peer}: {event.reason}")
            _credit_again(neighbour)
        else:
            neighbour.receives = False
            if neighbour.incoming is not None:
                neighbour.incoming.close()
        if not neighbour.up:
            _forget(neighbour)
        return lost

    def on_send_completed(self, event: SendCompleted) -> None:
        """What the frame had in bytes, for the link's estimate."""
        neighbour = self.neighbours.get(event.peer)
        if neighbour is not None and neighbour.outgoing is not None and neighbour.outgoing.epoch == event.epoch:
            self.changed = True
            neighbour.outgoing.estimate.sized(event.first, event.rows, event.bytes)

    def on_send_failed(self, event: SendFailed, commands: list[Command]) -> list[LostRow]:
        """With credit in hand a refused frame means a broken connection; of an older epoch it means nothing."""
        neighbour = self.neighbours.get(event.peer)
        if neighbour is None or neighbour.outgoing is None or neighbour.outgoing.epoch != event.epoch:
            return []
        return self._reset(neighbour, "a task could not be sent", commands)

    # ---- every report interval -----------------------------------------------------------------

    def watch(self, commands: list[Command], *, slept_seconds: float, now: float) -> list[LostRow]:
        """Rule R5. Silence counts only while this node listened: `slept_seconds` of it, it did not run itself."""
        lost: list[LostRow] = []
        for neighbour in self.neighbours.values():
            neighbour.heard_at = min(now, neighbour.heard_at + slept_seconds)
            if not neighbour.up:
                continue
            silent = now - neighbour.heard_at
            if silent > max(self._config.hang_seconds, self._patience(neighbour, now)):
                lost += self._reset(neighbour, f"nothing heard for {silent:.1f} s", commands)
            elif self._is_stuck(neighbour, now):
                neighbour.stuck_factor = min(STUCK_FACTOR, 2 * neighbour.stuck_factor)
                lost += self._reset(neighbour, "what we send there does not arrive", commands)
            elif not neighbour.suspected and now - self._owes_since(neighbour) > self._patience(neighbour, now):
                neighbour.suspected = True
                self._counts.suspicions += 1
                cause = f"peer-silent: node {neighbour.config.rank}: nothing heard for {silent:.1f} s"
                lost += self._outstanding_at(neighbour, cause)
        return lost

    def _owes_since(self, neighbour: Neighbour) -> float:
        """Since when it should have said something: its last word, or the first task it was given since."""
        link = neighbour.outgoing
        if link is None or not link.outstanding:
            return neighbour.heard_at
        return max(neighbour.heard_at, next(iter(link.outstanding.values())).sent_at)

    def _patience(self, neighbour: Neighbour, now: float) -> float:
        """How long it may say nothing: a node at work reports every interval, later by what its Reports and the link show."""
        report, link = self._config.report_seconds, neighbour.outgoing
        late = MISSED_REPORTS * report + LATENESS_FACTOR * neighbour.lateness
        if link is None or not link.outstanding:
            return HEARTBEAT_SECONDS + late
        return report + late + link.estimate.transfer_seconds(self._largest[neighbour.config.rank], now=now)

    def _is_stuck(self, neighbour: Neighbour, now: float) -> bool:
        """Whether it is heard, and yet what we send does not reach it: after damage, a stream may wait for bytes without end."""
        link = neighbour.outgoing
        if link is None or link.asked_at is None or neighbour.suspected:
            return False
        transfer = link.estimate.transfer_seconds(self._largest[neighbour.config.rank], now=now)
        return neighbour.heard_at - link.asked_at > neighbour.stuck_factor * STUCK_SECONDS + transfer

    def ban(self, peer: int, reason: str, commands: list[Command]) -> list[LostRow]:
        """Rule R7."""
        neighbour = self.neighbours[peer]
        if not neighbour.up:
            return []  # what it said before it was banned
        self._counts.bans += 1
        commands.append(BanPeer(peer, reason))
        return self._give_up(neighbour, f"peer-lost: node {peer} was banned: {reason}")

    def report(self, report: Report, commands: list[Command], *, waiting: Mapping[int, Sized], now: float) -> None:
        """Load to every neighbour, Credit it does not know of, Blocked where we starve (C5, C6).

        Args:
            report: this node's load.
            commands: receives what to send.
            waiting: {lane: O}.
            now: as ever.
        """
        if self._clearance is not None:
            self._clearance.look_around()
        for neighbour in self.neighbours.values():
            incoming = neighbour.incoming
            if incoming is not None and incoming.credit_changed():
                commands.append(GrantCredit(neighbour.config.rank, incoming.credit(now=now)))
            if neighbour.up:
                commands.append(SendReport(neighbour.config.rank, report))
                self._tell_blocked(neighbour, commands, waiting, now)

    def _tell_blocked(self, neighbour: Neighbour, commands: list[Command], waiting: Mapping[int, Sized], now: float) -> None:
        """Rule C6."""
        link = neighbour.outgoing
        if link is None or link.epoch is None or neighbour.suspected:
            return
        if link.waiting_since is not None and not any(waiting[lane] for lane in link.lanes):
            link.waiting_since = None
            self.changed = True
        if self._starves(link, now) or self._doubts(neighbour, link, now):
            self._counts.blocked += 1
            if link.asked_at is None:
                link.asked_at = now
            commands.append(SendBlocked(neighbour.config.rank, link.epoch, link.next_number))

    def _starves(self, link: OutgoingLink, now: float) -> bool:
        return link.waiting_since is not None and now - link.waiting_since >= self._config.report_seconds

    def _doubts(self, neighbour: Neighbour, link: OutgoingLink, now: float) -> bool:
        """Whether a Credit should have told the arrival of the oldest task: the next Report's turn at the latest (C5)."""
        unseen = link.unseen_since()
        if unseen is None:
            return False
        transfer = link.estimate.transfer_seconds(self._largest[neighbour.config.rank], now=now)
        return now - unseen >= 2.0 * self._config.report_seconds + transfer + link.round_trip_seconds

    def grant(self, commands: list[Command], now: float) -> None:
        """The Credits that are due (C5)."""
        for rank, link in self.incoming.items():
            if link.due:
                commands.append(GrantCredit(rank, link.credit(now=now)))

    def shut(self) -> None:
        """Rule R6: no more credit to anybody."""
        self.changed = True
        for link in self.incoming.values():
            link.shut()

    def credit_changed(self) -> bool:
        """Whether some sender knows less than it could."""
        return any(map(IncomingLink.credit_changed, self.incoming.values()))

    def _reset(self, neighbour: Neighbour, reason: str, commands: list[Command]) -> list[LostRow]:
        """Gives up both directions and has them made anew (R5); PeerUp gives them a full `hang_seconds`."""
        self._counts.resets += 1
        commands.append(ResetLink(neighbour.config.rank, reason))
        return self._give_up(neighbour, f"peer-lost: node {neighbour.config.rank}: {reason}")

    def _give_up(self, neighbour: Neighbour, cause: str) -> list[LostRow]:
        neighbour.sends = neighbour.receives = False
        _forget(neighbour)
        if neighbour.incoming is not None:
            neighbour.incoming.close()
        return self._close(neighbour, cause)

    def _close(self, neighbour: Neighbour, cause: str) -> list[LostRow]:
        """Rule R1: everything that was outstanding there."""
        lost = self._outstanding_at(neighbour, cause)
        if neighbour.outgoing is not None:
            neighbour.outgoing.close()
        return lost

    def _outstanding_at(self, neighbour: Neighbour, cause: str) -> list[LostRow]:
        link = neighbour.outgoing
        return self._lost(link.outstanding.values(), cause) if link is not None else []

    def _lost(self, tasks: Iterable[Sent], cause: str) -> list[LostRow]:
        return [LostRow(sent.key, sent.attempt, cause, part=self._parts[sent.lane]) for sent in tasks]

    def waits(self) -> bool:
        """Whether some neighbour holds tasks of ours: whoever does is watched closely (R5)."""
        return any(map(_OUTSTANDING, self._outgoing))

    def on_the_way(self, key: SampleKey, attempt: int, part: int = 0) -> bool:
        """Whether a link of this node still carries this attempt, as far as Credits tell."""
        return any(self._parts[sent.lane] == part for link in self._outgoing for sent in link.on_the_way(key, attempt))

    def check(self) -> None:
        """Asserts the invariants of every link."""
        if self._clearance is not None:
            self._clearance.check()
        for neighbour in self.neighbours.values():
            if neighbour.outgoing is not None:
                neighbour.outgoing.check()
                assert neighbour.sends or neighbour.outgoing.epoch is None, neighbour
            if neighbour.incoming is not None:
                neighbour.incoming.check()
                assert neighbour.receives or neighbour.incoming.epoch is None, neighbour
            assert neighbour.up or not neighbour.suspected, neighbour


def _outgoing(config: NeighbourConfig, *, lower: Sequence[int]) -> OutgoingLink:
    estimate = LinkEstimate(bandwidth_bps=config.bandwidth_bps, latency_seconds=config.latency_seconds)
    return OutgoingLink(config.lanes_out, config.window_out, lane_bytes=config.lane_bytes, estimate=estimate, lower=lower)


def _credit_again(neighbour: Neighbour) -> None:
    """The last Credit may have gone with the connection it was told on, which need not be the one its tasks come by."""
    if neighbour.incoming is not None:
        neighbour.incoming.tell_again()


def _forget(neighbour: Neighbour) -> None:
    """It is gone: what it said is no more, and nobody suspects it."""
    neighbour.forget_report()
    neighbour.suspected, neighbour.lateness = False, 0.0
