"""`zpipe build`: a bundle's ONNX stages -> TensorRT engines, of a precision that was checked, beside their manifests.

In this order, so that what can be refused is refused before anything is written: library and target; what is there already and
fits; the precision, converted and checked; the engines; and their files, all of them at the end.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from zpipe.bundle import Bundle
from zpipe.errors import BackendUnavailable, ConfigError, ExecutorError
from zpipe.executors.cuda import presence
from zpipe.executors.tensorrt import check
from zpipe.executors.tensorrt.bindings import check_tensors, outputs_of
from zpipe.executors.tensorrt.convert import PRECISIONS, Converted, convert
from zpipe.executors.tensorrt.flavour import Built, Capability, Flavour, flavours, load_flavour
from zpipe.executors.tensorrt.manifest import (
    ANY,
    CURRENT,
    Accuracy,
    Engine,
    EngineKey,
    engine_folder,
    engines_of,
    fresh_folder,
    locked,
    parse_target,
    stage_digest,
    target_text,
    write_whole,
)
from zpipe.report import machine

log = logging.getLogger("zpipe.tensorrt")

#: A precision that costs more, in points (hundredths) at any exit, is refused.
MOST_LOST = 0.5
#: Larger batches gain nothing on the GPUs zpipe is for, and their buffers are taken once for good.
DEFAULT_MAX_BATCH = 64
_LARGEST_BATCH = 1024

#: Called as work goes on: (one line for people, fraction 0..1 of all work).
Tell = Callable[[str, float], None]

_LONG_SECONDS = 2.0

#: Fractions of all work at which steps end; building is the rest.
_CONVERTED, _CHECKED = 0.2, 0.6


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """One stage's engine, and whether it was there already."""

    engine: Engine
    kept: bool


def build_engines(
    bundle: Bundle,
    *,
    precision: str = "fp32",
    target: str = CURRENT,
    max_batch: int = DEFAULT_MAX_BATCH,
    stages: Sequence[int] | None = None,
    flavour: str | None = None,
    force: bool = False,
    at_hand: Capability | None = None,
    progress: Tell | None = None,
) -> list[BuiltEngine]:
    """Build the engines of a bundle's stages that are not there yet.

    Args:
        bundle: a real one.
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        target: a compute capability such as `8.6`, `current` for the GPU of this machine, or `any` for what `tensorrt_rtx` builds
            without being told, which runs from 8.0 on.
        max_batch: the most rows an engine takes at once.
        stages: which; all if not given.
        flavour: `trt` or `rtx`; if not given, the first that is installed and can build for the target.
        force: build what is there, too, and keep a precision that loses too much, or that nothing is there to check with.
        at_hand: of the GPU whose context is current, which is what `tensorrt` builds for; if not given, the first one's.
        progress: called from this thread.

    Returns:
        One entry per stage.

    Raises:
        ConfigError: precision, target, batch or stage do not exist, or there is no folder to write to.
        BackendUnavailable: no library that can, no GPU for `current`, or no `onnx` for a precision that needs it.
        BundleError: a stage's file is not what the manifest says.
        ExecutorError: the precision loses too much, or the library fails; nothing was written, and what was there stays.
    """
    tell = progress or _silent
    wanted = tuple(range(len(bundle.stages))) if stages is None else tuple(sorted(set(stages)))
    _check_arguments(bundle, precision, max_batch, wanted)
    library, capability = choose(target, flavour, precision, at_hand)
    keys = {stage: _key(bundle, stage, precision, max_batch, library, capability) for stage in wanted}
    there = {} if force else _there(bundle, keys)
    made: dict[int, Engine] = {}
    if len(there) < len(keys):
        folder = engine_folder(bundle)
        with locked(folder, lambda: tell(f"waiting for another build in {folder}", 0.0)):
            there = {} if force else _there(bundle, keys)  # somebody else may have built them while this waited
            missing = {stage: key for stage, key in keys.items() if stage not in there}
            if missing:
                made = _made(bundle, library, capability, missing, there, folder, force, tell)
    written = f"{len(made)} engines written to {next(iter(made.values())).plan.parent}" if made else "engines are there already"
    tell(written, 1.0)
    return [BuiltEngine(made.get(stage) or there[stage], kept=stage not in made) for stage in wanted]


