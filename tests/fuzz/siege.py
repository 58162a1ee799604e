"""One live Driver with its real policy, and an enemy in the place of its transport: every neighbour it has, and strangers.

The enemy knows the topology, the bundle, every epoch and every open sample, as somebody does who has taken over a neighbour; it
speaks at any time, out of order, and mutates a part of what it says. Time stands still unless it is moved.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import numpy as np

from tests.fuzz.mutate import Frames, Mutator
from tests.runtime.mesh import FakeExecutor, bundle, image
from zpipe.model import Credit, LostRow, Report, ResultRow, SampleKey, Task
from zpipe.policy.delivery import SourceConfig
from zpipe.policy.exits import ExitLadder
from zpipe.policy.messages import Resolve, SampleCancelled, SampleSubmitted, TimerFired
from zpipe.runtime.driver import Driver
from zpipe.topology import Topology
from zpipe.transport.base import Buffer, Channel, Origin, TransportCounts, TransportHandler
from zpipe.transport.shared import Sharing
from zpipe.wire import (
    NO_CODEC,
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
    Role,
    Stats,
    StatsRequest,
    TaskBatch,
    encode,
)

#: Incoming connections the enemy keeps at once, beside those to the driver's own channels.
MAX_CHANNELS = 12
#: Samples under way at most, where there is a source.
MAX_OPEN = 40
SESSION = 1000


class EnemyTransport:
    """Takes every word and forgets it (see `zpipe.transport.Transport`)."""

    def __init__(self, handler: TransportHandler) -> None:
        self.handler = handler
        self.counts = TransportCounts()
        self.turned_away = ""
        self.sharing = Sharing(self.counts, wanted=True)
        self.origin = Origin("10.6.6.6")
        self.opened: list[Channel] = []
        self.sent = 0
        self.refuses = False  #: sends are not taken
        self.broken: list[Channel] = []  #: reset, and the driver not yet told

    def tables(self) -> dict[str, tuple[int, int]]:
        return {}

    async def start(self) -> str:
        return "10.0.0.1:5800"

    def open(self, address: str, *, data: bool = True, key: str = "") -> Channel:
        self.opened.append(Channel(address, outgoing=True, data=data, key=key))
        return self.opened[-1]

    def confirm(self, channel: Channel) -> None:
        channel.confirmed = True

    def reset(self, channel: Channel) -> None:
        if channel.connected:
            channel.connected = False
            self.broken.append(channel)

    def close_channel(self, channel: Channel) -> None:
        channel.closed, channel.connected = True, False
        self.sharing.close(channel)

    def ban(self, key: str) -> None:
        pass

    def send_data(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        self.sent += 1
        return channel.connected and not self.refuses

    send_control = send_data

    async def aclose(self) -> None:
        for channel in self.opened:
            self.sharing.close(channel)


class Clock:
    """In the place of the driver's `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Siege:
    """A driver besieged. Make it inside a running loop, with the driver's `time` replaced by `clock`.

    Attributes:
        driver: which is real but for its transport and its stages.
        outcomes: #: {sample: how often it ended}.
        failures: what `broken` was told.
    """

    def __init__(self, topology: Topology, rank: int, *, clock: Clock, rng: random.Random) -> None:
        self.topology, self.rank, self.clock = topology, rank, clock
        self.outcomes: dict[int, int] = {}
        self.failures: list[Exception] = []
        self.refusals = 0
        self._rng = rng
        self._bundle = bundle()
        source = None
        if topology.source_at(rank) is not None:
            source = SourceConfig(session=SESSION, ladder=ExitLadder(((0.5,) * 5,), 0), admission="fixed", waiting=64)
        stages = topology.node(rank).stages
        self.driver = Driver(
            topology,
            self._bundle,
            rank,
            transport=EnemyTransport,
            executor=FakeExecutor(self._bundle, stages) if stages else None,
            session=SESSION,
            source=source,
            resolved=self._resolved,
            refused=self._on_refused,
            note=lambda line: None,
            broken=self.failures.append,
            seed=0,
        )
        transport = self.driver.transport
        assert isinstance(transport, EnemyTransport)
        self.transport = transport
        self._others = topology.neighbours(rank)
        self._incoming: list[Channel] = []
        self._submitted = 0
        #: Enough of everything for any window, batch and table that is filled as it should be.
        self.most_held = sum(window + 8 for window in self._windows()) + self.driver.policy.config.own_slots

    async def start(self) -> None:
        await self.driver.start()
        self.driver.connect()

    def _windows(self) -> list[int]:
        return [neighbour.window_in for neighbour in self.driver.policy.config.neighbours]

    def _resolved(self, resolve: Resolve) -> None:
        self.outcomes[resolve.sample] = self.outcomes.get(resolve.sample, 0) + 1
        if resolve.row is not None:
            assert self._bundle.classes[resolve.row.label]  # as a Pipeline does

    def _on_refused(self, error: Exception) -> None:
        self.refusals += 1

    # ---- a step --------------------------------------------------------------------------------

    async def step(self) -> None:
        """The enemy does something; then the driver looks at it, and must hold what `check` asserts."""
        rng, driver = self._rng, self.driver
        while self.transport.broken:
            driver.inbox.on_disconnected(self.transport.broken.pop(), "reset")
        dice = rng.random()
        if dice < 0.06:
            self._connect_or_not()
        elif dice < 0.10:
            self._come_or_go()
        elif dice < 0.14:
            self.clock.now += rng.choice((0.001, 0.05, 0.2, 1.5, 7.0))
            driver.emit(TimerFired())
        elif dice < 0.18:
            for _ in range(4):
                await asyncio.sleep(0)  # stages run
        elif dice < 0.22:
            self._submit()
        elif dice < 0.23:
            self.transport.refuses = rng.random() < 0.3
        elif dice < 0.33:
            self._mutants()
        else:
            for _ in range(rng.choice((1, 1, 2, 8))):
                self._say(self._message())
        if rng.random() < 0.7:
            driver.inbox.on_drained()
        self.check()

    def check(self) -> None:
        """What no enemy may break."""
        driver = self.driver
        assert not self.failures, self.failures
        driver.policy.check()
        assert driver.policy.held_count <= self.most_held
        assert set(driver.peers.incoming) <= set(self._others)
        assert len(driver.peers.observers) <= MAX_CHANNELS
        assert all(not channel.closed for channel in driver.peers.observers)
        assert all(count == 1 for count in self.outcomes.values())
        assert len(driver.inputs) == self._submitted - len(self.outcomes)

    async def end(self) -> None:
        """Everything that was submitted ends, once; nothing stays behind."""
        self.transport.refuses = False
        self.clock.now += 100.0
        for _ in range(4):
            self.driver.inbox.on_drained()
            self.driver.emit(TimerFired())
            await asyncio.sleep(0)
            self.clock.now += 1.0
        self.check()
        assert len(self.outcomes) == self._submitted
        assert self.driver.policy.held_count == 0
        assert self.driver.stats()["payloads"] == 0
        await self.driver.aclose()

    # ---- what the enemy does -------------------------------------------------------------------

    def _connect_or_not(self) -> None:
        opened = [channel for channel in self.transport.opened if not channel.closed]
        if not opened:
            return
        channel = self._rng.choice([channel for channel in opened if not channel.connected] or opened)
        if channel.connected:
            if self._rng.random() < 0.7:
                return
            channel.connected = False
            self.driver.inbox.on_disconnected(channel, "the enemy closed it")
        else:
            channel.connected = True
            self.driver.inbox.on_connected(channel)
            ours = next((each for each in self.driver.peers.outgoing.values() if each.channel is channel), None)
            if ours is not None and self._rng.random() < 0.8:  # as an honest one would answer
                mine = self.driver.peers._hello(self.rank, "peer", 0)
                hello = Hello(ours.rank, "peer", SESSION, ours.epoch, mine.bundle_digest, mine.topology_digest, {})
                self.driver.inbox.on_control(channel, self._frames(hello))

    def _come_or_go(self) -> None:
        self._incoming = [channel for channel in self._incoming if not channel.closed]
        if len(self._incoming) < MAX_CHANNELS and self._rng.random() < 0.6:
            self._incoming.append(Channel("10.6.6.6", outgoing=False))
        elif self._incoming:
            channel = self._incoming.pop(self._rng.randrange(len(self._incoming)))
            channel.closed, channel.connected = True, False
            self.driver.inbox.on_disconnected(channel, "the enemy went")

    def _submit(self) -> None:
        source = self.driver.policy.source
        if source is None or source.open_count >= MAX_OPEN:
            return
        sample, now = self._submitted, self.clock.now
        self._submitted += 1
        self.driver.inputs[sample] = image(sample % 1000)[None]
        self.driver.emit(SampleSubmitted(sample, now + self._rng.choice((0.5, 30.0)), now))
        if self._rng.random() < 0.05 and sample not in self.outcomes:
            self.driver.emit(SampleCancelled(sample, "its caller gave up"))

    def _mutants(self) -> None:
        seeds = {f"{index}": self._frames(self._message()) for index in range(4)}
        mutator = Mutator(seeds, self._rng)
        for _ in range(12):
            frames = mutator.mutant().frames
            self._deliver(frames, data=self._rng.random() < 0.4)

    def _say(self, message: Message) -> None:
        belongs = isinstance(message, TaskBatch | Blocked)
        self._deliver(self._frames(message), data=belongs if self._rng.random() < 0.97 else not belongs)

    def _frames(self, message: Message) -> Frames:
        return [bytes(frame) for frame in encode(message, now=self.clock.now)]

    def _deliver(self, frames: Frames, *, data: bool) -> None:
        if data:
            self.driver.inbox.on_data(frames, self.transport.origin)
            return
        channels = [channel for channel in (*self.transport.opened, *self._incoming) if channel.connected and not channel.closed]
        if channels:
            self.driver.inbox.on_control(self._rng.choice(channels), frames)

    # ---- what the enemy says -------------------------------------------------------------------

    def _message(self) -> Message:
        make = self._rng.choice((
            self._hello, self._hello, self._tasks, self._tasks, self._tasks, self._credit, self._credit, self._blocked,
            self._report, self._lost, self._results, self._results, self._other,
        ))  # fmt: skip
        return make()

    def _sender(self) -> int:
        return self._rarely(self._rng.choice(self._others), self.rank, 77)

    def _epoch(self, sender: int) -> int:
        """Mostly the one that stands."""
        peers = self.driver.peers
        came, opened = peers.incoming.get(sender), peers.outgoing.get(sender)
        return self._rarely(came.epoch if came else 5, opened.epoch if opened else 5, 0, 6)

    def _hello(self) -> Message:
        rng, peers, sender = self._rng, self.driver.peers, self._sender()
        mine = peers._hello(self.rank, "peer", 0)
        opened = peers.outgoing.get(sender)
        role: Role = rng.choice(("peer", "peer", "peer", "source", "observer"))
        return Hello(
            sender=rng.choice((NO_RANK, sender)) if role == "observer" else sender,
            role=role,
            session=rng.choice((SESSION, SESSION, SESSION - 1, SESSION + 1, 2**62)),
            epoch=opened.epoch if opened and rng.random() < 0.5 else rng.choice((5, 6, 7, 2**63 - 1)),
            bundle_digest=mine.bundle_digest if rng.random() < 0.95 else "sha256:00",
            topology_digest=mine.topology_digest if rng.random() < 0.95 else "",
            topology=rng.choice((mine.topology, mine.topology, {}, {"nodes": [[[1]]], "name": {"a": "x" * 5000}})),
            wire_version=1 if rng.random() < 0.97 else 2,
        )

    def _rarely(self, usual: int, *odd: int) -> int:
        return self._rng.choice(odd) if self._rng.random() < 0.03 else usual

    def _key(self, *, lately: bool = False) -> SampleKey:
        rng = self._rng
        return SampleKey(
            self._rarely(0, self.rank, 1, 77),
            self._rarely(SESSION, *(SESSION - 1,) * 15, 2**63 - 1),  # a later session makes all else stale
            self._rarely(max(0, self._submitted - 1 - rng.randrange(10)) if lately else rng.randrange(300), 2**63 - 1),
        )

    def _tasks(self) -> Message:
        rng, sender = self._rng, self._sender()
        epoch = self._epoch(sender)
        neighbour = next((each for each in self.driver.policy.config.neighbours if each.rank == sender), None)
        link = self.driver.policy.neighbour(sender).incoming if neighbour else None
        first = (link.expected if link else 0) + self._rarely(0, 1, 5, -1, 2**40)
        lanes = neighbour.lanes_in if neighbour and rng.random() < 0.9 else ()
        stage = rng.choice(lanes or tuple(range(len(self._bundle.stages))))
        spec, now = self._bundle.stages[stage].input, self.clock.now
        tasks = [
            Task(
                self._key(),
                self._rarely(1, 2, 2, 2**40),
                stage,
                (rng.choice((0.0, 0.5, 1.0, 1e300)),)
                * (len(self._bundle.stages) - stage if rng.random() < 0.9 else rng.randrange(6)),
                part=self._rarely(0, 1, 2**62),
                priority=rng.choice((0, 0, 255)),
                weight=rng.choice((0.0, 1.0, 1e300)),
                oldest=self._rarely(0, *(5,) * 15, 2**63 - 1),
                number=max(0, first + index),
                deadline=now + rng.choice((0.0, 1.0, 30.0, 30.0, 60.0)),
                born=now - rng.choice((0.0, 9e9)),
            )
            for index in range(rng.choice((1, 1, 2, 4)))
        ]
        payload = np.full((len(tasks), *spec.shape), rng.choice((0, 1, 7)), spec.dtype)
        if payload.dtype.kind == "f" and rng.random() < 0.2:
            payload[...] = rng.choice((np.nan, np.inf))
        return TaskBatch(sender, epoch, NO_CODEC, stage, tasks, payload)

    def _credit(self) -> Message:
        rng, sender = self._rng, self._sender()
        opened = self.driver.peers.outgoing.get(sender)
        link = self.driver.policy.neighbour(sender).outgoing if sender in self._others else None
        known = link.next_number if link else 0
        expected = max(0, known + self._rarely(rng.choice((0, -1, -3)), 1, 2**40))
        held = tuple(sorted({rng.randrange(expected) for _ in range(rng.randrange(4))})) if expected else ()
        limit = expected + self._rarely(rng.choice((0, 1, link.window if link else 8)), 100, 2**40)
        carried = {stage: rng.choice((0, 1, 99, 2**62)) for stage in rng.sample(range(5), rng.randrange(3))}
        epoch = opened.epoch if opened and rng.random() < 0.9 else 3
        return CreditUpdate(sender, Credit(epoch, expected, held, limit, carried, rng.choice((-1.0, 0.0, 0.1, 1e300))))

    def _blocked(self) -> Message:
        sender = self._sender()
        return Blocked(sender, self._epoch(sender), self._rng.choice((0, 1, 9, 2**63 - 1)))

    def _report(self) -> Message:
        rng = self._rng
        seconds: dict[int, float] = {stage: rng.choice((0.0, 0.01, 1e300)) for stage in rng.sample(range(5), rng.randrange(4))}
        return ReportUpdate(
            self._sender(), Report(rng.choice((0, 3, 2**63 - 1)), rng.choice((0, 3, 2**62)), seconds, dict(seconds))
        )

    def _lost(self) -> Message:
        rng = self._rng
        causes = ("peer-lost", "stage-failed: stage 1", "x" * 1000, "")
        return Lost(
            self._sender(),
            [
                LostRow(self._key(), rng.choice((1, 2, 9)), rng.choice(causes), self._shut_out())
                for _ in range(rng.choice((1, 3, 200)))
            ],
        )

    def _shut_out(self) -> int:
        return self._rarely(0, self.driver.session + 1, self.driver.session + 10**6, 2**62, 2**63 - 1)

    def _results(self) -> Message:
        rng = self._rng
        rows = [
            ResultRow(
                self._key(lately=rng.random() < 0.95),
                rng.choice((1, 2, 2**63 - 1)),
                rng.randrange(5),
                self._rarely(rng.choice((0, 3, 9)), 10, 2**63 - 1),
                rng.choice((0.0, 0.5, 1.0)),
                rng.choice((0.0, 0.01, 1e300)),
                rng.choice((0.0, 0.01, 1e300)),
                rng.choice((0, 0, 0, 1)),
                rng.choice((0, 0, 1, 65535)),
            )
            for _ in range(rng.choice((1, 1, 3, 40)))
        ]
        return Results(self._sender(), rows)

    def _other(self) -> Message:
        rng, sender = self._rng, self._sender()
        others: tuple[Message, ...] = (
            Ping(sender, 2**63 - 1, echo=rng.random() < 0.5),
            StatsRequest(rng.choice((sender, NO_RANK)), rng.randrange(3)),
            Stats(sender, rng.randrange(3), {"a": ["x" * 100] * 300}),
            Bye(sender, rng.choice(("", "x" * 1000, "a\nb"))),
            Refused(sender, rng.choice(("session", "nodes", "")), "a", "b"),
        )
        return rng.choice(others)
