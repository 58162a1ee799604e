"""Inputs through a pipeline, answers in the order of the inputs."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from zpipe.bundle import Bundle
from zpipe.configure import load_checked
from zpipe.errors import ConfigError
from zpipe.infer.feed import Feed
from zpipe.infer.inputs import RawFormat, open_inputs
from zpipe.infer.items import Answer, Entry, Shaper, Skipped, Source, Wanted
from zpipe.model import Outcome
from zpipe.runtime.attending import all_attached, unless_crashed
from zpipe.runtime.pipeline import Pipeline
from zpipe.topology import Topology, load_topology, override

#: Inputs read and not yet answered in their turn. An answer waits for those before it, so this bounds memory, too: 1.5 MB of
#: 32x32 images, 77 MB of 224x224.
WINDOW = 512
#: The same when each comes with a picture to draw on.
DRAWN_WINDOW = 64

#: A run shorter than this needs no progress.
QUIET_SECONDS = 2.0
#: A live source's numbers are told this often.
LIVE_NOTE_SECONDS = 10.0

#: Takes a line for people and the fraction done, 0..1; the fraction is 0 where nobody knows the end.
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class InferOptions:
    """What one run does; None leaves the topology's value.

    Attributes:
        topology: file or name.
        inputs: as on the command line.
        attach: the other ranks run already.
        source: which of the topology's sources this is, by name or rank; that of the lowest rank if not given.
        insecure: this process may listen at an address open to a network without keys.
        bundle, executor, device: of every node, as for `topology.override`.
        exit_point: an operating point or `no-exit`.
        when_full: None: `latest` for what is live, `block` for what waits.
        deadline: seconds an input has.
        raw: of the frames on standard input.
        fit: one of `datasets.images.FITS`.
        drawn: answers come with a picture to draw on.
        count: end after so many inputs.
    """

    topology: str
    inputs: tuple[str, ...]
    attach: bool = False
    source: str | None = None
    insecure: bool = False
    bundle: str | None = None
    executor: str | None = None
    device: str | None = None
    exit_point: str | None = None
    when_full: str | None = None
    deadline: float | None = None
    raw: RawFormat | None = None
    fit: str = "stretch"
    drawn: bool = False
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that was checked and not started.

    Attributes:
        pipeline: not entered yet.
        sources: opened.
        live: one of them does not wait for us.
    """

    options: InferOptions
    pipeline: Pipeline
    sources: list[Source]
    live: bool


@dataclass(slots=True)
class Tally:
    """What became of the inputs.

    Attributes:
        kinds: {outcome: how many}.
        skipped: could not be read.
        passed: answered in an earlier run.
    """

    kinds: dict[str, int] = field(default_factory=lambda: {"result": 0, "rejected": 0, "expired": 0, "failed": 0})
    skipped: int = 0
    passed: int = 0

    @property
    def answered(self) -> int:
        """Inputs with an outcome."""
        return sum(self.kinds.values())

    @property
    def fell_short(self) -> bool:
        """Whether an input has no result for another reason than that the network was busy (`latest` and `deadline` drop then)."""
        return bool(self.skipped or self.kinds["expired"] or self.kinds["failed"])


def prepare_inference(options: InferOptions) -> Plan:
    """Checks everything that can be checked before a node starts.

    Raises:
        ConfigError: topology, bundle, an option or an input is wrong.
        BackendUnavailable: a library that an input needs, or the camera, is absent.
    """
    of_every_node = (options.bundle, options.executor, options.device)
    if options.attach and any(value is not None for value in of_every_node):
        raise ConfigError("--bundle, --executor and --device concern every node: with --attach, change all topology files instead")
    topology = override(load_topology(options.topology), bundle=options.bundle, executor=options.executor, device=options.device)
    make: Callable[..., Pipeline] = Pipeline.connect if options.attach else Pipeline.local
    chosen = {"exit_point": options.exit_point, "deadline": options.deadline, "insecure": options.insecure}
    bundle = load_checked(topology)
    shaper = shaper_of(topology, bundle, fit=options.fit, drawn=options.drawn)
    if shaper.size is None and options.drawn:
        raise ConfigError(f"--show, --save: found bundle {bundle.name}, which takes no images, expected pictures to draw on")
    sources = open_inputs(options.inputs, shaper, raw=options.raw)
    live = any(source.live for source in sources)
    pipeline = make(topology, source=options.source, when_full=options.when_full or ("latest" if live else "block"), **chosen)
    return Plan(options, pipeline, sources, live)