def choose(
    target: str, flavour: str | None, precision: str, at_hand: Capability | None = None
) -> tuple[Flavour, Capability | None]:
    """The library, and the capability it is told to build for; None = `any`. `at_hand` as `build_engines` has it.

    Raises:
        ConfigError: the target is none, or no library builds for it; or the library has no such precision.
        BackendUnavailable: no library, or no GPU for `current`.
    """
    gpu = presence.gpus()
    if target == ANY:
        capability = None
    elif target != CURRENT:
        capability = parse_target(target)
    elif isinstance(gpu, presence.Missing):
        raise BackendUnavailable(
            f"--target {CURRENT}: found {gpu.found}, expected {gpu.expected}; name the capability of the GPU that is meant, "
            f"as in --target 8.6, for TensorRT-RTX builds without one"
        )
    else:
        capability = at_hand or gpu.devices[0].capability
    if at_hand is None and isinstance(gpu, presence.Gpus):
        at_hand = gpu.devices[0].capability
    here = () if isinstance(gpu, presence.Missing) else tuple(device.capability for device in gpu.devices)
    candidates = flavours() if flavour is None else (load_flavour(flavour),)
    able = [each for each in candidates if _builds(each, capability, at_hand, here)]
    if not able:
        raise ConfigError(_no_builder(target, candidates, at_hand))
    library = able[0]
    if precision not in library.precisions:
        raise ConfigError(
            f"--precision: found {precision}, expected one of {', '.join(library.precisions)} as {library} has; choose one of these"
        )
    if capability is not None and library.targets and capability not in library.targets:
        # A GPU that is here but in no list: what the library builds without being told may run on it, and only a run can say so.
        log.info("%s knows no capability %s: it is built for any GPU", library, target_text(capability))
        capability = None
    return library, capability


def _builds(library: Flavour, capability: Capability | None, at_hand: Capability | None, here: Sequence[Capability]) -> bool:
    if not library.targets:
        return capability is not None and capability == at_hand
    return capability is None or capability in library.targets or (capability in here and capability >= (8, 0))


def _no_builder(target: str, candidates: Sequence[Flavour], at_hand: Capability | None) -> str:
    lists = []
    for each in candidates:
        known = ", ".join(map(target_text, each.targets or filter(None, [at_hand]))) or "no GPU here"
        lists.append(f"{known} by {each}")
    return (
        f"--target: found {target}, expected one of: {'; '.join(lists)}; choose one of these"
        f"{f', or `{ANY}` for a GPU from 8.0 on that is not listed' if any(each.targets for each in candidates) else ''}"
    )


def _check_arguments(bundle: Bundle, precision: str, max_batch: int, stages: Sequence[int]) -> None:
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision: found {precision!r}, expected one of {', '.join(PRECISIONS)}; choose one of these")
    if not 1 <= max_batch <= _LARGEST_BATCH:
        raise ConfigError(f"--max-batch: found {max_batch}, expected 1 to {_LARGEST_BATCH}; choose one of these")
    unknown = [stage for stage in stages if not 0 <= stage < len(bundle.stages)]
    if unknown or not stages:
        raise ConfigError(f"stages: found {unknown or 'none'}, expected some of 0 to {len(bundle.stages) - 1} of {bundle.name}")


def _key(bundle: Bundle, stage: int, precision: str, max_batch: int, library: Flavour, target: Capability | None) -> EngineKey:
    text = ANY if target is None else target_text(target)
    return EngineKey(stage, precision, max_batch, library.tag, text, stage_digest(bundle, stage))


def _there(bundle: Bundle, keys: Mapping[int, EngineKey]) -> dict[int, Engine]:
    """Engines that need not be built: as wanted, and whole."""
    engines = {engine.key: engine for engine in engines_of(bundle)}
    return {stage: engines[key] for stage, key in keys.items() if key in engines and engines[key].whole()}


def _made(
    bundle: Bundle,
    library: Flavour,
    target: Capability | None,
    keys: Mapping[int, EngineKey],
    there: Mapping[int, Engine],
    folder: Path,
    force: bool,
    tell: Tell,
) -> dict[int, Engine]:
    """Builds these; on an error none of them stays, and those that were there do.

    They are written and tried beside the folder's engines, and take their places when all of that went well.
    """
    precision = next(iter(keys.values())).precision
    graphs = _converted(bundle, precision, tell)
    accuracy = _checked(bundle, precision, graphs, force, tell)
    _refuse_loss(accuracy, precision, force)
    plans = _built(bundle, library, target, {stage: (key, graphs[stage]) for stage, key in keys.items()}, folder, tell)
    with fresh_folder(folder) as fresh:
        made = {stage: _written(bundle, keys[stage], built, fresh, accuracy) for stage, built in plans.items()}
        here = _checked_here(bundle, library, target, sorted((*there.values(), *made.values()), key=lambda each: each.key.stage))
        if here is not None:
            _refuse_loss(here, precision, force)
            made = {stage: replace(engine, accuracy=here) for stage, engine in made.items()}
            for engine in made.values():
                engine.write()
        return {stage: engine.move(folder) for stage, engine in made.items()}


# ---- the precision -----------------------------------------------------------------------------


def _converted(bundle: Bundle, precision: str, tell: Tell) -> list[Converted]:
    """All stages in the precision: what one costs shows at the exits of those behind it."""
    originals = [bundle.stage_path(spec.index) for spec in bundle.stages]
    inputs = [np.empty(0)] * len(originals)
    if precision == "int8":
        tell("running the calibration samples", 0.0)
        evaluation = check.evaluation_of(bundle)
        images = evaluation.images[check.parts(evaluation).calibration]
        inputs = check.arriving([path.read_bytes() for path in originals], bundle.stages, images)
    graphs = []
    for stage, path in enumerate(originals):
        if precision != "fp32":
            tell(f"stage {stage} to {precision}", _CONVERTED * stage / len(originals))
        graphs.append(convert(path, precision, inputs[stage]))
    return graphs


