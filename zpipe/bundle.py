"""Model bundles: find one, check it, read it.

A *bundle* is a folder (`engines/NAME/`): `manifest.json`, one ONNX file per stage, `evaluation.npz` (real samples with truth)
and `replay.npz` (what every exit says about each of them). This module needs neither torch nor ONNX Runtime, so that a node
that only emulates a network can still use it. `zpipe.models` writes bundles.

Trust: each file's sha256 stands in the manifest, and `Bundle.digest` is the sha256 of the manifest itself, so two nodes that
agree on one short string agree on every byte of the network.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.errors import BundleError
from zpipe.model import CODECS, DTYPE_BYTES, ExitHead, OperatingPoint, PointMetrics, StageSpec, TensorSpec

SCHEMA = "zpipe.bundle/1"
MANIFEST = "manifest.json"

#: Bytes read at a time while hashing: a bundle must not need its own size in memory on a small board.
_HASH_CHUNK_BYTES = 1 << 20

#: An emulated row begins with the index of its evaluation sample: unsigned, little endian, which no codec touches.
INDEX_BYTES = 4

#: What NumPy raises at a file that is no npz.
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)

_REMEDY = "restore the bundle's files (git checkout, or copy the folder again) or make it anew with `zpipe train`"


# ---- what a bundle is --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a caller must do to an image before stage 0; everything else (normalisation) lies inside stage 0.

    Attributes:
        size: height and width in pixels.
        channels: their order, `RGB`.
        layout: `CHW` (channels first).
        dtype: `uint8`, values 0..255.
        note: one sentence for people.
    """

    size: int
    channels: str
    layout: str
    dtype: str
    note: str


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The bundle's own test samples, never used in training or calibration.

    Attributes:
        images: `[samples, 3, size, size] uint8`, as stage 0 takes them.
        labels: `[samples] int64`, indices into the bundle's classes.
        severity: `[samples] int64`, strength of the distortion, 0 = none.
        digit: `[samples] int64`, which original image a sample shows; samples of one original are not independent, so
            bootstrap over this column.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    severity: npt.NDArray[np.int64]
    digit: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """What each exit answers to each evaluation sample, computed once by ONNX Runtime at batch 1.

    Attributes:
        labels: `[samples, exits] int16`.
        confidences: `[samples, exits] float32`, max softmax(logits / temperature).
    """

    labels: npt.NDArray[np.int16]
    confidences: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CodecMetrics:
    """What a codec at every cut costs in accuracy, on the evaluation set at the default operating point: fractions.

    Attributes:
        accuracy: 0..1, through the codec.
        lost: accuracy without any codec minus that; below 0 where the codec happened to do better.
        cut_bytes: mean bytes of one row of each cut, in order.
    """

    accuracy: float
    lost: float
    cut_bytes: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked model bundle.

    Attributes:
        name: as the manifest says, not the folder.
        path: the folder.
        classes: names of the labels.
        preprocessing: what the caller must do to an image.
        stages: the chain, in order.
        operating_points: ordered by mean multiply-adds on calibration, cheapest first.
        default_point: one of them, fixed before the test split was looked at.
        digest: sha256 (hex) of the manifest's canonical JSON, which holds the digest of every file.
        full_macs: multiply-adds of all stages for one sample, exit heads included.
        codecs: {codec: what it costs}, for those that were measured.
        emulates: the real bundle, where this one is its emulation (`emulated`); None for a real one.
    """

    name: str
    path: Path
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    stages: tuple[StageSpec, ...]
    operating_points: tuple[OperatingPoint, ...]
    default_point: OperatingPoint
    digest: str
    full_macs: int
    evaluation_file: str | None
    evaluation_samples: int
    replay_file: str | None
    bottleneck_file: str | None = None
    codecs: Mapping[str, CodecMetrics] = field(default_factory=dict, hash=False)
    emulates: Bundle | None = None

    def __repr__(self) -> str:
        return (
            f"<Bundle {self.name} | {len(self.stages)} stages, {self.full_macs / 1e6:.1f} M multiply-adds | "
            f"default {self.default_point.name} | {self.digest[:12]}>"
        )

    @property
    def real(self) -> Bundle:
        """The bundle whose tensors really are what the network computes with: itself, unless it is an emulation."""
        return self.emulates or self

    @property
    def prefix_bytes(self) -> int:
        """Bytes before the tensor in each row that travels, which codecs leave alone."""
        return INDEX_BYTES if self.emulates else 0

    def emulated(self) -> Bundle:
        """The same network as the emulated executor plays it.

        What goes in and out of a stage is a row of bytes, `[4 + bytes of the real tensor] uint8`: the index of the evaluation
        sample, then bytes as they were once computed. Files, digest and operating points are the same.
        """
        stages = tuple(
            replace(spec, input=_as_row(spec.input), output=None if spec.output is None else _as_row(spec.output))
            for spec in self.real.stages
        )
        return replace(self, stages=stages, emulates=self.real)

    def stage_path(self, stage: int) -> Path:
        """Path of a stage's ONNX file."""
        return self.path / self.stages[stage].file

    def point(self, name: str) -> OperatingPoint:
        """The operating point of that name.

        Raises:
            BundleError: there is none.
        """
        for point in self.operating_points:
            if point.name == name:
                return point
        names = ", ".join(point.name for point in self.operating_points)
        raise BundleError(f"bundle {self.name}: operating point: found {name!r}, expected one of {names}; choose one of these")

    def evaluation(self) -> Evaluation:
        """Read the evaluation set (from disk at every call: keep the answer); an emulation's images are its rows of bytes.

        Raises:
            BundleError: the bundle has none, or the file does not hold what the manifest says.
        """
        if self.evaluation_file is None:
            raise BundleError(f"{self.path / MANIFEST}: evaluation: found none, expected a file; {_REMEDY}")
        path = self.path / self.evaluation_file
        samples = self.evaluation_samples
        arrays = _read_npz(
            path,
            {
                "images": ("uint8", (samples, *self.real.stages[0].input.shape)),
                "labels": ("int", (samples,)),
                "severity": ("int", (samples,)),
                "digit": ("int", (samples,)),
            },
        )
        labels = arrays["labels"].astype(np.int64)
        if samples and not (labels.min() >= 0 and labels.max() < len(self.classes)):
            found = f"{labels.min()}..{labels.max()}"
            raise BundleError(f"{path}: labels: found {found}, expected 0..{len(self.classes) - 1}; {_REMEDY}")
        images = arrays["images"] if self.emulates is None else indexed_rows(arrays["images"])
        return Evaluation(images, labels, arrays["severity"].astype(np.int64), arrays["digit"].astype(np.int64))

    def replay(self, codec: str = "none") -> Replay:
        """What every exit says about every evaluation sample when each stage boundary passes through `codec`.

        A codec that packs another without loss (`int8+zstd`) has that one's table.

        Raises:
            BundleError: the bundle has none, or none for this codec.
        """
        if self.replay_file is None:
            raise BundleError(f"{self.path / MANIFEST}: replay: found none, expected a file; {_REMEDY}")
        shape = (self.evaluation_samples, len(self.stages))
        table = lossy_part(codec)
        keys = {f"label.{table}": ("int16", shape), f"confidence.{table}": ("float32", shape)}
        arrays = _read_npz(self.path / self.replay_file, keys)
        return Replay(arrays[f"label.{table}"], arrays[f"confidence.{table}"])

    def bottleneck(self) -> dict[str, npt.NDArray[np.float32]]:
        """The weights of the learned codec, by name (`zpipe.codecs.bottleneck` says which there are).

        Raises:
            BundleError: the bundle has none, or they are not float32.
        """
        if self.bottleneck_file is None:
            raise BundleError(
                f"{self.path / MANIFEST}: bottleneck: found none, expected a file for the codec bottleneck; take another codec, or "
                "make a bundle that has one with `zpipe train`"
            )
        path = self.path / self.bottleneck_file
        arrays = _read_arrays(path, "the weights of the codec bottleneck")
        for key, array in arrays.items():
            if array.dtype != np.float32:
                raise BundleError(f"{path}: {key}: found {array.dtype}, expected float32; {_REMEDY}")
        return arrays

    def replay_codecs(self) -> tuple[str, ...]:
        """The codecs `replay` has a table for; () where the bundle has no replay at all.

        Raises:
            BundleError: the file cannot be read.
        """
        if self.replay_file is None:
            return ()
        path = self.path / self.replay_file
        try:
            with np.load(path, allow_pickle=False) as archive:
                keys = list(archive.files)
        except _UNREADABLE as exc:
            raise BundleError(f"{path}: found no readable npz ({exc}), expected the replay's tables; {_REMEDY}") from exc
        return tuple(codec for codec in CODECS if f"label.{lossy_part(codec)}" in keys)


