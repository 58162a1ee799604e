"""The source's custody of its samples: admission, attempts, deadlines, outcomes (rules D1-D4, R2-R4)."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from zpipe.model import OutcomeKind, ResultRow, SampleKey, Task, new_key
from zpipe.policy.admission import ADMISSIONS, CONTROL_INTERVAL_SECONDS, MODE_OPTIONS, Feedback
from zpipe.policy.forecast import Forecast
from zpipe.policy.messages import Resolve, SessionRaised

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zpipe.model import LostRow
    from zpipe.policy.exits import ExitLadder
    from zpipe.policy.fanout import FanoutConfig

WhenFull = Literal["block", "latest", "deadline"]

#: Losses of one sample that are answered at once; after so many attempts only the timer (R3) tries again.
MAX_PROMPT_ATTEMPTS = 16
#: Least retransmit timeout. RFC 6298 says a second, but what is here or on a link of this node is never sent again by it (R3):
#: it waits for the answers of nodes farther away, and those that died with a relay are asked for again within a second.
MIN_RETRANSMIT_SECONDS = 0.75
#: ... and the longest that a forecast may give before doubling: while nothing comes back, that of a queue says nothing. What was
#: measured counts in full: where samples took 80 s, a quarter of them went twice, and an eighth of the rate was lost by it.
MAX_RETRANSMIT_SECONDS = 30.0
#: Resubmissions allowed: results / 10 + 10 (R3).
RESUBMIT_SHARE, RESUBMIT_FREE = 0.1, 10
#: ... and beyond it one in this long: a trickle cannot feed an overload, and a slow source on a bad link still gets its answers.
RESUBMIT_TRICKLE_SECONDS = 1.0
#: A source goes on under a later session once in so long, twice as long after each time up to RAISE_FACTOR: what was on its way
#: goes again each time, and clocks are not set back that often.
RAISE_SECONDS, RAISE_FACTOR = 1.0, 64
#: Answers to the latest sessions of a start count: numbers go on, so they name the same samples.
SESSIONS_KEPT = 16
#: ... and not beyond what a message holds with some room.
MAX_SESSION = 2**62
#: A sample whose stage raised this often on it, alone, is poison (R4).
MAX_STAGE_FAILURES = 2
#: Waiting-room sizes where the topology sets none. `latest` keeps one frame: the newest.
WAITING_SAMPLES: dict[WhenFull, int] = {"block": 64, "latest": 1, "deadline": 1024}
#: Strategies that give way (`mdi-threshold`) hear of it when a forecast takes this share of a sample's time: what they save is seen
#: only later. In the simulator, line4 at 50 to 95 % of its bound with 2 s: 0.7 cost 3 points of accuracy, 0.85 answered 99 %
#: in time, 0.8 answered 99.3 % and more.
PRESSED_SHARE = 0.8
#: Weights of a new sojourn in its smoothed mean and deviation (RFC 6298).
MEAN_GAIN, DEVIATION_GAIN = 0.125, 0.25


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """How this node's own samples are admitted.

    Attributes:
        session: the first of this source; a later session is larger (S1).
        ladder: the thresholds samples may carry.
        admission, options: strategy name and its keyword arguments.
        waiting: size of the waiting room; 0 = the mode's default.
        max_open: limit on samples admitted and not resolved, whatever the strategy says.
        fanout: where students share each sample; None: one chain.
    """

    session: int
    ladder: ExitLadder
    admission: str = "aimd"
    options: Mapping[str, float] = field(default_factory=dict)
    when_full: WhenFull = "block"
    waiting: int = 0
    max_open: int = 4096
    fanout: FanoutConfig | None = None


@dataclass(slots=True)
class OpenSample:
    """A sample without an outcome. `attempt` 0: it still waits for admission."""

    sample: int
    submitted_at: float
    deadline: float
    priority: int
    weight: float
    attempt: int = 0
    sent_at: float = 0.0
    first_sent_at: float = 0.0
    queue_seconds: float = 0.0  #: forecast when it was admitted
    again: bool = False
    let_out: bool = False  #: some attempt of it left this node
    timeouts: int = 0
    stage_failures: int = 0
    cause: str = ""


@dataclass(slots=True)
class DeliveryCounts:
    """Totals since the start, for the report."""

    submitted: int = 0
    admitted: int = 0
    results: int = 0
    second_results: int = 0
    resubmitted: int = 0
    by_timer: int = 0
    strangers: int = 0  #: answers of another session, or for samples that never were
    sessions: int = 0  #: times it had to go on under a later session (S5)


class Source:
    """Every sample of this source, from submit to its outcome.

    The owner (NodePolicy) calls in events, pulls tasks with `next_task` while it has own slots, and drains `told`.

    Attributes:
        session: #: of every task that leaves; raised where a node takes ours for those of an earlier start (S5).
        told: #: commands: outcomes, and what people should know.
    """

    def __init__(self, config: SourceConfig, *, rank: int) -> None:
        self.config = config
        self.rank = rank
        self.admission = ADMISSIONS[config.admission](
            points=len(config.ladder),
            default_point=config.ladder.default,
            **{**MODE_OPTIONS.get((config.admission, config.when_full), {}), **config.options},
        )
        self.counts = DeliveryCounts()
        self.session = config.session
        self._sessions = deque([config.session], maxlen=SESSIONS_KEPT)  #: of this start
        self.told: list[Resolve | SessionRaised] = []
        self._room = config.waiting or WAITING_SAMPLES[config.when_full]
        self._open: dict[int, OpenSample] = {}
        self._order: deque[int] = deque()  #: submitted samples in rising order, resolved ones dropped lazily from the left
        self._waiting: OrderedDict[int, OpenSample] = OrderedDict()  #: not yet admitted, oldest first
        self._again: deque[int] = deque()  #: to be submitted again, served before new ones
        self.queues = self._again, self._waiting  #: `next_task` has nothing to start while both are empty
        self._may_miss = config.when_full == "deadline"
        self._in_flight = 0  #: admitted, not resolved
        self._next_sample = 0
        self._deadlines: list[tuple[float, int]] = []
        self._retransmits: list[tuple[float, int, int]] = []
        self._resubmitted_at = self._raise_at = -math.inf
        self._raise_again = 0  #: resubmissions for which no loss was the cause
        self._sojourn = self._deviation = 0.0
        self._adapt_at = -math.inf
        self._rate_at = -math.inf  #: since when `_results_at_rate` counts
        self._results_at_rate = 0
        self._forecast = Forecast()
        self._pacer_limited = self._pressed = False
        self._was_idle = True  #: no sample was open at some time since `_rate_at`

    # ---- what the owner asks -------------------------------------------------------------------

    @property
    def oldest(self) -> int:
        """The lowest open number (S5)."""
        order, open_samples = self._order, self._open
        while order and order[0] not in open_samples:
            order.popleft()
        return order[0] if order else self._next_sample

    @property
    def open_count(self) -> int:
        """Samples without an outcome."""
        return len(self._open)

    @property
    def in_flight(self) -> int:
        """Samples admitted and without an outcome."""
        return self._in_flight

    @property
    def waiting_count(self) -> int:
        """Samples in the waiting room."""
        return len(self._waiting)

    @property
    def has_room(self) -> bool:
        """Whether a new sample would find a place in the waiting room."""
        return len(self._waiting) < self._room

    @property
    def room_left(self) -> int:
        """Places in the waiting room."""
        return self._room - len(self._waiting)

    def is_current(self, key: SampleKey) -> bool:
        """Whether a task of ours still matters."""
        return key[1] == self.session and key[2] in self._open

    def next_wakeup(self, *, slot_free: bool) -> float:
        """The earliest time something here is due; `slot_free`: the owner could take a new task."""
        wakeup = math.inf
        if self._deadlines:
            wakeup = self._deadlines[0][0]
        if self._retransmits and self._retransmits[0][0] < wakeup:
            wakeup = self._retransmits[0][0]
        if slot_free and self._waiting and self._in_flight < self.config.max_open:
            wakeup = min(wakeup, self.admission.next_at(in_flight=self._in_flight, now=-math.inf))
        if self._open and self._adapt_at < wakeup:
            wakeup = self._adapt_at
        return wakeup

    def never_let_out(self, key: SampleKey) -> bool:
        """Whether nobody outside this node can know of this sample of this session. A resolved one is given the doubt."""
        if key.session not in self._sessions:
            return False
        entry = self._open.get(key.sample)
        return not entry.let_out if entry is not None else key.sample >= self._next_sample

    def present(self, key: SampleKey) -> SampleKey:
        """What a sample of this start is called now, whatever session it was answered in."""
        return key if key[1] == self.session else SampleKey(key.source, self.session, key.sample)

    # ---- what happens --------------------------------------------------------------------------

    def let_out(self, key: SampleKey) -> None:
        """An attempt leaves this node."""
        entry = self._open.get(key[2])
        if entry is not None:
            entry.let_out = True

    def submit(self, sample: int, *, deadline: float, submitted_at: float, priority: int, weight: float, now: float) -> None:
        """A new sample (D1). It waits, or a full room answers as its mode says (D4)."""
        assert sample >= self._next_sample, "numbers of samples rise (S1)"
        self.counts.submitted += 1
        self._next_sample = sample + 1
        entry = self._open[sample] = OpenSample(sample, submitted_at, deadline, priority, weight)
        self._order.append(sample)
        if deadline <= now:
            self._resolve(sample, "expired", now=now, cause="its deadline passed before it could be admitted")
            return
        if self._may_miss and self._misses(entry, ahead=len(self._waiting), now=now):
            self._turn_away(sample, now=now)
            return
        if len(self._waiting) >= self._room:
            if self.config.when_full != "latest":
                self._resolve(sample, "rejected", now=now, cause=f"{self._room} samples wait already")
                return
            self._resolve(next(iter(self._waiting)), "rejected", now=now, cause="a newer sample took its place")
        self._waiting[sample] = entry
        if deadline < math.inf:
            heapq.heappush(self._deadlines, (deadline, sample))

    def cancel(self, sample: int, *, cause: str, now: float) -> None:
        """The caller gave up."""
        if sample in self._open:
            self._resolve(sample, "failed", now=now, cause=cause)

    def next_task(self, *, now: float) -> Task | None:
        """The next task to start, if admission lets one in now; the owner has an own slot for it."""
        while self._again:
            entry = self._open.get(self._again.popleft())
            if entry is not None:
                entry.again = False
                return self._start(entry, now=now)
        while self._waiting and self._in_flight < self.config.max_open:
            if self.admission.next_at(in_flight=self._in_flight, now=now) > now:
                self._pacer_limited = True
                return None
            sample, entry = self._waiting.popitem(last=False)
            if self._may_miss and self._misses(entry, ahead=0, now=now):
                self._turn_away(sample, now=now)
                continue
            entry.queue_seconds = self._forecast.queue_seconds(self._in_flight)
            self._in_flight += 1
            self.counts.admitted += 1
            self.admission.admitted(now=now)
            return self._start(entry, now=now)
        return None

    def result(self, row: ResultRow, *, now: float) -> None:
        """An answer arrived: the first of any attempt counts (D2)."""
        _, session, sample = row.key
        ours = session in self._sessions
        entry = self._open.get(sample) if ours else None
        if entry is None or entry.attempt == 0:
            if ours and sample < self._next_sample and entry is None:
                self.counts.second_results += 1
            else:
                self.counts.strangers += 1
            return
        self.counts.results += 1
        if row.attempt == 1:  # a higher number may be an earlier attempt that met a later one (S2): its time would be too short
            sojourn = now - entry.first_sent_at
            self._measure(sojourn)
            self._forecast.came(sojourn - entry.queue_seconds)
        else:
            sojourn = now - entry.sent_at
        self._resolve(sample, "result", now=now, row=row)
        self.admission.resolved(
            queued_seconds=row.queued_seconds - row.yielded_seconds,
            service_seconds=row.service_seconds,
            sojourn_seconds=sojourn,
            in_flight=self._in_flight,
            now=now,
        )

    def lost(self, row: LostRow, *, held: bool, now: float) -> None:
        """An attempt that will not come back (R2, R4); one that is known to be lost is not lost twice."""
        entry = self._open.get(row.key.sample) if row.key.session == self.session else None
        if entry is None or entry.attempt == 0 or row.attempt != entry.attempt or held or entry.again:
            return
        entry.cause = row.cause
        if row.shut_out_by >= self.session:
            self._shut_out(row, now=now)
            return
        if row.cause.startswith("stage-failed"):
            entry.stage_failures += 1
            if entry.stage_failures >= MAX_STAGE_FAILURES:
                self._resolve(entry.sample, "failed", now=now, cause=row.cause)
                return
        if entry.attempt < MAX_PROMPT_ATTEMPTS:
            self._submit_again(entry)

    def tick(
        self,
        *,
        queue_length: int,
        under_way: Callable[[SampleKey, int, int], bool],
        hindrance: Callable[[SampleKey], str],
        now: float,
    ) -> None:
        """Deadlines, retransmissions, the control interval.

        Args:
            queue_length: of this node.
            under_way: whether an attempt of a part is here or on a link of this node.
            hindrance: why a sample that is here can't go on, in words; "" where it can, or is not here.
            now: the time.
        """
        while self._deadlines and self._deadlines[0][0] <= now:
            _, sample = heapq.heappop(self._deadlines)
            entry = self._open.get(sample)
            if entry is not None:
                self._expire(entry, hindrance, now=now)
        while self._retransmits and self._retransmits[0][0] <= now:
            _, sample, attempt = heapq.heappop(self._retransmits)
            entry = self._open.get(sample)
            if entry is not None and entry.attempt == attempt and not entry.again:
                self._retransmit(entry, under_way=under_way, now=now)
        self._drop_done()
        if now >= self._adapt_at and self._open:
            self._adapt(queue_length, now=now)

    # ---- inside --------------------------------------------------------------------------------

    def _drop_done(self) -> None:
        """Timers of what is over go once they would be the next: nobody need wake up for them."""
        deadlines, retransmits = self._deadlines, self._retransmits
        while deadlines and deadlines[0][1] not in self._open:
            heapq.heappop(deadlines)
        while retransmits and not self._is_standing(retransmits[0][1], attempt=retransmits[0][2]):
            heapq.heappop(retransmits)

    def _expire(self, entry: OpenSample, hindrance: Callable[[SampleKey], str], *, now: float) -> None:
        if entry.attempt == 1:  # of a later one the loss was the cause, not the queues
            self._forecast.expired()
            self._pressed = True
        self._resolve(entry.sample, "expired", now=now, cause=self._why_expired(entry, hindrance))

    def _start(self, entry: OpenSample, *, now: float) -> Task | None:
        """The task of its next attempt; None from a source that keeps the copies it makes (zpipe.policy.fanout)."""
        sample, attempt = entry.sample, entry.attempt + 1
        entry.attempt, entry.sent_at = attempt, now
        if attempt == 1:
            entry.first_sent_at = now
        heapq.heappush(self._retransmits, (now + self._retransmit_seconds(entry), sample, attempt))
        self._forget_past()
        return Task(
            new_key((self.rank, self.session, sample)),
            attempt,
            0,
            self.config.ladder.thresholds[self.admission.point],
            0,
            entry.priority,
            entry.weight,
            self.oldest,
            deadline=entry.deadline,
            born=entry.submitted_at,
            since=now,
        )

    def _shut_out(self, row: LostRow, *, now: float) -> None:
        """Rule S5: an open sample of the present session is never old, so a clock was set back, or somebody lied about us.

        At once it would be shut out again: else the timer tries (R3).
        """
        if row.shut_out_by >= MAX_SESSION or now < self._raise_at:
            return
        self.session = row.shut_out_by + 1
        self._sessions.append(self.session)
        self._raise_at = now + RAISE_SECONDS * min(RAISE_FACTOR, 2**self.counts.sessions)
        self.counts.sessions += 1
        self.told.append(SessionRaised(self.session, row.cause))
        for entry in self._open.values():
            if entry.attempt and not entry.again:
                self._submit_again(entry)
                self._raise_again += 1

    def _submit_again(self, entry: OpenSample) -> None:
        entry.again = True
        self.counts.resubmitted += 1
        self._again.append(entry.sample)

    def _retransmit(self, entry: OpenSample, *, under_way: Callable[[SampleKey, int, int], bool], now: float) -> None:
        """Rule R3: what is here or still on a link is not lost, and what may not be submitted again yet waits for another round."""
        due_at = entry.sent_at + self._retransmit_seconds(entry)  # the load may have grown since it was sent
        budget = RESUBMIT_SHARE * self.counts.results + RESUBMIT_FREE
        allowed = self.counts.resubmitted - self._raise_again < budget or now - self._resubmitted_at >= RESUBMIT_TRICKLE_SECONDS
        key = SampleKey(self.rank, self.session, entry.sample)
        if due_at <= now and allowed and not under_way(key, entry.attempt, 0):
            self.counts.by_timer += 1
            self._resubmitted_at = now
            entry.timeouts += 1
            self._submit_again(entry)
            return
        again_at = due_at if due_at > now else now + self._retransmit_seconds(entry)
        heapq.heappush(self._retransmits, (again_at, entry.sample, entry.attempt))

    def _retransmit_seconds(self, entry: OpenSample) -> float:
        seconds = min(MAX_RETRANSMIT_SECONDS, 2.0 * self._forecast.queue_seconds(self._in_flight))
        sojourn = self._sojourn + 4.0 * self._deviation
        if sojourn > seconds:
            seconds = sojourn
        if seconds < MIN_RETRANSMIT_SECONDS:
            seconds = MIN_RETRANSMIT_SECONDS
        return float(seconds * 2 ** min(entry.timeouts, 16)) if entry.timeouts else seconds

    def _measure(self, sojourn: float) -> None:
        if self._sojourn == 0.0:
            self._sojourn, self._deviation = sojourn, sojourn / 2.0
            return
        per_sojourn = max(1.0, self._in_flight / 2.0)  # the gains are those of one measurement per round trip (RFC 7323, G)
        self._deviation += DEVIATION_GAIN / per_sojourn * (abs(sojourn - self._sojourn) - self._deviation)
        self._sojourn += MEAN_GAIN / per_sojourn * (sojourn - self._sojourn)

    def _misses(self, entry: OpenSample, *, ahead: int, now: float) -> bool:
        """Whether `deadline` mode, where alone it is asked, gives up on a sample that `ahead` others precede in the room (D4).

        With nothing in flight it may try: else one slow spell would be believed for ever, as nobody measured its end.
        """
        if not self._in_flight:
            return False
        ahead, left, span = ahead + self._in_flight, entry.deadline - now, entry.deadline - entry.submitted_at
        self._pressed = self._pressed or self._forecast.misses(ahead, left=PRESSED_SHARE * left, span=span)
        return self._forecast.misses(ahead, left=left, span=span)

    def _turn_away(self, sample: int, *, now: float) -> None:
        self._resolve(sample, "rejected", now=now, cause="by the present queues it cannot make its deadline")

    def _adapt(self, queue_length: int, *, now: float) -> None:
        self.admission.adapt(Feedback(queue_length, self._pacer_limited, self._pressed))
        self._pacer_limited = self._pressed = False
        self._adapt_at = now + CONTROL_INTERVAL_SECONDS
        came = self.counts.results - self._results_at_rate
        if came:
            self._forecast.interval(came / (now - self._rate_at), busy=bool(self._waiting) and not self._was_idle)
        if came or self._was_idle:  # else it goes on: a stall is no rate, and slow boards give less than one result in each
            self._rate_at, self._results_at_rate, self._was_idle = now, self.counts.results, False

    def _why_expired(self, entry: OpenSample, hindrance: Callable[[SampleKey], str]) -> str:
        if entry.attempt == 0:
            return "it was still waiting for admission"
        waits = hindrance(SampleKey(self.rank, self.session, entry.sample))
        why = [waits] if waits else []
        if entry.cause:
            why.append(f"last loss: {entry.cause}")
        return f"no result after attempt {entry.attempt}" + (f" ({'; '.join(why)})" if why else "")

    def _resolve(self, sample: int, kind: OutcomeKind, *, now: float, row: ResultRow | None = None, cause: str = "") -> None:
        """The one place where a sample ends."""
        entry = self._open.pop(sample)
        if entry.attempt:
            self._in_flight -= 1
        else:
            self._waiting.pop(sample, None)
        if not self._open:
            self._was_idle = True
        self._forget_past()
        self.told.append(Resolve(sample, kind, now - entry.submitted_at, entry.attempt, row, cause))

    def _forget_past(self) -> None:
        """Heaps keep what is over until its time comes: made anew when that is the most, so they stay bounded."""
        most = 2 * len(self._open) + 64
        if len(self._order) <= most and len(self._retransmits) <= most and len(self._deadlines) <= most:
            return
        if len(self._deadlines) > most:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._open]
            heapq.heapify(self._deadlines)
        if len(self._retransmits) > most:
            self._retransmits = [timer for timer in self._retransmits if self._is_standing(timer[1], attempt=timer[2])]
            heapq.heapify(self._retransmits)
        if len(self._order) > most:
            self._order = deque(sample for sample in self._order if sample in self._open)

    def _is_standing(self, sample: int, *, attempt: int) -> bool:
        entry = self._open.get(sample)
        return entry is not None and entry.attempt == attempt

    def check(self) -> None:
        """Asserts the invariants."""
        admitted = sum(1 for entry in self._open.values() if entry.attempt)
        assert self._in_flight == admitted, (self._in_flight, admitted)
        assert len(self._waiting) <= self._room
        assert all(sample in self._open and self._open[sample].attempt == 0 for sample in self._waiting)
        assert self._in_flight + len(self._waiting) == len(self._open)
        assert all(sample >= self.oldest for sample in self._open)
