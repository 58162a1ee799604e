"""A source whose samples are shared out among students: custody of every part (rules F1-F6; RoCoIn, arXiv:2406.14185)."""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from zpipe.model import ResultRow, SampleKey, Task, new_key
from zpipe.policy.delivery import (
    MAX_PROMPT_ATTEMPTS,
    MAX_RETRANSMIT_SECONDS,
    MAX_STAGE_FAILURES,
    MIN_RETRANSMIT_SECONDS,
    RESUBMIT_FREE,
    RESUBMIT_SHARE,
    RESUBMIT_TRICKLE_SECONDS,
    Source,
)
from zpipe.policy.join import join, read_scores
from zpipe.policy.messages import Resolve
from zpipe.policy.parts import Copy, FanoutCounts, PartOfSample, SharedSample, Sojourn

if TYPE_CHECKING:
    from collections.abc import Callable

    from zpipe.model import LostRow, OutcomeKind
    from zpipe.policy.delivery import OpenSample, SourceConfig

Redundancy = Literal["failover", "hedged", "all"]

#: A copy is late after its part's smoothed sojourn and so many deviations, but never before ...
HEDGE_DEVIATIONS = 2.0
#: ... this: the event loops of two boards are no more punctual.
LEAST_HEDGE_SECONDS = 0.005
#: Where no other replica could take a second copy, or the budget is spent, it is tried again after as long as the copy was given,
#: and no sooner than this.
HEDGE_AGAIN_SECONDS = 0.05
#: Second copies that were not caused by a loss: half of the samples, and 10; of those not used so far no more than so many for the
#: samples in flight: what a calm time spared is not there to feed an overload. ("The tail at scale", Dean and Barroso 2013, send
#: 5 % at the 95th percentile; a fifth of the nodes may stall here.)
HEDGE_SHARE, HEDGE_FREE = 0.5, 10.0


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