def lossy_part(codec: str) -> str:
    """The codec that decides what arrives: what follows a plus sign in a name only packs, without loss."""
    return codec.partition("+")[0]


def indexed_rows(tensors: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Tensors as an emulation's rows: row k is k in `INDEX_BYTES` bytes, then the bytes of `tensors[k]`.

    Args:
        tensors: `[samples, ...]`, any dtype.

    Returns:
        `[samples, 4 + bytes per sample] uint8`.
    """
    count = len(tensors)
    index = np.arange(count, dtype="<u4").view(np.uint8).reshape(count, INDEX_BYTES)
    return np.concatenate([index, np.ascontiguousarray(tensors).reshape(count, -1).view(np.uint8)], axis=1)


def _as_row(spec: TensorSpec) -> TensorSpec:
    return TensorSpec("uint8", (INDEX_BYTES + spec.bytes,))


# ---- finding one -------------------------------------------------------------------------------


def load_bundle(name_or_path: str | Path, *, beside: Path | None = None, verify: bool = True) -> Bundle:
    """Find a bundle by path or name, check it and read its manifest.

    Looked for in this order: as a path; beside the topology file (`beside`: the file or its folder) and in `../engines` from
    there; in `./engines`; in the installed package; in the `engines/` of a source checkout.

    Args:
        name_or_path: a bundle's folder, or its name.
        beside: the topology file that named the bundle, if one did.
        verify: hash every file (about 10 ms for the digits bundle). Without it only the manifest is checked.

    Raises:
        BundleError: not found (the places tried are listed), or something in it is wrong (file, key, found, expected).
    """
    folder = _find(Path(name_or_path), beside)
    manifest = _read_manifest(folder / MANIFEST)
    bundle = _parse(folder, manifest)
    if verify:
        _verify_files(folder, manifest, bundle)
    return bundle


def _find(wanted: Path, beside: Path | None) -> Path:
    """The first place that holds a manifest."""
    places = list(dict.fromkeys(_places(wanted, beside)))
    for place in places:
        if (place / MANIFEST).is_file():
            return place
    tried = ", ".join(str(place) for place in places)
    raise BundleError(
        f"bundle {str(wanted)!r}: found no {MANIFEST}, expected one in one of: {tried}; "
        f"give a path to a bundle's folder, or make one with `zpipe train`"
    )


def _places(wanted: Path, beside: Path | None) -> Iterator[Path]:
    if wanted.name == MANIFEST:
        wanted = wanted.parent
    yield wanted
    if wanted.is_absolute():
        return
    if beside is not None:
        folder = beside.parent if beside.is_file() else beside
        yield folder / wanted
        yield Path(os.path.normpath(folder / ".." / "engines" / wanted))
    yield Path("engines") / wanted
    package = Path(__file__).resolve().parent
    yield package / "data" / "engines" / wanted
    yield package.parent / "engines" / wanted


# ---- reading the manifest ----------------------------------------------------------------------


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """sha256 (hex) of the manifest as canonical JSON: keys sorted, no spaces, ASCII."""
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def file_digest(path: Path) -> str:
    """`sha256:<hex>` of a file's bytes, as it stands in a manifest's `digests`."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError) as exc:
        raise BundleError(f"{path}: found no readable JSON ({exc}), expected a {SCHEMA} manifest; {_REMEDY}") from exc
    if not isinstance(manifest, dict):
        raise BundleError(f"{path}: found {_short(manifest)}, expected a JSON object; {_REMEDY}")
    return manifest


@dataclass(frozen=True, slots=True)
class _Field:
    """One place in the manifest: knows its own name, so that every complaint can say file, key, found and expected."""

    file: Path
    key: str
    value: Any

    def wrong(self, expected: str) -> BundleError:
        return BundleError(f"{self.file}: {self.key}: found {_short(self.value)}, expected {expected}; {_REMEDY}")

    def __getitem__(self, key: str) -> _Field:
        if not isinstance(self.value, dict):
            raise self.wrong("a JSON object")
        name = f"{self.key}.{key}" if self.key else key
        if key not in self.value:
            raise BundleError(f"{self.file}: {name}: found no such key, expected one in every {SCHEMA} manifest; {_REMEDY}")
        return _Field(self.file, name, self.value[key])

    def maybe(self, key: str) -> _Field | None:
        """A key that a manifest may lack."""
        return self[key].optional() if isinstance(self.value, dict) and key in self.value else None

    def items(self, *, count: int | None = None) -> list[_Field]:
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        if count is not None and len(self.value) != count:
            raise self.wrong(f"{count} values, one per stage")
        return [_Field(self.file, f"{self.key}[{i}]", value) for i, value in enumerate(self.value)]

    def optional(self) -> _Field | None:
        return None if self.value is None else self

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value:
            raise self.wrong("a text")
        return self.value

    def file_name(self) -> str:
        """A file directly inside the bundle: a manifest from elsewhere must not reach out of its folder."""
        name = self.text()
        if name in {".", ".."} or "/" in name or "\\" in name:
            raise self.wrong("a plain file name inside the bundle")
        return name

    def whole(self, *, least: int = 0) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool) or self.value < least:
            raise self.wrong(f"a whole number >= {least}")
        return self.value

    def number(self, low: float, high: float) -> float:
        is_number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if not is_number or not low <= self.value <= high:
            raise self.wrong(f"a number {low:g}..{high:g}" if math.isfinite(high) else f"a number >= {low:g}")
        return float(self.value)


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _parse(folder: Path, manifest: dict[str, Any]) -> Bundle:
    root = _Field(folder / MANIFEST, "", manifest)
    if root["schema"].value != SCHEMA:
        raise root["schema"].wrong(json.dumps(SCHEMA))
    classes = tuple(item.text() for item in root["classes"].items())
    preprocessing = _parse_preprocessing(root["preprocessing"])
    stages = _parse_stages(root["stages"], preprocessing, classes)
    points = tuple(
        sorted(
            (_parse_point(item, len(stages)) for item in root["operating_points"].items()),
            key=lambda point: point.calibration.mean_macs,
        )
    )
    evaluation, replay = root["evaluation"].optional(), root["replay"].optional()
    bottleneck, codecs = root.maybe("bottleneck"), root.maybe("codecs")
    return Bundle(
        name=root["name"].text(),
        path=folder,
        classes=classes,
        preprocessing=preprocessing,
        stages=stages,
        operating_points=points,
        default_point=_default_point(root["default_operating_point"], points),
        digest=manifest_digest(manifest),
        full_macs=sum(stage.macs for stage in stages),
        evaluation_file=None if evaluation is None else evaluation["file"].file_name(),
        evaluation_samples=0 if evaluation is None else evaluation["samples"].whole(least=1),
        replay_file=None if replay is None else replay["file"].file_name(),
        bottleneck_file=None if bottleneck is None else bottleneck["file"].file_name(),
        codecs={} if codecs is None else _parse_codecs(codecs, cuts=len(stages) - 1),
    )


