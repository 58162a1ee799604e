"""A line with a node for each stage, so that every cut crosses a link: the answers of a plain loop through the same codecs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import zpipe
from tests.runtime.mesh import run
from zpipe.bundle import Bundle, load_bundle
from zpipe.codecs import make_codecs
from zpipe.executors.base import make_executor
from zpipe.model import CODECS, GateSpec
from zpipe.topology import from_dict

HALF = Path(__file__).parents[2] / "engines" / "digits-mobilenetv2-half"
SAMPLES = 300
#: Confidences of batches of another size may differ by rounding, which one step of int8 amplifies.
NEAR = 0.05


def plain_loop(bundle: Bundle, codec: str) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Label and confidence of the last exit, sample by sample, each cut through its codec."""
    codecs = make_codecs(bundle, [codec])
    executor = make_executor("onnx", bundle, range(len(bundle.stages)))
    labels, confidences = [], []
    for image in bundle.evaluation().images[:SAMPLES]:
        x = image[None]
        label, confidence = -1, 0.0
        for stage, spec in enumerate(bundle.stages):
            assert spec.exit_head is not None
            x = codecs[codec, stage].decode(codecs[codec, stage].encode(x), 1)
            last = spec.output is None
            output = executor.run(stage, x, GateSpec("max-probability", spec.exit_head.temperature, (1.0,), last))
            label, confidence = output.labels[0], output.confidences[0]
            if output.activation is not None:
                x = output.activation
        labels.append(label)
        confidences.append(confidence)
    executor.close()
    return labels, np.array(confidences, np.float32)


#: A codec of our own arithmetic and one of the network's, each at a batch of its own; the others among the slow tests.
AT_EVERY_RUN = {("int8+zstd", 8), ("bottleneck", 1)}


@pytest.mark.parametrize(
    ("codec", "max_batch"),
    [
        case if case in AT_EVERY_RUN else pytest.param(*case, marks=pytest.mark.slow)
        for case in ((codec, max_batch) for codec in CODECS for max_batch in (1, 8))
    ],
)
def test_live_answers_are_those_of_a_plain_loop_through_the_same_codec(codec: str, max_batch: int) -> None:
    nodes = [{"rank": stage, "stages": [stage], "max_batch": max_batch} for stage in range(5)]
    links = {"shape": "line", "codec": codec}
    plain = {"name": "five", "bundle": str(HALF), "nodes": nodes, "links": links, "policy": {"exit": "no-exit"}}
    labels, confidences = plain_loop(load_bundle(HALF), codec)

    async def main() -> None:
        async with zpipe.Pipeline.local(from_dict(plain)) as pipeline:
            outcomes = [each async for each in pipeline.stream(pipeline.bundle.evaluation().images[:SAMPLES])]
        results = [each.result for each in sorted(outcomes, key=lambda each: each.sample) if each.result is not None]
        found = np.array([result.confidence for result in results], np.float32)
        if max_batch == 1:
            assert [result.label for result in results] == labels
            np.testing.assert_array_equal(found, confidences)
        else:
            np.testing.assert_allclose(found, confidences, atol=NEAR)

    run(main)
