"""One stage's engine for the GPU at hand: found among those built before, or built now, loaded and run.

Which engine, in this order:

1. One that fits - this GPU, an installed library's version, this ONNX, this precision - and takes the batches asked for; the
   largest that fits if none does (a larger batch is then run in pieces).
2. There are engines of this stage and precision, but none fits: EngineMismatchError. Somebody meant one of them to be used.
   Where nobody asked for TensorRT by name (`rebuild`), one is built as in 3.
3. There is none: it is built, for all stages hosted here at once, and a line in the log says so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zpipe.bundle import Bundle
from zpipe.errors import EngineMismatchError
from zpipe.executors.cuda import presence
from zpipe.executors.cuda.driver import Driver, Stream
from zpipe.executors.cuda.runner import common_batches
from zpipe.executors.tensorrt.bindings import check_tensors
from zpipe.executors.tensorrt.build import build_engines
from zpipe.executors.tensorrt.flavour import Capability, Flavour, flavours
from zpipe.executors.tensorrt.loaded import LoadedEngine
from zpipe.executors.tensorrt.manifest import (
    ANY,
    Engine,
    EngineKey,
    engines_of,
    fitting,
    stage_digest,
    target_text,
)
from zpipe.model import StageSpec

log = logging.getLogger("zpipe.tensorrt")


class TrtEngine:
    """A stage on the device; see `driver.StageEngine`.

    Args:
        driver: whose device it is.
        spec: of the stage.
        engine: on disk, one that fits.
        flavour: the library that built it.
        remedy: the command that builds one, to which an option may be added.

    Raises:
        EngineMismatchError: the plan is damaged, or the library does not take it.
        BackendUnavailable: the library takes no plan here, for the GPU or its driver.
        BundleError: its tensors are not the stage's.
    """

    def __init__(self, driver: Driver, spec: StageSpec, engine: Engine, flavour: Flavour, remedy: str) -> None:
        what = f"stage {spec.index}"
        if not engine.whole():
            raise EngineMismatchError(f"{engine.plan}: found another file than was built, expected its sha256; {remedy}")
        self._loaded = LoadedEngine(
            flavour,
            engine.plan.read_bytes(),
            allocate=driver.allocate,
            what=f"{what} ({engine.key})",
            remedy=f"expected one it does; {remedy} --force",  # by its name and sha256 it fits, and would be kept
            compiled=engine.compiled,
        )
        try:
            check_tensors(str(engine.plan), spec, self._loaded.tensors)
            stream = driver.stream()  # it has to be there while the library looks at it
            self.capturable = self._loaded.capturable(stream.handle)
        except BaseException:
            self._loaded.close()
            raise
        self.max_batch = engine.key.max_batch
        self.logits = next((tensor.dtype for tensor in self._loaded.tensors if tensor.name == "logits"), None)
        every = range(1, self.max_batch + 1)
        # Where a size costs a stop for compiling when it first runs, only those are run that the warm-up runs.
        sizes = common_batches(self.max_batch) if flavour.key == "rtx" else every
        #: {rows asked for: rows run}
        self._rows = {rows: next(size for size in sizes if size >= rows) for rows in every}

    def __repr__(self) -> str:
        return f"<TrtEngine {self._loaded!r} | up to {self.max_batch}>"

    def runs_as(self, batch: int) -> int:
        """On `tensorrt_rtx` the next common size."""
        return self._rows[batch]

    def enqueue(self, batch: int, addresses: Mapping[str, int], stream: Stream) -> None:
        """Queues one batch, at the size that it runs as."""
        self._loaded.enqueue(self.runs_as(batch), addresses, stream.handle)

    def close(self) -> None:
        """Frees it."""
        self._loaded.close()


@dataclass(frozen=True, slots=True)
class Found:
    """An engine on disk, the library that built it, and the command that would build it anew."""

    spec: StageSpec
    engine: Engine
    flavour: Flavour
    remedy: str

    def load(self, driver: Driver) -> TrtEngine:
        """On the driver's device; see `TrtEngine` for what it raises."""
        return TrtEngine(driver, self.spec, self.engine, self.flavour, self.remedy)


