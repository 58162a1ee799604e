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
Writes bench/results/gpu.json, anew after every backend: what breaks off leaves what was measured (`complete` says whether all was).
A backend that fails, however it does, is said, and the next one's turn comes. Exit code 0: every claim holds; 1: one does not, or
a backend or a network broke; 2: nothing could be measured, as without a GPU: one line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bench.gpus.backends import MAX_BATCH, Backend, backends, fault
from bench.gpus.network import CLAIMED_BATCH, Network, Plan, measure
from bench.gpus.runtime import serve
from bench.gpus.verdict import Verdict, verdicts
from zpipe.bundle import MANIFEST, Bundle, load_bundle
from zpipe.environment import installed
from zpipe.errors import BackendUnavailable
from zpipe.executors.cuda.presence import Missing, gpus
from zpipe.models.pictures import pictures
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
    unwritable = cannot_write(options.json)
    if unwritable is not None:
        print(f"bench.gpu: --json: {unwritable}", file=sys.stderr)
        return 2
    working, missing, broken = backends(options.device, load_bundle(DIGITS))
    for name, why in (missing | broken).items():
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
        "not_measured": missing,
        "broken": broken,
        "quick": options.quick,
        "complete": False,
    }

    def save(found: dict[str, Any]) -> None:
        document.update(found)
        try:
            options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        except OSError as exc:  # the figures are on the screen, and the next time there may be room
            broken["json"] = fault(exc)
            print(f"{options.json}: not written: {fault(exc)}", flush=True)

    with networks(options.resnet, broken) as measured:
        found = run(measured, working, QUICK if options.quick else Plan(), save)
    save({"complete": True})
    print(f"\nfigures: {options.json}")
    return 1 if broken or fell_short(found) else 0


def run(
    measured: Sequence[Network],
    working: Sequence[Backend],
    plan: Plan,
    save: Callable[[dict[str, Any]], None] = lambda found: None,
    *,
    served: int = SERVED,
) -> dict[str, Any]:
    """Everything, printed as it comes; a backend that fails on a network is left out there, and said.

    Args:
        measured: networks.
        working: backends.
        plan: how thoroughly.
        save: called after every backend with what there is so far.
        served: samples of the line through zpipe's own loop.
    """
    figures: dict[str, Any] = {network.name: {} for network in measured}
    said: list[dict[str, Any]] = []
    found = {"networks": figures, "verdicts": said}
    for network in measured:
        for backend in working:
            print(f"\n{network.name} on {backend.name}", flush=True)
            try:
                figures[network.name][backend.name] = one = _measured(network, backend, plan, served)
                for verdict in verdicts(one, line_claimed=network.name != DIGITS):
                    show_verdict(verdict)
                    said.append({"network": network.name, "backend": backend.name, **asdict(verdict)})
            except Exception as exc:
                print(f"  not measured: {fault(exc)}", flush=True)
                figures[network.name][backend.name] = {"failed": fault(exc)}
            save(found)
    return found


def _measured(network: Network, backend: Backend, plan: Plan, served: int) -> dict[str, Any]:
    found = measure(network, backend, plan, lambda line: print(f"  ... {line}", flush=True))
    found["runtime"] = runtime(network, backend, served=served)
    show(found)
    return found


def fell_short(found: dict[str, Any]) -> bool:
    """Whether a claim does not hold, or a backend failed."""
    failed = any("failed" in one for by_backend in found["networks"].values() for one in by_backend.values())
    return failed or not all(verdict["holds"] for verdict in found["verdicts"])


def cannot_write(file: Path) -> str | None:
    """Why no figures can be written there, found before they are measured; None where they can. Leaves it as it is."""
    there = file.exists()
    try:
        with file.open("ab"):
            pass
        if not there:
            file.unlink()
    except OSError as exc:
        return f"found {file} that cannot be written ({exc.strerror}), expected a file that can; name another"
    return None


def runtime(network: Network, backend: Backend, *, served: int) -> dict[str, Any]:
    """The line through zpipe's own loop, exits off and at the bundle's default point."""
    points = dict.fromkeys(("no-exit", network.bundle.default_point.name))
    return {
        point: asdict(serve(backend, network.bundle, network.inputs, point=point, batch=CLAIMED_BATCH, samples=served))
        for point in points
    }


@contextmanager
def networks(resnet: Path | None, broken: dict[str, str]) -> Iterator[list[Network]]:
    """ResNet-50 where it can be had, and the digits; into `broken` goes what cannot."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        makers = {"resnet50": partial(_resnet50, resnet or folder / "resnet50"), DIGITS: _digits}
        found = []
        for network, make in makers.items():
            try:
                found.append(make(_made(folder / f"{network}-unsplit")))
            except Exception as exc:  # noqa: PERF203 - two networks
                broken[network] = fault(exc)
                print(f"{network}: not measured: {fault(exc)}", flush=True)
        yield found


def _resnet50(folder: Path, whole: Path) -> Network:
    """From the folder, or written into it."""
    from bench.models.unsplit import unsplit

    bundle = load_bundle(folder) if (folder / MANIFEST).is_file() else _written_resnet50(folder)
    return Network("resnet50", bundle, unsplit(bundle, whole), pictures(INPUTS, bundle.image_size, seed=1))


def _written_resnet50(folder: Path) -> Bundle:
    try:
        from bench.models.resnet50 import write_resnet50
    except ImportError as exc:
        raise BackendUnavailable(
            f"found no {exc.name}, expected it to write the network; run: pip install 'zpipe[train]', or give --resnet a folder"
        ) from exc
    folder.mkdir(parents=True, exist_ok=True)
    print("writing ResNet-50 ...", flush=True)
    return write_resnet50(folder)


def _digits(whole: Path) -> Network:
    from bench.models.unsplit import unsplit

    bundle = load_bundle(DIGITS)
    return Network(DIGITS, bundle, unsplit(bundle, whole), bundle.evaluation().images[:INPUTS])


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
