"""Students in a quarter of their bytes: each quantised to int8, its file, and what every set of parts then still knows.

    python -m bench.students                          the built-in bundle; writes bench/results/students.json; two minutes
    python -m bench.students --bundle engines/mine    another one of the digits; writes nothing

Static quantisation by ONNX Runtime (QDQ, weights per channel, activations per tensor from training images, never from test images).
Accuracy on all test images of the digits, through ONNX Runtime on this CPU, the join's bias as it is; intervals by bootstrap over
digits. `zpipe train` writes float32: this says what a board that wants int8 may count on. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from zpipe.bundle import Bundle, Evaluation, load_bundle
from zpipe.calibrate.chain import StageChain
from zpipe.models.digits import digits_task
from zpipe.models.students.join import Said, set_rows
from zpipe.report.machine import machine

RESULTS = Path(__file__).parent / "results" / "students.json"
BUNDLE = "digits-rocoin"
#: Training images from which the ranges of activations come, and how many go through at once.
IMAGES, BATCH = 500, 50
#: What one student may weigh.
MOST_BYTES = 500_000


class Inputs(CalibrationDataReader):  # type: ignore[misc]
    """What enters a stage, in batches."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self._batches: Iterator[dict[str, Any]] = iter([{"input": values[i : i + BATCH]} for i in range(0, len(values), BATCH)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="folder or name; the built-in one if not given")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # that models should be pre-processed, which they are
    bundle = load_bundle(arguments.bundle or BUNDLE)
    task = digits_task(bundle.image_size)
    images, _ = task.draw_epoch(np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as name:
        files = [bundle.stage_path(stage.index) for stage in bundle.stages]
        small = [
            path for chain in bundle.chains for path in quantised(files[chain[0] : chain[-1] + 1], images[:IMAGES], Path(name))
        ]
        rows = {precision: measure(bundle, paths, task.test) for precision, paths in (("float32", files), ("int8", small))}
    for precision, row in rows.items():
        print(precision, "bytes of each student:", *row["bytes"])
        for found in row["sets"]:
            accuracy, lost = found["accuracy"], found["lost"]
            print(
                f"  parts {','.join(map(str, found['parts'])):8} {100 * accuracy['value']:5.1f} % "
                f"({100 * accuracy['low']:.1f}..{100 * accuracy['high']:.1f}), loses {100 * lost['value']:.1f} points "
                f"({100 * lost['low']:.1f}..{100 * lost['high']:.1f})"
            )
    largest = max(rows["int8"]["bytes"])
    print(f"largest student at int8: {largest} bytes, {'within' if largest <= MOST_BYTES else 'beyond'} {MOST_BYTES}")
    if arguments.bundle is None:
        RESULTS.write_text(json.dumps({"machine": machine(), "digest": bundle.digest, **rows}, indent=1) + "\n", encoding="utf-8")


def quantised(files: list[Path], images: npt.NDArray[Any], folder: Path) -> list[Path]:
    """A student's stages at int8, the ranges of each from what the float32 stages before it give."""
    chain, made, entering = StageChain(files), [], images
    for index, file in enumerate(files):
        ready, out = folder / f"ready-{file.name}", folder / file.name
        quant_pre_process(file, ready)
        quantize_static(
            ready,
            out,
            Inputs(entering),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        made.append(out)
        if index + 1 < len(files):
            activation, _ = chain.run_stage(index, entering)
            assert activation is not None  # only the last stage gives none
            entering = activation
    return made


def measure(bundle: Bundle, files: list[Path], test: Evaluation) -> dict[str, Any]:
    """Bytes of each student, and what every set of parts knows."""
    assert bundle.join is not None  # it is a bundle of students
    scores = [StageChain(files[chain[0] : chain[-1] + 1]).logits(test.images) for chain in bundle.chains]
    said = Said(np.concatenate(scores, 1), test)
    sizes = [sum(files[stage].stat().st_size for stage in chain) for chain in bundle.chains]
    return {"bytes": sizes, "sets": set_rows(bundle.join, bundle.chains, said)}


if __name__ == "__main__":
    main()
