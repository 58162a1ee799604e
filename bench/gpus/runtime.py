"""A line through zpipe itself: `Pipeline.local` with one node that hosts every stage, policy and event loop included."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import zpipe
from bench.gpus.backends import Backend
from zpipe.bundle import Bundle
from zpipe.executors.cuda.runner import CudaStages
from zpipe.topology import Topology, from_dict

#: Samples under way, in batches: one is copied, one computed, one waits at each later stage.
BATCHES_AHEAD = 6
DEADLINE_SECONDS = 60.0

_backend: list[Backend] = []


def borrowed(bundle: Bundle, stages: Sequence[int]) -> CudaStages:
    """An executor over the backend that is being measured: what the topology below names."""
    return _backend[-1].executor(bundle, stages)


@dataclass(frozen=True, slots=True)
class Served:
    """What one run gave: samples per second, and how many ended in anything but a result."""

    rate_hz: float
    without_result: int


def serve(backend: Backend, bundle: Bundle, inputs: npt.NDArray[np.uint8], *, point: str, batch: int, samples: int) -> Served:
    """Classifies inputs in turn, `BATCHES_AHEAD` batches ahead of the answers.

    Args:
        backend: runs the stages.
        bundle: lies in a folder with its manifest.
        inputs: `[count, *shape]`.
        point: an operating point of the bundle, or `no-exit`.
        batch: `max_batch` of the node.
        samples: to classify, after as many as are under way at once.
    """
    _backend.append(backend)
    try:
        return asyncio.run(_serve(_topology(bundle, batch), inputs, point=point, ahead=BATCHES_AHEAD * batch, samples=samples))
    finally:
        _backend.pop()


async def _serve(topology: Topology, inputs: npt.NDArray[np.uint8], *, point: str, ahead: int, samples: int) -> Served:
    frames = itertools.islice(itertools.cycle(inputs), ahead + samples)
    seen = wrong = 0
    started = time.perf_counter()
    async with zpipe.Pipeline.local(topology, exit_point=point) as pipeline:
        async for outcome in pipeline.stream(frames, ahead=ahead):
            seen += 1
            wrong += outcome.result is None
            if seen == ahead:  # the line is full from here on
                started = time.perf_counter()
        seconds = time.perf_counter() - started
    return Served(samples / seconds, wrong)


def _topology(bundle: Bundle, batch: int) -> Topology:
    rows = (BATCHES_AHEAD + 2) * batch
    node = {
        "rank": 0,
        "stages": list(range(len(bundle.stages))),
        "executor": f"{__name__}:{borrowed.__name__}",
        "max_batch": batch,
        "slots": rows,
    }
    source = {"rank": 0, "deadline": DEADLINE_SECONDS, "admission": {"name": "fixed", "when_full": "block", "waiting": rows}}
    return from_dict({"name": "line-on-one-gpu", "bundle": str(bundle.path), "nodes": [node], "sources": [source]})
