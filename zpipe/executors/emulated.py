"""Stages that take a board's time and give recorded answers, so that many devices with real sockets fit on a few cores.

Each row names its evaluation sample (`Bundle.emulated`). Label and confidence come from the bundle's replay, the exit gate is the
real one, and the activation is as large as the real one and holds bytes that were once computed, so that codecs find what they
would find. Only the time is made up: a device profile says how long a batch takes, and the executor sleeps for it.

Time goes by an absolute schedule. A host wakes a sleeper late and hands the next batch over late; were each batch to start when
it came, every one of them would add its lateness and a busy device would be slower than its profile. So a batch starts at the end
of the one before where the node had it when it heard of that end (`waited`), however late the host was, and where it comes within
GRACE_SECONDS of that end. A batch that truly came to an idle device in that short while, or before the node had heard,
starts too early by as much: that is the known error of this rule. What the host takes beyond that is not hidden: answers are late
by it, and a host that takes longer than a batch falls behind.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from zpipe.bundle import INDEX_BYTES, Bundle
from zpipe.devices import load_device, service_seconds
from zpipe.emulation import check_service
from zpipe.errors import ConfigError, ExecutorError
from zpipe.executors.base import StageOutput, check_inputs, make_executor
from zpipe.executors.gate import GateDecision, recorded_decision, undecided
from zpipe.model import NEVER_EXIT, GateSpec, StageSpec

#: How late a batch may be handed over and still count as having waited, where nobody says whether it has. bench/micro_emulated.py,
#: a saturated line of four on two cores that others used, too: median 1.2 ms with batches of 8 (sends go first), 0.6 ms with single
#: rows; p95 2.4 to 5 ms. Nodes do say: on such cores this alone lost a device of 22 ms stages 8 % of its time.
GRACE_SECONDS = 0.002
#: Activations recorded per stage: enough that no two batches look alike to a compressor, 1.5 MiB for the largest cut of digits.
RECORDED_SAMPLES = 16


class Clock(Protocol):
    """Where an emulated device gets its time from; monotonic seconds."""

    def now(self) -> float:
        """The time."""

    def sleep_until(self, when: float) -> None:
        """Returns at that time or a little later, at once where it has passed."""


class SystemClock:
    """The host's own."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, when: float) -> None:
        time.sleep(max(0.0, when - time.monotonic()))


class Schedule:
    """One device's time: it does one batch after the other.

    Attributes:
        free_at: when it is done with all it was given.
    """

    def __init__(self) -> None:
        self.free_at = -math.inf

    def take(self, seconds: float, *, now: float, waited: bool = False) -> float:
        """Gives the device a batch that was handed over `now`, or has `waited` for it; returns when it is done."""
        start = self.free_at if waited or now <= self.free_at + GRACE_SECONDS else now
        self.free_at = start + seconds
        return self.free_at


@dataclass(frozen=True, slots=True)
class _Recording:
    """What the stages are to say.

    Attributes:
        labels, confidences: `[samples, stages]`, the bundle's replay.
        scores: `[samples, stages, classes]`, likewise; None of one chain.
        activations: {stage: `[RECORDED_SAMPLES, bytes] uint8`}, for the hosted stages that have an output.
    """

    labels: npt.NDArray[np.int16]
    confidences: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32] | None
    activations: dict[int, npt.NDArray[np.uint8]]


