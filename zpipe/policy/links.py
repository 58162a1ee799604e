"""The neighbours of one node: connections, credit, reports, silence (rules L1, C3-C6, R1, R5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zpipe.model import LostRow
from zpipe.policy.credit import IncomingLink, OutgoingLink
from zpipe.policy.estimates import LinkEstimate
from zpipe.policy.messages import GrantCredit, ResetLink, SendBlocked, SendReport
from zpipe.policy.state import Neighbour

if TYPE_CHECKING:
    from collections.abc import Mapping, Sized

    from zpipe.model import Report
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


class Links:
    """Keeps both ends of every link, and says what was lost when one breaks.

    Attributes:
        neighbours: #: {rank: its present state}.
        incoming: #: {rank: the receiving end of its link}, where it may send us tasks.
        takers: #: {lane: neighbours that take it}.
    """

    def __init__(self, config: NodeConfig, counts: NodeCounts) -> None:
        self._config = config
        self._counts = counts
        self.neighbours = {
            neighbour.rank: Neighbour(
                neighbour,
                _outgoing(neighbour) if neighbour.lanes_out else None,
                IncomingLink(neighbour.lanes_in, neighbour.window_in) if neighbour.lanes_in else None,
            )
            for neighbour in config.neighbours
        }
        self.incoming = {rank: n.incoming for rank, n in self.neighbours.items() if n.incoming is not None}
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
        return neighbour

    def on_credit(self, event: CreditReceived, now: float) -> None:
        neighbour = self.heard(event.peer, now)
        if neighbour is None or neighbour.outgoing is None or not neighbour.outgoing.credit(event.credit, now=now):
            self._counts.bad_credit += 1

    def on_blocked(self, event: BlockedReceived, now: float) -> None:
        neighbour = self.heard(event.peer, now)
        if neighbour is not None and neighbour.incoming is not None and neighbour.incoming.epoch == event.epoch:
            neighbour.incoming.settle_blocked(event.next_number)

    def on_report(self, event: ReportReceived, now: float) -> None:
        neighbour = self.heard(event.peer, now)
        if neighbour is not None:
            neighbour.take_in(event.report)

    def on_peer_up(self, event: PeerUp, now: float) -> list[LostRow]:
        """Opens a direction; a repeat of what stands changes nothing (L1). Returns what an unnoticed end of the old one lost."""
        neighbour = self.heard(event.peer, now)
        if neighbour is None:
            return []
        lost: list[LostRow] = []
        link = neighbour.outgoing if event.outgoing else neighbour.incoming
        if link is None or link.epoch != event.epoch:
            if event.outgoing:
                neighbour.arrived_then = 0
                lost = _close(neighbour, "peer-lost: it connected anew")
            if link is not None:
                link.open(event.epoch)
        if event.outgoing:
            neighbour.sends = True
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
            lost = _close(neighbour, f"peer-lost: node {event.peer}: {event.reason}")
        else:
            neighbour.receives = False
            if neighbour.incoming is not None:
                neighbour.incoming.close()
        if not neighbour.up:
            neighbour.forget_report()
        return lost

    def on_send_completed(self, event: SendCompleted) -> None:
        """What the frame had in bytes, for the link's estimate."""
        neighbour = self.neighbours.get(event.peer)
        if neighbour is not None and neighbour.outgoing is not None and neighbour.outgoing.epoch == event.epoch:
            neighbour.outgoing.estimate.sized(event.first, event.rows, event.bytes)

    def on_send_failed(self, event: SendFailed, commands: list[Command]) -> list[LostRow]:
        """With credit in hand a refused frame means a broken connection; of an older epoch it means nothing."""
        neighbour = self.neighbours.get(event.peer)
        if neighbour is None or neighbour.outgoing is None or neighbour.outgoing.epoch != event.epoch:
            return []
        return self._reset(neighbour, "a task could not be sent", commands)

    # ---- every report interval -----------------------------------------------------------------

    def reset_silent(self, commands: list[Command], *, slept_seconds: float, now: float) -> list[LostRow]:
        """Rule R5. Silence counts only while this node listened: `slept_seconds` of it, it did not run itself."""
        lost: list[LostRow] = []
        for neighbour in self.neighbours.values():
            neighbour.heard_at += slept_seconds
            silent = now - neighbour.heard_at
            if neighbour.up and silent > self._config.hang_seconds:
                lost += self._reset(neighbour, f"nothing heard for {silent:.1f} s", commands)
        return lost

    def report(self, report: Report, commands: list[Command], *, waiting: Mapping[int, Sized], now: float) -> None:
        """Load to every neighbour, Credit it does not know of, Blocked where we starve (C5, C6).

        Args:
            report: this node's load.
            commands: receives what to send.
            waiting: {lane: O}.
            now: as ever.
        """
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
        if link is None or link.epoch is None or link.waiting_since is None:
            return
        if not any(waiting[lane] for lane in link.lanes):
            link.waiting_since = None
        elif now - link.waiting_since >= self._config.report_seconds:
            self._counts.blocked += 1
            commands.append(SendBlocked(neighbour.config.rank, link.epoch, link.next_number))

    def grant(self, commands: list[Command], now: float) -> None:
        """The Credits that are due (C5)."""
        for rank, link in self.incoming.items():
            if link.due:
                commands.append(GrantCredit(rank, link.credit(now=now)))

    def credit_changed(self) -> bool:
        """Whether some sender knows less than it could."""
        return any(link.credit_changed() for link in self.incoming.values())

    def _reset(self, neighbour: Neighbour, reason: str, commands: list[Command]) -> list[LostRow]:
        """Gives up both directions and has them made anew (R5); PeerUp gives them a full `hang_seconds`."""
        self._counts.resets += 1
        neighbour.sends = neighbour.receives = False
        neighbour.forget_report()
        if neighbour.incoming is not None:
            neighbour.incoming.close()
        commands.append(ResetLink(neighbour.config.rank, reason))
        return _close(neighbour, f"peer-lost: node {neighbour.config.rank}: {reason}")

    def check(self) -> None:
        """Asserts the invariants of every link."""
        for neighbour in self.neighbours.values():
            if neighbour.outgoing is not None:
                neighbour.outgoing.check()
                assert neighbour.sends or neighbour.outgoing.epoch is None, neighbour
            if neighbour.incoming is not None:
                neighbour.incoming.check()
                assert neighbour.receives or neighbour.incoming.epoch is None, neighbour


def _outgoing(config: NeighbourConfig) -> OutgoingLink:
    estimate = LinkEstimate(bandwidth_bps=config.bandwidth_bps, latency_seconds=config.latency_seconds)
    return OutgoingLink(config.lanes_out, config.window_out, lane_bytes=config.lane_bytes, estimate=estimate)


def _close(neighbour: Neighbour, cause: str) -> list[LostRow]:
    """Rule R1: everything that was outstanding there."""
    if neighbour.outgoing is None:
        return []
    return [LostRow(sent.key, sent.attempt, cause) for sent in neighbour.outgoing.close()]
