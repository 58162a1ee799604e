"""`zpipe calibrate`: gather what the exits say, study it, write it into the bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zpipe.bundle import Bundle, Evaluation, load_bundle
from zpipe.calibrate.chain import StageChain
from zpipe.calibrate.doubts import require_originals
from zpipe.calibrate.study import OUTAGE_TARGETS, WINDOW, Spoken, Study, study_bundle
from zpipe.calibrate.table import DEFAULT_RULE, TARGETS, Rule
from zpipe.calibrate.temperature import Variant
from zpipe.calibrate.timing import exit_seconds
from zpipe.calibrate.write import write_study
from zpipe.configure import with_inputs_decided
from zpipe.datasets import Labelled, is_cifar10, read_labelled, read_splits
from zpipe.errors import ConfigError
from zpipe.topology import Topology, check

#: Takes a line for people and the fraction done, 0..1.
Progress = Callable[[str, float], None]

#: Two fits this close (relative) are one: the last bits of logits differ from one processor to another.
SAME_TEMPERATURE = 1e-3


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """What one calibration does.

    Attributes:
        bundle: a folder or a name.
        variant: the temperatures that the accuracy table is made with, and that are written.
        targets: accuracies 0..1 of the table; with `write` they come on top of the usual ones and those it has.
        rule: what must reach a target on the calibration split (`zpipe.calibrate.table`).
        data: labelled images to calibrate with: a path for `zpipe.datasets`, or the images themselves; None = the bundle's own
            calibration split.
        test: the same to test with, for a bundle that has no evaluation set; None = a half of `data`.
        outage_targets: of outage and missed deadlines.
        window: samples in a window of both.
        topology: says how long a sample takes; None = no missed deadlines.
        device: of its nodes that name none.
        write: put it into the bundle.
    """

    bundle: str | Path
    variant: Variant = "per-exit"
    targets: tuple[float, ...] = TARGETS
    rule: Rule = DEFAULT_RULE
    data: Path | Labelled | None = None
    test: Path | None = None
    outage_targets: tuple[float, ...] = OUTAGE_TARGETS
    window: int = WINDOW
    topology: Topology | None = None
    device: str = "raspberry-pi-4"
    write: bool = False


def calibrate(options: CalibrateOptions, *, progress: Progress = lambda line, done: None) -> Study:
    """Runs it; with `write`, the bundle is another afterwards.

    Raises:
        BundleError: no such bundle, a damaged one, or one without data to calibrate with.
        ConfigError: the data is not what it should be, or too little to be written; or the bundle is one of students.
        TopologyError: the topology does not fit the bundle.
        ExecutorError: a stage failed.
    """
    bundle = load_bundle(options.bundle)
    if bundle.students:
        raise ConfigError(
            f"--bundle {options.bundle}: found students, whose temperatures are one for every set of them, expected one network; "
            "`zpipe train` fitted them, see its manifest's `join`"
        )
    seconds = None
    if options.topology is not None:
        check(options.topology, len(bundle.stages), bundle.student_stages)
        seconds = exit_seconds(with_inputs_decided(options.topology, bundle), bundle, device=options.device)
    fitted, tested = _images(bundle, options)
    if options.write:
        require_originals(bundle.calibration().digit if fitted is None else fitted.data.digit)
    chain = StageChain.of(bundle)
    calibration = _stored(bundle) if fitted is None else _ask(chain, fitted, "calibration", progress)
    test = _ask(chain, tested, "test", progress)
    progress("fitting", 0.0)
    targets = _kept_targets(bundle, options.targets) if options.write else options.targets
    study = study_bundle(
        bundle,
        calibration,
        test,
        variant=options.variant,
        targets=targets,
        rule=options.rule,
        outage_targets=options.outage_targets,
        window=options.window,
        exit_seconds=seconds,
        keep=_kept,
    )
    if options.topology is not None:
        study.report["missed_deadlines"]["topology"] = options.topology.name
    if options.write:
        write_study(bundle, study, calibration, test, tested.data, progress)
    return study


def _kept_targets(bundle: Bundle, wanted: tuple[float, ...]) -> tuple[float, ...]:
    """What is written has the usual targets and those that somebody asked for before; the last row was the best there was."""
    return tuple(sorted({*wanted, *TARGETS, *(row.target for row in bundle.accuracy_table[:-1])}))


def _kept(stored: tuple[float, ...], fitted: tuple[float, ...]) -> tuple[float, ...]:
    """What is stored already, where the fit only repeats it."""
    return stored if np.allclose(stored, fitted, rtol=SAME_TEMPERATURE, atol=0.0) else fitted


def _stored(bundle: Bundle) -> Spoken:
    found = bundle.calibration()
    name = f"{bundle.name}: {bundle.calibration_file}"
    return Spoken(name, found.logits, found.labels, found.severity, found.digit)


def _images(bundle: Bundle, options: CalibrateOptions) -> tuple[Labelled | None, Labelled]:
    """What to calibrate with (None = what the bundle stores) and what to test with."""
    own = _evaluation(bundle)
    if own is not None and options.test is not None:
        raise ConfigError(
            f"--test: found {options.test}, expected none: bundle {bundle.name} has its own evaluation set; leave it out"
        )
    if options.data is None:
        if own is None:
            raise ConfigError(f"--data: found none, expected labelled images, as bundle {bundle.name} has no evaluation set")
        bundle.calibration()  # refused before anything is computed
        return None, own
    size = bundle.stages[0].input if bundle.preprocessing is None else bundle.preprocessing.size
    if isinstance(options.data, Labelled):
        if own is None:
            raise ConfigError(f"bundle {bundle.name}: found no evaluation set, expected one to test on; give a path as --data")
        return options.data, own
    if own is None and options.test is None:
        return read_splits(options.data, size=size, classes=bundle.classes)
    if is_cifar10(options.data):
        fitted, _ = read_splits(options.data, size=size, classes=bundle.classes)  # its training images were trained on
    else:
        fitted = read_labelled(options.data, size=size, classes=bundle.classes)
    if own is not None:
        return fitted, own
    assert options.test is not None
    return fitted, read_labelled(options.test, size=size, classes=bundle.classes)


def _evaluation(bundle: Bundle) -> Labelled | None:
    if bundle.evaluation_file is None or bundle.evaluation_generated:
        return None
    data: Evaluation = bundle.evaluation()
    return Labelled(f"{bundle.name}: {bundle.evaluation_file}", bundle.classes, data)


def _ask(chain: StageChain, images: Labelled, split: str, progress: Progress) -> Spoken:
    line = f"{split}: {len(images)} images through ONNX Runtime"
    logits = chain.logits(images.images, tell=lambda done: progress(line, done))
    data = images.data
    return Spoken(images.name, logits, data.labels, data.severity, data.digit)
