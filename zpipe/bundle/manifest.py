"""The manifest: JSON to a checked Bundle; every complaint says file, key, found and expected."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zpipe.bundle.files import MANIFEST, REMEDY, file_digest
from zpipe.bundle.join import Join, StudentSpec
from zpipe.bundle.spec import Bundle, CodecMetrics, Preprocessing
from zpipe.errors import BundleError
from zpipe.model import CODECS, DTYPE_BYTES, MAX_PARTS, ExitHead, OperatingPoint, PointMetrics, Promise, StageSpec, TensorSpec

SCHEMA = "zpipe.bundle/1"


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """sha256 (hex) of the manifest as canonical JSON: keys sorted, no spaces, ASCII."""
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest's plain values.

    Raises:
        BundleError: it cannot be read, or is no JSON object.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError) as exc:
        raise BundleError(f"{path}: found no readable JSON ({exc}), expected a {SCHEMA} manifest; {REMEDY}") from exc
    if not isinstance(manifest, dict):
        raise BundleError(f"{path}: found {_short(manifest)}, expected a JSON object; {REMEDY}")
    return manifest


@dataclass(frozen=True, slots=True)
class Field:
    """One place in the manifest: knows its own name, so that every complaint can say file, key, found and expected."""

    file: Path
    key: str
    value: Any

    def wrong(self, expected: str) -> BundleError:
        return BundleError(f"{self.file}: {self.key}: found {_short(self.value)}, expected {expected}; {REMEDY}")

    def __getitem__(self, key: str) -> Field:
        if not isinstance(self.value, dict):
            raise self.wrong("a JSON object")
        name = f"{self.key}.{key}" if self.key else key
        if key not in self.value:
            raise BundleError(f"{self.file}: {name}: found no such key, expected one in every {SCHEMA} manifest; {REMEDY}")
        return Field(self.file, name, self.value[key])

    def maybe(self, key: str) -> Field | None:
        """A key that a manifest may lack."""
        return self[key].optional() if isinstance(self.value, dict) and key in self.value else None

    def items(self, *, count: int | None = None) -> list[Field]:
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        if count is not None and len(self.value) != count:
            raise self.wrong(f"{count} values, one per stage")
        return [Field(self.file, f"{self.key}[{i}]", value) for i, value in enumerate(self.value)]

    def optional(self) -> Field | None:
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


def parse(folder: Path, manifest: dict[str, Any]) -> Bundle:
    """The bundle that these plain values describe; its files are not looked at.

    Raises:
        BundleError: something is wrong; file, key, found and expected.
    """
    root = Field(folder / MANIFEST, "", manifest)
    if root["schema"].value != SCHEMA:
        raise root["schema"].wrong(json.dumps(SCHEMA))
    classes = tuple(item.text() for item in root["classes"].items())
    images = root["preprocessing"].optional()
    preprocessing = None if images is None else _parse_preprocessing(images)
    students = _parse_students(root.maybe("students"), len(root["stages"].items()))
    firsts = {student.stages[0] for student in students}
    stages = _parse_stages(root["stages"], preprocessing, classes, firsts)
    points = tuple(
        sorted(
            (_parse_point(item, len(stages)) for item in root["operating_points"].items()),
            key=lambda point: point.calibration.mean_macs,
        )
    )
    evaluation, replay = root["evaluation"].optional(), root["replay"].optional()
    bottleneck, codecs = root.maybe("bottleneck"), root.maybe("codecs")
    calibration, table = root.maybe("calibration"), root.maybe("accuracy_table")
    calibration_file = None if calibration is None else calibration.maybe("file")
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
        evaluation_generated=evaluation is not None and evaluation.maybe("generated") is not None,
        replay_file=None if replay is None else replay["file"].file_name(),
        bottleneck_file=None if bottleneck is None else bottleneck["file"].file_name(),
        codecs={} if codecs is None else _parse_codecs(codecs, cuts=len(stages) - 1),
        calibration_file=None if calibration_file is None else calibration_file.file_name(),
        calibration_samples=0 if calibration is None or calibration_file is None else calibration["samples"].whole(least=1),
        accuracy_table=() if table is None else _parse_table(table, len(stages)),
        costs_only=root.maybe("costs_only") is not None,
        students=students,
        join=_parse_join(root["join"], len(students), len(classes)) if students else None,
    )


def _parse_table(field: Field, stages: int) -> tuple[Promise, ...]:
    rows = tuple(_parse_promise(item, stages) for item in field["rows"].items())
    if [row.target for row in rows] != sorted({row.target for row in rows}):
        raise field["rows"].wrong("rows by rising target, each once")
    return rows


def _parse_promise(row: Field, stages: int) -> Promise:
    test, interval = row["test"].optional(), row["test_interval"].optional()
    return Promise(
        target=row["target"].number(0.0, 1.0),
        thresholds=tuple(item.number(0.0, math.inf) for item in row["thresholds"].items(count=stages)),
        calibration=_parse_metrics(row["calibration"], stages),
        test=None if test is None else _parse_metrics(test, stages),
        test_interval=None if interval is None else _parse_interval(interval),
    )


def _parse_interval(field: Field) -> tuple[float, float]:
    ends = [item.number(0.0, 1.0) for item in field.items()]
    if len(ends) != 2:
        raise field.wrong("two numbers, the ends of an interval")
    return ends[0], ends[1]


def _parse_codecs(field: Field, *, cuts: int) -> dict[str, CodecMetrics]:
    if not isinstance(field.value, dict) or not set(field.value) <= set(CODECS):
        raise field.wrong(f"an object with keys from {', '.join(CODECS)}")
    rows = {name: field[name] for name in field.value}
    return {
        name: CodecMetrics(row["accuracy"].number(0, 1), row["lost"].number(-1, 1), _cut_bytes(row, cuts))
        for name, row in rows.items()
    }


def _cut_bytes(row: Field, cuts: int) -> tuple[float, ...]:
    sizes = row["bytes"].items()
    if len(sizes) != cuts:
        raise row["bytes"].wrong(f"{cuts} values, one per cut")
    return tuple(size.number(0, math.inf) for size in sizes)


def _parse_preprocessing(field: Field) -> Preprocessing:
    for key, only in (("layout", "CHW"), ("channels", "RGB"), ("dtype", "uint8")):
        if field[key].value != only:
            raise field[key].wrong(json.dumps(only))
    return Preprocessing(field["size"].whole(least=1), "RGB", "CHW", "uint8", field["note"].text())


def _parse_stages(
    field: Field, preprocessing: Preprocessing | None, classes: tuple[str, ...], firsts: AbstractSet[int]
) -> tuple[StageSpec, ...]:
    """The chain: each stage must take exactly what the one before gives, the first what preprocessing gives, if there is one.

    Of students each first stage (`firsts`) takes what stage 0 takes, and the one before it ends a chain of its own.
    """
    items = field.items()
    if not items:
        raise field.wrong("at least one stage")
    stages = tuple(_parse_stage(i, item) for i, item in enumerate(items))
    arriving: TensorSpec | None = stages[0].input
    if preprocessing is not None:
        arriving = TensorSpec(preprocessing.dtype, (3, preprocessing.size, preprocessing.size))
    raw = arriving
    for stage, item in zip(stages, items, strict=True):
        if stage.index > 0 and stage.index in firsts:
            _check_end(stages[stage.index - 1], items[stage.index - 1])
            arriving = raw
        if stage.input != arriving:
            expected = "no stage after one without output"
            if arriving is not None:
                expected = f"what arrives there, {arriving.dtype} {list(arriving.shape)}"
            raise item["input"].wrong(expected)
        if stage.exit_head is not None and stage.exit_head.classes != len(classes):
            raise item["exit"]["classes"].wrong(f"{len(classes)}, the number of classes")
        arriving = stage.output
    _check_end(stages[-1], items[-1])
    return stages


def _check_end(stage: StageSpec, item: Field) -> None:
    """The last stage of a chain answers every sample that comes to it, and gives nothing on."""
    if stage.output is not None:
        raise item["output"].wrong("null, for the last stage")
    if stage.exit_head is None:
        raise item["exit"].wrong("an exit head at the last stage")


def _parse_students(field: Field | None, stages: int) -> tuple[StudentSpec, ...]:
    """Who has which stages: each the next ones, so that all are some student's, and no filter is two students'."""
    if field is None:
        return ()
    items = field.items()
    if not 1 <= len(items) <= MAX_PARTS:
        raise field.wrong(f"1 to {MAX_PARTS} students")
    students: list[StudentSpec] = []
    filters: set[int] = set()
    start = 0
    for part, item in enumerate(items):
        student = _parse_student(item)
        if student.part != part:
            raise item["part"].wrong(f"{part}: students are listed by part, from 0")
        if not student.stages or student.stages != tuple(range(start, start + len(student.stages))):
            raise item["stages"].wrong(f"{start} and on, without a gap: stages are numbered through all students")
        if len({*student.filters} - filters) < len(student.filters):
            raise item["filters"].wrong("each of the teacher's filters once among all students")
        filters.update(student.filters)
        start += len(student.stages)
        students.append(student)
    if start != stages:
        raise field.wrong(f"all {stages} stages in some student, not {start} of them")
    return tuple(students)


def _parse_student(item: Field) -> StudentSpec:
    numbers = {key: tuple(each.whole() for each in item[key].items()) for key in ("stages", "filters")}
    return StudentSpec(item["part"].whole(), **numbers, parameters=item["parameters"].whole(), bytes=item["bytes"].whole())


def _parse_join(field: Field, parts: int, classes: int) -> Join:
    def listed(item: Field, count: int, what: str, low: float, high: float) -> tuple[float, ...]:
        values = item.items()
        if len(values) != count:
            raise item.wrong(f"{count} values, one per {what}")
        return tuple(value.number(low, high) for value in values)

    sets, accuracy = 2**parts, field["accuracy"]
    return Join(
        bias=listed(field["bias"], classes, "class", -1e6, 1e6),
        temperatures=listed(field["temperatures"], sets, "set of parts", 1e-3, 1e3),
        calibration=listed(accuracy["calibration"], sets, "set of parts", 0.0, 1.0),
        test=listed(accuracy["test"], sets, "set of parts", 0.0, 1.0),
    )


def _parse_stage(index: int, item: Field) -> StageSpec:
    output_field, exit_field = item["output"].optional(), item["exit"].optional()
    output = None if output_field is None else _parse_tensor(output_field)
    expected_bytes = 0 if output is None else output.bytes
    if item["activation_bytes"].whole() != expected_bytes:
        raise item["activation_bytes"].wrong(f"{expected_bytes}, from dtype and shape of output")
    head = None
    if exit_field is not None:
        head = ExitHead(exit_field["classes"].whole(least=1), exit_field["temperature"].number(1e-3, 1e3))
    return StageSpec(index, item["file"].file_name(), _parse_tensor(item["input"]), output, head, item["macs"].whole())


def _parse_tensor(field: Field) -> TensorSpec:
    dtype = field["dtype"].text()
    if dtype not in DTYPE_BYTES:
        raise field["dtype"].wrong(f"one of {', '.join(DTYPE_BYTES)}")
    return TensorSpec(dtype, tuple(item.whole(least=1) for item in field["shape"].items()))


def _parse_point(field: Field, stages: int) -> OperatingPoint:
    thresholds = tuple(item.number(0.0, math.inf) for item in field["thresholds"].items(count=stages))
    calibration, test = (_parse_metrics(field[split], stages) for split in ("calibration", "test"))
    return OperatingPoint(field["name"].text(), thresholds, calibration, test)


def _parse_metrics(field: Field, stages: int) -> PointMetrics:
    shares = tuple(item.number(0.0, 1.0) for item in field["exit_shares"].items(count=stages))
    return PointMetrics(field["accuracy"].number(0.0, 1.0), shares, field["mean_macs"].number(0.0, math.inf))


def _default_point(field: Field, points: tuple[OperatingPoint, ...]) -> OperatingPoint:
    names = [point.name for point in points]
    if len(set(names)) != len(names):
        raise BundleError(f"{field.file}: operating_points: found a name twice ({names}), expected each once; {REMEDY}")
    for point in points:
        if point.name == field.value:
            return point
    raise field.wrong(f"the name of an operating point ({', '.join(names) or 'there are none'})")


def verify_files(folder: Path, manifest: dict[str, Any], bundle: Bundle) -> None:
    """Compare every file with the digest in the manifest.

    Raises:
        BundleError: a file is absent, changed, or has no digest.
    """
    digests = Field(folder / MANIFEST, "digests", manifest.get("digests"))
    used = [] if bundle.costs_only else [stage.file for stage in bundle.stages]
    files = (bundle.evaluation_file, bundle.replay_file, bundle.bottleneck_file, bundle.calibration_file)
    used += [name for name in files if name is not None]
    for name in used:
        expected = digests[name].text()
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{path}: digests.{name}: found no such file, expected {expected[:19]}...; {REMEDY}")
        found = file_digest(path)
        if found != expected:
            raise BundleError(f"{path}: digests.{name}: found {found[:19]}..., expected {expected[:19]}...; {REMEDY}")
