"""What a bundle is, as values, and what its files say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.bundle.files import MANIFEST, REMEDY, UNREADABLE, read_arrays, read_npz
from zpipe.bundle.join import Join, StudentSpec
from zpipe.errors import BundleError
from zpipe.model import CODECS, NO_CODEC, OperatingPoint, Promise, StageSpec, TensorSpec

#: An emulated row begins with the index of its evaluation sample: unsigned, little endian, which no codec touches.
INDEX_BYTES = 4


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


#: What is known of every evaluation sample, in the order of `Evaluation`.
_KNOWN = ("labels", "severity", "digit")


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The bundle's own test samples, never used in training or calibration.

    Attributes:
        images: `[samples, 3, size, size] uint8`, or whatever else stage 0 takes: `[samples, *shape]` in its dtype.
        labels: `[samples] int64`, indices into the bundle's classes.
        severity: `[samples] int64`, strength of the distortion, 0 = none.
        digit: `[samples] int64`, which original image a sample shows; samples of one original are not independent, so
            bootstrap over this column.
    """

    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    severity: npt.NDArray[np.int64]
    digit: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """What each exit answers to each evaluation sample, computed once by ONNX Runtime at batch 1.

    Attributes:
        labels: `[samples, exits]`, int16 or int32.
        confidences: `[samples, exits] float32`, max softmax(logits / temperature).
        scores: `[samples, stages, classes] float32`, raw logits; of a bundle of students, else None.
    """

    labels: npt.NDArray[np.signedinteger[Any]]
    confidences: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What the exits said about the calibration split: temperatures, thresholds and accuracy tables come from it alone.

    Attributes:
        logits: `[samples, exits, classes] float32`, raw; one column per exit head, in the order of the stages.
        labels, severity, digit: `[samples] int64`, as in `Evaluation`.
    """

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    severity: npt.NDArray[np.int64]
    digit: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


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
        preprocessing: what the caller must do to an image; None where stage 0 takes tensors that are no RGB images 0..255.
        stages: the chain, in order; of a bundle of students each one's chain, one after the other.
        operating_points: ordered by mean multiply-adds on calibration, cheapest first.
        default_point: one of them, fixed before the test split was looked at.
        digest: sha256 (hex) of the manifest's canonical JSON, which holds the digest of every file.
        full_macs: multiply-adds of all stages for one sample, exit heads included.
        codecs: {codec: what it costs}, for those that were measured.
        accuracy_table: by rising target; () where the bundle was never calibrated for one.
        evaluation_generated: its inputs are made up, and its labels what the whole network says to them: accuracy on it tells how
            far answers agree with that, no more.
        emulates: the real bundle, where this one is its emulation (`emulated`); None for a real one.
        costs_only: what its stages take and give is all there is of them, no files: for the simulator and for emulated nodes.
        students: by part; () where the stages are one chain.
        join: makes one answer of the students' scores; None where the stages are one chain.
    """

    name: str
    path: Path
    classes: tuple[str, ...]
    preprocessing: Preprocessing | None
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
    calibration_file: str | None = None
    calibration_samples: int = 0
    accuracy_table: tuple[Promise, ...] = ()
    evaluation_generated: bool = False
    costs_only: bool = False
    students: tuple[StudentSpec, ...] = ()
    join: Join | None = None

    def __repr__(self) -> str:
        students = f"{len(self.students)} students, " if self.students else ""
        return (
            f"<Bundle {self.name} | {students}{len(self.stages)} stages, {self.full_macs / 1e6:.1f} M multiply-adds | "
            f"default {self.default_point.name} | {self.digest[:12]}>"
        )

    @property
    def real(self) -> Bundle:
        """The bundle whose tensors really are what the network computes with: itself, unless it is an emulation."""
        return self.emulates or self

    @property
    def chains(self) -> tuple[range, ...]:
        """The stages a task passes one after the other: of each student, or all of them."""
        if not self.students:
            return (range(len(self.stages)),)
        return tuple(range(student.stages[0], student.stages[-1] + 1) for student in self.students)

    @property
    def student_stages(self) -> tuple[int, ...]:
        """How many stages each student has, by part; () where the stages are one chain."""
        return tuple(len(student.stages) for student in self.students)

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the images it takes.

        Raises:
            BundleError: it takes none.
        """
        if self.preprocessing is None:
            takes = self.real.stages[0].input
            raise BundleError(
                f"bundle {self.name}: input: found {takes.dtype} {list(takes.shape)}, expected images here: RGB, uint8; "
                "take a bundle for images"
            )
        return self.preprocessing.size

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

    def promise(self, accuracy: float) -> Promise:
        """The row of the accuracy table for this accuracy (0..1): the lowest target that is no less.

        Raises:
            BundleError: there is no table, or none of it reaches that much.
        """
        if not self.accuracy_table:
            remedy = f"make it with `zpipe calibrate --bundle {self.path} --write`"
            if self.students:
                remedy = "leave the accuracy out, as students have operating points alone"
            raise BundleError(
                f"bundle {self.name}: accuracy_table: found none, expected one to choose thresholds for accuracy {accuracy:g}; "
                f"{remedy}"
            )
        for row in self.accuracy_table:
            if row.target >= accuracy:
                return row
        raise BundleError(
            f"bundle {self.name}: accuracy: found {accuracy:g}, expected at most {self.accuracy_table[-1].target:g}, the highest "
            "target of its accuracy table; ask for less, or see what `zpipe calibrate --rule mean` can have"
        )

    def calibration(self) -> Calibration:
        """Read what the exits said about the calibration split (from disk at every call: keep the answer).

        Raises:
            BundleError: the bundle has none, or the file does not hold what the manifest says.
        """
        if self.calibration_file is None:
            raise BundleError(
                f"{self.path / MANIFEST}: calibration.file: found none, expected a file; "
                f"make it with `zpipe calibrate --bundle {self.path} --data DATA --write`"
            )
        heads = sum(stage.exit_head is not None for stage in self.stages)
        samples = self.calibration_samples
        whole = dict.fromkeys(("labels", "severity", "digit"), ("int", (samples,)))
        arrays = read_npz(self.path / self.calibration_file, {"logits": ("float32", (samples, heads, len(self.classes))), **whole})
        labels, severity, digit = (arrays[key].astype(np.int64) for key in whole)
        self._check_labels(self.path / self.calibration_file, labels)
        return Calibration(arrays["logits"], labels, severity, digit)

    def evaluation(self) -> Evaluation:
        """Read the evaluation set (from disk at every call: keep the answer); an emulation's images are its rows of bytes.

        Raises:
            BundleError: the bundle has none, or the file does not hold what the manifest says.
        """
        arrays = self._evaluation_arrays(images=True)
        images = arrays["images"] if self.emulates is None else indexed_rows(arrays["images"])
        return Evaluation(images, *(arrays[key].astype(np.int64) for key in _KNOWN))

    def evaluation_labels(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Read labels and severities of the evaluation set `[samples]`, and not its images, which take fifty times as long.

        Raises:
            BundleError: as `evaluation`.
        """
        arrays = self._evaluation_arrays(images=False)
        return arrays["labels"].astype(np.int64), arrays["severity"].astype(np.int64)

    def _evaluation_arrays(self, *, images: bool) -> dict[str, npt.NDArray[Any]]:
        if self.evaluation_file is None:
            raise BundleError(f"{self.path / MANIFEST}: evaluation: found none, expected a file; {REMEDY}")
        path, samples, entering = self.path / self.evaluation_file, self.evaluation_samples, self.real.stages[0].input
        first = {"images": (entering.dtype, (samples, *entering.shape))} if images else {}
        arrays = read_npz(path, {**first, **dict.fromkeys(_KNOWN, ("int", (samples,)))})
        self._check_labels(path, arrays["labels"])
        return arrays

    def _check_labels(self, path: Path, labels: npt.NDArray[np.int64]) -> None:
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(self.classes)):
            found = f"{labels.min()}..{labels.max()}"
            raise BundleError(f"{path}: labels: found {found}, expected 0..{len(self.classes) - 1}; {REMEDY}")

    def replay(self, codec: str = "none") -> Replay:
        """What every exit says about every evaluation sample when each stage boundary passes through `codec`.

        A codec that packs another without loss (`int8+zstd`) has that one's table; where no activation ever travels, as of
        students of one stage each, every codec has that of `none`: raw inputs stay as they are (`zpipe.codecs`).

        Raises:
            BundleError: the bundle has none, or none for this codec.
        """
        if self.replay_file is None:
            raise BundleError(f"{self.path / MANIFEST}: replay: found none, expected a file; {REMEDY}")
        shape = (self.evaluation_samples, len(self.stages))
        table = self._table(codec)
        keys: dict[str, tuple[str, tuple[int, ...]]] = {f"label.{table}": ("int", shape), f"confidence.{table}": ("float32", shape)}
        if self.students:
            keys[f"scores.{table}"] = ("float32", (*shape, len(self.classes)))
        arrays = read_npz(self.path / self.replay_file, keys)
        return Replay(arrays[f"label.{table}"], arrays[f"confidence.{table}"], arrays.get(f"scores.{table}"))

    def _table(self, codec: str) -> str:
        return lossy_part(codec) if any(len(chain) > 1 for chain in self.chains) else NO_CODEC

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
        arrays = read_arrays(path, "the weights of the codec bottleneck")
        for key, array in arrays.items():
            if array.dtype != np.float32:
                raise BundleError(f"{path}: {key}: found {array.dtype}, expected float32; {REMEDY}")
        return arrays

    def stage_file_bytes(self) -> tuple[int, ...]:
        """Per stage the size of its file: mostly its weights, as they are stored.

        Raises:
            BundleError: a file is not there.
        """
        try:
            return tuple((self.path / stage.file).stat().st_size for stage in self.real.stages)
        except OSError as exc:
            raise BundleError(f"{exc.filename}: found no such file, expected one for each stage; {REMEDY}") from exc

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
        except UNREADABLE as exc:
            raise BundleError(f"{path}: found no readable npz ({exc}), expected the replay's tables; {REMEDY}") from exc
        return tuple(codec for codec in CODECS if f"label.{self._table(codec)}" in keys)


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
