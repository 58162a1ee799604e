"""What the heads see: a frozen backbone runs once over the data, and only pooled features are kept.

Features are thousands of times fewer than activations, so they stay in memory up to a limit and lie in a file beyond it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from zpipe.bundle import Bundle
from zpipe.calibrate.chain import StageChain
from zpipe.models.heads.graph import Front, front_model
from zpipe.models.heads.shape import HeadShape

Floats = npt.NDArray[np.float32]

#: Rows that the frozen stages run at once.
BATCH = 16

#: Samples from which channels' means and deviations are taken.
STATISTICS_SAMPLES = 512

#: A channel that hardly varies beside the most lively one is not blown up: it may be dead on these samples and not on the next.
LEAST_DEVIATION_SHARE, LEAST_DEVIATION = 1e-3, 1e-6

#: Bytes of all features beyond which they lie in a file that the system may page out.
MOST_BYTES_IN_MEMORY = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the frozen stages made of the training data.

    Attributes:
        fronts: {stage: its head's front}.
        features: {stage: `[samples, features] float32`}.
        teacher: the last exit's raw logits `[samples, classes] float32`.
    """

    fronts: Mapping[int, Front]
    features: Mapping[int, Floats]
    teacher: Floats


@contextlib.contextmanager
def look(
    bundle: Bundle, shapes: Mapping[int, HeadShape], inputs: npt.NDArray[np.generic], *, tell: Callable[[float], None]
) -> Iterator[Seen]:
    """Run all inputs through the frozen stages; files that hold features are gone after the block.

    Args:
        bundle: its stages stay as they are.
        shapes: {stage: how its activation is pooled}.
        inputs: `[samples, ...]`, as stage 0 takes them.
        tell: called with the fraction done.
    """
    chain = StageChain([bundle.stage_path(stage.index) for stage in bundle.stages])
    size = 4 * len(inputs) * (len(bundle.classes) + sum(shape.features for shape in shapes.values()))
    with tempfile.TemporaryDirectory(prefix="zpipe-heads-") as name:
        folder = Path(name)

        def array(key: str, width: int) -> Floats:
            if size <= MOST_BYTES_IN_MEMORY:
                return np.empty((len(inputs), width), np.float32)
            return np.lib.format.open_memmap(folder / f"{key}.npy", "w+", np.float32, (len(inputs), width))

        fronts = _fronts(chain, shapes, inputs)
        pools = {stage: _pool(folder, bundle, stage, front) for stage, front in fronts.items()}
        features = {stage: array(f"stage{stage}", shape.features) for stage, shape in shapes.items()}
        teacher = array("teacher", len(bundle.classes))
        for start in range(0, len(inputs), BATCH):
            rows = slice(start, start + BATCH)
            *activations, teacher[rows] = _chain(chain, len(bundle.stages), inputs[rows])
            for stage, pool in pools.items():
                features[stage][rows] = pool.run_stage(0, activations[stage].astype(np.float32, copy=False))[0]
            tell(min(1.0, (start + BATCH) / len(inputs)))
        yield Seen(fronts, features, teacher)


def _fronts(chain: StageChain, shapes: Mapping[int, HeadShape], inputs: npt.NDArray[np.generic]) -> dict[int, Front]:
    """Channel statistics of a sample of the inputs, evenly spread."""
    chosen = inputs[np.unique(np.linspace(0, len(inputs) - 1, min(len(inputs), STATISTICS_SAMPLES)).astype(int))]
    sums = {stage: np.zeros((2, shape.channels)) for stage, shape in shapes.items()}
    counts = dict.fromkeys(shapes, 0)
    for start in range(0, len(chosen), BATCH):
        activations = _chain(chain, max(shapes) + 1, chosen[start : start + BATCH])
        for stage, shape in shapes.items():
            values = _by_channel(activations[stage], shape).astype(np.float64)
            sums[stage] += values.sum(0), (values**2).sum(0)
            counts[stage] += len(values)
    fronts = {}
    for stage, shape in shapes.items():
        mean, square = sums[stage] / counts[stage]
        deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
        deviation = np.maximum(deviation, max(LEAST_DEVIATION_SHARE * deviation.max(), LEAST_DEVIATION))
        fronts[stage] = Front(shape, mean.astype(np.float32), deviation.astype(np.float32))
    return fronts


def _by_channel(activation: Floats, shape: HeadShape) -> Floats:
    """`[values, channels]`; of tokens where the last one answers, only that."""
    match shape.pooling:
        case "grid":
            return np.moveaxis(activation, 1, -1).reshape(-1, shape.channels)
        case "mean" | "none":
            return activation.reshape(-1, shape.channels)
        case "last":
            return activation[:, -1]


def _pool(folder: Path, bundle: Bundle, stage: int, front: Front) -> StageChain:
    output = bundle.stages[stage].output
    assert output is not None  # no head is put behind the last stage
    path = folder / f"front{stage}.onnx"
    onnx.save_model(front_model(front, output.shape), path)
    return StageChain([path])


def _chain(chain: StageChain, stages: int, inputs: npt.NDArray[np.generic]) -> Sequence[Floats]:
    """What each of the first stages gives: activations, and of the last stage of all the logits."""
    values: list[Floats] = []
    x: npt.NDArray[np.generic] = inputs
    for stage in range(stages):
        activation, logits = chain.run_stage(stage, x)
        value = logits if activation is None else activation
        assert value is not None  # a stage gives one of them
        values.append(value)
        x = value
    return values