def _checked(bundle: Bundle, precision: str, graphs: Sequence[Converted], force: bool, tell: Tell) -> Accuracy:
    """The cost of a precision by ONNX Runtime; fp32 is the bundle's own ONNX and costs nothing by itself."""
    if precision == "fp32" or (force and bundle.evaluation_file is None):
        return Accuracy()
    line = f"{precision} in ONNX Runtime on the evaluation set"
    return check.accuracy(
        bundle,
        "onnxruntime",
        partial(check.answers, [graph.check for graph in graphs], bundle.stages),
        lambda fraction: tell(line, _CONVERTED + (_CHECKED - _CONVERTED) * fraction),
    )


def _checked_here(bundle: Bundle, library: Flavour, target: Capability | None, engines: Sequence[Engine]) -> Accuracy | None:
    """The cost by the engines themselves; None where they don't run here, or are not all of the bundle's."""
    gpu = presence.gpus()
    if isinstance(gpu, presence.Missing) or presence.missing_for("trt") is not None:
        return None
    ordinals = [at for at, device in enumerate(gpu.devices) if target in (None, device.capability)]
    if not ordinals or len(engines) < len(bundle.stages) or bundle.evaluation_file is None:
        return None
    from zpipe.executors.trt import answers

    try:
        return check.accuracy(bundle, "engine", partial(answers, bundle, library, engines, ordinals[0]), lambda fraction: None)
    except BackendUnavailable as exc:  # pycuda may be broken where TensorRT is not
        log.warning("the engines were not tried here: %s", exc)
        return None


def _refuse_loss(accuracy: Accuracy, precision: str, force: bool) -> None:
    if accuracy.worst <= MOST_LOST:
        return
    worse = {stage: lost for stage, lost in enumerate(accuracy.lost) if lost is not None and lost > MOST_LOST}
    exits = ", ".join(f"{lost:.1f} points at stage {stage}" for stage, lost in worse.items())
    line = f"--precision {precision}: found an accuracy that falls by {exits}, expected at most {MOST_LOST} at any exit"
    if not force:
        raise ExecutorError(f"{line}; take another precision, or --force to keep it")
    log.warning("%s; kept, as --force wants it", line)


# ---- the engines -------------------------------------------------------------------------------


def _built(
    bundle: Bundle,
    library: Flavour,
    target: Capability | None,
    work: dict[int, tuple[EngineKey, Converted]],
    folder: Path,
    tell: Tell,
) -> dict[int, Built]:
    plans: dict[int, Built] = {}
    timings = folder / f"timing-{library.tag}-{ANY if target is None else target_text(target)}.cache"
    cache = timings.read_bytes() if timings.is_file() else b""
    first = 0.0 if next(iter(work.values()))[0].precision == "fp32" else _CHECKED
    for done, (stage, (key, graph)) in enumerate(work.items()):
        line = f"stage {stage}: {key}"
        begin, share = first + (1 - first) * done / len(work), (1 - first) / len(work)
        tell(line, begin)
        plans[stage] = built = library.build(
            graph.engine,
            what=f"{bundle.stage_path(stage)} in {key.precision}",
            outputs=list(outputs_of(bundle.stages[stage])),
            precision=key.precision,
            target=target,
            max_batch=key.max_batch,
            timing_cache=cache,
            progress=_slowly(tell, line, begin, share),
        )
        check_tensors(str(bundle.stage_path(stage)), bundle.stages[stage], built.tensors)
        if built.timing_cache and built.timing_cache != cache:
            cache = built.timing_cache
            write_whole(timings, cache)
    return plans


def _slowly(tell: Tell, line: str, begin: float, share: float) -> Callable[[float], None]:
    """Tells of a build that takes long, and nothing of one that does not."""
    start = time.monotonic()

    def told(fraction: float) -> None:
        if time.monotonic() - start > _LONG_SECONDS:
            tell(line, begin + share * fraction)

    return told


def _written(bundle: Bundle, key: EngineKey, built: Built, folder: Path, accuracy: Accuracy) -> Engine:
    engine = Engine(
        key=key,
        plan=folder / f"{key.name}.plan",
        plan_digest=f"sha256:{hashlib.sha256(built.plan).hexdigest()}",
        plan_bytes=len(built.plan),
        build_seconds=round(built.seconds, 3),
        accuracy=accuracy,
        tensors={tensor.name: {"dtype": tensor.dtype, "shape": list(tensor.shape)} for tensor in built.tensors},
        profile=built.profile,
        bundle=bundle.name,
        machine=machine(),
    )
    write_whole(engine.plan, built.plan)
    engine.write()
    return engine


def _silent(line: str, fraction: float) -> None:
    """Tell nobody."""
