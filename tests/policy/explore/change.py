"""What follows from an action: who is told of it, where the answers go, and whether an outcome is one that may be given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.policy.explore.nodes import MOMENT_SECONDS, Frame, Reset, Violation, label
from tests.policy.explore.world import DEAD, FAR, HELLO, Action, Connection, Faults, Story, World, named
from zpipe.policy.delivery import MAX_PROMPT_ATTEMPTS, MAX_STAGE_FAILURES

if TYPE_CHECKING:
    from tests.policy.explore.rules import Rules
    from zpipe.policy.messages import Resolve


class Change:
    """One action on its way from a World to the next.

    Raises:
        Violation: a node did what it never may.
    """

    def __init__(self, rules: Rules, world: World) -> None:
        self.rules = rules
        self.moment = world.moment
        self.states = list(world.nodes)
        self.connections: list[Connection] = [rules.connections.values[number] for number in world.connections]
        self.story: Story = rules.stories.values[world.story]
        self.left: Faults = rules.faults.values[world.left]

    def carry_out(self, action: Action) -> World:
        kind = action[0]
        if kind in Faults._fields:
            left = getattr(self.left, kind)
            self.left = self.left._replace(**{kind: left - 1})
        getattr(self, "_" + kind)(*action[1:])
        return self.rules.pack(self.moment, self.states, self.connections, self.story, self.left)

    # ---- without faults ------------------------------------------------------------------------

    def _fire(self, rank: int) -> None:
        self._tell(rank, ("fired",))

    def _notice(self, at: int, end: int) -> None:
        connection, pair = self.connections[at], self.rules.pairs[at]
        told = connection.told[end]
        if end == 0:
            self._set(at, told=("", connection.told[1]), ready=False, refuses=False)
        else:
            self._set(at, told=(connection.told[0], ""), accepted=False)
        if told == "refused":
            self._tell(pair[0], ("refused", pair[1], connection.epoch))
        else:
            self._tell(pair[end], ("lost", pair[1 - end], end == 0))

    def _deliver(self, at: int, plane: str) -> None:
        message = self._take(at, plane)
        sender, receiver = self.rules.pairs[at]
        if message == HELLO:
            self._set(at, ready=True)
            self._tell(sender, ("up", receiver, self.connections[at].epoch, True))
        else:
            self._tell(sender if plane == "back" else receiver, ("message", message))

    def _together(self, *actions: Action) -> None:
        """The runtime hands over at once whatever is ready at once (`handle_all`)."""
        told: list[tuple[int, tuple[Any, ...]]] = []
        for kind, at, *plane in actions:
            if kind == "deliver":
                sender, receiver = self.rules.pairs[at]
                told.append((sender if plane == ["back"] else receiver, ("message", self._take(at, *plane))))
            else:
                told.append((at, ("completed",) if kind == "done" else ("fired",)))
        assert len({rank for rank, _ in told}) == 1, told
        self._tell(told[0][0], ("together", *[event for _, event in told]))

    def _done(self, rank: int) -> None:
        self._tell(rank, ("completed",))

    def _rise(self, rank: int) -> None:
        lives = [life + (near == rank) for near, life in enumerate(self.story.lives)]
        self.story = self.story._replace(lives=tuple(lives))
        self.states[rank] = self.rules.nodes.born(rank, lives[rank])

    def _leave(self, rank: int) -> None:
        self._restart(rank)

    def _connect(self, at: int) -> None:
        sender, receiver = self.rules.pairs[at]
        connection = self.connections[at]
        epoch = connection.epoch + 1
        self.connections[at] = Connection(epoch, whole=True, accepted=True, back=(HELLO,), stray=connection.stray)
        if connection.accepted:
            self._tell(receiver, ("lost", sender, False))
        self._tell(receiver, ("up", sender, epoch, False))

    def _submit(self, source: int) -> None:
        story, case = self.story, self.rules.case
        at, session = [*case.offers].index(source), story.lives[source]
        sample = sum(1 for entry in (*story.open, *story.ended) if entry[:2] == (source, session))
        deadline = self.moment * MOMENT_SECONDS + (*case.offers[source], FAR)[story.submitted[at]]
        submitted = tuple(count + (each == at) for each, count in enumerate(story.submitted))
        self.story = story._replace(open=(*story.open, (source, session, sample, deadline)), submitted=submitted)
        self._tell(source, ("submitted", sample, deadline, case.shape.sources[source]))

    def _tick(self) -> None:
        now = self.moment * MOMENT_SECONDS
        for *name, deadline in self.story.open:
            if deadline <= now and not self._due_to_fire(name[0]):
                raise Violation(f"sample {named(*name)} is open at {now} s, its deadline was {deadline} s (D3)")
        still = self.story.stopped
        states = [
            None if number == DEAD or rank in still else self.rules.nodes.states[number] for rank, number in enumerate(self.states)
        ]
        moment = self.rules.next_moment(self.moment, states)
        assert moment is not None
        self.moment = moment

    # ---- faults --------------------------------------------------------------------------------

    def _lose(self, at: int, plane: str) -> None:
        self._take(at, plane)

    def _repeat(self, at: int, plane: str) -> None:
        frames = getattr(self.connections[at], plane)
        self._deliver(at, plane)
        if self.connections[at].whole or plane == "stray":
            self._set(at, **{plane: (frames[0], *getattr(self.connections[at], plane))})

    def _cut(self, at: int) -> None:
        connection = self.connections[at]
        told = ("lost" if connection.ready else "", "lost" if connection.accepted else "")
        self._set(at, whole=False, told=told, data=(), out=(), back=())

    def _linger(self, at: int) -> None:
        stray = self.connections[at].stray + self.connections[at].data
        self._cut(at)
        self._set(at, stray=stray)

    def _refuse(self, at: int) -> None:
        self._cut(at)
        self._set(at, refuses=True)

    def _restart(self, rank: int) -> None:
        """Its ends of all connections are gone with it; the other ends notice."""
        self.states[rank] = DEAD
        for at, pair in enumerate(self.rules.pairs):
            if rank in pair:
                if self.connections[at].whole:
                    self._cut(at)
                self._forget_end(at, rank)
                if pair[1] == rank:
                    self._set(at, stray=())
        self.story = self.story._replace(stopped=tuple([other for other in self.story.stopped if other != rank]))
        still = tuple([entry for entry in self.story.open if entry[0] != rank])
        gone = [entry[:3] for entry in self.story.open if entry[0] == rank]  # with the program that submitted them
        self.story = self.story._replace(open=still, ended=tuple(sorted([*self.story.ended, *gone])))

    def _stop(self, rank: int) -> None:
        self.story = self.story._replace(stopped=tuple(sorted((*self.story.stopped, rank))))

    def _wake(self, rank: int) -> None:
        self.story = self.story._replace(stopped=tuple([other for other in self.story.stopped if other != rank]))

    def _fail(self, rank: int) -> None:
        self._tell(rank, ("failed",))

    def _break_down(self, rank: int) -> None:
        self._tell(rank, ("broken",))

    def _drain(self, rank: int) -> None:
        self._tell(rank, ("draining",))

    def _cancel(self, source: int, sample: int) -> None:
        self._tell(source, ("cancelled", sample))

    def _slow(self) -> None:
        self._tick()

    # ---- inside --------------------------------------------------------------------------------

    def _set(self, at: int, **fields: Any) -> None:
        self.connections[at] = self.connections[at]._replace(**fields)

    def _take(self, at: int, plane: str) -> int:
        frames = getattr(self.connections[at], plane)
        self._set(at, **{plane: frames[1:]})
        return frames[0]  # type: ignore[no-any-return]

    @property
    def _used(self) -> Faults:
        """The faults so far; once none are left, all that the case has."""
        return Faults(*[had - left for had, left in zip(self.rules.case.faults, self.left, strict=True)])

    def _due_to_fire(self, rank: int) -> bool:
        wakeup = self.rules.nodes.states[self.states[rank]].wakeup if self.states[rank] != DEAD else None
        return wakeup is not None and wakeup <= self.moment

    def _forget_end(self, at: int, rank: int) -> None:
        told = self.connections[at].told
        if self.rules.pairs[at][0] == rank:
            self._set(at, ready=False, refuses=False, told=("", told[1]))
        else:
            self._set(at, accepted=False, told=(told[0], ""))

    def _tell(self, rank: int, event: Any) -> None:
        rules = self.rules
        if self.states[rank] == DEAD:
            return
        step = rules.nodes.tell(self.states[rank], event, self.moment)
        self.states[rank] = step.state
        if rules.tell_tale is not None:
            rules.tell_tale(rank, event, step)
        for output in step.outputs:
            if isinstance(output, Frame):
                self._send(rank, output)
            elif isinstance(output, Reset):
                self._reset(rank, output.peer)
            else:
                self._resolve(rank, output)

    def _send(self, rank: int, frame: Frame) -> None:
        """Tasks go by the connection this node opened; control too, or else by the one it accepted. No way: it vanishes."""
        at = self.rules.place.get((rank, frame.peer))
        connection = self.connections[at] if at is not None else None
        if frame.data:
            if at is None or connection is None or not connection.ready or connection.epoch != frame.epoch:
                raise Violation(f"node {rank} sends tasks to node {frame.peer} without a connection")
            if connection.whole:
                self._set(at, data=(*connection.data, frame.message))
            elif connection.refuses:
                self._set(at, told=("refused", connection.told[1]))
        elif at is not None and connection is not None and connection.ready:
            if connection.whole:
                self._set(at, out=(*connection.out, frame.message))
        else:
            at = self.rules.place.get((frame.peer, rank))
            if at is not None and self.connections[at].accepted and self.connections[at].whole:
                self._set(at, back=(*self.connections[at].back, frame.message))

    def _reset(self, rank: int, peer: int) -> None:
        used = self._used
        if not (used.stop or used.slow or used.refuse):
            raise Violation(f"node {rank} resets its connections with node {peer}, which is awake and answers (R5)")
        for pair in ((rank, peer), (peer, rank)):
            at = self.rules.place.get(pair)
            if at is not None and (self.connections[at].ready if pair[0] == rank else self.connections[at].accepted):
                if self.connections[at].whole:
                    self._cut(at)
                self._forget_end(at, rank)

    def _resolve(self, source: int, resolve: Resolve) -> None:
        """Rules D1 and D3."""
        now, name = self.moment * MOMENT_SECONDS, (source, self.story.lives[source], resolve.sample)
        if name in self.story.ended:
            raise Violation(f"sample {named(*name)} has a second outcome, {resolve.kind} (D1)")
        deadline = next((entry[3] for entry in self.story.open if entry[:3] == name), None)
        if deadline is None:
            raise Violation(f"sample {named(*name)} has an outcome, {resolve.kind}, and was never submitted")
        self._justify(source, resolve, deadline, now)
        self.story = self.story._replace(
            open=tuple([entry for entry in self.story.open if entry[:3] != name]),
            ended=tuple(sorted((*self.story.ended, name))),
        )

    def _justify(self, source: int, resolve: Resolve, deadline: float, now: float) -> None:
        """An outcome has its reason, and so has every attempt."""
        case, shown = self.rules.case, f"sample {resolve.sample} ended as {resolve.kind} ({resolve.cause}) at {now} s"
        used = self._used
        stage = case.leaves_at.get(resolve.sample, case.shape.stage_count - 1)
        answer = label(source, self.story.lives[source], resolve.sample)
        if case.shape.students and resolve.row is not None:  # which parts were joined, and by which of them it ended
            answer, stage = (1 << len(case.shape.students)) - 1 & ~resolve.missing, resolve.row.exit_stage
        match resolve.kind:
            case "result":
                row = resolve.row
                if row is None or (*row.key[::2], row.exit_stage, row.label) != (source, resolve.sample, stage, answer):
                    raise Violation(f"{shown} with the wrong answer {row}")
            case "expired":
                if now < deadline:
                    raise Violation(f"{shown}, its deadline is {deadline} s (D3)")
            case "failed":
                if used.fail < MAX_STAGE_FAILURES and not used.cancel:
                    raise Violation(f"{shown} after {used.fail} failures of an executor (R4), and nobody cancelled it")
            case _:
                raise Violation(f"{shown}, with room and slots for all")
        probes = zip(self.story.submitted, case.offers.values(), strict=True)
        if any(count > len(deadlines) for count, deadlines in probes) and resolve.kind != "result":
            raise Violation(f"{shown}, though all was calm when it was submitted")
        by_timer = self.rules.nodes.states[self.states[source]].by_timer
        # Until neighbours hear that its executor is lost, attempts bounce off a node: at most so many before the timer.
        bounced = used.break_down * MAX_PROMPT_ATTEMPTS
        causes = by_timer + bounced + sum(used) - used.repeat - used.cancel - used.together
        if resolve.attempts > 1 + causes:
            raise Violation(
                f"{shown} after {resolve.attempts} attempts, with reason for {1 + causes}: {used}, {by_timer} timers (R2)"
            )