class FanoutSource(Source):
    """A Source each of whose samples is several tasks, one per part, and copies of these.

    Admission, waiting room, deadlines and sessions are those of a chain. Who hosts the parts is the owner's knowledge (Dispatch):
    it tells with `see` how many replicas of each there are, gives the copies that wait in `outbox` to them, and those in `hedges`.

    Attributes:
        outbox: #: per part, the numbers of samples of which a copy waits for a replica, oldest first.
        unsent: #: copies in it.
        hedges: #: (sample, part) of late copies, to be given to another replica now or later; the owner clears it.
        live: #: per part, the replicas that take copies, as last seen.
        late: #: {rank: late copies it has not answered yet} (F5).
        free_at: when a link is done that a copy of a lower class waits for (A7); `inf`: none does.
    """

    counts: FanoutCounts

    def __init__(self, config: SourceConfig, *, rank: int, own_slots: int) -> None:
        super().__init__(config, rank=rank)
        assert config.fanout is not None
        self.fanout = fanout = config.fanout
        parts = len(fanout.firsts)
        assert len(fanout.ends) == parts, fanout
        assert len(fanout.temperatures) == 1 << parts, fanout
        self.counts = FanoutCounts()
        self.outbox: list[deque[int]] = [deque() for _ in range(parts)]
        self.unsent = 0
        self.hedges: list[tuple[int, int]] = []
        self.live = [0] * parts
        self.late: dict[int, int] = {}
        #: {(sample, part, attempt): of a late copy, its replica, and until when it is held against that}; rising in time
        self._late: dict[tuple[int, int, int], tuple[int, float]] = {}
        self.free_at = math.inf
        self._own_slots = own_slots
        self._hedged = fanout.redundancy == "hedged"
        self._may_hedge = HEDGE_FREE  #: second copies within the budget
        self._samples: dict[int, SharedSample] = {}  #: {number: every admitted one}
        self._timers: list[tuple[float, int, int, int, bool]] = []  #: (when, sample, part, attempt, whether only to hedge)
        self._sojourns = [Sojourn() for _ in range(parts)]

    # ---- what the owner asks -------------------------------------------------------------------

    def next_wakeup(self, *, slot_free: bool) -> float:
        """As of a chain; instead of a slot, a new sample needs room among the copies that wait."""
        wakeup = super().next_wakeup(slot_free=self._lets_in)
        if self._timers and self._timers[0][0] < wakeup:
            wakeup = self._timers[0][0]
        return min(wakeup, self.free_at) if self.unsent else wakeup

    @property
    def _lets_in(self) -> bool:
        """Rule F1: whether a sample's copies would find room, and some part a replica."""
        return self.unsent < self._own_slots and any(self.live)

    def let_in(self, *, now: float) -> bool:
        """Admits samples, whose copies are in the outbox then (F1). Returns whether there was one."""
        before, admitted = self.counts.admitted, -1
        while self._waiting and admitted != self.counts.admitted and self._lets_in:
            admitted = self.counts.admitted
            self.next_task(now=now)
        return self.counts.admitted > before

    def part(self, sample: int, part: int) -> PartOfSample | None:
        """One part of an open sample, None once that is in or over."""
        shared = self._samples.get(sample)
        return shared.parts[part] if shared is not None and shared.parts[part].scores is None else None

    def priority(self, sample: int) -> int:
        """The class of an open sample."""
        return self._samples[sample].entry.priority

    # ---- what the owner does -------------------------------------------------------------------

    def see(self, part: int, live: int, *, now: float) -> None:
        """So many replicas of a part take copies (F3): with none, no sample waits for it; with one again, all that are open do."""
        before, self.live[part] = self.live[part], live
        if before and not live:
            for number in list(self.outbox[part]):
                self._unqueue(number, part)
                shared = self._samples.get(number)
                if shared is not None:
                    self._settle(shared, now=now)
        elif live and not before:
            for shared in self._samples.values():
                state = shared.parts[part]
                if state.scores is None and not state.out and not state.waiting:
                    self._want(shared, part)

    def copy(self, number: int, part: int, rank: int, *, now: float) -> Task:
        """The next copy of a part, which goes to that replica now."""
        shared = self._samples[number]
        entry, state = shared.entry, shared.parts[part]
        attempt = state.attempts = state.attempts + 1
        state.out[attempt] = Copy(rank, now)
        state.tried.add(rank)
        self.counts.copies += 1
        if attempt > entry.attempt:
            entry.attempt = attempt
        heapq.heappush(self._timers, (now + self._copy_seconds(state, part), number, part, attempt, False))
        if self._hedged:
            heapq.heappush(self._timers, (now + self._hedge_seconds(part), number, part, attempt, True))
        first, end = self.fanout.firsts[part], self.fanout.ends[part]
        return Task(
            new_key((self.rank, self.session, number)),
            attempt,
            first,
            shared.thresholds[first : end + 1],
            part,
            entry.priority,
            entry.weight,
            self.oldest,
            deadline=entry.deadline,
            born=entry.submitted_at,
            since=now,
        )

    def take_out(self, number: int, part: int) -> None:
        """The oldest copy of this in the outbox waits no longer: it goes to a replica now, or every one has its own (`all`)."""
        state = self._samples[number].parts[part]
        state.waiting -= 1
        self.unsent -= 1
        self.outbox[part].remove(number)

    def hedges_now(self, number: int, part: int, rank: int, *, now: float) -> Task:
        """A second copy, which goes to that replica now."""
        self.counts.hedged += 1
        self._may_hedge -= 1.0
        return self.copy(number, part, rank, now=now)

    def hedge_later(self, number: int, part: int, *, now: float) -> None:
        """No other replica could take a second copy."""
        state = self._samples[number].parts[part]
        again = now + max(HEDGE_AGAIN_SECONDS, self._hedge_seconds(part))
        heapq.heappush(self._timers, (again, number, part, max(state.out), True))

    # ---- what happens --------------------------------------------------------------------------

    def result(self, row: ResultRow, *, now: float) -> None:
        """One part's answer: its first counts (F2)."""
        _, session, number = row.key
        if self._late and session in self._sessions:
            self._came((number, row.part, row.attempt))
        shared = self._samples.get(number) if session in self._sessions else None
        if shared is None:
            super().result(row, now=now)  # which counts it: there is nothing it could end
            return
        state = shared.parts[row.part] if row.part < len(shared.parts) else None
        if state is not None and state.scores is not None:
            self.counts.second_results += 1
            return
        scores = read_scores(row.scores, len(self.fanout.bias))
        if state is None or scores is None or not self._may_answer(row, state):
            self.counts.unsound += 1
            return
        copy = state.out.get(row.attempt)
        if copy is not None:  # its own time: that of a late one it stood in for would make every later one wait longer
            self._sojourns[row.part].measure(now - copy.sent_at, in_flight=self._in_flight)
        state.scores, shared.last = scores, row
        state.out.clear()
        self._unqueue(number, row.part)
        self._settle(shared, now=now)

    def _may_answer(self, row: ResultRow, state: PartOfSample) -> bool:
        return row.attempt <= state.attempts and self.fanout.firsts[row.part] <= row.exit_stage <= self.fanout.ends[row.part]

    def lost(self, row: LostRow, *, held: bool, now: float) -> None:
        """A copy that will not come back (F4); one that is known to be lost is not lost twice."""
        shared = self._samples.get(row.key.sample) if row.key.session == self.session else None
        if shared is None or row.part >= len(shared.parts) or held:
            return
        state = shared.parts[row.part]
        if row.attempt not in state.out:
            return
        shared.entry.cause, shared.disturbed = row.cause, True
        if row.shut_out_by >= self.session:
            self._shut_out(row, now=now)
            return
        if row.cause.startswith("stage-failed"):
            state.stage_failures += 1
            state.dead = state.stage_failures >= MAX_STAGE_FAILURES
        if state.attempts >= MAX_PROMPT_ATTEMPTS and not state.dead:
            return  # only the timer tries again
        del state.out[row.attempt]
        if state.dead:
            self._unqueue(row.key.sample, row.part)
        elif state.out:
            if self._hedged:  # who is left may have been late for long, as the younger one need not be any more
                heapq.heappush(self._timers, (now, row.key.sample, row.part, max(state.out), True))
        elif not state.waiting:
            self._resubmit(shared, row.part)
        self._settle(shared, now=now)

    def tick(
        self,
        *,
        queue_length: int,
        under_way: Callable[[SampleKey, int, int], bool],
        hindrance: Callable[[SampleKey], str],
        now: float,
    ) -> None:
        """As of a chain, with timers for each copy."""
        super().tick(queue_length=queue_length + self.unsent, under_way=under_way, hindrance=hindrance, now=now)
        while self._late and next(iter(self._late.values()))[1] <= now:
            self._came(next(iter(self._late)))
        while self._timers and self._timers[0][0] <= now:
            _, number, part, attempt, hedge = heapq.heappop(self._timers)
            copy = self._standing(number, part, attempt)
            if copy is None:
                continue
            shared = self._samples[number]
            if hedge:
                self._hedge(shared, part, attempt, copy, now=now)
            else:
                self._time_out(shared, part, attempt, copy, under_way=under_way, now=now)
        while self._timers and self._standing(*self._timers[0][1:4]) is None:
            heapq.heappop(self._timers)  # nobody need wake up for it

    # ---- inside --------------------------------------------------------------------------------

    def _start(self, entry: OpenSample, *, now: float) -> None:
        entry.attempt, entry.sent_at, entry.first_sent_at = 1, now, now
        self._may_hedge = min(HEDGE_FREE + HEDGE_SHARE * self._in_flight, self._may_hedge + HEDGE_SHARE)
        self._forget_past()
        parts = [PartOfSample() for _ in self.live]
        thresholds = self.config.ladder.thresholds[self.admission.point]
        shared = self._samples[entry.sample] = SharedSample(entry, thresholds, parts)
        for part, live in enumerate(self.live):
            for _ in range(live if self.fanout.redundancy == "all" else min(1, live)):
                self._want(shared, part)

    def _want(self, shared: SharedSample, part: int) -> None:
        """A copy waits for a replica; where there is none it will once one is back."""
        state = shared.parts[part]
        if self.live[part] and not state.dead:
            state.waiting += 1
            self.unsent += 1
            self.outbox[part].append(shared.entry.sample)

    def _resubmit(self, shared: SharedSample, part: int) -> None:
        if self.live[part] and not shared.parts[part].dead:
            self.counts.resubmitted += 1
            self._want(shared, part)

    def _unqueue(self, number: int, part: int) -> None:
        """None of its copies need go to a replica any more."""
        shared = self._samples.get(number)
        while shared is not None and shared.parts[part].waiting:
            self.take_out(number, part)

    def _submit_again(self, entry: OpenSample) -> None:
        """Under a new session (S5): every copy that is out goes again."""
        shared = self._samples[entry.sample]
        self.counts.resubmitted += 1
        for part, state in enumerate(shared.parts):
            if state.scores is None:
                state.out.clear()
                if not state.waiting:
                    self._want(shared, part)

    def _settle(self, shared: SharedSample, *, now: float) -> None:
        """Rule F2: the sample ends once every part is in or will not come, if one of them is in."""
        if shared.last is None:
            if all(state.dead and not state.out for state in shared.parts):
                self._resolve(shared.entry.sample, "failed", now=now, cause=shared.entry.cause)
            return
        for state, live in zip(shared.parts, self.live, strict=True):
            if state.scores is None and (state.out or (live and not state.dead)):
                return
        self._answer(shared, in_time=True, now=now)

    def _answer(self, shared: SharedSample, *, in_time: bool, now: float) -> None:
        """Joins what is in. Its times are those of the part that came last, for which the others waited."""
        entry, last = shared.entry, shared.last
        assert last is not None
        scores = {part: state.scores for part, state in enumerate(shared.parts) if state.scores is not None}
        label, confidence = join(scores, self.fanout.bias, self.fanout.temperatures)
        times = last.queued_seconds, last.service_seconds
        row = ResultRow(last.key, entry.attempt, last.exit_stage, label, confidence, *times, last.part, last.hops)
        sojourn = now - entry.first_sent_at
        self.counts.results += 1
        self.counts.partial += len(scores) < len(shared.parts)
        if in_time and not shared.disturbed:
            self._measure(sojourn)
            self._forecast.came(sojourn - entry.queue_seconds)
        self._resolve(entry.sample, "result", now=now, row=row)
        self.admission.resolved(
            queued_seconds=last.queued_seconds - last.yielded_seconds,
            service_seconds=last.service_seconds,
            sojourn_seconds=sojourn,
            in_flight=self._in_flight,
            now=now,
        )

    def _expire(self, entry: OpenSample, hindrance: Callable[[SampleKey], str], *, now: float) -> None:
        """Rule F2: at the deadline, what is there is the answer."""
        shared = self._samples.get(entry.sample)
        if shared is None or shared.last is None:
            super()._expire(entry, hindrance, now=now)
            return
        if not shared.disturbed:
            self._forecast.expired()
            self._pressed = True
        self._answer(shared, in_time=False, now=now)

    def _resolve(self, sample: int, kind: OutcomeKind, *, now: float, row: ResultRow | None = None, cause: str = "") -> None:
        shared = self._samples.get(sample)
        if shared is not None:
            for part in range(len(shared.parts)):
                self._unqueue(sample, part)
            del self._samples[sample]
        super()._resolve(sample, kind, now=now, row=row, cause=cause)
        if shared is not None and row is not None:
            resolve = self.told[-1]
            assert isinstance(resolve, Resolve)
            resolve.missing = sum([1 << part for part, state in enumerate(shared.parts) if state.scores is None])

    def _why_expired(self, entry: OpenSample, hindrance: Callable[[SampleKey], str]) -> str:
        shared = self._samples.get(entry.sample)
        if shared is None:
            return super()._why_expired(entry, hindrance)
        why = []
        for part, (state, live) in enumerate(zip(shared.parts, self.live, strict=True)):
            if state.out:
                why.append(f"part {part} was sent {state.attempts} times")
            else:
                why.append(f"part {part} waits for {'room at a replica' if live else 'a replica: none takes samples'}")
        if entry.cause:
            why.append(f"last loss: {entry.cause}")
        return f"no part came in ({'; '.join(why)})"

    # ---- timers --------------------------------------------------------------------------------

    def _hedge(self, shared: SharedSample, part: int, attempt: int, copy: Copy, *, now: float) -> None:
        """Rule F5: the youngest copy is late."""
        number, state = shared.entry.sample, shared.parts[part]
        if attempt != max(state.out) or state.waiting or state.dead:
            return  # another one has its own timer
        due_at = copy.sent_at + self._hedge_seconds(part)
        if due_at > now:
            heapq.heappush(self._timers, (due_at, number, part, attempt, True))
            return
        if (number, part, attempt) not in self._late:
            self._late[number, part, attempt] = copy.rank, now + MIN_RETRANSMIT_SECONDS
            self.late[copy.rank] = self.late.get(copy.rank, 0) + 1
        if self.live[part] and not self.outbox[part] and len(self.hedges) + 1 <= self._may_hedge:
            if (number, part) not in self.hedges:
                self.hedges.append((number, part))
        else:
            self.hedge_later(number, part, now=now)

    def _came(self, name: tuple[int, int, int]) -> None:
        """What was late is no longer: it came, as a second result perhaps, or nobody expects it any more."""
        rank, _ = self._late.pop(name, (-1, 0.0))
        if rank >= 0:
            self.late[rank] -= 1
            if not self.late[rank]:
                del self.late[rank]

    def _time_out(
        self,
        shared: SharedSample,
        part: int,
        attempt: int,
        copy: Copy,
        *,
        under_way: Callable[[SampleKey, int, int], bool],
        now: float,
    ) -> None:
        """Rule R3, per copy: it is given up for lost, though its answer would still count."""
        number, state = shared.entry.sample, shared.parts[part]
        seconds = self._copy_seconds(state, part)
        alone = len(state.out) == 1 and not state.waiting and self.live[part] > 0 and not state.dead
        again_at = copy.sent_at + seconds  # the load may have grown since it was sent
        if again_at > now:
            pass
        elif under_way(SampleKey(self.rank, self.session, number), attempt, part):
            again_at = now + seconds
        elif alone and not self._may_resubmit(now):
            again_at = self._resubmitted_at + RESUBMIT_TRICKLE_SECONDS
        else:
            del state.out[attempt]
            shared.disturbed = True
            if alone:
                self.counts.by_timer += 1
                self._resubmitted_at = now
                state.timeouts += 1
                self._resubmit(shared, part)
            self._settle(shared, now=now)
            return
        heapq.heappush(self._timers, (again_at, number, part, attempt, False))

    def _may_resubmit(self, now: float) -> bool:
        """The budget of R3, of copies: each sample has as many as parts, and each may be lost."""
        budget = RESUBMIT_SHARE * len(self.live) * self.counts.results + RESUBMIT_FREE
        return self.counts.resubmitted - self._raise_again < budget or now >= self._resubmitted_at + RESUBMIT_TRICKLE_SECONDS

    def _copy_seconds(self, state: PartOfSample, part: int) -> float:
        """Rule R3: how long a copy is waited for."""
        sojourn = self._sojourns[part]
        queue = min(MAX_RETRANSMIT_SECONDS, 2.0 * self._forecast.queue_seconds(self._in_flight))
        seconds = max(sojourn.mean + 4.0 * sojourn.deviation, queue, MIN_RETRANSMIT_SECONDS)
        return float(seconds * 2 ** min(state.timeouts, 16))

    def _hedge_seconds(self, part: int) -> float:
        """Rule F5: when a copy is late. Before the first answer nobody knows."""
        sojourn = self._sojourns[part]
        if not sojourn.mean:
            return MIN_RETRANSMIT_SECONDS
        return max(LEAST_HEDGE_SECONDS, sojourn.mean + HEDGE_DEVIATIONS * sojourn.deviation)

    def _standing(self, number: int, part: int, attempt: int) -> Copy | None:
        shared = self._samples.get(number)
        return shared.parts[part].out.get(attempt) if shared is not None else None

    def _forget_past(self) -> None:
        super()._forget_past()
        if len(self._timers) > 8 * len(self.live) * len(self._samples) + 64:
            self._timers = [timer for timer in self._timers if self._standing(*timer[1:4]) is not None]
            heapq.heapify(self._timers)

    def check(self) -> None:
        """Asserts the invariants."""
        super().check()
        assert self._samples.keys() == {number for number, entry in self._open.items() if entry.attempt}, self._samples
        assert self.unsent == sum(map(len, self.outbox)), (self.unsent, self.outbox)
        assert not self.hedges, self.hedges
        ranks = [rank for rank, _ in self._late.values()]
        assert self.late == {rank: ranks.count(rank) for rank in ranks}, (self.late, self._late)
        for number, shared in self._samples.items():
            for part, state in enumerate(shared.parts):
                assert state.waiting == self.outbox[part].count(number), (number, part, state)
                holders = [copy.rank for copy in state.out.values()]
                assert len(set(holders)) == len(holders), f"two copies of part {part} of sample {number} at one replica: {state}"
                assert state.scores is None or not (state.out or state.waiting), state
                assert state.scores is not None or state.out or state.waiting or state.dead or not self.live[part], (number, part)
            open_parts = [state for state, live in zip(shared.parts, self.live, strict=True) if state.scores is None]
            assert open_parts, f"sample {number} is complete"
