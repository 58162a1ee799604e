"""Stages on a GPU, measured in one run: engines, gate, bytes that cross, and the line against the un-split engine.

    python -m bench.gpu                     all of it, about 10 minutes
    python -m bench.gpu --quick             two batch sizes, about 2 minutes
    python -m bench.gpu --resnet FOLDER     keeps ResNet-50's bundle there, for a machine that has no torch to write it

ResNet-50 at 224x224 with random weights, in four stages, and the digits bundle beside it, on every executor that loads: TensorRT in
fp32 and fp16, torch. TF32 is off in all. Figures are medians and ranges of rounds in which all ways take turns.

- *engine, gate*: on the device, by CUDA events, the engine as a recorded graph; the gate with the copy of its decisions.
- *bytes*: counted at the calls that copy, one batch of 32 through each stage that is hosted alone, half of its rows leaving.
- *line*: samples per second from NumPy arrays in to decisions out, in one process on one GPU, with as many batches given to the
  executor at once as it wants. `unsplit`: the four stages as one engine in one executor. `together`: the line's four stages in one
  executor, as a node that hosts them all has it; rows that go on stay on the device. `apart`: an executor for each, so that every
  activation goes through host memory, as between nodes. No policy and no wire in either: what zpipe's own loop makes of `together`
  is `runtime`, one `Pipeline.local` with one node, which has Python's time per sample in it.

The issue's figures are claimed of `together`; `apart` is held against the same bounds, since one may mean that by a line.
Exits off, and thresholds at the median of the confidences, so that half of what reaches an exit leaves there.
Writes bench/results/gpu.json. Without a GPU: one line, exit code 2.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.gpus.backends import MAX_BATCH, Backend, backends
from bench.gpus.network import CLAIMED_BATCH, Network, Plan, measure
from bench.gpus.runtime import serve
from bench.gpus.verdict import Verdict, verdicts
from bench.models.pictures import pictures
from zpipe.bundle import MANIFEST, Bundle, load_bundle
from zpipe.environment import installed
from zpipe.errors import ZpipeError
from zpipe.executors.cuda.presence import Missing, gpus
from zpipe.report import machine

RESULTS = Path(__file__).parent / "results" / "gpu.json"
SCHEMA = "zpipe.gpu/1"
DIGITS = "digits-mobilenetv2"
QUICK = Plan(batches=(1, CLAIMED_BATCH), device_rounds=10, line_rounds=2, line_seconds=0.3)
#: Distinct inputs; more would not fit the caches worse.
INPUTS = 4 * MAX_BATCH
#: Samples that `runtime` classifies.
SERVED = 3000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer batch sizes and rounds")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="where the figures go")
    parser.add_argument("--device", type=int, default=0, help="which GPU")
    parser.add_argument("--resnet", type=Path, metavar="FOLDER", help="ResNet-50's bundle: written there, or read if it is")
    options = parser.parse_args(arguments)
    there = gpus()
    if isinstance(there, Missing):
        print(f"bench.gpu: {there}", file=sys.stderr)
        return 2
    if not 0 <= options.device < len(there.devices):
        print(f"bench.gpu: --device: found {options.device}, expected 0 to {len(there.devices) - 1} ({there})", file=sys.stderr)
        return 2
    if not installed("onnx"):
        print("bench.gpu: found no onnx, expected it to join stages; run: pip install 'zpipe[train]'", file=sys.stderr)
        return 2
    working, failed = backends(options.device, load_bundle(DIGITS))
    for name, why in failed.items():
        print(f"{name}: not measured: {why}", flush=True)
    if not working:
        print("bench.gpu: found no executor that runs on this GPU, expected one; see `zpipe doctor`", file=sys.stderr)
        return 2
    document = {
        "schema": SCHEMA,
        "gpu": {"name": there.devices[options.device].name, "capability": there.devices[options.device].capability},
        "driver": {"cuda": there.version, "version": driver_version()},
        "machine": machine(),
        "versions": {backend.name: dict(backend.versions) for backend in working},
        "not_measured": failed,
        "quick": options.quick,
    }
    with networks(options.resnet) as measured:
        document |= run(measured, working, QUICK if options.quick else Plan())
    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"\n{options.json} written")
    return 0


def run(measured: Sequence[Network], working: Sequence[Backend], plan: Plan, *, served: int = SERVED) -> dict[str, Any]:
    """Everything, printed as it comes; a backend that fails on a network is left out there, and said."""
    figures: dict[str, Any] = {}
    said: list[dict[str, Any]] = []
    for network in measured:
        figures[network.name] = {}
        for backend in working:
            print(f"\n{network.name} on {backend.name}", flush=True)
            try:
                found = measure(network, backend, plan, lambda line: print(f"  ... {line}", flush=True))
                found["runtime"] = runtime(network, backend, served=served)
            except ZpipeError as exc:
                print(f"  not measured: {exc}", flush=True)
                figures[network.name][backend.name] = {"failed": str(exc)}
                continue
            figures[network.name][backend.name] = found
            show(found)
            for verdict in verdicts(found, line_claimed=network.name != DIGITS):
                show_verdict(verdict)
                said.append({"network": network.name, "backend": backend.name, **asdict(verdict)})
    return {"networks": figures, "verdicts": said}


def runtime(network: Network, backend: Backend, *, served: int) -> dict[str, Any]:
    """The line through zpipe's own loop, exits off and at the bundle's default point."""
    points = dict.fromkeys(("no-exit", network.bundle.default_point.name))
    return {
        point: asdict(serve(backend, network.bundle, network.inputs, point=point, batch=CLAIMED_BATCH, samples=served))
        for point in points
    }


@contextmanager
def networks(resnet: Path | None) -> Iterator[list[Network]]:
    """ResNet-50 where it can be had, and the digits."""
    from bench.models.unsplit import unsplit

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = []
        bundle = _resnet50(resnet or folder / "resnet50")
        if bundle is not None:
            images = pictures(INPUTS, bundle.image_size, seed=1)
            found.append(Network("resnet50", bundle, unsplit(bundle, _made(folder / "resnet50-unsplit")), images))
        digits = load_bundle(DIGITS)
        images = digits.evaluation().images[:INPUTS]
        yield [*found, Network(DIGITS, digits, unsplit(digits, _made(folder / "digits-unsplit")), images)]


def _resnet50(folder: Path) -> Bundle | None:
    """From the folder, or written into it; None without torch, and said."""
    if (folder / MANIFEST).is_file():
        return load_bundle(folder)
    try:
        from bench.models.resnet50 import write_resnet50
    except ImportError as exc:
        print(f"resnet50: not measured: found no {exc.name}, expected it to write the network; run: pip install 'zpipe[train]'")
        return None
    folder.mkdir(parents=True, exist_ok=True)
    print("writing ResNet-50 ...", flush=True)
    return write_resnet50(folder)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def driver_version() -> str | None:
    """NVIDIA's own number for the driver; the CUDA version alone does not tell one from another."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None


