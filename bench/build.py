"""How long `zpipe build` takes on a machine without a GPU: the digits bundle for compute capability 8.6, in each precision.

    python -m bench.build                five minutes on two cores; writes bench/results/build.json
    python -m bench.build fp32 fp16      some of the precisions

Each is the command itself in a process of its own, from the start of Python to its table, on a copy of the bundle without engines.
What it says of the engines is read from their manifests; `load_average` is the machine's before the command: others that share
its cores show in `seconds`, not in `cpu_seconds`. Needs the extra `rtx`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.made import commit
from zpipe.bundle import load_bundle
from zpipe.executors.cuda.presence import Gpus, gpus
from zpipe.executors.tensorrt.manifest import engines_of
from zpipe.report.machine import machine, version

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "build.json"
BUNDLE, TARGET, MAX_BATCH = "digits-mobilenetv2", "8.6", 64
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
#: What issue 5 aims at for the whole bundle.
MOST_SECONDS = 60.0


def measure(precision: str) -> dict[str, Any]:
    """One command, and what its engines are."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / BUNDLE
        shutil.copytree(load_bundle(BUNDLE).path, folder, ignore=shutil.ignore_patterns("trt"))
        options = ["--bundle", str(folder), "--target", TARGET, "--precision", precision, "--max-batch", str(MAX_BATCH)]
        start, before = time.monotonic(), os.times()
        done = subprocess.run(
            [sys.executable, "-m", "zpipe", "build", *options], cwd=ROOT, capture_output=True, text=True, check=False
        )
        seconds, after = time.monotonic() - start, os.times()
        if done.returncode:
            raise SystemExit(done.stderr.strip())
        bundle = load_bundle(folder)
        engines = engines_of(bundle)
    assert [engine.key.stage for engine in engines] == list(range(len(bundle.stages)))
    accuracy = engines[0].accuracy
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(after.children_user + after.children_system - before.children_user - before.children_system, 1),
        "held": seconds <= MOST_SECONDS,
        "flavour": engines[0].key.flavour,
        "accuracy_by": accuracy.by,
        "accuracy_samples": accuracy.samples,
        "points_lost": [None if lost is None else round(lost, 3) for lost in accuracy.lost],
        "stages": [
            {"stage": engine.key.stage, "bytes": engine.plan_bytes, "build_seconds": engine.build_seconds} for engine in engines
        ],
    }


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in PRECISIONS]
    if unknown:
        raise SystemExit(f"found {unknown[0]!r}, expected some of {', '.join(PRECISIONS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names or PRECISIONS:
        load = os.getloadavg()[0]
        found = measure(name)
        total = sum(stage["bytes"] for stage in found["stages"])
        print(f"{name}: {found['seconds']:.1f} s (wanted <= {MOST_SECONDS:g}), {total / 1e6:.1f} MB", flush=True)
        there = gpus()
        about = {
            "commit": commit(),
            "machine": machine(),
            "load_average": round(load, 1),
            "gpus": [str(gpu) for gpu in there.devices] if isinstance(there, Gpus) else [],
            "onnx": version("onnx"),
            "bundle": BUNDLE,
            "target": TARGET,
            "max_batch": MAX_BATCH,
        }
        results[name] = {**about, **found}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    if not all(results[name]["held"] for name in names or PRECISIONS):
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