class EmulatedExecutor:
    """The stages one emulated node hosts.

    Args:
        bundle: an emulation (`Bundle.emulated`) with evaluation set and replay.
        stages: hosted stages, each within the bundle.
        device: name of a profile (`zpipe.devices`).
        codec: whose table of the replay is used.
        clock: the host's, unless a test has its own.

    Raises:
        ConfigError: the bundle is a real one, or there is no such device, or it is too fast to be emulated.
    """

    inline = False  # it sleeps, however short a batch is
    scores = True

    def __init__(
        self, bundle: Bundle, stages: Sequence[int], device: str = "", codec: str = "none", clock: Clock | None = None
    ) -> None:
        if bundle.emulates is None:
            raise ConfigError(
                f"executor emulated: found bundle {bundle.name} itself, expected its emulation; use bundle.emulated()"
            )
        self.stages: tuple[int, ...] = tuple(sorted(set(stages)))
        self._device = load_device(device)
        check_service(self._device, bundle, self.stages)
        self._bundle = bundle
        self._codec = codec
        self._clock = clock or SystemClock()
        self._schedule = Schedule()  #: changed under the lock only
        self._recording: _Recording | None = None  #: written under the lock only
        self._lock = threading.Lock()
        self._told = threading.local()  #: `waited`, on each thread, until its next `run`
        self._closed = False

    def __repr__(self) -> str:
        return f"<EmulatedExecutor {self._bundle.name} on {self._device.name} | stages {self.stages} | codec {self._codec}>"

    def warm_up(self, max_batch: int) -> dict[int, float]:
        """Read the replay and record activations; {stage: the device's seconds per sample at batch 1}, without sleeping."""
        self._load()
        return {stage: service_seconds(self._device, self._bundle.stages[stage], 1) for stage in self.stages}

    def waited(self) -> None:
        """The batch of this thread's next `run` was there when the one before ended."""
        self._told.waited = True

    def run(self, stage: int, inputs: npt.NDArray[Any], gate: GateSpec) -> StageOutput:
        """One batch through one stage and its gate; see `StageExecutor.run`. Returns when the device would be done with it."""
        handed_over, cpu = self._clock.now(), time.thread_time()
        waited, self._told.waited = getattr(self._told, "waited", False), False
        recording = self._recording or self._load()
        spec = self._hosted(stage)
        check_inputs(spec, inputs)
        index = self._samples(spec, inputs)
        decision = self._decide(spec, index, gate, recording)
        activation = None if spec.output is None else _activation(inputs, index, recording.activations[stage])
        scores = recording.scores[index, stage] if gate.scores and recording.scores is not None else None
        seconds = service_seconds(self._device, spec, len(inputs))
        with self._lock:
            done_at = self._schedule.take(seconds, now=handed_over, waited=waited)
        self._clock.sleep_until(done_at)
        cpu = time.thread_time() - cpu
        return StageOutput(activation, decision.exited, decision.labels, decision.confidences, seconds, cpu, scores)

    def close(self) -> None:
        """Forget the recordings; a `run` still going on in another thread ends as it would have."""
        with self._lock:
            self._closed = True
            self._recording = None

    def _load(self) -> _Recording:
        with self._lock:
            if self._closed:
                raise ExecutorError("executor emulated: found a closed executor, expected an open one; make a new one")
            if self._recording is None:
                replay = self._bundle.replay(self._codec)
                self._recording = _Recording(
                    replay.labels, replay.confidences, replay.scores, record_activations(self._bundle.real, self.stages)
                )
            return self._recording

    def _hosted(self, stage: int) -> StageSpec:
        if stage not in self.stages:
            raise ExecutorError(f"stage {stage}: found {list(self.stages)} hosted here, expected it among them; check `stages`")
        return self._bundle.stages[stage]

    def _samples(self, spec: StageSpec, inputs: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
        """`[batch]`, which evaluation samples these rows are."""
        prefix = np.ascontiguousarray(inputs[:, :INDEX_BYTES])
        index = prefix.view("<u4")[:, 0].astype(np.intp)
        if index.max() >= self._bundle.evaluation_samples:
            raise ExecutorError(
                f"stage {spec.index}: found evaluation index {index.max()}, expected one below {self._bundle.evaluation_samples}; "
                f"submit rows of the emulated bundle's evaluation()"
            )
        return index

    def _decide(self, spec: StageSpec, index: npt.NDArray[np.intp], gate: GateSpec, recording: _Recording) -> GateDecision:
        if spec.exit_head is None:
            return undecided(spec.index, len(index), gate)
        recorded = ("max-probability", spec.exit_head.temperature)
        if (gate.rule, gate.temperature) != recorded:
            raise ExecutorError(
                f"stage {spec.index}: found gate {gate.rule} at temperature {gate.temperature}, expected {recorded[0]} at "
                f"{recorded[1]}, with which its confidences were recorded"
            )
        return recorded_decision(recording.labels[index, spec.index], recording.confidences[index, spec.index], gate)


def record_activations(bundle: Bundle, stages: Iterable[int]) -> dict[int, npt.NDArray[np.uint8]]:
    """What these stages give for a few evaluation samples, by running the real ones once; noise where there are none to run.

    Args:
        bundle: a real one.
        stages: those without an output (the last) are left out.

    Returns:
        {stage: `[RECORDED_SAMPLES, bytes of its output] uint8`}; fewer rows where there are fewer samples.
    """
    wanted = {stage for stage in stages if bundle.stages[stage].output is not None}
    if not wanted:
        return {}
    if bundle.costs_only:
        rows = min(RECORDED_SAMPLES, bundle.evaluation_samples)
        return {stage: _noise(bundle.stages[stage], rows, seed=stage) for stage in wanted}
    chains = [range(chain[0], 1 + max(found)) for chain in bundle.chains if (found := wanted.intersection(chain))]
    chosen = np.unique(np.linspace(0, bundle.evaluation_samples - 1, RECORDED_SAMPLES).astype(int))
    images = bundle.evaluation().images[chosen]
    gate = GateSpec("max-probability", 1.0, (NEVER_EXIT,) * len(chosen))
    recorded = {}
    executor = make_executor("onnx", bundle, [stage for chain in chains for stage in chain])
    for chain in chains:
        tensor: Any = images
        for stage in chain:
            tensor = executor.run(stage, tensor, gate).activation
            if stage in wanted:
                recorded[stage] = np.ascontiguousarray(tensor).reshape(len(chosen), -1).view(np.uint8)
    executor.close()
    return recorded


def _noise(spec: StageSpec, rows: int, *, seed: int) -> npt.NDArray[np.uint8]:
    """Normal values of the stage's own dtype: as large as activations and as hard to pack."""
    assert spec.output is not None
    values = np.random.default_rng(seed).standard_normal((rows, *spec.output.shape), dtype=np.float32)
    return values.astype(spec.output.dtype).reshape(rows, -1).view(np.uint8)


def _activation(
    inputs: npt.NDArray[np.uint8], index: npt.NDArray[np.intp], recorded: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """`[batch, 4 + bytes] uint8`: each row's own index, then recorded bytes that its sample picks."""
    rows = np.empty((len(index), INDEX_BYTES + recorded.shape[1]), np.uint8)
    rows[:, :INDEX_BYTES] = inputs[:, :INDEX_BYTES]
    rows[:, INDEX_BYTES:] = recorded[index % len(recorded)]
    return rows
