"""Heads onto a bundle, in order: look, fit, put on, calibrate, measure, write. Each step is one function."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from zpipe.bundle import MANIFEST, Bundle, Evaluation, load_bundle
from zpipe.bundle.write import extend_manifest, replaced_when_done, save_manifest
from zpipe.calibrate.chain import StageChain
from zpipe.calibrate.codec_tables import codec_rows, codec_tables, replay_arrays
from zpipe.calibrate.metrics import Answers, answers_of
from zpipe.calibrate.rows import (
    CALIBRATION_FILE,
    calibration_arrays,
    calibration_rows,
    default_rule,
    point_rows,
    table_row,
    test_rows,
    with_temperatures,
)
from zpipe.calibrate.table import Split
from zpipe.calibrate.temperature import by_stage, fit_variant
from zpipe.calibrate.write import EVALUATION_FILE, REPLAY_FILE, write_evaluation
from zpipe.errors import ConfigError, ExecutorError, said
from zpipe.models.heads.data import HeadData, read_head_data
from zpipe.models.heads.features import Seen, look
from zpipe.models.heads.fit import fit_head
from zpipe.models.heads.graph import Head, head_cost, with_head
from zpipe.models.heads.shape import HeadShape, choose_shape
from zpipe.models.training import torch_settings

Json = dict[str, Any]
Floats = npt.NDArray[np.float32]

#: How much of all work is done when a step ends, for the progress bar (measured on the half-width digits).
LOOK_END, TRAIN_END, CALIBRATE_END = 0.15, 0.6, 0.7

#: Floor of the default operating point's threshold.
DEFAULT_LEAST = 0.9

#: Accuracy that the default point may lose on test before that is worth a note. Another writer's digits cost up to 0.021.
MOST_LOST = 0.03

#: Classes that a note names.
NAMES_SHOWN = 8

#: Called as work goes on: see `zpipe.models.Progress`.
Tell = Callable[[str, float, str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What heads are wanted: see `zpipe.models.attach_heads`."""

    at: Sequence[int] | None
    data: Path | None
    test: Path | None
    distill: bool
    tokens: Literal["mean", "last"]
    epochs: int
    seed: int
    threads: int


def build_heads(name: str | Path, out: Path, plan: Plan, tell: Tell) -> Bundle:
    """See `zpipe.models.attach_heads`."""
    bundle = load_bundle(name)
    if bundle.students:
        raise ConfigError(
            f"--bundle {name}: found students, expected one network; `zpipe train --student-exits` makes students with exits"
        )
    shapes = head_shapes(bundle, plan)
    tell("data", 0.0, "reading it")
    data = read_head_data(bundle, plan.data, test=plan.test, seed=plan.seed)
    if data.labels is None and not plan.distill:
        raise ConfigError(
            f"--data {plan.data}: found images without labels, expected one folder per class, or an .npz with labels; "
            "or add --distill, which learns from the last exit's answers"
        )
    absent = absent_classes(bundle, data, plan)
    with torch_settings(threads=plan.threads, seed=plan.seed), replaced_when_done(out) as folder, samples_to_blame(bundle, plan):
        heads = train_heads(bundle, shapes, data, plan, tell)
        shutil.copytree(bundle.path, folder, dirs_exist_ok=True)
        rows = put_on(bundle, heads, folder)
        write_rest(bundle, folder, out.name, data, rows, plan, tell)
        write_notes(folder, absent)
    tell("done", 1.0, f"bundle written to {out}")
    return load_bundle(out)


@contextlib.contextmanager
def samples_to_blame(bundle: Bundle, plan: Plan) -> Iterator[None]:
    """Stages that cannot run whole numbers were given some that are no tokens of theirs: nothing but running them tells which are.

    Raises:
        ConfigError: instead of an ExecutorError in the block, where the network takes whole numbers and no images.
    """
    try:
        yield
    except ExecutorError as exc:
        dtype = bundle.stages[0].input.dtype
        if bundle.preprocessing is not None or not np.issubdtype(np.dtype(dtype), np.integer):
            raise
        # Of ONNX Runtime's message the part that speaks of the numbers.
        reason = said(exc.__cause__ or exc).rpartition("Status Message: ")[2]
        path = plan.data if plan.test is None else f"{plan.data} or --test {plan.test}"
        raise ConfigError(
            f"--data {path}: found {dtype} samples that the network cannot run, expected numbers that it knows, such as "
            f"those of its vocabulary; correct them ({reason})"
        ) from exc


