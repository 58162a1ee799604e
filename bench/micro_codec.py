"""What each codec costs per row and cut: `pytest bench/micro_codec.py` or, for plain lines, `python bench/micro_codec.py`.

Rows are activations of the bundle's own evaluation images, computed here by ONNX Runtime.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bench.micro_wire import best_microseconds
from zpipe.bundle import load_bundle
from zpipe.codecs import make_codecs
from zpipe.executors.base import make_executor
from zpipe.model import CODECS, GateSpec

ENGINES = Path(__file__).parents[1] / "engines"
BUNDLES = ("digits-mobilenetv2", "digits-mobilenetv2-half")
BATCHES = (1, 8)
#: Rows over which the bytes of packed codecs are averaged.
ROWS = 256


@cache
def inputs(name: str) -> list[npt.NDArray[Any]]:
    """What enters each stage, `[ROWS, *shape]`; the images are spread over the evaluation set."""
    bundle = load_bundle(ENGINES / name, verify=False)
    images = bundle.evaluation().images
    entering = [images[:: len(images) // ROWS][:ROWS]]
    executor = make_executor("onnx", bundle, [spec.index for spec in bundle.stages])
    for stage in range(len(bundle.stages) - 1):
        gate = GateSpec("max-probability", 1.0, (2.0,) * 8)
        batches = [entering[-1][start : start + 8] for start in range(0, ROWS, 8)]
        activations = [executor.run(stage, batch, gate).activation for batch in batches]
        entering.append(np.concatenate([each for each in activations if each is not None]))
    executor.close()
    return entering


@pytest.mark.parametrize("rows", BATCHES)
@pytest.mark.parametrize("codec", CODECS[1:])
@pytest.mark.parametrize("name", BUNDLES)
def test_encode_and_decode_of_the_first_cut(benchmark: Any, name: str, codec: str, rows: int) -> None:
    packer = make_codecs(load_bundle(ENGINES / name, verify=False), [codec])[codec, 1]
    batch = inputs(name)[1][:rows]
    benchmark(lambda: packer.decode(packer.encode(batch), rows))


def main() -> None:
    """One line per bundle, stage entered, codec and batch: bytes a row on the wire, microseconds a row to encode and decode."""
    print(f"Python {sys.version.split()[0]}, NumPy {np.__version__}; microseconds per row, best of five")
    for name in BUNDLES:
        codecs = make_codecs(load_bundle(ENGINES / name, verify=False), CODECS)
        for (codec, stage), packer in codecs.items():
            for rows in BATCHES if packer.name != "none" else ():
                samples = inputs(name)[stage]
                sent = sum(packer.encode(samples[start : start + rows]).nbytes for start in range(0, ROWS, rows)) / ROWS
                batch = samples[:rows]
                payload = packer.encode(batch)
                encoding = best_microseconds(lambda packer=packer, batch=batch: packer.encode(batch)) / rows  # type: ignore[misc]
                decoding = best_microseconds(lambda packer=packer, payload=payload, rows=rows: packer.decode(payload, rows)) / rows  # type: ignore[misc]
                raw = batch.nbytes // rows
                print(
                    f"{name:24} into stage {stage}  {codec:10} x {rows}  {raw:6} -> {sent:8.0f} bytes ({sent / raw:.3f})  "
                    f"encode {encoding:6.1f}  decode {decoding:6.1f}"
                )


if __name__ == "__main__":
    main()