def find_engine(
    bundle: Bundle,
    stage: int,
    *,
    capability: Capability,
    precision: str,
    max_batch: int,
    hosted: Sequence[int],
    rebuild: bool = False,
) -> Found:
    """The engine for a stage on a GPU, as the module says.

    Args:
        bundle: the network.
        stage: which.
        capability: of the GPU, whose context is current.
        precision: of the engine.
        max_batch: rows it should take.
        hosted: all stages wanted here; built together.
        rebuild: build beside engines that do not fit, or are damaged, instead of refusing them.

    Raises:
        EngineMismatchError: there are engines, but not for this GPU, library or ONNX, and `rebuild` is off.
        BackendUnavailable: no library loads.
        ExecutorError: building failed, or the precision loses too much.
    """
    installed = flavours()
    wanted = [
        EngineKey(stage, precision, max_batch, each.tag, target_text(capability), stage_digest(bundle, stage)) for each in installed
    ]
    there = [engine for engine in engines_of(bundle) if (engine.key.stage, engine.key.precision) == (stage, precision)]
    usable = [engine for engine in there if engine.whole()] if rebuild else there
    for flavour, key in zip(installed, wanted, strict=True):
        engine = fitting(usable, key)
        if engine is not None:
            if engine.key.max_batch < max_batch:
                log.info("stage %d: batches over %d run in pieces; %s", stage, engine.key.max_batch, command(bundle, key))
            return Found(bundle.stages[stage], engine, flavour, command(bundle, key))
    if there and not rebuild:
        raise _mismatch(bundle, there, wanted)
    found = f"an engine for {_nearest(there, wanted)[0]}" if there else f"no {precision} engine"
    log.info("stage %d: found %s: building one for %s, which may take minutes", stage, found, target_text(capability))
    target = target_text(capability)
    built = build_engines(bundle, precision=precision, target=target, at_hand=capability, max_batch=max_batch, stages=hosted)
    seconds = sum(each.engine.build_seconds for each in built if not each.kept)
    log.info("engines of stages %s built in %.1f s", ", ".join(map(str, hosted)), seconds)
    engine = next(each.engine for each in built if each.engine.key.stage == stage)
    flavour = next(each for each in installed if each.tag == engine.key.flavour)
    return Found(bundle.stages[stage], engine, flavour, command(bundle, wanted[0]))


def command(bundle: Bundle, wanted: EngineKey) -> str:
    """What to run on the machine of the GPU, which need not be the first there."""
    options = f"--precision {wanted.precision} --target {wanted.target} --max-batch {wanted.max_batch}"
    return f"run here: {_first(wanted)}zpipe build --bundle {_named(bundle)} {options}"


def _first(wanted: EngineKey) -> str:
    """The full library builds for the first GPU it sees."""
    gpu = presence.gpus() if wanted.flavour.startswith("trt") else None
    if not isinstance(gpu, presence.Gpus):
        return ""
    ordinal = next((at for at, device in enumerate(gpu.devices) if target_text(device.capability) == wanted.target), 0)
    if target_text(gpu.devices[0].capability) == wanted.target or not ordinal:
        return ""
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return f"CUDA_VISIBLE_DEVICES={seen[ordinal] if ordinal < len(seen) else ordinal} "


def _named(bundle: Bundle) -> str:
    """As `zpipe build` finds it from here: short for the usual places."""
    path = bundle.real.path
    usual = path.name == bundle.name and path.parent.name == "engines"
    return bundle.name if usual and Path("engines", bundle.name).resolve() == path.resolve() else str(path)


def _mismatch(bundle: Bundle, there: Sequence[Engine], wanted: Sequence[EngineKey]) -> EngineMismatchError:
    """Names the engine that is nearest, and what differs."""
    nearest, differences = _nearest(there, wanted)
    libraries = " or ".join(key.flavour for key in wanted)
    return EngineMismatchError(
        f"stage {nearest.stage}: found an engine for {nearest}{differences.get('onnx', '')}, expected {nearest.precision} by "
        f"{libraries} for capability {wanted[0].target}{' from the ONNX that is here' if 'onnx' in differences else ''}; "
        f"{command(bundle, wanted[0])}"
    )


def _nearest(there: Sequence[Engine], wanted: Sequence[EngineKey]) -> tuple[EngineKey, dict[str, str]]:
    pairs = [(engine.key, _differences(engine.key, key)) for engine in there for key in wanted]
    return min(pairs, key=lambda pair: len(pair[1]))


def _differences(key: EngineKey, wanted: EngineKey) -> dict[str, str]:
    differences = {}
    if key.flavour != wanted.flavour:
        differences["flavour"] = key.flavour
    if key.target not in (wanted.target, ANY):
        differences["target"] = key.target
    if key.onnx != wanted.onnx:
        differences["onnx"] = f" from another ONNX ({key.onnx.removeprefix('sha256:')[:12]})"
    return differences
