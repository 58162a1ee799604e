"""Slots and credits of one link, both ends (rules L1-L3, C1-C8)."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zpipe.model import Credit
from zpipe.policy.estimates import LinkEstimate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from zpipe.model import SampleKey, Task


#: Of the numbers that never arrived a Credit tells so many, the latest: what it cannot name the source's timer finds (R3).
MISSED_TOLD = 32


class Sent(NamedTuple):
    """One task we sent and whose slot we believe taken."""

    key: SampleKey
    attempt: int
    lane: int
    sent_at: float
    priority: int = 0


#: A NamedTuple's own constructor is a Python function, twice as dear; one of these is made for each task.
_new_sent = partial(tuple.__new__, Sent)


class OutgoingLink:
    """The sender's end: may I send, what is still out there?

    Args:
        lanes: stages it may send.
        window: slots at the receiver.
        lane_bytes: {lane: bytes one task has on the link}.
        estimate: of the link's speed; a blank one if not given.
        lower: classes below the highest, where there are several (C8).

    Attributes:
        epoch: of the present connection; None while there is none.
        outstanding: #: {number: Sent} in rising order; at most `window` entries.
        expected: #: every number below it is known to have arrived, or to be lost.
        released: #: slots that came free since the start, over all connections.
        estimate: what the link's numbers tell of its speed.
        free: tasks of any lane `may_send`; where it is False some may all the same.
        clear: #: {class: tasks of it and of those below that may be outstanding beside one of each lane} (C8); others as C2 says.
    """

    def __init__(
        self,
        lanes: Sequence[int],
        window: int,
        *,
        lane_bytes: Mapping[int, float] | None = None,
        estimate: LinkEstimate | None = None,
        lower: Sequence[int] = (),
    ) -> None:
        self.lanes = tuple(lanes)
        self._lane_bytes = lane_bytes or {}
        self.estimate = estimate or LinkEstimate()
        self.window = window
        self._shared = window - len(self.lanes)  #: slots not reserved for a lane; >= 0, checked at load
        self.epoch: int | None = None
        self.next_number = 0
        self.limit = 0
        self.outstanding: dict[int, Sent] = {}
        self._taken = dict.fromkeys(self.lanes, 0)  #: {lane: outstanding + carried}
        self._carried: dict[int, int] = {}
        self._shared_taken = 0  #: sum over lanes of max(0, taken - 1)
        self.free = False
        self.clear = dict.fromkeys(lower, 0)
        self.expected = self.released = 0
        self.waiting_since: float | None = None  #: when we first had something to send and no credit; None otherwise
        self.asked_at: float | None = None  #: when the first Blocked went out that no Credit has answered yet (C6)

    def __repr__(self) -> str:
        return (
            f"<OutgoingLink epoch {self.epoch} | next {self.next_number}, limit {self.limit}, "
            f"out {len(self.outstanding)}/{self.window}>"
        )

    def open(self, epoch: int) -> None:
        """A new connection: nothing is outstanding on it, and nothing may be sent before its first Credit."""
        self.epoch = epoch
        self.next_number = self.limit = self.expected = 0
        self.outstanding = {}
        self.estimate.reset()
        self._carried = {}
        self.clear = dict.fromkeys(self.clear, 0)
        self.free = False
        self.waiting_since = self.asked_at = None
        self._recount()

    def close(self) -> list[Sent]:
        """The connection ended. Returns what was outstanding on it."""
        lost = list(self.outstanding.values())
        self.open(-1)
        self.epoch = None
        return lost

    @property
    def round_trip_seconds(self) -> float:
        """Smoothed: from the sending of a number to the Credit that names it, less the receiver's holding time."""
        return self.estimate.round_trip_seconds

    @property
    def bandwidth_bps(self) -> float:
        """Bits per second as far as they showed, `inf` while nothing showed a limit."""
        return self.estimate.bandwidth_bps

    def may_send(self, lane: int) -> bool:
        """Rule C2."""
        if self.epoch is None or self.next_number >= self.limit:
            return False
        return self._taken[lane] == 0 or self._shared_taken < self._shared

    def is_clear(self, lane: int, priority: int, *, owed: bool = False) -> bool:
        """Rule C8: whether a task of that class may be sent, where `may_send` holds. One of each lane may: it asks (RTC).

        So may one that is owed its turn (A7), where none of its class or below is there: higher ones may fill every lane for ever.
        """
        most = self.clear.get(priority)
        if most is None or self._taken[lane] == 0:
            return True
        if owed and most < 1:
            most = 1
        return sum(1 for sent in self.outstanding.values() if sent.priority <= priority) < most

    def send(self, task: Task, *, now: float) -> None:
        """Numbers `task` and notes it as outstanding; `may_send` held."""
        lane, number = task.stage, self.next_number
        task.number = number
        self.outstanding[number] = _new_sent((task.key, task.attempt, lane, now, task.priority))
        self.next_number = number + 1
        taken = self._taken[lane]
        self._taken[lane] = taken + 1
        if taken:
            self._shared_taken += 1
        self.free = number + 1 < self.limit and self._shared_taken < self._shared
        self.estimate.sent(number, self._lane_bytes.get(lane, 0.0), now=now)
        self.waiting_since = None

    def transfer_seconds(self, lane: int, *, now: float) -> float:
        """D: until a task of that lane, sent now, has arrived."""
        return self.estimate.transfer_seconds(self._lane_bytes.get(lane, 0.0), now=now)

    def unseen_since(self) -> float | None:
        """When the oldest number was sent that no Credit has told the arrival of; None where there is none."""
        sent = self.outstanding.get(self.expected)
        return sent.sent_at if sent is not None else None

    def on_the_way(self, key: SampleKey, attempt: int) -> list[Sent]:
        """This attempt, where it was sent and no Credit has told its arrival yet."""
        sent = [sent for number, sent in self.outstanding.items() if number >= self.expected]
        return [each for each in sent if each.key == key and each.attempt == attempt]

    def believable(self, credit: Credit) -> bool:
        """Whether a receiver that keeps the rules may say that, in this epoch: nobody saw what was not sent, or has more slots."""
        return credit.expected <= self.next_number and credit.limit <= credit.expected + self.window

    def credit(self, credit: Credit, *, now: float) -> list[Sent]:
        """Takes in a `believable` Credit of this epoch (C3). Returns what it says never arrived (C7)."""
        expected, outstanding = credit.expected, self.outstanding
        self.estimate.credited(expected, credit.holding_seconds, now=now)
        gone = [number for number in outstanding.keys() - credit.held if number < expected]
        missed = [outstanding[number] for number in credit.missed if number in gone] if credit.missed else []
        taken = self._taken
        for number in gone:
            lane = outstanding.pop(number)[2]
            left = taken[lane] = taken[lane] - 1
            if left:
                self._shared_taken -= 1
        self.released += len(gone)
        if expected > self.expected:
            self.expected = expected
        if credit.limit > self.limit:
            self.limit = credit.limit
        if self.clear:
            for each in credit.clear.keys() & self.clear.keys():
                self.clear[each] = credit.clear[each]
        if credit.carried != self._carried:
            self._carried = dict(credit.carried)
            self._recount()
        self.free = self.next_number < self.limit and self._shared_taken < self._shared
        self.waiting_since = self.asked_at = None
        return missed

    def _recount(self) -> None:
        self._taken = {lane: self._carried.get(lane, 0) for lane in self.lanes}
        for sent in self.outstanding.values():
            self._taken[sent.lane] += 1
        self._shared_taken = sum(max(0, taken - 1) for taken in self._taken.values())

    def check(self) -> None:
        """Asserts the invariants."""
        assert len(self.outstanding) <= self.window, self
        assert self.next_number <= self.limit or self.epoch is None, self
        assert not self.free or all(map(self.may_send, self.lanes)), self
        assert list(self.outstanding) == sorted(self.outstanding), self
        taken, shared = dict(self._taken), self._shared_taken
        self._recount()
        assert (taken, shared) == (self._taken, self._shared_taken), self


