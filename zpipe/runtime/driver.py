"""One node's loop: a NodePolicy, a transport, an executor, and nothing that decides.

All that is readable in one wake-up becomes one list of events and one decision, so batches and frames come out as full as the
traffic allows.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import psutil

from zpipe.bundle import Bundle
from zpipe.configure import node_config
from zpipe.errors import ConfigError, ExecutorError, ZpipeError
from zpipe.executors.base import Batch, StageExecutor, executor_name, parallel
from zpipe.policy import NodePolicy
from zpipe.policy.delivery import SourceConfig
from zpipe.policy.messages import (
    BanPeer,
    Command,
    Discard,
    DrainStarted,
    Event,
    Forward,
    GrantCredit,
    ResetLink,
    Resolve,
    RunStage,
    SendBlocked,
    SendCompleted,
    SendFailed,
    SendLost,
    SendReport,
    SendResults,
    SessionRaised,
    StageCompleted,
    StageFailed,
    TimerFired,
)
from zpipe.runtime.inbox import Inbox
from zpipe.runtime.notes import Notes
from zpipe.runtime.packing import Packing, codecs_of, coded_by_executor, wire_limits
from zpipe.runtime.payloads import Payloads, join
from zpipe.runtime.peers import Peers
from zpipe.runtime.stages import Stages
from zpipe.runtime.stats import Tally, node_stats
from zpipe.security import node_keys
from zpipe.topology import Topology
from zpipe.trace import Recorder
from zpipe.transport.base import Buffer, Channel, Transport, TransportHandler
from zpipe.transport.zeromq import ZeroMQTransport
from zpipe.wire import (
    NO_RANK,
    Blocked,
    CreditUpdate,
    Lost,
    Message,
    ReportUpdate,
    Results,
    StatsRequest,
    TaskBatch,
    encode,
)

log = logging.getLogger("zpipe.node")

Rows = TypeVar("Rows", Lost, Results)

#: uvloop rounds delays to milliseconds, so asking for less than half of one is a busy loop until the time has come.
TIMER_GRAIN_SECONDS = 0.001

#: A drain looks this often whether anything is left, and is over after so many looks in a row that found nothing: tasks sent
#: before the neighbours knew are on their way for as long as that.
LOOK_SECONDS, QUIET_LOOKS = 0.05, 4


@dataclass(slots=True)
class DriverCounts:
    """Totals since the start."""

    sent_bytes: int = 0
    frames_sent: int = 0
    control_sent: int = 0
    stage_cpu_seconds: float = 0.0
    busy_seconds: float = 0.0


@dataclass(slots=True)
class Carried:
    """What one neighbour was sent: frames of tasks, their bytes, and what these would be without a codec."""

    tasks: int = 0
    frames: int = 0
    bytes: int = 0
    raw_bytes: int = 0


def zeromq(topology: Topology, bundle: Bundle, rank: int) -> Callable[[TransportHandler], Transport]:
    """The transport of a live node, as Driver takes it.

    Raises:
        ConfigError: the node's keys cannot be used, or it has none and its address is open to a network.
    """
    keys = node_keys(topology, rank)
    limits = wire_limits(topology, bundle, codecs_of(topology, bundle))
    bind = topology.node(rank).bind_address
    return lambda handler: ZeroMQTransport(
        handler, bind=bind, max_message_bytes=limits.max_message_bytes, keys=keys, share=topology.shared_memory
    )


class Driver:
    """Drives one node. Not thread-safe: everything but the worker's threads happens on the loop that `start` ran on.

    Args:
        topology: with every address known.
        bundle: the network.
        rank: which node this is.
        transport: makes the transport that calls this driver; not started yet.
        executor: for the stages hosted here; None where there are none.
        session: of this start (policy rule S1).
        source: how samples enter here, None where they don't.
        resolved: takes the outcome of each own sample.
        refused: told when a neighbour refuses this node.
        pumped: called after each round of decisions.
        note: takes lines for people about neighbours; they go to the log if not given.
        broken: told once if a decision or a command raises: a bug, after which nothing here can be trusted.
        seed: of the policy's dice; drawn if not given.
        trace: where to record what the policy is told and answers.

    Raises:
        ConfigError: the trace cannot be written.
    """

    def __init__(
        self,
        topology: Topology,
        bundle: Bundle,
        rank: int,
        *,
        transport: Callable[[TransportHandler], Transport],
        executor: StageExecutor | None,
        session: int,
        source: SourceConfig | None = None,
        resolved: Callable[[Resolve], None] | None = None,
        refused: Callable[[ConfigError], None] | None = None,
        pumped: Callable[[], None] | None = None,
        note: Callable[[str], None] | None = None,
        broken: Callable[[ZpipeError], None] | None = None,
        seed: int | None = None,
        trace: Path | None = None,
    ) -> None:
        self.topology = topology
        self.bundle = bundle
        self.rank = rank
        self.session = session
        self.counts = DriverCounts()
        self.inputs: dict[int, npt.NDArray[Any]] = {}  #: {sample: [1, *shape]}, kept until its outcome (policy rule D2)
        seed = secrets.randbits(32) if seed is None else seed
        runs = 1 if executor is None else parallel(executor)
        self.policy = NodePolicy(node_config(topology, bundle, rank, source=source, runs=runs), rng=random.Random(seed))
        self._resolved = resolved or (lambda resolve: None)
        self._on_refused = refused or (lambda error: None)
        self._pumped = pumped or (lambda: None)
        self.notes = Notes(note or (lambda line: log.info("%s", line)))
        self._broken = broken or (lambda error: None)
        self._recorder = Recorder(trace, self.policy, seed=seed, note=self.notes) if trace is not None else None
        self._decide = self.policy.handle_all if self._recorder is None else self._recorder.handle_all
        codecs = codecs_of(topology, bundle)
        coded = coded_by_executor(topology, codecs, rank, executor)
        self._packing = Packing(topology, bundle, codecs, self.policy, coded=coded)
        self._payloads = Payloads()
        self._events: list[Event] = []
        self._pumping = self._posted = self._shortly = False
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0
        self._executor = None if executor is None else executor_name(executor)
        specs = [replace(spec, output=coded.get(spec.index, spec.output)) for spec in bundle.stages]
        self._stages = Stages(executor, specs, self._payloads, rank=rank, done=self._ran) if executor is not None else None
        self.carried: dict[int, Carried] = {}  #: by peer
        self.tally = Tally()
        self._stats_token = 0
        self._process = psutil.Process()
        self._closed = self._stopped = False  #: _stopped: no further event is taken in, by closing or by an internal error
        self.inbox = Inbox(
            rank=rank,
            limits=wire_limits(topology, bundle, codecs),
            sources=frozenset(spec.rank for spec in topology.sources),
            packing=self._packing,
            payloads=self._payloads,
            events=self._events,
            drained=self._on_drained,
            answer=self._answer,
            stats=self.stats,
        )
        self.transport = transport(self.inbox)
        self.peers = self.inbox.peers = Peers(
            rank=rank,
            session=session,
            topology=topology,
            bundle_digest=bundle.digest,
            transport=self.transport,
            emit=self.emit,
            refused=self._on_refused,
            note=self.notes,
        )

    # ---- life ----------------------------------------------------------------------------------

    async def start(self) -> str:
        """Binds and returns the `host:port` of the data plane; `connect` goes on once every address is known."""
        self._loop = asyncio.get_running_loop()
        if self._stages is not None:
            self._stages.start(self._loop)
        return await self.transport.start()

    def connect(self, topology: Topology | None = None) -> None:
        """Opens the channels to the neighbours; `topology`: the same one with the addresses found since."""
        if topology is not None:
            self.topology = self.peers.topology = topology  # the same Peers: a neighbour may have said Hello already
        self.peers.connect()
        self.emit(TimerFired())

    async def aclose(self, reason: str | None = "it was stopped") -> None:
        """Says Bye (unless `reason` is None), closes transport and worker. Open samples are the caller's to end first."""
        if self._closed:
            return
        self._closed = self._stopped = True
        if self._recorder is not None:
            self._recorder.close()
        if reason is not None:
            self.peers.say_bye(reason)
        self.peers.close()
        self.notes.close()
        if self._timer is not None:
            self._timer.cancel()
        await self.transport.aclose()
        if self._stages is not None:
            self._stages.close()
        for waiter in self.inbox.stats_waiters.values():
            waiter.cancel()

    async def drain(self, seconds: float, *, hurry: asyncio.Event | None = None) -> bool:
        """Takes no more tasks, finishes and hands over what is here (policy rule R6); `aclose` comes after it.

        Args:
            seconds: how long at most.
            hurry: ends it at once when set.

        Returns:
            Whether nothing is left.
        """
        self.emit(DrainStarted())
        until = time.monotonic() + seconds
        quiet, received = 0, -1
        while time.monotonic() < until and not (hurry is not None and hurry.is_set()) and not self._stopped:
            quiet = quiet + 1 if self.policy.drained and self.policy.counts.received == received else 0
            received = self.policy.counts.received
            if quiet >= QUIET_LOOKS:
                return True
            await asyncio.sleep(LOOK_SECONDS)
        return False

    # ---- events in, commands out ---------------------------------------------------------------

    def emit(self, event: Event) -> None:
        """Takes in an event; it is decided on at once, or with the others of the present turn."""
        self._events.append(event)
        if not self._pumping and not self._stopped:
            self._pump()

    def post(self, event: Event) -> None:
        """Takes in an event to be decided on in this turn of the loop, with whatever else comes until then."""
        self._events.append(event)
        if not self._posted:
            self._posted = True
            self._loop.call_soon(self._pump_posted)

    def _pump_posted(self) -> None:
        self._posted = False
        if self._events and not self._pumping and not self._stopped:
            self._pump(short=True)

    def _pump(self, *, short: bool = False) -> None:
        """Decides on the events and performs what is decided, until there are none.

        `short`: called by the loop itself, whom a short batch may keep: one that is begun here also ends here, and what becomes
        of it leaves before the loop looks at anything else. Only one, since meanwhile nothing is read.
        """
        self._pumping = True
        try:
            self._decide_all()
            if short and self._stages is not None and self._stages.has_short:
                self._stages.run_short()
                self._decide_all()
        except Exception as exc:
            self._stopped = True
            log.exception("node %d: internal error", self.rank)
            self._broken(ZpipeError(f"node {self.rank}: internal error: {type(exc).__name__}: {exc}; please report it"))
            return
        finally:
            self._pumping = False
        if self._stages is not None and self._stages.has_short and not self._shortly:
            self._shortly = True
            self._loop.call_soon(self._pump_shortly)
        self._arm_timer()
        self._pumped()

    def _decide_all(self) -> None:
        while self._events:
            events = self._events.copy()
            self._events.clear()
            commands = self._decide(events, now=time.monotonic())
            rest = len(commands)
            while rest and type(commands[rest - 1]) is RunStage:  # they come last, and are the policy's to begin at any time
                rest -= 1
            for command in commands[rest:]:
                self._perform(command)  # first: the executor has its threads, it need not wait until all is sent
            for command in commands[:rest]:
                self._perform(command)

    def _pump_shortly(self) -> None:
        self._shortly = False
        if not self._pumping and not self._stopped:
            self._pump(short=True)

    def _arm_timer(self) -> None:
        wakeup = self.policy.next_wakeup()
        if wakeup is None:
            return
        if self._timer is not None:
            if self._timer_at <= wakeup:
                return  # it fires early, finds nothing due and arms the next
            self._timer.cancel()
        self._timer_at = wakeup
        delay = wakeup - time.monotonic()
        self._timer = self._loop.call_later(max(TIMER_GRAIN_SECONDS, delay) if delay > 0.0 else 0.0, self._timer_fired)

    def _on_drained(self) -> None:
        """All that was readable has been delivered: decide once."""
        if self._events and not self._pumping and not self._stopped:
            self._pump(short=True)

    def _timer_fired(self) -> None:
        self._timer = None
        if not self._stopped:
            self.emit(TimerFired())

    def _perform(self, command: Command) -> None:
        match command:
            case Forward():
                self._forward(command)
            case RunStage():
                self._run(command)
            case Resolve():
                self.inputs.pop(command.sample, None)
                self.tally.ended(command)
                self._resolved(command)
            case GrantCredit():
                self._tell(command.peer, CreditUpdate(self.rank, command.credit))
            case SendResults():
                self._tell_rows(command.peer, Results(self.rank, command.rows))
            case Discard():
                for token in command.tokens:
                    self._payloads.drop(token)
            case SendBlocked():
                self._tell_behind_tasks(command)
            case SendReport():
                self._tell(command.peer, ReportUpdate(self.rank, command.report))
            case SendLost():
                self._tell_rows(command.peer, Lost(self.rank, command.rows))
            case ResetLink():
                log.warning("node %d makes its connection to node %d anew: %s", self.rank, command.peer, command.reason)
                self.peers.reset(command.peer, command.reason)
            case BanPeer():
                log.error("node %d bans node %d: %s", self.rank, command.peer, command.reason)
                self.peers.ban(command.peer, command.reason)
            case SessionRaised():
                line = f"node {self.rank} goes on as session {command.session}, was its clock set back? ({command.cause})"
                self.peers.note(line, "session")

    def _run(self, command: RunStage) -> None:
        inputs = join([self._payload(task.token, task.key.sample) for task in command.tasks])
        predicted = self.policy.service_seconds.get(command.stage, 1.0) * len(command.tasks)
        assert self._stages is not None, "a node without stages is never told to run one"
        self.tally.started(command.run, command.stage, len(command.tasks))
        self._stages.run(command, inputs, predicted_seconds=predicted)

    def _ran(self, event: StageCompleted | StageFailed, cpu_seconds: float) -> None:
        """A batch is done."""
        if self._stopped:
            return
        self.tally.completed(event.run, event.exited if isinstance(event, StageCompleted) else ())
        if isinstance(event, StageCompleted):
            self.counts.stage_cpu_seconds += cpu_seconds
            self.counts.busy_seconds += event.seconds
        self.emit(event)

    # ---- sending -------------------------------------------------------------------------------

    def _payload(self, token: int, sample: int) -> tuple[Batch, int]:
        return self._payloads.row(token) if token else (self.inputs[sample], 0)

    def _forward(self, command: Forward) -> None:
        peer, epoch, tasks = command.peer, command.epoch, command.tasks
        rows = join([self._payload(task.token, task.key.sample) for task in tasks])
        for task in tasks:
            self._payloads.drop(task.token)
        try:
            # Rows that lie with the executor are fetched on the loop: frames of a link must keep the order of their numbers. That
            # takes about as long as one copy of the frame (runner.py says what else may be waited for).
            activations = np.asarray(rows)
        except ExecutorError as exc:
            # The executor was lost with these rows in it. The numbers are given away, so the link begins anew, which costs the
            # other tasks under way on it an attempt as well: rare enough for a rule that exists already.
            log.warning("node %d cannot send %d samples of stage %d: %s", self.rank, len(tasks), command.stage, exc)
            self._events.append(SendFailed(peer, epoch))
            return
        codec, payload = self._packing.pack(peer, command.stage, activations, now=time.monotonic())
        batch = TaskBatch(self.rank, epoch, codec, command.stage, tasks, payload)
        frames = encode(batch, now=time.monotonic(), transit_seconds=self.round_trip(peer) / 2.0)
        size = len(frames[0]) + len(frames[1])
        if self._send_data(peer, epoch, frames, size) and peer in self._packing.size_varies:
            self._events.append(SendCompleted(peer, epoch, tasks[0].number, len(tasks), size))
        carried = self.carried.get(peer) or self.carried.setdefault(peer, Carried())
        carried.tasks += len(tasks)
        carried.frames += 1
        carried.bytes += size
        carried.raw_bytes += size - payload.nbytes + len(tasks) * self.bundle.stages[command.stage].input.bytes

    def round_trip(self, peer: int) -> float:
        """Smoothed, to where a neighbour tells of arrived tasks; 0 before the first."""
        link = self.policy.neighbour(peer).outgoing
        return link.round_trip_seconds if link is not None else 0.0

    def _tell_behind_tasks(self, command: SendBlocked) -> None:
        frames = encode(Blocked(self.rank, command.epoch, command.next_number))
        self._send_data(command.peer, command.epoch, frames, len(frames[0]))

    def _send_data(self, peer: int, epoch: int, frames: Sequence[Buffer], size: int) -> bool:
        """Whether the transport took it; if not, the policy is told."""
        outgoing = self.peers.outgoing.get(peer)
        if (
            outgoing is None
            or not outgoing.ready
            or outgoing.epoch != epoch
            or not self.transport.send_data(outgoing.channel, frames)
        ):
            self._events.append(SendFailed(peer, epoch))
            return False
        self.counts.frames_sent += 1
        self.counts.sent_bytes += size
        return True

    def _tell(self, peer: int, message: Message) -> None:
        channel = self.peers.control(peer)
        if channel is not None:
            self._answer(channel, message)

    def _tell_rows(self, peer: int, message: Rows) -> None:
        """One message if the receiver takes so many rows and so long a header, else its halves; one row is always short enough."""
        channel = self.peers.control(peer)
        if channel is None:
            return
        limits = self.inbox.limits
        if len(message.rows) <= limits.max_entries:
            frames = encode(message)
            if len(frames[0]) <= limits.max_header_bytes:
                self._send_control(channel, frames)
                return
        half = len(message.rows) // 2
        self._tell_rows(peer, replace(message, rows=message.rows[:half]))
        self._tell_rows(peer, replace(message, rows=message.rows[half:]))

    def _answer(self, channel: Channel, message: Message) -> None:
        self._send_control(channel, encode(message))

    def _send_control(self, channel: Channel, frames: Sequence[Buffer]) -> None:
        if self.transport.send_control(channel, frames):
            self.counts.control_sent += 1
            self.counts.sent_bytes += len(frames[0])

    # ---- looking at nodes ----------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """This node's counters since its start; plain JSON values."""
        return node_stats(self)

    async def stats_of(self, rank: int) -> dict[str, Any]:
        """Another node's counters, asked for as an observer. Waits until that node answers: bound it with a timeout."""
        channel = await self.peers.observe(rank)
        self._stats_token += 1
        token = self._stats_token
        waiter = self.inbox.stats_waiters[rank, token] = self._loop.create_future()
        try:
            self.transport.send_control(channel, encode(StatsRequest(NO_RANK, token)))
            stats: dict[str, Any] = await waiter
        finally:
            self.inbox.stats_waiters.pop((rank, token), None)  # the caller may have given up on a node that does not answer
        return stats
