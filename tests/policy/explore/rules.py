"""What may happen in a state of a case, and what must hold in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.policy.explore.change import Change
from tests.policy.explore.freeze import NO_DICE
from tests.policy.explore.nodes import End, Nodes, State, Violation
from tests.policy.explore.world import DEAD, HELLO, Action, Case, Connection, Faults, Story, Table, World, named
from zpipe.policy.node import NodePolicy


class Rules:
    """What may happen in a World of one case, and what follows.

    Attributes:
        tell_tale: called with every line worth printing on the way to a violation; None while exploring.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.nodes = Nodes(case.shape, case.leaves_at)
        ranks = range(len(case.shape.stages))
        self.pairs = [(a, b) for a in ranks for b in ranks if b in case.shape.neighbours(a) and case.shape.connects(a, b)]
        self.place = {pair: at for at, pair in enumerate(self.pairs)}
        self.connections = Table()
        self.stories = Table()
        self.faults = Table()
        self.tell_tale: Any = None
        self._links = [pair for pair in self.pairs if case.shape.lanes(*pair)]
        sent = range(0 if case.shape.students else 1, case.shape.stage_count)  #: stages that are sent for over links
        takers = [sum(1 for near in ranks if stage in case.shape.stages[near]) for stage in sent]
        self._one_way = max(takers) == 1  #: a sample of each source, which hosts stage 0, and every link was taken
        nodes = [NodePolicy(case.shape.config(rank, 1), rng=NO_DICE) for rank in ranks]
        #: {receiver: slots that all its senders together are cleared for, by class} (C8)
        self._pools = {rank: [*shared._pools.values()] for rank in ranks if (shared := nodes[rank]._links._clearance) is not None}

    def start(self) -> World:
        """Everything up, the first Credits and Reports told, nothing submitted; how it came to that is not explored."""
        lives = (1,) * len(self.case.shape.stages)
        states = [self.nodes.born(rank, 1) for rank in range(len(lives))]
        world = self.pack(
            0, states, [Connection() for _ in self.pairs], Story(lives, submitted=(0,) * len(self.case.offers)), Faults()
        )
        while True:
            actions = [action for action in self.actions(world) if action[0] not in ("submit", "tick")]
            if not actions:
                return world._replace(left=self.faults.number(self.case.faults))
            world = self.after(world, actions[0])

    def without_faults(self, world: World) -> World:
        """The same with no faults left."""
        return world._replace(left=self.faults.number(Faults()))

    # ---- what may happen -----------------------------------------------------------------------

    def actions(self, world: World) -> list[Action]:
        """All that may happen now, what is sure to happen first."""
        states = [None if number == DEAD else self.nodes.states[number] for number in world.nodes]
        connections = [self.connections.values[number] for number in world.connections]
        story, left = self.stories.values[world.story], self.faults.values[world.left]
        awake = [None if rank in story.stopped else state for rank, state in enumerate(states)]
        prompt = list(self._prompt(world.moment, awake, connections))
        actions = [*prompt, *self._outside(states, awake, connections, story)]
        if (not prompt or left.slow) and self.next_moment(world.moment, awake) is not None:
            actions.append(("slow",) if prompt else ("tick",))
        if any(left):
            actions.extend(self._faults(states, awake, connections, story, left, prompt))
        return actions

    def _prompt(self, moment: int, states: list[State | None], connections: list[Connection]) -> Iterator[Action]:
        """What happens before time goes on, at nodes that are awake."""
        for rank, state in enumerate(states):
            if state is not None and state.wakeup is not None and state.wakeup <= moment:
                yield "fire", rank
        for at, connection in enumerate(connections):
            sender, receiver = (states[rank] is not None for rank in self.pairs[at])
            if connection.told[0] and sender:
                yield "notice", at, 0
            if connection.told[1] and receiver:
                yield "notice", at, 1
            for plane in ("data", "out", "back", "stray"):
                if getattr(connection, plane) and (sender if plane == "back" else receiver):
                    yield "deliver", at, plane
        for rank, state in enumerate(states):
            if state is not None and state.running is not None:
                yield "done", rank

    def _outside(
        self, states: list[State | None], awake: list[State | None], connections: list[Connection], story: Story
    ) -> Iterator[Action]:
        """What may take any time."""
        for rank in story.stopped:
            yield "wake", rank
        for rank, state in enumerate(states):
            if state is None:
                yield "rise", rank
            elif state.leaves and awake[rank] is not None:
                yield "leave", rank
        for at, connection in enumerate(connections):
            sender, receiver = self.pairs[at]
            if not (connection.whole or connection.ready or connection.told[0]) and None not in (awake[sender], awake[receiver]):
                yield "connect", at
        for count, (source, deadlines) in zip(story.submitted, self.case.offers.items(), strict=True):
            if count < len(deadlines) and awake[source] is not None:
                yield "submit", source

    def _faults(
        self,
        states: list[State | None],
        awake: list[State | None],
        connections: list[Connection],
        story: Story,
        left: Faults,
        prompt: list[Action],
    ) -> Iterator[Action]:
        for action in prompt:
            if action[0] == "deliver" and getattr(connections[action[1]], action[2])[0] != HELLO:
                if left.lose:
                    yield "lose", *action[1:]
                if left.repeat:
                    yield "repeat", *action[1:]
            elif action[0] == "done" and left.fail:
                yield "fail", action[1]
            if action[0] == "done" and left.break_down and action[1] in self.case.ranks:
                yield "break_down", action[1]
        for at, connection in enumerate(connections):
            if connection.whole:
                if left.cut:
                    yield "cut", at
                if left.linger and connection.data:
                    yield "linger", at
                if left.refuse and connection.ready:
                    yield "refuse", at
        if left.together:
            yield from self._together(connections, prompt)
        if left.restart:
            yield from [("restart", rank) for rank in self.case.ranks if states[rank] is not None]
        if left.drain:
            yield from [("drain", rank) for rank in self.case.ranks if (state := awake[rank]) is not None and state.accepting]
        if left.stop:
            yield from [("stop", rank) for rank in self.case.ranks if awake[rank] is not None]

        if left.cancel:
            for source, session, sample, _ in story.open:
                if session == story.lives[source] and awake[source] is not None:
                    yield "cancel", source, sample

    def _together(self, connections: list[Connection], prompt: list[Action]) -> Iterator[Action]:
        """Two of what is ready at one node, in both orders; also two frames in a row."""
        ready: list[tuple[int, Action]] = []
        for action in prompt:
            kind, at, *plane = action
            if kind in ("done", "fire"):
                ready.append((at, action))
            elif kind == "deliver":
                frames = getattr(connections[at], plane[0])
                if frames[0] != HELLO:
                    ready.append((self.pairs[at][0 if plane == ["back"] else 1], action))
                    if len(frames) > 1:
                        yield "together", action, action
        for at, one in ready:
            for place, other in ready:
                if at == place and one is not other:
                    yield "together", one, other

    def next_moment(self, moment: int, states: list[State | None]) -> int | None:
        wakeups = [state.wakeup for state in states if state is not None and state.wakeup is not None]
        return max(moment + 1, min(wakeups)) if wakeups else None

    # ---- what follows --------------------------------------------------------------------------

    def after(self, world: World, action: Action) -> World:
        """The state after an action.

        Raises:
            Violation: what it did never may be done.
        """
        return Change(self, world).carry_out(action)

    def pack(self, moment: int, states: list[int], connections: list[Connection], story: Story, left: Faults) -> World:
        return World(
            moment,
            tuple(states),
            tuple([self.connections.number(connection) for connection in connections]),
            self.stories.number(story),
            self.faults.number(left),
        )

    def check(self, world: World) -> None:
        """What must hold between two nodes, in every state.

        Raises:
            Violation: it does not.
        """
        for sender, receiver in self._links:
            if DEAD in (world.nodes[sender], world.nodes[receiver]):
                continue
            out = self.nodes.states[world.nodes[sender]].sends[receiver]
            into = self.nodes.states[world.nodes[receiver]].receives[sender]
            if out.epoch is None or out.epoch != into.epoch:
                continue
            if not into.numbers <= out.numbers:
                forgotten = sorted(into.numbers - out.numbers)
                raise Violation(f"node {sender} forgot the tasks {forgotten}, which node {receiver} still holds for it (C3)")
            if out.border > into.border:
                raise Violation(f"node {sender} sent up to number {out.border}, node {receiver} has room up to {into.border} (C1)")
            if receiver in self._pools:
                self._check_clear(sender, receiver, out, into)

    def _check_clear(self, sender: int, receiver: int, out: End, into: End) -> None:
        """Rule C8 on one link: nobody believes in more than there is, or sent more; a lane's own slot asks."""
        pools, asking = self._pools[receiver], len(self.case.shape.lanes(sender, receiver))
        if any(not 0 <= clear <= pool for clear, pool in zip(out.clear, pools, strict=True)):
            raise Violation(
                f"node {sender} is clear for {out.clear} tasks of lower classes at node {receiver}, which has {pools} (C8)"
            )
        if len(out.lower) > max(pools) + asking:
            raise Violation(f"node {sender} has {len(out.lower)} tasks of lower classes at node {receiver}, which has {pools} (C8)")
        if into.lower != into.numbers & out.lower:
            raise Violation(
                f"nodes {sender} and {receiver} take tasks {sorted(into.lower ^ (into.numbers & out.lower))} for another class"
            )

    def probes(self, world: World) -> list[Action]:
        """The samples still to be submitted, of each source, that show that everything works."""
        counts = zip(self.stories.values[world.story].submitted, self.case.offers.items(), strict=True)
        return [("submit", source) for count, (source, deadlines) in counts if count <= len(deadlines)]

    def unsettled(self, world: World) -> str:
        """What keeps a world without faults from being at rest; empty when nothing does.

        A lost Credit is told again only to a sender that asks for it (C6), so all of it must be back once a probe went by.
        """
        story = self.stories.values[world.story]
        if story.open:
            return f"samples without an outcome: {', '.join(named(*entry[:3]) for entry in story.open)}"
        for rank, number in enumerate(world.nodes):
            if number == DEAD or not self.nodes.states[number].idle:
                return f"node {rank} still holds tasks"
        probed = not self.probes(world)
        for sender, receiver in self._links:
            out = self.nodes.states[world.nodes[sender]].sends[receiver]
            into = self.nodes.states[world.nodes[receiver]].receives[sender]
            window = self.case.shape.config(sender, 1).neighbours
            slots = next(near.window_out for near in window if near.rank == receiver)
            if out.epoch is None or out.epoch != into.epoch:
                return f"the link {sender} -> {receiver} is down"
            if probed and self._one_way and (out.numbers or out.carried - out.border != slots):
                return (
                    f"node {sender} has {out.carried - out.border} of {slots} credits at node {receiver}, "
                    f"and believes {len(out.numbers)} tasks there"
                )
        return ""
