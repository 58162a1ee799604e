"""What arrives at one node: decoded, refused or made into events, and answered where the policy has no part in it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from zpipe.errors import WireError
from zpipe.policy.messages import (
    BlockedReceived,
    CreditReceived,
    Event,
    LostReceived,
    ReportReceived,
    ResultReceived,
    TaskReceived,
)
from zpipe.runtime.packing import Packing
from zpipe.runtime.payloads import Payloads
from zpipe.runtime.peers import Peers
from zpipe.transport.base import Buffer, Channel, Origin
from zpipe.wire import (
    NO_RANK,
    Blocked,
    Bye,
    CreditUpdate,
    Hello,
    Lost,
    Message,
    Ping,
    Refused,
    ReportUpdate,
    Results,
    Stats,
    StatsRequest,
    TaskBatch,
    WireLimits,
    decode,
)

log = logging.getLogger("zpipe.node")

#: So many messages in a row of one connection that cannot be understood mean that its stream is out of step: a flipped bit in a
#: length, say. One alone is damage to that message, and the policy repairs it (its rule C7).
BAD_IN_ROW = 3
_OUT_OF_STEP = f"{BAD_IN_ROW} messages in a row could not be understood"


@dataclass(slots=True)
class InboxCounts:
    """Totals since the start.

    Attributes:
        bad_frames: messages that could not be understood: damage, or worse.
        stray_frames: messages of no connection that stands, or of a kind that does not belong there.
        forged_frames: said to be of a rank whose key their connection does not have.
        banned_frames: messages of banned neighbours (policy rule R7).
        out_of_step: connections made anew since nothing on them could be understood.
    """

    bad_frames: int = 0
    stray_frames: int = 0
    forged_frames: int = 0
    banned_frames: int = 0
    out_of_step: int = 0
    received_bytes: int = 0
    frames_received: int = 0
    control_received: int = 0


@dataclass(slots=True)
class Inbox:
    """The handler of one node's transport (`TransportHandler`).

    Args:
        rank: of this node.
        limits: what is accepted.
        sources: ranks whose tasks are.
        packing: undoes codecs.
        payloads: gets the activations of tasks.
        events: what the policy is to be told is appended here.
        drained: called when all that was readable has been delivered.
        answer: sends a message back.
        stats: this node's counters, for whoever asks.

    Attributes:
        peers: who is on which channel; set before the transport starts.
        stats_waiters: #: {(rank, token): who asked that node for its counters}.
    """

    rank: int
    limits: WireLimits
    sources: frozenset[int]
    packing: Packing
    payloads: Payloads
    events: list[Event]
    drained: Callable[[], None]
    answer: Callable[[Channel, Message], None]
    stats: Callable[[], dict[str, Any]]
    counts: InboxCounts = field(default_factory=InboxCounts)
    stats_waiters: dict[tuple[int, int], asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    peers: Peers = field(init=False)

    # ---- TransportHandler ----------------------------------------------------------------------

    def on_data(self, frames: Sequence[Buffer], origin: Origin) -> None:
        """One message of the data plane."""
        message = self._decode(frames)
        if message is None:
            self._bad_data(origin)
            return
        origin.bad_in_row = 0
        if self._unwelcome(message.sender, origin.key):
            return
        if isinstance(message, TaskBatch):
            self.counts.frames_received += 1
            self._on_tasks(message, origin)
        elif isinstance(message, Blocked) and self._belongs(message):
            self.events.append(BlockedReceived(message.sender, message.epoch, message.next_number))
        else:
            self.counts.stray_frames += 1

    def on_control(self, channel: Channel, frames: Sequence[Buffer]) -> None:
        """One message of the control plane. Before its Hello a channel may say nothing else."""
        message = self._decode(frames)
        if message is None:
            self._bad_control(channel)
            return
        channel.bad_in_row = 0
        if self._unwelcome(message.sender, channel.key):
            return
        self.counts.control_received += 1
        if isinstance(message, Hello):
            self.peers.on_hello(channel, message)
        elif isinstance(message, Refused):
            self.peers.on_refused(channel, message)
        elif channel in self.peers.observers:
            self._from_observer(channel, message)
        else:
            rank = self.peers.rank_of(channel)
            if rank is not None and message.sender == rank:
                self._from_peer(channel, rank, message)
            elif rank is None and message.sender == self.peers.observed(channel):
                self._from_observed(channel, message)
            else:
                self.counts.stray_frames += 1

    def on_connected(self, channel: Channel) -> None:
        """A channel we opened stands."""
        self.peers.on_connected(channel)

    def on_disconnected(self, channel: Channel, reason: str) -> None:
        """A channel broke."""
        self.peers.on_disconnected(channel, reason)

    def on_drained(self) -> None:
        """All that was readable has been delivered."""
        self.drained()

    # ---- what was understood -------------------------------------------------------------------

    def _on_tasks(self, batch: TaskBatch, origin: Origin) -> None:
        known = self.sources.issuperset([task.key.source for task in batch.tasks])  # the policy keeps a row for each source
        if not known or not self._belongs(batch):
            self.counts.stray_frames += 1
            return
        try:
            activations = self.packing.unpack(batch)
        except WireError as exc:
            self._count_bad(exc)
            return
        origin.rank = batch.sender
        for index, task in enumerate(batch.tasks):
            task.token = self.payloads.add(activations, index)
        self.events.append(TaskReceived(batch.sender, batch.epoch, batch.tasks))

    def _belongs(self, message: TaskBatch | Blocked) -> bool:
        """Whether it is of a connection that stands (policy rule L1)."""
        came = self.peers.incoming.get(message.sender)
        return came is not None and came.epoch == message.epoch

    def _from_observer(self, channel: Channel, message: Message) -> None:
        if isinstance(message, StatsRequest):
            self.answer(channel, Stats(self.rank, message.token, self.stats()))
        elif isinstance(message, Ping) and not message.echo:
            self.answer(channel, Ping(self.rank, message.token, echo=True))
        elif isinstance(message, Bye):
            self.peers.on_bye(channel, message)
        else:
            self.counts.stray_frames += 1

    def _from_observed(self, channel: Channel, message: Message) -> None:
        if isinstance(message, Stats) and message.body.get("rank") == message.sender:
            waiter = self.stats_waiters.pop((message.sender, message.token), None)
            if waiter is not None and not waiter.done():
                waiter.set_result(message.body)
        elif isinstance(message, Bye):
            self.peers.on_bye(channel, message)
        else:
            self.counts.stray_frames += 1

    def _from_peer(self, channel: Channel, rank: int, message: Message) -> None:
        match message:
            case CreditUpdate():
                self.events.append(CreditReceived(rank, message.credit))
            case Results():
                self.events.append(ResultReceived(rank, message.rows))
            case ReportUpdate():
                self.events.append(ReportReceived(rank, message.report))
            case Lost():
                self.events.append(LostReceived(rank, message.rows))
            case Bye():
                self.peers.on_bye(channel, message)
            case StatsRequest():
                self.answer(channel, Stats(self.rank, message.token, self.stats()))
            case Ping():
                if not message.echo:
                    self.answer(channel, Ping(self.rank, message.token, echo=True))
            case _:
                self.counts.stray_frames += 1

    # ---- what was not --------------------------------------------------------------------------

    def _decode(self, frames: Sequence[Buffer]) -> Message | None:
        self.counts.received_bytes += sum(map(len, frames))
        try:
            return decode(frames, limits=self.limits, now=time.monotonic())
        except WireError as exc:
            self._count_bad(exc)
            return None

    def _count_bad(self, error: WireError) -> None:
        self.counts.bad_frames += 1
        log.debug("node %d dropped a message: %s", self.rank, error)

    def _bad_data(self, origin: Origin) -> None:
        origin.bad_in_row += 1
        if origin.bad_in_row >= BAD_IN_ROW and origin.rank is not None:
            origin.bad_in_row = 0
            self.counts.out_of_step += 1
            self.peers.reset_damaged(origin.rank, _OUT_OF_STEP)

    def _bad_control(self, channel: Channel) -> None:
        channel.bad_in_row += 1
        if channel.bad_in_row >= BAD_IN_ROW:
            channel.bad_in_row = 0
            self.counts.out_of_step += 1
            self.peers.reset_damaged(channel, _OUT_OF_STEP)

    def _unwelcome(self, sender: int, key: str) -> bool:
        """Whether a message is of a banned rank, or said to be of one whose key its connection does not have."""
        if sender in self.peers.banned:
            self.counts.banned_frames += 1
            return True
        if not key or sender == NO_RANK or self.peers.topology.key_of(sender) == key:
            return False
        self.counts.forged_frames += 1
        return True