def shaper_of(topology: Topology, bundle: Bundle, *, fit: str = "stretch", drawn: bool = False) -> Shaper:
    """What makes stage 0's input of a picture, as the bundle's manifest says.

    Raises:
        ConfigError: the nodes are emulated: they know the answers to the bundle's own samples alone.
    """
    if bundle.emulates is not None:
        raise ConfigError(
            f"{topology.path}: found emulated nodes, which play back answers to the bundle's own samples, expected nodes that "
            "compute; add --executor onnx"
        )
    return Shaper(bundle.stages[0].input, None if bundle.preprocessing is None else bundle.preprocessing.size, fit, drawn)


async def run_inference(
    plan: Plan,
    *,
    answered: Callable[[Answer], Awaitable[bool]],
    skipped: Callable[[Skipped], None],
    progress: Progress,
    tally: Tally,
    wanted: Wanted = lambda name, frame: True,
) -> None:
    """Starts the nodes (or waits for them) and takes every input through.

    Args:
        plan: from `prepare_inference`.
        answered: takes each answer, in the order of the inputs; False ends the run.
        skipped: takes what could not be read, as it is met.
        progress: told how far it is.
        tally: counted in, so that it is known of a run that was interrupted, too.
        wanted: called on another thread; of what is not wanted nothing is read.

    Raises:
        ConfigError, ZpipeError: nodes do not start, or one ended by itself.
    """
    pipeline = plan.pipeline
    progress("starting", 0.0)
    async with pipeline:
        if plan.options.attach:
            await all_attached(pipeline, progress)
        await unless_crashed(pipeline, _Run(plan, answered, skipped, progress, tally, wanted).run())


class _Run:
    def __init__(
        self,
        plan: Plan,
        answered: Callable[[Answer], Awaitable[bool]],
        skipped: Callable[[Skipped], None],
        progress: Progress,
        tally: Tally,
        wanted: Wanted,
    ) -> None:
        self._plan = plan
        self._answered = answered
        self._skipped = skipped
        self._progress = progress
        self._tally = tally
        self._wanted = wanted
        self._waiting: deque[Entry] = deque()  #: inputs in order, without an answer given yet
        self._ended: dict[int, Outcome] = {}  #: {sample: outcome} of those, where one before has none yet
        self._total: int | None = None
        self._tell_at = time.monotonic() + QUIET_SECONDS

    async def run(self) -> None:
        pipeline, options = self._plan.pipeline, self._plan.options
        window = DRAWN_WINDOW if options.drawn else WINDOW
        counting = None if self._plan.live else asyncio.ensure_future(asyncio.to_thread(_count, self._plan.sources))
        first = pipeline.next_sample
        feed = Feed(self._plan.sources, self._not_passed, ahead=window)
        try:
            async with aclosing(pipeline.stream(self._images(feed), ahead=window)) as outcomes:
                async for outcome in outcomes:
                    self._ended[outcome.sample] = outcome
                    while first in self._ended:
                        answer = Answer(self._waiting.popleft(), self._ended.pop(first))
                        first += 1
                        self._tally.kinds[answer.outcome.kind] += 1
                        feed.release()
                        if not await self._answered(answer):
                            return
                    if counting is not None and counting.done():
                        self._total = counting.result()
                    self._tell()
        finally:
            if counting is not None:
                counting.cancel()
            await feed.aclose()

    async def _images(self, feed: Feed) -> AsyncIterator[npt.NDArray[Any]]:
        taken = 0
        # A pipe into which nobody writes, a camera that gives nothing.
        silent = asyncio.get_running_loop().call_later(
            QUIET_SECONDS, self._progress, f"waiting for {self._plan.options.inputs[0]}", 0.0
        )
        try:
            async for item in feed.items():
                silent.cancel()
                if isinstance(item, Skipped):
                    self._tally.skipped += 1
                    self._skipped(item)
                    feed.release()
                    continue
                self._waiting.append(item.entry)
                yield item.image
                taken += 1
                if taken == self._plan.options.count:
                    return
        finally:
            silent.cancel()

    def _not_passed(self, name: str, frame: int | None) -> bool:
        if self._wanted(name, frame):
            return True
        self._tally.passed += 1
        return False

    def _tell(self) -> None:
        now, tally = time.monotonic(), self._tally
        if self._plan.live:
            if now >= self._tell_at:
                self._tell_at = now + LIVE_NOTE_SECONDS
                dropped = f", dropped {tally.kinds['rejected']}" if tally.kinds["rejected"] else ""
                self._progress(f"classified {tally.kinds['result']}{dropped}", 0.0)
        elif now >= self._tell_at and self._total:
            ends = self._total if self._plan.options.count is None else min(self._total, self._plan.options.count + tally.passed)
            self._progress("classifying", min(1.0, (tally.answered + tally.skipped + tally.passed) / ends))


def _count(sources: list[Source]) -> int | None:
    counts = [source.count() for source in sources]
    return None if None in counts else sum(count for count in counts if count is not None)