def absent_classes(bundle: Bundle, data: HeadData, plan: Plan) -> list[str]:
    """Names of the classes that the heads will not learn; none where they learn from the last exit, which knows all.

    Raises:
        ConfigError: only one is left to learn.
    """
    if plan.distill or data.labels is None:
        return []
    known = set(data.labels.tolist())
    if len(known) == 1:
        name = bundle.classes[known.pop()]
        raise ConfigError(
            f"--data {plan.data}: found samples of class {name} alone to learn from, expected several of the {len(bundle.classes)} "
            "classes, or heads would give that answer to all; give samples of each, or add --distill"
        )
    return [name for label, name in enumerate(bundle.classes) if label not in known]


def head_shapes(bundle: Bundle, plan: Plan) -> dict[int, HeadShape]:
    """One for each stage that is to have a head.

    Raises:
        ConfigError: no such stage, the last one, or one with an activation that no head of ours fits.
    """
    last = len(bundle.stages) - 1
    if last == 0:
        raise ConfigError(f"bundle {bundle.name}: found one stage, expected at least two; split the network first")
    wanted = sorted(set(range(last) if plan.at is None else plan.at))
    shapes = {}
    for stage in wanted:
        if not 0 <= stage < last:
            raise ConfigError(
                f"--at: found stage {stage}, expected 0..{last - 1}: {bundle.name} has {last + 1} stages, and the last "
                "has its own head; leave it out"
            )
        output = bundle.stages[stage].output
        assert output is not None  # only the last stage gives none
        before = sum(spec.macs for spec in bundle.stages[: stage + 1])
        shapes[stage] = choose_shape(output, classes=len(bundle.classes), macs_before=before, tokens=plan.tokens, stage=stage)
    return shapes


def train_heads(bundle: Bundle, shapes: Mapping[int, HeadShape], data: HeadData, plan: Plan, tell: Tell) -> dict[int, Head]:
    """Look once, then fit one head after the other."""

    def on_look(done: float) -> None:
        tell("look", LOOK_END * done, f"{len(data.images)} samples through the frozen stages")

    with look(bundle, shapes, data.images, tell=on_look) as seen:
        target = teacher_of(bundle, seen) if plan.distill else data.labels
        assert target is not None  # refused above
        heads: dict[int, Head] = {}
        for stage in shapes:

            def on_epoch(done: int, total: int, loss: float, stage: int = stage) -> None:
                share = (len(heads) + done / total) / len(shapes)
                line = f"head of stage {stage}: epoch {done}/{total}, loss {loss:.3f}"
                tell("train", LOOK_END + (TRAIN_END - LOOK_END) * share, line)

            heads[stage] = fit_head(
                seen.fronts[stage],
                seen.features[stage],
                target,
                classes=len(bundle.classes),
                epochs=plan.epochs,
                seed=plan.seed,
                on_epoch=on_epoch,
            )
        return heads


def teacher_of(bundle: Bundle, seen: Seen) -> Floats:
    """What the last exit thinks of each class at its own temperature, `[samples, classes]`."""
    head = bundle.stages[-1].exit_head
    assert head is not None  # the last stage always has one
    scaled = seen.teacher / np.float32(head.temperature)
    powers = np.exp(scaled - scaled.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)


def put_on(bundle: Bundle, heads: Mapping[int, Head], folder: Path) -> list[Json]:
    """Writes the stages with their heads into `folder`, and gives the manifest's `stages`."""
    rows: list[Json] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["stages"]
    classes = len(bundle.classes)
    for stage, head in heads.items():
        model = onnx.load(bundle.stage_path(stage))
        made, row = with_head(model, head), rows[stage]
        onnx.save_model(made, folder / bundle.stages[stage].file)
        for key, now, before in zip(("macs", "parameters"), head_cost(made), head_cost(model), strict=True):
            if key in row:
                row[key] += now - before
        row["exit"] = {"classes": classes, "temperature": 1.0}
    return rows


