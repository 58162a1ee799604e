"""What runs stages on this GPU: TensorRT in two precisions, torch; each as a driver and a way to load a stage's engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from zpipe.bundle import Bundle
from zpipe.errors import ZpipeError, one_line
from zpipe.executors.cuda.driver import Driver, PinnedMemory, StageEngine, Stream
from zpipe.executors.cuda.presence import Gpus, gpus, require
from zpipe.executors.cuda.runner import CudaStages
from zpipe.report.machine import version

#: Engines are built for so many rows at once.
MAX_BATCH = 64


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to run engines.

    Attributes:
        name: as a topology would say it, `trt` or `torch-cuda`, and the precision.
        open: makes the driver.
        load: `(bundle, driver, stage, max_batch)`: a stage's engine; called in the driver's thread.
        prepare: builds engines for a bundle beforehand, so that no measurement holds it.
        versions: of its libraries.
    """

    name: str
    open: Callable[[], Driver]
    load: Callable[[Bundle, Driver, int, int], StageEngine]
    prepare: Callable[[Bundle], None] = lambda bundle: None
    versions: Mapping[str, str] = field(default_factory=dict)

    def executor(self, bundle: Bundle, stages: Sequence[int], *, tally: Tally | None = None) -> CudaStages:
        """The executor that nodes use, over this; it counts what it copies into `tally`."""
        make = self.open if tally is None else partial(tally.counting, self.open)
        return CudaStages(bundle, stages, driver=make, engine=partial(self.load, bundle), max_batch=MAX_BATCH)


@dataclass(slots=True)
class Tally:
    """Bytes that crossed between host and device."""

    to_device: int = 0
    to_host: int = 0

    def counting(self, open_driver: Callable[[], Driver]) -> Driver:
        """A driver whose copies are counted here."""
        driver: Any = open_driver()
        copy_in, copy_out = driver.copy_in, driver.copy_out

        def counted_in(address: int, source: PinnedMemory, nbytes: int, stream: Stream, *, offset: int = 0) -> None:
            self.to_device += nbytes
            copy_in(address, source, nbytes, stream, offset=offset)

        def counted_out(target: PinnedMemory, address: int, nbytes: int, stream: Stream, *, offset: int = 0) -> None:
            self.to_host += nbytes
            copy_out(target, address, nbytes, stream, offset=offset)

        driver.copy_in, driver.copy_out = counted_in, counted_out
        return driver  # type: ignore[no-any-return]


class Found(NamedTuple):
    """What there is to measure.

    Attributes:
        working: backends that run here.
        missing: {name: what is not here that it needs}.
        broken: {name: how it failed}, which nothing that is missing explains.
    """

    working: list[Backend]
    missing: dict[str, str]
    broken: dict[str, str]


def backends(device: int, bundle: Bundle) -> Found:
    """All of them, each tried on this bundle's first stage."""
    found = Found([], {}, {})
    for name, make in _MAKERS.items():
        try:
            found.working.append(_on_trial(make(device), bundle))
        except (ZpipeError, ImportError) as exc:  # noqa: PERF203 - four backends
            found.missing[name] = one_line(" ".join(str(exc).split()))
        except Exception as exc:
            found.broken[name] = fault(exc)
    return found


def fault(exc: Exception) -> str:
    """An error in a line: whatever a library raised, the others are measured."""
    said = " ".join(str(exc).split())
    return said if isinstance(exc, ZpipeError) else one_line(f"{type(exc).__name__}: {said}")


def _on_trial(made: Backend, bundle: Bundle) -> Backend:
    made.prepare(bundle)
    executor = made.executor(bundle, [0])
    try:
        executor.warm_up(1)
    finally:
        executor.close()
    return made


def _tensorrt(precision: str, device: int) -> Backend:
    require("trt")
    from zpipe.executors.cuda.pycuda import PycudaDriver
    from zpipe.executors.tensorrt.build import build_engines
    from zpipe.executors.tensorrt.engine import find_engine
    from zpipe.executors.tensorrt.flavour import flavours
    from zpipe.executors.tensorrt.manifest import target_text

    there = gpus()
    assert isinstance(there, Gpus)
    target = target_text(there.devices[device].capability)

    def load(bundle: Bundle, driver: Driver, stage: int, max_batch: int) -> StageEngine:
        hosted = range(len(bundle.stages))
        return find_engine(
            bundle, stage, capability=driver.capability, precision=precision, max_batch=max_batch, hosted=hosted
        ).load(driver)

    prepared: set[Path] = set()

    def prepare(bundle: Bundle) -> None:
        if bundle.path in prepared:
            return
        # Forced: what a precision costs is another question, and a network that was never trained has no accuracy to lose.
        build_engines(bundle, precision=precision, target=target, max_batch=MAX_BATCH, force=precision != "fp32")
        prepared.add(bundle.path)

    versions = {"tensorrt": str(flavours()[0]), "pycuda": str(version("pycuda"))}
    return Backend(f"trt {precision}", partial(PycudaDriver, device), load, prepare, versions)


def _torch(precision: str, device: int) -> Backend:
    require("torch-cuda")
    import torch

    from zpipe.executors.cuda.torch import TorchDriver
    from zpipe.executors.torch_cuda import TorchEngine

    load = partial(TorchEngine, half=precision == "fp16")
    versions = {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
    return Backend(f"torch-cuda {precision}", partial(TorchDriver, device), load, versions=versions)


_MAKERS: dict[str, Callable[[int], Backend]] = {
    "trt fp32": partial(_tensorrt, "fp32"),
    "trt fp16": partial(_tensorrt, "fp16"),
    "torch-cuda fp32": partial(_torch, "fp32"),
    "torch-cuda fp16": partial(_torch, "fp16"),
}
