"""What a precision costs: labels at every exit, against the bundle's own ONNX.

A bundle holds the images of one set of real samples, the evaluation set. Of the calibration split its temperatures were fitted on
it has logits and labels (`calibration.npz`) and no images, and int8 needs images to calibrate on. So every eighth original of the
evaluation set calibrates it (`parts`), and accuracy is measured on the others alone: distorted copies of one original never stand
on both sides. What int8 is said to cost is therefore of seven eighths of that set, and of data like those it was calibrated on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Bundle, Evaluation
from zpipe.errors import BundleError, ZpipeError, one_line
from zpipe.executors.tensorrt.manifest import Accuracy
from zpipe.model import StageSpec

#: Every eighth original calibrates: 375 of the 2985 digits. Ranges by min and max settle long before.
_CALIBRATION_SHARE = 8
#: Rows per run of ONNX Runtime.
_BATCH = 64

#: Called with the fraction 0..1 done.
Told = Callable[[float], None]
#: Labels `[samples, stages]`, -1 where a stage has no exit, of images.
Answer = Callable[[npt.NDArray[Any], Told], npt.NDArray[np.int64]]


class Parts(NamedTuple):
    """Indices into the evaluation set."""

    calibration: npt.NDArray[np.int64]
    check: npt.NDArray[np.int64]


def parts(evaluation: Evaluation) -> Parts:
    """Which samples calibrate, and which then measure."""
    originals = np.unique(evaluation.digit)
    chosen = np.isin(evaluation.digit, originals[:: max(1, min(_CALIBRATION_SHARE, len(originals)))])
    return Parts(np.flatnonzero(chosen), np.flatnonzero(~chosen))


def accuracy(bundle: Bundle, by: str, answer: Answer, told: Told) -> Accuracy:
    """What the converted stages cost, beside the bundle's own answers: stored ones if it has them, else made now.

    Raises:
        BundleError: the bundle has no evaluation set, or a file of it is damaged.
    """
    evaluation = evaluation_of(bundle)
    rows = parts(evaluation).check
    images, truth = evaluation.images[rows], evaluation.labels[rows]
    if bundle.replay_file is not None:
        before, begin = bundle.replay().labels[rows].astype(np.int64), 0.0
    else:
        originals = [bundle.stage_path(spec.index).read_bytes() for spec in bundle.stages]
        before, begin = answers(originals, bundle.stages, images, lambda fraction: told(fraction / 2)), 0.5
    after = answer(images, lambda fraction: told(begin + (1 - begin) * fraction))
    return Accuracy(by, len(rows), shares_right(before, truth, bundle.stages), shares_right(after, truth, bundle.stages))


def evaluation_of(bundle: Bundle) -> Evaluation:
    """The real samples.

    Raises:
        BundleError: there are none.
    """
    if bundle.evaluation_file is None:
        raise BundleError(
            f"bundle {bundle.name}: found no evaluation set, expected one to see what a precision costs; take fp32, or --force"
        )
    return bundle.real.evaluation()


def answers(graphs: Sequence[bytes], stages: Sequence[StageSpec], images: npt.NDArray[Any], told: Told) -> npt.NDArray[np.int64]:
    """What a chain of ONNX stages answers: `[samples, stages]` labels, -1 where a stage has no exit.

    Raises:
        BundleError: ONNX Runtime does not run them.
    """
    labels = np.full((len(images), len(stages)), -1, np.int64)
    for rows, spec, _, logits in _runs(graphs, stages, images):
        if logits is not None:
            labels[rows, spec.index] = logits.argmax(axis=1)
        told((rows.start + _BATCH * (spec.index + 1) / len(stages)) / (len(images) + _BATCH))
    return labels


def arriving(graphs: Sequence[bytes], stages: Sequence[StageSpec], images: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """What a chain of ONNX stages hands to each: one array `[samples, ...]` per stage.

    Raises:
        BundleError: ONNX Runtime does not run them.
    """
    inputs: list[list[npt.NDArray[Any]]] = [[] for _ in stages]
    for _, spec, values, _ in _runs(graphs, stages, images):
        inputs[spec.index].append(values)
    return [np.concatenate(each) for each in inputs]


def _runs(
    graphs: Sequence[bytes], stages: Sequence[StageSpec], images: npt.NDArray[Any]
) -> Iterator[tuple[slice, StageSpec, npt.NDArray[Any], npt.NDArray[Any] | None]]:
    """(rows, stage, its input, its logits) of each run of each stage; all cores take part."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # All cores, but none that spins while it waits: beside other work that took twice as long.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        sessions = [onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]) for graph in graphs]
        for start in range(0, len(images), _BATCH):
            rows = slice(start, min(start + _BATCH, len(images)))
            values = images[rows]
            for spec, session in zip(stages, sessions, strict=True):
                names = [output.name for output in session.get_outputs()]
                outputs = dict(zip(names, session.run(names, {"input": values}), strict=True))
                yield rows, spec, values, None if spec.exit_head is None else outputs["logits"]
                values = outputs.get("activation", values)
    except ZpipeError:
        raise
    except Exception as exc:  # onnxruntime's errors have no base class of their own
        found = one_line(" ".join(str(exc).split()))
        raise BundleError(f"checking the precision: found {found}, expected ONNX Runtime to run it; see `zpipe doctor`") from exc


def shares_right(
    labels: npt.NDArray[np.int64], truth: npt.NDArray[np.int64], stages: Sequence[StageSpec]
) -> tuple[float | None, ...]:
    """Per stage, the fraction of samples labelled right; None without an exit."""
    right = labels == truth[:, None]
    return tuple(None if spec.exit_head is None else float(right[:, spec.index].mean()) for spec in stages)
