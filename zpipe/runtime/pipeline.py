"""The source inside the caller's program: submit an input, await its answer."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt

from zpipe.calibrate.drift import Drift, Monitor
from zpipe.configure import fixed_thresholds, prepare, source_config
from zpipe.errors import ConfigError, PipelineClosed, SampleRejected, ZpipeError
from zpipe.model import Outcome, Result
from zpipe.policy.delivery import Source
from zpipe.policy.messages import Resolve, SampleCancelled, SampleSubmitted
from zpipe.runtime import whereabouts
from zpipe.runtime.driver import Driver, zeromq
from zpipe.runtime.entrance import Intake, Places
from zpipe.runtime.launch import Launcher, Program, Site
from zpipe.runtime.node import by_hand, executor_for, new_session
from zpipe.runtime.outcomes import outcome_of, result_or_raise
from zpipe.runtime.starting import load_and_launch, monitor_of, somebody_else
from zpipe.runtime.streaming import outcomes_of
from zpipe.security import is_loopback, node_keys
from zpipe.topology import Topology, load_topology
from zpipe.trace import trace_file, trace_folder

log = logging.getLogger("zpipe.pipeline")

#: In the outcome of a sample that the pipeline never took.
NO_SAMPLE = -1
#: Takes the outcome of one sample.
Done = Callable[[Outcome], None]
#: Given {rank: address} once all are bound: {viewer: {rank: address}} where that viewer is to reach a rank elsewhere.
Detours = Callable[[Mapping[int, str]], Awaitable[Mapping[int, Mapping[int, str]]]]
#: Given this rank's address once it is bound: {rank: address} of the others, as this one is to reach them.
Meet = Callable[[str], Awaitable[Mapping[int, str]]]


class Pipeline:
    """A network over several nodes, seen from its source. Use as `async with`.

        async with zpipe.Pipeline.local("line4.yaml") as pipeline:
            result = await pipeline.submit(image)

    Make one with `local` (starts every other rank on this machine) or `connect` (they run elsewhere).

    Attributes:
        topology: with the addresses in use, once started.
        bundle: the network.
        rank: of this source.
        deadline_seconds: what a sample has when its call names none.
    """

    def __init__(
        self,
        topology: Topology | str | Path,
        source: str | int | None,
        *,
        launch: bool,
        exit_point: str | None = None,
        admission: str | None = None,
        when_full: str | None = None,
        deadline: float | None = None,
        seed: int | None = None,
        trace: str | Path | None = None,
        sites: Mapping[int, Site] | None = None,
        programs: Mapping[int, Program] | None = None,
        insecure: bool = False,
        detours: Detours | None = None,
        meet: Meet | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        given = topology if isinstance(topology, Topology) else load_topology(topology)
        if insecure or (sites and not given.security.keys):  # boards made of this machine are nobody else's to reach
            given = given.without_keys()
        loaded, self.bundle = prepare(given)
        spec = loaded.source if source is None else loaded.source_named(source)
        if launch:
            sites = sites or {}
            loaded = loaded.with_addresses({node.rank: sites.get(node.rank, Site()).address for node in loaded.nodes})
        elif meet is None:
            loaded = by_hand(loaded)
        self.topology = loaded
        self.rank = spec.rank
        node_keys(loaded, self.rank)  # refused before anything starts
        self._spec = spec
        self.deadline_seconds = spec.deadline_seconds if deadline is None else float(deadline)
        if not self.deadline_seconds > 0.0:
            raise ConfigError(f"deadline: found {deadline}, expected seconds above 0")
        self._launch = launch
        self._sites = sites
        self._programs = programs
        self._detours = detours
        self._meet = meet
        self._note = note
        self._seed = seed
        # Whoever started this rank has made the folder, and names the file.
        self._trace = None if trace is None else Path(trace) if meet is not None else trace_folder(Path(trace))
        self._config = source_config(
            spec,
            self.bundle,
            exit_point=exit_point or loaded.policy.exit_point,
            admission=admission,
            when_full=when_full,
            redundancy=loaded.policy.redundancy,
        )
        self._monitor: Monitor | None = None
        self._driver: Driver | None = None
        self._launcher: Launcher | None = None
        self._done: dict[int, Done] = {}
        self._intake = Intake(self.bundle.stages[0].input, self.deadline_seconds)
        self._places = Places(lambda: self.source.room_left)
        self._next_sample = 0
        self._refusal: ConfigError | None = None
        self._failure = ""
        self._refused = asyncio.Event()
        self._entered = self._closed = False
        self._note_left = ExitStack()  #: of where this pipeline is

    @classmethod
    def local(cls, topology: Topology | str | Path, *, source: str | int | None = None, **options: Any) -> Pipeline:
        """A pipeline whose every rank runs on this machine: this process is a source, the others are started and ended with it.

        Where the topology has further sources, nobody submits samples there.

        Args:
            topology: a topology, its file or its name.
            source: which one this program is, by name or rank; that of the lowest rank if not given.
            options: `exit_point` (an operating point of the bundle, or `no-exit`), `admission`, `when_full`, `deadline` (seconds),
                `seed`; what is not given is the topology's. `trace`: a folder where every rank started here records its policy's
                rounds, for `zpipe replay`. `sites`: {rank: Site} where this machine's boards are several, as in the edge lab.
                `programs`: {rank: Program} where a rank is run by more than a node. `detours`: awaited once every rank is bound,
                it says who is to reach whom elsewhere, as through relays. `note`: takes the line in which `executor: auto` says
                what it chose for this rank; the log does if not given.

        Raises:
            ConfigError: topology, bundle or an option is wrong.
        """
        return cls(topology, source, launch=True, **options)

    @classmethod
    def connect(
        cls, topology: Topology | str | Path, *, rank: int | None = None, source: str | int | None = None, **options: Any
    ) -> Pipeline:
        """A pipeline whose other ranks run already, or will: `zpipe node --rank N` on each board.

        Several programs may be connected to one network at once, each as another of its sources.

        Args:
            topology: as for `local`; the same file as on the boards.
            rank, source: which one this program is, `source="camera"` or `rank=3`; that of the lowest rank if not given.
            options: as for `local`. `insecure=True`: this program may listen at an address open to a network without keys.

        Raises:
            ConfigError: as for `local`; or the topology has no such source: the message lists those it has.
        """
        if rank is not None and source is not None:
            raise ConfigError(f"source: found {source!r} beside rank {rank}, expected one of the two; drop the rank")
        return cls(topology, rank if source is None else source, launch=False, **options)

    def __repr__(self) -> str:
        return f"<Pipeline {self.topology.name} | {self._driver.policy if self._driver else 'not started'}>"

    # ---- life ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Pipeline:  # noqa: PYI034 - Self is Python 3.11
        if self._entered:
            raise PipelineClosed("a pipeline is opened once; make another one with Pipeline.local or Pipeline.connect")
        self._entered = True
        try:
            await self._start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def _start(self) -> None:
        if self._launch and len(self.topology.nodes) > 1:
            others = [node.rank for node in self.topology.nodes if node.rank != self.rank]
            self._launcher = Launcher(
                self.topology, self.bundle, others, sites=self._sites, trace=self._trace, programs=self._programs
            )
        make = partial(executor_for, self.topology, self.bundle, self.rank, note=self._note)
        watch = partial(monitor_of, self.bundle, fixed_thresholds(self._config))
        executor, self._monitor, addresses = await load_and_launch(make, watch, self._launcher)
        session = new_session()  # now, not before: of two pipelines the one started later counts (policy rule S1)
        self._driver = Driver(
            self.topology,
            self.bundle,
            self.rank,
            transport=zeromq(self.topology, self.bundle, self.rank),
            executor=executor,
            session=session,
            source=replace(self._config, session=session),
            resolved=self._resolved,
            refused=self._on_refused,
            pumped=self._places.wake,
            broken=self._on_broken,
            seed=self._seed,
            trace=self._trace if self._trace is None or self._meet is not None else trace_file(self._trace, self.rank),
        )
        with somebody_else(self.topology, self.rank):
            addresses[self.rank] = await self._driver.start()
        if self._meet is not None:
            self.topology = self.topology.with_addresses({**addresses, **await self._meet(addresses[self.rank])})
        if self._launcher is not None:
            detours = {} if self._detours is None else await self._detours(addresses)
            self._launcher.introduce(addresses, detours)
            self.topology = self.topology.with_addresses({**addresses, **detours.get(self.rank, {})})
        self._driver.connect(self.topology)
        if self._launcher is not None:
            await self._launcher.ready()
            await self.ready()
            if all(map(is_loopback, addresses.values())):  # boards made of this machine are in networks of their own
                self._note_left.enter_context(whereabouts.noted(self.topology, addresses))

    async def ready(self) -> None:
        """Returns once every neighbour of the source has said Hello. `local` has waited for that already.

        Raises:
            ConfigError: a neighbour runs with other files.
        """
        here = asyncio.ensure_future(self.driver.peers.complete.wait())
        refused = asyncio.ensure_future(self._refused.wait())
        try:
            await asyncio.wait([here, refused], return_when=asyncio.FIRST_COMPLETED)
        finally:
            here.cancel()
            refused.cancel()
        if self._refusal is not None:
            raise self._refusal

    async def aclose(self) -> None:
        """Ends every open sample as failed, says Bye, and ends the processes this pipeline started. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._note_left.close()
        self._places.close()
        if self._driver is not None:
            for sample in list(self._done):
                self._driver.emit(SampleCancelled(sample, "the pipeline was closed"))
            self._fail_open("the pipeline was closed")
            await self._driver.aclose("the source was closed")
        if self._launcher is not None:
            await self._launcher.aclose()

    # ---- submitting ----------------------------------------------------------------------------

    async def submit(self, x: npt.NDArray[Any], *, deadline: float | None = None) -> Result:
        """Runs one input through the network.

        Waits while the waiting room is full (`when_full: block`), or ends as rejected there (`latest`, `deadline`).

        Args:
            x: one input as stage 0 takes it, for the digits bundle `[3, 32, 32] uint8`. It is copied.
            deadline: seconds from now; the topology's if not given.

        Raises:
            SampleRejected: not admitted; or `x` has the wrong shape or dtype, or `deadline` is no number (then `sample` is -1).
            SampleExpired: no result within the deadline.
            SampleFailed: the network cannot answer it, or the pipeline was closed meanwhile.
            PipelineClosed: it was closed before.
        """
        checked = self._intake.batch_of_one(x)
        submitted_at = time.monotonic()
        until = submitted_at + self._intake.seconds(deadline)
        if self._config.when_full == "block":
            await self._places.wait(until)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def done(outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        sample = self._offer(checked, submitted_at, until, done)
        try:
            outcome = await future
        except asyncio.CancelledError:
            if sample in self._done:
                self.driver.emit(SampleCancelled(sample, "its submit() was cancelled"))
            raise
        return result_or_raise(outcome)

    def offer(self, x: npt.NDArray[Any], done: Done, *, deadline: float | None = None) -> int:
        """Submits without waiting: `done` is called once with the outcome, never before this returns (a full room rejects).

        Args:
            x: as for `submit`.
            done: called on the event loop; must not block.
            deadline: as for `submit`.

        Returns:
            The sample's number.

        Raises:
            SampleRejected: `x` has the wrong shape or dtype, or `deadline` is no number.
            PipelineClosed: the pipeline was closed before.
        """
        checked = self._intake.batch_of_one(x)
        now = time.monotonic()
        return self._offer(checked, now, now + self._intake.seconds(deadline), done)

    def prepared(self, x: npt.NDArray[Any], done: Done, *, deadline: float | None = None) -> Callable[[], None]:
        """As `offer` on any thread: `x` is checked and copied here, the call that this returns belongs to the event loop.

        That call never raises: a pipeline closed meanwhile ends the sample as failed, without a number.
        """
        checked = self._intake.batch_of_one(x)
        now = time.monotonic()
        until = now + self._intake.seconds(deadline)

        def hand_over() -> None:
            try:
                self._offer(checked, now, until, done)
            except PipelineClosed as exc:
                done(Outcome(NO_SAMPLE, "failed", time.monotonic() - now, 0, None, str(exc)))

        return hand_over

    def stream(
        self,
        inputs: AsyncIterable[npt.NDArray[Any]] | Iterable[npt.NDArray[Any]],
        *,
        deadline: float | None = None,
        ahead: int = 256,
    ) -> AsyncGenerator[Outcome, None]:
        """Runs many inputs and yields their outcomes as they come, which need not be the order of the inputs.

        The first input gets this pipeline's next sample number, the second the one after it, and so on. Nothing is raised per
        sample: an input of the wrong shape ends as rejected like any other.

        Args:
            inputs: an iterable, asynchronous or not.
            deadline: as for `submit`.
            ahead: inputs taken at most beyond the outcomes yielded, at least 1.

        Samples still open when the consumer stops early are cancelled.

        Raises:
            ConfigError: `ahead` is below 1.
        """

        async def offer(x: npt.NDArray[Any], done: Done) -> int | None:
            if self._config.when_full == "block":
                await self._places.wait(math.inf)
            try:
                return self.offer(x, done, deadline=deadline)
            except SampleRejected as exc:
                self._next_sample += 1
                done(Outcome(self._next_sample - 1, "rejected", 0.0, 0, None, str(exc)))
                return None

        def give_up(samples: set[int]) -> None:
            for sample in samples & self._done.keys():
                self.driver.emit(SampleCancelled(sample, "its stream() was given up"))

        return outcomes_of(inputs, offer, give_up, ahead=ahead)

    # ---- looking at it -------------------------------------------------------------------------

    @property
    def driver(self) -> Driver:
        """The running driver of the source's node."""
        if self._driver is None:
            raise PipelineClosed("the pipeline was not started: use `async with`")
        return self._driver

    @property
    def source(self) -> Source:
        """The source's custody: admission, counts, queues."""
        source = self.driver.policy.source
        assert source is not None
        return source

    @property
    def has_room(self) -> bool:
        """Whether a sample offered now would find a place in the waiting room."""
        return self._places.free

    @property
    def next_sample(self) -> int:
        """The number the next sample will get."""
        return self._next_sample

    @property
    def drift(self) -> Drift | None:
        """How the latest answers compare with the calibration data's (`zpipe.calibrate.drift`); a warning is logged as they part.

        None before the first few hundred, under an admission that moves thresholds, or of a bundle without calibration data.
        """
        return None if self._monitor is None else self._monitor.last

    @property
    def launcher(self) -> Launcher | None:
        """The processes this pipeline started, None with `connect` or a single node."""
        return self._launcher

    async def stats(self, *, timeout: float = 5.0) -> list[dict[str, Any]]:
        """Every node's counters since its start, by rank; a node that does not answer within `timeout` seconds is left out."""

        async def ask(rank: int) -> dict[str, Any] | None:
            try:
                return await asyncio.wait_for(self.driver.stats_of(rank), timeout)
            except asyncio.TimeoutError:
                return None

        if self._closed:
            raise PipelineClosed("the pipeline is closed")
        others = [node.rank for node in self.topology.nodes if node.rank != self.rank]
        answers = await asyncio.gather(*[ask(rank) for rank in others])
        known = [self.driver.stats(), *[answer for answer in answers if answer is not None]]
        return sorted(known, key=lambda stats: int(stats["rank"]))

    # ---- inside --------------------------------------------------------------------------------

    def _offer(self, x: npt.NDArray[Any], submitted_at: float, until: float, done: Done) -> int:
        if self._closed or self._failure:
            raise PipelineClosed(self._failure or "the pipeline is closed")
        driver = self.driver
        sample = self._next_sample
        self._next_sample += 1
        driver.inputs[sample] = x
        self._done[sample] = done
        driver.post(SampleSubmitted(sample, until, submitted_at, self._spec.priority, self._spec.weight))
        self._places.take()
        return sample

    def _resolved(self, resolve: Resolve) -> None:
        done = self._done.pop(resolve.sample)
        outcome = outcome_of(resolve, self.bundle.classes)
        if outcome.result is not None and self._monitor is not None:
            self._look_for_drift(self._monitor, outcome.result)
        elif self._monitor is not None and outcome.attempts:
            self._monitor.miss()
        try:
            done(outcome)
        except Exception:
            log.exception("the callback for sample %d raised; the pipeline goes on", resolve.sample)

    def _look_for_drift(self, monitor: Monitor, result: Result) -> None:
        news = monitor.see(result.exit_stage, result.confidence)
        if news is not None and news.drifted:
            log.warning("%s", news)
        elif news is not None:
            log.info("the answers are like the calibration data's again (p = %.2g)", news.p_value)

    def _on_broken(self, error: ZpipeError) -> None:
        """The driver takes in nothing any more: whatever is open ends here, and every later call says why."""
        self._failure = str(error)
        self._fail_open(self._failure)

    def _fail_open(self, cause: str) -> None:
        for sample in list(self._done):
            self._resolved(Resolve(sample, "failed", 0.0, 0, None, cause))

    def _on_refused(self, error: ConfigError) -> None:
        self._refusal = error
        self._refused.set()
        log.warning("%s", error)  # ready() raises it, too, but the caller may be past that