class IncomingLink:
    """The receiver's end: is this task new, and how much more may come?

    Attributes:
        epoch: of the present connection; None while there is none.
        connection: #: counts the connections; tasks are known by it, since a peer may say an epoch that was there before.
        held: #: {number: lane} of this connection; len(held) + len(carried) <= window.
        carried: #: {(connection, number): lane} of earlier ones (C4).
        missed: #: numbers of this connection that never arrived, the latest.
        lower: #: {(connection, number): class} of tasks below the highest class that hold a slot (C8).
        clear: #: {class: as last told}; empty where there is one class.
        clearance: says what to tell; set by who owns several links, where there are several classes.
        asked: whether a task of a lower class came since its reader cleared it: it asks for more (RTC).
        uses_pool: whether it asked of late, or still has such tasks here: it has a part of the pool (C8).
        gaps, repeats, overruns: losses seen, repeats dropped, tasks beyond the limit dropped.
    """

    def __init__(self, lanes: Sequence[int], window: int, *, highest: int = 0) -> None:
        self.lanes = tuple(lanes)
        self.window = window
        self._highest = highest
        self.lower: dict[tuple[int, int], int] = {}
        self.clear: dict[int, int] = {}
        self.clearance: Callable[[IncomingLink], dict[int, int]] | None = None
        self.asked = self.uses_pool = False
        self._lower_freed = 0
        self._shared = window - len(self.lanes)
        self._several = len(self.lanes) > 1
        self._quarter = max(1, window // 4)
        self.epoch: int | None = None
        self.connection = 0
        self.expected = 0
        self.held: dict[int, int] = {}
        self.carried: dict[tuple[int, int], int] = {}
        self.missed: deque[int] = deque(maxlen=MISSED_TOLD)
        self.due = False  #: a Credit is due now (C5), but for the report's turn
        self._shut = False  #: no number beyond those told may come any more (R6)
        self._told_limit = self._told_expected = self._told_taken = 0
        self._due_from = self._quarter - window  #: what `expected` less the slots taken reaches when a Credit is due (C5)
        self._urgent = False
        self._arrived_at = -1.0
        self.gaps = self.repeats = self.overruns = 0

    def __repr__(self) -> str:
        return (
            f"<IncomingLink epoch {self.epoch} | expected {self.expected}, "
            f"held {len(self.held)}+{len(self.carried)}/{self.window}, limit {self.limit}>"
        )

    @property
    def limit(self) -> int:
        """The first number that may not come: expected + free slots, or as told once it was shut."""
        if self._shut:
            return max(self.expected, self._told_limit)
        return self.expected + self.window - len(self.held) - len(self.carried)

    def open(self, epoch: int) -> None:
        """A new connection: what is held keeps its slots as carried (C4)."""
        self.close()
        self.epoch = epoch
        self.connection += 1
        self._urgent = self.due = True

    def close(self) -> None:
        """The connection ended; tasks that came by it stay and keep their slots."""
        for number, lane in self.held.items():
            self.carried[self.connection, number] = lane
        self.held = {}
        self.missed.clear()
        self.epoch = None
        self.expected = 0
        self._told_limit = self._told_expected = self._told_taken = 0
        self._due_from = self._quarter - self.window
        self._arrived_at = -1.0
        self._urgent = self.due = False
        self.clear = dict.fromkeys(self.clear, 0)

    def shut(self) -> None:
        """Grants nothing more, on no later connection either (R6)."""
        self._shut = True
        self._see_due()

    def tell_again(self) -> None:
        """A Credit is due in any case."""
        self._urgent = True
        self._see_due()

    def accept(self, task: Task, *, now: float) -> bool:
        """Takes a slot for `task` unless it is a repeat (L2) or beyond the limit."""
        number = task.number
        if number < self.expected:
            self.repeats += 1
            return False
        if number >= self._told_limit or task.stage not in self.lanes:
            self.overruns += 1
            return False
        if number > self.expected:
            self._miss(number)
        self.expected = number + 1
        self.held[number] = task.stage
        self._arrived_at = now
        if task.priority < self._highest:
            self.lower[self.connection, number] = task.priority
            self.asked = True
        return True

    def _miss(self, until: int) -> None:
        """Numbers before `until` will not come any more (L2): the sender is told at once, and tells their source (C7)."""
        self.gaps += until - self.expected
        self.missed.extend(range(max(self.expected, until - MISSED_TOLD), until))
        self.expected = until
        self.tell_again()

    def release(self, connection: int, number: int) -> None:
        """Frees the slot of a task that exited, failed, was dropped or sent on."""
        held = self.held
        if self.lower and self.lower.pop((connection, number), None) is not None:
            self._lower_freed += 1
            if 4 * self._lower_freed >= max(self.clear.values(), default=0):
                self._urgent = True  # who waits for these has no other way to know
        if self._several and len(held) + len(self.carried) > self._shared and self._lane_blocked_by_release(connection, number):
            self._urgent = True
        if connection != self.connection or held.pop(number, None) is None:
            del self.carried[connection, number]
        if not self.due and (self._urgent or self.expected - len(held) - len(self.carried) >= self._due_from):
            self._see_due()  # another free slot makes nothing less due

    def _lane_blocked_by_release(self, connection: int, number: int) -> bool:
        """Whether this task is its lane's last while the shared slots are full: its going lets the lane send again (C5)."""
        lane = self.held.get(number) if connection == self.connection else self.carried.get((connection, number))
        if lane is None:
            return False
        taken = self._taken()
        return taken[lane] == 1 and sum(max(0, count - 1) for count in taken.values()) >= self._shared

    def _taken(self) -> dict[int, int]:
        taken = dict.fromkeys(self.lanes, 0)
        for lane in (*self.held.values(), *self.carried.values()):
            taken[lane] += 1
        return taken

    def settle_blocked(self, next_number: int) -> None:
        """Everything below `next_number` was sent before: what is missing is lost (C6). Credit is due in any case."""
        if self.expected < next_number <= self._told_limit:
            self._miss(next_number)
            self._arrived_at = -1.0  # the last number did not arrive: no holding time belongs to it
        self.tell_again()

    def _see_due(self) -> None:
        free = self.window - len(self.held) - len(self.carried)
        self.due = self.epoch is not None and (
            self._urgent or (not self._shut and self.expected + free - self._told_limit >= self._quarter)
        )

    def credit_changed(self) -> bool:
        """Whether the sender knows less than it could, of slots or of arrivals; told with the next report."""
        if self.epoch is None:
            return False
        if self.clearance is not None and self.clear != self.clearance(self):
            return True
        if self._shut and self._told_taken != len(self.held) + len(self.carried):
            return True  # no slot is granted, but what is done with must not be called lost when this node goes
        return self.limit != self._told_limit or self.expected != self._told_expected

    def credit(self, *, now: float) -> Credit:
        """The Credit to send now."""
        self._urgent = self.due = False
        self._told_limit, self._told_expected = self.limit, self.expected
        self._due_from = self._told_limit + self._quarter - self.window
        self._told_taken = len(self.held) + len(self.carried)
        carried: dict[int, int] = {}
        for lane in self.carried.values():
            carried[lane] = carried.get(lane, 0) + 1
        holding = now - self._arrived_at if self._arrived_at >= 0.0 else -1.0
        if self.clearance is not None:
            self._lower_freed, self.clear = 0, self.clearance(self)
        return Credit(
            self.epoch or 0, self.expected, tuple(self.held), self._told_limit, carried, holding, tuple(self.missed), self.clear
        )

    def lower_held(self, priority: int) -> int:
        """Slots that tasks of that class and those below hold."""
        return sum(1 for each in self.lower.values() if each <= priority)

    def check(self) -> None:
        """Asserts the invariants."""
        assert len(self.held) + len(self.carried) <= self.window, self
        assert all(number < self.expected for number in self.held), self
        assert self._told_limit <= self.limit, self
        due = self.due
        self._see_due()
        assert due == self.due, self
        assert all(lane in self.lanes for lane in (*self.held.values(), *self.carried.values())), self
        assert self.lower.keys() <= {*((self.connection, number) for number in self.held), *self.carried}, self