# ---- for a terminal ----------------------------------------------------------------------------


def show(found: dict[str, Any]) -> None:
    """The figures of one network on one backend."""
    print("  us on the device         batch     engine                       gate + decisions       gather")
    for stage, rows in found["stages"].items():
        for row in rows:
            cells = "".join(f"{_range(row[key]):>29}" for key in ("engine", "gate", "gather"))
            print(f"  stage {stage:<16} {row['batch']:>7}{cells}")
    print("  bytes of a batch, half leaving        to host      uncompacted        to device")
    for row in found["crossings"]:
        print(f"  stage {row['stage']:<16} {row['to_host']:>21,}{row['uncompacted']:>17,}{row['to_device']:>17,}")
    print("  samples/s, and of the un-split engine's")
    for row in found["line"]:
        for way, rate in row["rate_hz"].items():
            ratio = row["of_unsplit"].get(way)
            share = f"   {ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else ""
            print(f"  batch {row['batch']:<4} {way:<24}{_range(rate, ',.0f'):>30}{share}")
    for point, served in found["runtime"].items():
        rate = f"{served['rate_hz']:,.0f}"
        print(f"  batch {CLAIMED_BATCH:<4} {f'runtime, {point}':<24}{rate:>30}   {served['without_result']} without a result")


def _range(values: dict[str, float] | None, form: str = ",.1f") -> str:
    if values is None:
        return "-"
    return f"{values['median']:{form}} [{values['low']:{form}}, {values['high']:{form}}]"


def show_verdict(verdict: Verdict) -> None:
    print(f"  {'holds ' if verdict.holds else 'FAILS '} {verdict.claim}: {verdict.found} (wanted {verdict.wanted})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