def write_rest(bundle: Bundle, folder: Path, name: str, data: HeadData, rows: list[Json], plan: Plan, tell: Tell) -> None:
    """Calibration, operating points, accuracy table, evaluation set and replay follow from the heads; all are made anew."""
    heads = [row["exit"] is not None for row in rows]
    chain = StageChain([folder / row["file"] for row in rows])

    def asked(split: str, start: float, samples: Evaluation) -> tuple[Floats, Evaluation]:
        width, line = (CALIBRATE_END - TRAIN_END) / 2, f"{len(samples)} {split} samples through ONNX Runtime"
        logits = chain.logits(samples.images, tell=lambda done: tell("calibrate", start + width * done, line))
        return logits, answered(samples, logits)

    fit_logits, calibration = asked("calibration", TRAIN_END, data.calibration)
    test_logits, test = asked("test", (TRAIN_END + CALIBRATE_END) / 2, data.test)
    temperatures = fit_temperatures(bundle, fit_logits, calibration, labelled=bool((data.calibration.labels >= 0).all()))
    rows = with_temperatures(rows, temperatures)
    fitted = by_stage(answers_of(fit_logits, temperatures, calibration.labels), heads)
    tested = by_stage(answers_of(test_logits, temperatures, test.labels), heads)
    splits, macs = (Split(fitted, calibration.digit), Split(tested, test.digit)), [row["macs"] for row in rows]
    points, default = point_rows(*splits, heads=heads, stage_macs=macs, least=DEFAULT_LEAST)
    write_evaluation(folder / EVALUATION_FILE, test)
    arrays = calibration_arrays(fit_logits, calibration.labels, calibration.severity, calibration.digit)
    np.savez_compressed(folder / CALIBRATION_FILE, **arrays)
    exits = [stage for stage, head in enumerate(heads) if head]
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest.pop("replay", None)
    manifest |= {
        "name": name,
        "stages": rows,
        "operating_points": points,
        "default_operating_point": default,
        "default_operating_point_rule": default_rule(DEFAULT_LEAST),
        "evaluation": {"file": EVALUATION_FILE, "samples": len(test), **unknown_labels(data.test)},
        "replay": None,
        "calibration": calibration_rows(fit_logits, calibration.labels, temperatures),
        "accuracy_table": table_row(*splits, heads=heads, stage_macs=macs, variant="per-exit"),
        "test": test_rows(tested, test.digit, test.severity, stages=exits),
        "heads": head_rows(bundle, data, plan),
        "codecs": {},
    }
    save_manifest(folder, manifest)
    write_replay(folder, tested, tell)


def write_notes(folder: Path, absent: Sequence[str]) -> None:
    """Adds to the manifest what whoever ordered the heads should know; see `zpipe.models.head_notes`."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    notes = []
    if absent:
        shown = ", ".join(absent[:NAMES_SHOWN]) + (f", ... ({len(absent)})" if len(absent) > NAMES_SHOWN else "")
        notes.append(
            f"no sample to learn from shows class {shown}: the new heads will not give that answer; give some, or add --distill"
        )
    point = next(row for row in manifest["operating_points"] if row["name"] == manifest["default_operating_point"])
    lost = point["test"]["accuracy_lost"]
    if lost["value"] >= MOST_LOST and lost["low"] > 0:
        notes.append(
            f"point {point['name']} answers {100 * lost['value']:.1f} points fewer right on test than the whole network: what the "
            "heads learnt from is unlike what they are tested on; give samples as the network will see them, or run no-exit"
        )
    extend_manifest(folder, {"heads": {**manifest["heads"], "notes": notes}})


def answered(samples: Evaluation, logits: Floats) -> Evaluation:
    """Where nobody knows the label, the last exit's answer takes its place: accuracy is then agreement with it."""
    unknown = samples.labels < 0
    return replace(samples, labels=np.where(unknown, logits[:, -1].argmax(1), samples.labels))


def unknown_labels(samples: Evaluation) -> Json:
    """The manifest's mark that accuracy on these is agreement."""
    if (samples.labels >= 0).all():
        return {}
    return {"generated": True, "note": "images without labels: what counts as right is the last exit's own answer"}


def fit_temperatures(bundle: Bundle, logits: Floats, calibration: Evaluation, *, labelled: bool) -> tuple[float, ...]:
    """One per exit. Without labels the last exit keeps its own: it always agrees with itself, which would make it sure of all."""
    temperatures = fit_variant("per-exit", logits, calibration.labels)
    last = bundle.stages[-1].exit_head
    assert last is not None  # the last stage always has one
    return temperatures if labelled else (*temperatures[:-1], last.temperature)


def write_replay(folder: Path, tested: Answers, tell: Tell) -> None:
    """What every exit says through every codec."""
    bundle = load_bundle(folder)

    def on_codec(done: int, total: int, codec: str) -> None:
        tell("codecs", CALIBRATE_END + (1 - CALIBRATE_END) * done / total, f"all test samples through {codec}")

    tables = codec_tables(bundle, tested, on_codec)
    np.savez_compressed(folder / REPLAY_FILE, **replay_arrays(tables))
    codecs = codec_rows(tables, bundle.default_point.thresholds, bundle.evaluation())
    extend_manifest(folder, {"replay": {"file": REPLAY_FILE}, "codecs": codecs})


def head_rows(bundle: Bundle, data: HeadData, plan: Plan) -> Json:
    """How the heads were made, for the manifest."""
    unknown = [
        split for split, labels in (("calibration", data.calibration.labels), ("test", data.test.labels)) if (labels < 0).any()
    ]
    return {
        "backbone": {"name": bundle.name, "digest": bundle.digest},
        "at": sorted(head_shapes(bundle, plan)),
        "trained_on": "the last exit's answers" if plan.distill else "labels",
        "agreement_only": unknown,
        "samples": len(data.images),
        "split": data.note,
        "epochs": plan.epochs,
        "seed": plan.seed,
        "threads": plan.threads,
    }