def _parse_codecs(field: _Field, *, cuts: int) -> dict[str, CodecMetrics]:
    if not isinstance(field.value, dict) or not set(field.value) <= set(CODECS):
        raise field.wrong(f"an object with keys from {', '.join(CODECS)}")
    rows = {name: field[name] for name in field.value}
    return {
        name: CodecMetrics(row["accuracy"].number(0, 1), row["lost"].number(-1, 1), _cut_bytes(row, cuts))
        for name, row in rows.items()
    }


def _cut_bytes(row: _Field, cuts: int) -> tuple[float, ...]:
    sizes = row["bytes"].items()
    if len(sizes) != cuts:
        raise row["bytes"].wrong(f"{cuts} values, one per cut")
    return tuple(size.number(0, math.inf) for size in sizes)


def _parse_preprocessing(field: _Field) -> Preprocessing:
    for key, only in (("layout", "CHW"), ("channels", "RGB"), ("dtype", "uint8")):
        if field[key].value != only:
            raise field[key].wrong(json.dumps(only))
    return Preprocessing(field["size"].whole(least=1), "RGB", "CHW", "uint8", field["note"].text())


def _parse_stages(field: _Field, preprocessing: Preprocessing, classes: tuple[str, ...]) -> tuple[StageSpec, ...]:
    """The chain: each stage must take exactly what the one before gives, the first what preprocessing gives."""
    items = field.items()
    if not items:
        raise field.wrong("at least one stage")
    stages = tuple(_parse_stage(i, item) for i, item in enumerate(items))
    arriving: TensorSpec | None = TensorSpec(preprocessing.dtype, (3, preprocessing.size, preprocessing.size))
    for stage, item in zip(stages, items, strict=True):
        if stage.input != arriving:
            expected = "no stage after one without output"
            if arriving is not None:
                expected = f"what arrives there, {arriving.dtype} {list(arriving.shape)}"
            raise item["input"].wrong(expected)
        if stage.exit_head is not None and stage.exit_head.classes != len(classes):
            raise item["exit"]["classes"].wrong(f"{len(classes)}, the number of classes")
        arriving = stage.output
    if arriving is not None:
        raise items[-1]["output"].wrong("null, for the last stage")
    if stages[-1].exit_head is None:
        raise items[-1]["exit"].wrong("an exit head at the last stage")
    return stages


