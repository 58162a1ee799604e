"""bench.gpu over the real pycuda, run by test_gpu.py on the stand-in for libcuda: `python -m tests.bench.gpu_cases`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from bench import gpu
from bench.gpus.backends import Backend
from bench.gpus.network import CLAIMED_BATCH, Network, Plan
from tests.executors.cuda.pycuda_cases import NOTHING, report
from tests.executors.cuda.pycuda_stages import HostEngine
from zpipe.bundle import load_bundle
from zpipe.executors.cuda.pycuda import PycudaDriver

HALF = Path(__file__).parents[2] / "engines" / "digits-mobilenetv2-half"


def main() -> None:
    bundle = load_bundle(HALF, verify=False)
    whole = replace(bundle, stages=(replace(bundle.stages[0], output=None),))
    backend = Backend("pycuda", partial(PycudaDriver, 0), HostEngine)
    plan = Plan(batches=(1, CLAIMED_BATCH), device_rounds=1, line_rounds=1, line_seconds=0.001)
    document = gpu.run([Network("half", bundle, whole, bundle.evaluation().images[:64])], [backend], plan, served=16)
    found = document["networks"]["half"]["pycuda"]
    assert "failed" not in found, found
    assert all(row["to_host"] == row["expected"] for row in found["crossings"])
    assert report() == NOTHING


if __name__ == "__main__":
    main()
