"""(f) No line at all: the un-split network in one process, one sample or batch after the other.

The digits stages are joined again into one ONNX file, without the exits in between; the spinning stages simply follow each other.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.peers.load import Load
from bench.peers.meter import Meter
from bench.peers.work import Job, Stages, bundle_of
from zpipe.bundle import Bundle
from zpipe.executors import GateSpec, evaluate_gate

#: The first runs of a session size its arena.
_WARM_RUNS = 5


class Line:
    """The source, and nobody else."""

    batches = True

    async def open(self, job: Job) -> None:
        bundle = bundle_of(job.bundle)
        if bundle.stages[0].file.endswith(".onnx"):
            self._run = Joined(bundle, job).run
        else:
            everything = tuple(stage for stages in job.hosted for stage in stages)
            self._run = Stages(job.with_hosted((everything,)), 0).run

    async def drive(self, load: Load) -> None:
        while (item := load.next()) is not None:
            number, batch = item
            load.done(number, self._run(batch))

    async def close(self) -> None:
        pass


class Joined:
    """The whole network in one ONNX Runtime session, set as zpipe sets those of its stages."""

    def __init__(self, bundle: Bundle, job: Job) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(job.folder) / "whole.onnx"
        join(bundle, path)
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._meter = Meter(job.meter_path)
        head = bundle.stages[-1].exit_head
        assert head is not None, "a bundle's last stage answers"
        self._gate = GateSpec("max-probability", head.temperature, (), last=True)
        first = bundle.stages[0].input
        for _ in range(_WARM_RUNS):
            self.run(np.zeros((job.batch, *first.shape), first.dtype))

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        wall, cpu = time.perf_counter(), time.thread_time()
        (logits,) = self._session.run(None, {"input": batch})
        decision = evaluate_gate(logits, self._gate)
        self._meter.add(0, time.perf_counter() - wall, time.thread_time() - cpu, len(batch))
        return np.array((decision.labels, decision.confidences), np.float32)


def join(bundle: Bundle, path: Path) -> None:
    """Writes the stages as one ONNX file, `input` to the last stage's logits."""
    import onnx
    from onnx import compose

    whole: Any = None
    for stage in bundle.stages:
        part = onnx.load(bundle.stage_path(stage.index))
        output = "logits" if stage.output is None else "activation"
        prefix = f"s{stage.index}/"
        part = compose.add_prefix(part, prefix)
        entrance = f"{prefix}input"
        if whole is None:
            whole, first = part, entrance
        else:
            before = f"s{stage.index - 1}/activation"
            whole = compose.merge_models(whole, part, io_map=[(before, entrance)], inputs=[first], outputs=[f"{prefix}{output}"])
    for node in whole.graph.node:
        node.input[:] = ["input" if name == first else name for name in node.input]
    whole.graph.input[0].name = "input"
    onnx.save(whole, path)