def _parse_stage(index: int, item: _Field) -> StageSpec:
    output_field, exit_field = item["output"].optional(), item["exit"].optional()
    output = None if output_field is None else _parse_tensor(output_field)
    expected_bytes = 0 if output is None else output.bytes
    if item["activation_bytes"].whole() != expected_bytes:
        raise item["activation_bytes"].wrong(f"{expected_bytes}, from dtype and shape of output")
    head = None
    if exit_field is not None:
        head = ExitHead(exit_field["classes"].whole(least=1), exit_field["temperature"].number(1e-3, 1e3))
    return StageSpec(index, item["file"].file_name(), _parse_tensor(item["input"]), output, head, item["macs"].whole())


def _parse_tensor(field: _Field) -> TensorSpec:
    dtype = field["dtype"].text()
    if dtype not in DTYPE_BYTES:
        raise field["dtype"].wrong(f"one of {', '.join(DTYPE_BYTES)}")
    return TensorSpec(dtype, tuple(item.whole(least=1) for item in field["shape"].items()))


def _parse_point(field: _Field, stages: int) -> OperatingPoint:
    thresholds = tuple(item.number(0.0, math.inf) for item in field["thresholds"].items(count=stages))
    calibration, test = (_parse_metrics(field[split], stages) for split in ("calibration", "test"))
    return OperatingPoint(field["name"].text(), thresholds, calibration, test)


