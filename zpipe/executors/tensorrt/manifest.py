"""Where engines lie, what each is, and which fits.

An engine is a plan and a manifest of the same name beside it, in `trt/` of the bundle's folder (git ignores it), or in the
user's cache where that cannot be written: `stage0-fp16-b64-rtx1.7.1.116-sm86-1c2d...plan` and `.json`. A plan is valid for one
library, version, GPU capability and ONNX; the manifest says them all, and the sha256 of the plan. It is written last: a plan
without one is nobody's.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from zpipe.bundle import Bundle, file_digest
from zpipe.errors import BundleError, ConfigError
from zpipe.executors.tensorrt.convert import CONVERSION
from zpipe.executors.tensorrt.flavour import Capability

log = logging.getLogger("zpipe.tensorrt")

SCHEMA = "zpipe.engine/1"
FOLDER = "trt"
#: A target that is no single capability: what `tensorrt_rtx` builds without being told, for 8.0 and later.
ANY = "any"
CURRENT = "current"

_DIGEST_LETTERS = 12


@dataclass(frozen=True, slots=True)
class EngineKey:
    """What an engine is good for.

    Attributes:
        stage: of the bundle.
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        max_batch: most rows.
        flavour: key and version of the library, as `rtx1.7.1.116`.
        target: capability of the GPU as text, or `any`.
        onnx: sha256 of the bundle's file.
    """

    stage: int
    precision: str
    max_batch: int
    flavour: str
    target: str
    onnx: str

    @property
    def name(self) -> str:
        """Of the files, without suffix."""
        target = self.target if self.target == ANY else "sm" + self.target.replace(".", "")
        digest = self.onnx.removeprefix("sha256:")[:_DIGEST_LETTERS]
        return f"stage{self.stage}-{self.precision}-b{self.max_batch}-{self.flavour}-{target}-{digest}"

    def __str__(self) -> str:
        target = "any GPU" if self.target == ANY else f"capability {self.target}"
        return f"{self.precision} up to batch {self.max_batch} by {self.flavour} for {target}"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What a precision costs, on samples that took no part in its calibration.

    Attributes:
        by: what ran the converted network: `onnxruntime`, `engine`, or `none` for the bundle's own ONNX in its own precision.
        samples: how many.
        before: per stage, fraction of samples whose label is right by the bundle's ONNX; None without an exit.
        after: the same by the converted network.
    """

    by: str = "none"
    samples: int = 0
    before: tuple[float | None, ...] = ()
    after: tuple[float | None, ...] = ()

    @property
    def lost(self) -> tuple[float | None, ...]:
        """Per stage, points (hundredths) of accuracy lost; negative where it gained."""
        pairs = zip(self.before, self.after, strict=True)
        return tuple(None if one is None or other is None else 100 * (one - other) for one, other in pairs)

    @property
    def worst(self) -> float:
        """The largest loss among the exits, in points; 0 where nothing was converted."""
        return max((lost for lost in self.lost if lost is not None), default=0.0)


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine on disk.

    Attributes:
        key: what it is good for.
        plan: its file.
        plan_digest: sha256 of that file.
        plan_bytes: size.
        build_seconds: building it took.
        accuracy: of the whole chain in this precision.
        tensors: `{name: {"dtype": ..., "shape": [-1, ...]}}`.
        profile: batch at least, at best, at most.
        bundle: name, for people.
        machine: it was built on.
    """

    key: EngineKey
    plan: Path
    plan_digest: str
    plan_bytes: int
    build_seconds: float
    accuracy: Accuracy
    tensors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    profile: tuple[int, ...] = ()
    bundle: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def compiled(self) -> Path:
        """Where `tensorrt_rtx` keeps the kernels it compiled for the GPU at hand."""
        return self.plan.with_suffix(".kernels")

    def whole(self) -> bool:
        """Whether the plan is the file that was written."""
        try:
            return file_digest(self.plan) == self.plan_digest
        except OSError:
            return False

    def write(self) -> None:
        """The manifest; the plan is there already."""
        document = {"schema": SCHEMA, "conversion": CONVERSION, **asdict(replace(self, plan=Path(self.plan.name)))}
        document["plan"] = self.plan.name
        write_whole(self.plan.with_suffix(".json"), (json.dumps(document, indent=1) + "\n").encode())

    def move(self, folder: Path) -> Engine:
        """Into a folder of the same disk, in the place of one of its name.

        The manifest comes last: what is cut off before is a plan that no manifest vouches for, and built anew.

        Raises:
            ConfigError: a file cannot be put there.
        """
        moved = replace(self, plan=folder / self.plan.name)
        pairs = [(self.plan, moved.plan), (self.plan.with_suffix(".json"), moved.plan.with_suffix(".json"))]
        try:
            for file, place in pairs:
                file.replace(place)
            if self.compiled.is_file():
                self.compiled.replace(moved.compiled)
            else:
                moved.compiled.unlink(missing_ok=True)  # of the plan before
        except OSError as exc:
            raise ConfigError(f"{folder}: found that it cannot be written ({exc.strerror}), expected to; see its rights") from exc
        return moved


def read_engine(manifest: Path) -> Engine:
    """The engine of a manifest; its plan is not looked into.

    Raises:
        BundleError: it is none, or of another version of zpipe.
    """
    try:
        document = json.loads(manifest.read_text(encoding="utf-8"))
        if (document["schema"], document["conversion"]) != (SCHEMA, CONVERSION):
            raise ValueError(f"schema {document['schema']}, conversion {document['conversion']}")
        accuracy = document["accuracy"]
        return Engine(
            key=EngineKey(**document["key"]),
            plan=manifest.with_suffix(".plan"),
            plan_digest=document["plan_digest"],
            plan_bytes=int(document["plan_bytes"]),
            build_seconds=float(document["build_seconds"]),
            accuracy=Accuracy(accuracy["by"], int(accuracy["samples"]), tuple(accuracy["before"]), tuple(accuracy["after"])),
            tensors=document["tensors"],
            profile=tuple(document["profile"]),
            bundle=document["bundle"],
            machine=document["machine"],
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
        found = " ".join(f"{type(exc).__name__}: {exc}".split())
        raise BundleError(
            f"{manifest}: found no readable engine manifest ({found:.120}), expected {SCHEMA}; build it anew with `zpipe build`"
        ) from exc


def engines_of(bundle: Bundle) -> tuple[Engine, ...]:
    """All engines of a bundle that have a readable manifest and a plan, of any flavour, by name."""
    found: dict[str, Engine] = {}
    for folder in _folders(bundle):
        for manifest in sorted(folder.glob("stage*.json")):
            try:
                engine = read_engine(manifest)
            except BundleError as exc:
                log.debug("%s", exc)
                continue
            if engine.plan.is_file():
                found.setdefault(engine.key.name, engine)
    return tuple(found[name] for name in sorted(found))


def fitting(engines: Iterable[Engine], wanted: EngineKey) -> Engine | None:
    """The best engine for `wanted`: of the smallest batch that is enough, or the largest; built for that GPU before one for any."""

    def order(engine: Engine) -> tuple[bool, int, bool]:
        batch = engine.key.max_batch
        return batch < wanted.max_batch, batch if batch >= wanted.max_batch else -batch, engine.key.target == ANY

    return min((engine for engine in engines if fits(engine.key, wanted)), key=order, default=None)


def fits(key: EngineKey, wanted: EngineKey) -> bool:
    """Whether an engine may stand in for another but for its batch: same stage, precision, library, ONNX; a GPU it runs on."""
    runs = key.target == wanted.target or (key.target == ANY and (wanted.target == ANY or parse_target(wanted.target) >= (8, 0)))
    return runs and replace(key, max_batch=0, target="") == replace(wanted, max_batch=0, target="")


def stage_digest(bundle: Bundle, stage: int) -> str:
    """sha256 of a stage's ONNX as it is on disk.

    Raises:
        BundleError: the file is absent.
    """
    path = bundle.stage_path(stage)
    try:
        return file_digest(path)
    except OSError as exc:
        raise BundleError(f"{path}: found no such file, expected the ONNX of stage {stage}; restore the bundle's files") from exc


def engine_folder(bundle: Bundle) -> Path:
    """Where new engines go: the bundle's folder if it can be written, else the user's cache.

    Raises:
        ConfigError: neither can be written.
    """
    reasons = []
    for folder in _folders(bundle):
        reason = _unwritable(folder)
        if reason is None:
            return folder
        reasons.append(f"{folder} ({reason})")
    raise ConfigError(f"engines: found no folder to write to: {', '.join(reasons)}, expected one; set XDG_CACHE_HOME to another")


def _unwritable(folder: Path) -> str | None:
    probe = folder / f".write-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as exc:
        return exc.strerror
    return None


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """An empty folder on the same disk, gone afterwards with what is left in it; for whoever is `locked`."""
    fresh = folder / ".new"
    shutil.rmtree(fresh, ignore_errors=True)  # of a build that was killed
    try:
        fresh.mkdir()
    except OSError as exc:
        raise ConfigError(f"{fresh}: found that it cannot be made ({exc.strerror}), expected room there; free some") from exc
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def locked(folder: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Alone among the processes that build into a folder: nodes of one machine start together and want the same engines.

    Args:
        folder: it exists.
        waits: called once if somebody else builds there.
    """
    with (folder / ".lock").open("w") as file:
        try:
            import fcntl
        except ImportError:  # not a Unix: two that build at once do the same work twice
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the file
        except BlockingIOError:
            waits()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_whole(file: Path, content: bytes) -> None:
    """All of it or nothing, also where the power goes."""
    # Two executors of one process may keep the same file, each on a thread of its own.
    fresh = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with fresh.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(file)
    except BaseException as exc:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        if not isinstance(exc, OSError):  # Ctrl-C
            raise
        raise ConfigError(f"{file}: found that it cannot be written ({exc.strerror}), expected room there; free some") from exc


def parse_target(text: str) -> Capability:
    """A capability as people write it.

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(r"(\d{1,2})\.(\d)", text)
    if match is None:
        raise ConfigError(
            f"--target: found {text!r}, expected a compute capability such as 8.6, `{CURRENT}` for the GPU of this machine, "
            f"or `{ANY}`; https://developer.nvidia.com/cuda-gpus lists them"
        )
    return int(match[1]), int(match[2])


def target_text(capability: Capability) -> str:
    """As people write it."""
    return f"{capability[0]}.{capability[1]}"


def _folders(bundle: Bundle) -> Iterator[Path]:
    yield bundle.real.path / FOLDER
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    yield cache / "zpipe" / FOLDER / f"{bundle.name}-{bundle.digest[:_DIGEST_LETTERS]}"
