"""What the contenders carry: workloads, one job of them, and the stages of a rank."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.peers import spin
from bench.peers.meter import Meter
from zpipe.bundle import Bundle, load_bundle
from zpipe.executors import GateSpec, StageExecutor, StageOutput, make_executor
from zpipe.model import NEVER_EXIT

DIGITS = "digits-mobilenetv2"
RANKS = 4
#: Samples under way; bounded queues hold as many messages at most.
WINDOW = 64
#: How many different samples a run goes round.
SAMPLES = 256
#: Where a zpipe node finds the meter: an executor is told of no more than its bundle and stages.
METER_VARIABLE = "ZPIPE_PEERS_METER"

KIB = 1024


@dataclass(frozen=True, slots=True)
class Workload:
    """What the stages are.

    Attributes:
        activation_bytes: between any two stages; 0 for a real network, whose bundle says it.
        spin_seconds: CPU per stage and sample.
    """

    name: str
    activation_bytes: int = 0
    spin_seconds: float = 0.0

    @property
    def synthetic(self) -> bool:
        return self.activation_bytes > 0


#: Half a millisecond: about what a stage of the digits bundle takes, and short enough that carrying shows. `wire` stages do no more
#: than write what they send.
WORKLOADS = {
    load.name: load
    for load in (
        Workload("digits"),
        Workload("spin-4k", 4 * KIB, 500e-6),
        Workload("spin-64k", 64 * KIB, 500e-6),
        Workload("spin-1m", 1024 * KIB, 500e-6),
        Workload("wire-1m", 1024 * KIB, 0.0),
    )
}


@dataclass(frozen=True, slots=True)
class Job:
    """One contender's task: a workload in messages of `batch` samples.

    Attributes:
        bundle: folder or name.
        hosted: per rank its stages.
        batch: samples in one message; zpipe gets single samples and makes batches of at most as many itself.
        window: samples under way.
        folder: of this contender alone; it holds the meter.
        shared: where `inputs.npy` and `answers.npy` are.
        shared_memory: zpipe's nodes may use it.
    """

    workload: str
    bundle: str
    hosted: tuple[tuple[int, ...], ...]
    batch: int
    window: int
    folder: str
    shared: str
    shared_memory: bool = True

    @property
    def meter_path(self) -> Path:
        return Path(self.folder) / "meter"

    @property
    def messages(self) -> int:
        """Under way at most."""
        return max(1, self.window // self.batch)

    def with_hosted(self, hosted: tuple[tuple[int, ...], ...]) -> Job:
        """The same with the stages at other ranks."""
        return replace(self, hosted=hosted)

    def write(self) -> Path:
        path = Path(self.folder) / "job.json"
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path


def read_job(path: str | Path) -> Job:
    plain = json.loads(Path(path).read_text(encoding="utf-8"))
    return Job(**{**plain, "hosted": tuple(map(tuple, plain["hosted"]))})


@lru_cache(maxsize=4)
def bundle_of(name: str) -> Bundle:
    return load_bundle(name, verify=False)


# ---- the stages --------------------------------------------------------------------------------


class Metered:
    """An executor whose stage times are added up in a file; a zpipe topology names it `bench.peers.work:Metered`."""

    def __init__(self, bundle: Bundle, stages: Sequence[int], meter: str = "") -> None:
        synthetic = bundle.stages[0].file.endswith(".txt")
        self._inner: StageExecutor = spin.SpinExecutor(bundle, stages) if synthetic else make_executor("onnx", bundle, stages)
        self._meter = Meter(Path(meter or os.environ[METER_VARIABLE]))
        self.stages = self._inner.stages
        self.inline = self._inner.inline

    def warm_up(self, max_batch: int) -> dict[int, float]:
        return self._inner.warm_up(max_batch)

    def run(self, stage: int, inputs: npt.NDArray[Any], gate: GateSpec) -> StageOutput:
        output = self._inner.run(stage, inputs, gate)
        self._meter.add(stage, output.wall_seconds, output.cpu_seconds, len(inputs))
        return output

    def close(self) -> None:
        self._inner.close()


class Stages:
    """The stages of one rank, for a contender: a batch in, a batch or answers out.

    Args:
        job: whose.
        rank: hosts them.

    Attributes:
        shape, dtype: of one message's batch as `run` takes it.
        nbytes: of that.
        out_shape, out_dtype, out_bytes: of what it gives: the next rank's batch, or answers `[2, batch] float32`, labels and
            confidences.
    """

    def __init__(self, job: Job, rank: int) -> None:
        bundle = bundle_of(job.bundle)
        self._stages = job.hosted[rank]
        self._executor = Metered(bundle, self._stages, meter=str(job.meter_path))
        self._executor.warm_up(job.batch)
        specs = [bundle.stages[stage] for stage in self._stages]
        temperatures = [1.0 if spec.exit_head is None else spec.exit_head.temperature for spec in specs]
        shut = (NEVER_EXIT,) * job.batch
        self._gates = [
            GateSpec("max-probability", temperature, shut, last=spec.output is None)
            for spec, temperature in zip(specs, temperatures, strict=True)
        ]
        self.shape, self.dtype = (job.batch, *specs[0].input.shape), np.dtype(specs[0].input.dtype)
        self.nbytes = job.batch * specs[0].input.bytes
        last = specs[-1].output
        self.out_shape = (2, job.batch) if last is None else (job.batch, *last.shape)
        self.out_bytes = 8 * job.batch if last is None else job.batch * last.bytes
        self.out_dtype = np.dtype(np.float32 if last is None else last.dtype)

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        for stage, gate in zip(self._stages, self._gates, strict=True):
            output = self._executor.run(stage, batch, gate)
            if output.activation is None:
                return np.array((output.labels, output.confidences), np.float32)
            batch = np.asarray(output.activation)
        return batch

    def unpack(self, buffer: Any) -> npt.NDArray[Any]:
        """The batch that these bytes are; copies nothing."""
        return np.frombuffer(buffer, self.dtype).reshape(self.shape)


def unpack_answers(buffer: Any) -> npt.NDArray[np.float32]:
    """`[2, batch]`, of the last rank's bytes."""
    return np.frombuffer(buffer, np.float32).reshape(2, -1)


# ---- before the contenders start ---------------------------------------------------------------


def prepare(workload: Workload, folder: Path, *, samples: int = SAMPLES) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """Writes the bundle if it is a made one, the inputs, and what the whole network answers; returns bundle and hosted stages."""
    if workload.synthetic:
        path = folder / "bundle"
        spin.write_bundle(path, spin_seconds=workload.spin_seconds, activation_bytes=workload.activation_bytes)
        inputs = np.random.default_rng(0).integers(0, 256, (samples, spin.INPUT_BYTES), dtype=np.uint8)
        name, hosted = str(path), ((0,), (1,), (2,), (3,))
    else:
        name, hosted = DIGITS, ((0,), (1,), (2,), (3, 4))
        inputs = bundle_of(name).evaluation().images[:samples]
    meter = folder / "meter"
    Meter.create(meter)
    whole = tuple(stage for stages in hosted for stage in stages)
    network = Stages(Job(workload.name, name, (whole,), 1, 1, str(folder), str(folder)), 0)
    answers = np.concatenate([network.run(inputs[index : index + 1]) for index in range(samples)], axis=1)
    np.save(folder / "inputs.npy", inputs)
    np.save(folder / "answers.npy", answers)
    return name, hosted