def _parse_metrics(field: _Field, stages: int) -> PointMetrics:
    shares = tuple(item.number(0.0, 1.0) for item in field["exit_shares"].items(count=stages))
    return PointMetrics(field["accuracy"].number(0.0, 1.0), shares, field["mean_macs"].number(0.0, math.inf))


def _default_point(field: _Field, points: tuple[OperatingPoint, ...]) -> OperatingPoint:
    names = [point.name for point in points]
    if len(set(names)) != len(names):
        raise BundleError(f"{field.file}: operating_points: found a name twice ({names}), expected each once; {_REMEDY}")
    for point in points:
        if point.name == field.value:
            return point
    raise field.wrong(f"the name of an operating point ({', '.join(names) or 'there are none'})")


# ---- checking and reading the files ------------------------------------------------------------


def _verify_files(folder: Path, manifest: dict[str, Any], bundle: Bundle) -> None:
    """Compare every file with the digest in the manifest.

    Raises:
        BundleError: a file is absent, changed, or has no digest.
    """
    digests = _Field(folder / MANIFEST, "digests", manifest.get("digests"))
    used = [stage.file for stage in bundle.stages]
    used += [name for name in (bundle.evaluation_file, bundle.replay_file, bundle.bottleneck_file) if name is not None]
    for name in used:
        expected = digests[name].text()
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{path}: digests.{name}: found no such file, expected {expected[:19]}...; {_REMEDY}")
        found = file_digest(path)
        if found != expected:
            raise BundleError(f"{path}: digests.{name}: found {found[:19]}..., expected {expected[:19]}...; {_REMEDY}")


def _read_npz(path: Path, wanted: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of an npz, checked: {key: (dtype name, or `int` for any whole type; shape)}."""
    arrays = _read_arrays(path, f"arrays {', '.join(wanted)}", keys=wanted)
    for key, (dtype, shape) in wanted.items():
        if key not in arrays:
            raise BundleError(f"{path}: {key}: found no such array, expected {dtype} {list(shape)}; {_REMEDY}")
        array = arrays[key]
        fits = np.issubdtype(array.dtype, np.integer) if dtype == "int" else array.dtype == np.dtype(dtype)
        if not fits or array.shape != shape:
            found = f"{array.dtype} {list(array.shape)}"
            raise BundleError(f"{path}: {key}: found {found}, expected {dtype} {list(shape)}; {_REMEDY}")
    return arrays


def _read_arrays(path: Path, expected: str, *, keys: Iterable[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """What an npz holds of these keys, or all of it. Never unpickles."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in (archive.files if keys is None else keys) if key in archive.files}
    except _UNREADABLE as exc:
        raise BundleError(f"{path}: found no readable npz ({exc}), expected {expected}; {_REMEDY}") from exc
