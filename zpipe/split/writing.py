"""The bundle of a split network: stages, figures from ONNX Runtime, and a topology that runs it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml

from zpipe.bundle import SCHEMA, load_bundle
from zpipe.bundle.write import extend_manifest, save_manifest
from zpipe.calibrate.chain import StageChain
from zpipe.calibrate.codec_tables import codec_rows, codec_tables, replay_arrays
from zpipe.calibrate.metrics import Answers, answers_of
from zpipe.calibrate.points import NO_EXIT, measure_point
from zpipe.calibrate.rows import CALIBRATION_FILE, calibration_arrays, calibration_rows
from zpipe.calibrate.temperature import by_stage, fit_variant
from zpipe.calibrate.write import EVALUATION_FILE, REPLAY_FILE, write_evaluation
from zpipe.datasets import Labelled
from zpipe.model import NEVER_EXIT, TensorSpec
from zpipe.split.cuts import Cut
from zpipe.split.data import Samples, image_size
from zpipe.split.network import Network
from zpipe.split.stages import crossing_spec, make_stages
from zpipe.split.verify import check_stages, computes_in_half, parity_limit

Json = dict[str, Any]

#: Takes a line for people and the fraction done, 0..1.
Tell = Callable[[str, float], None]

IMAGE_NOTE = "Resize to size x size, RGB, channels first, uint8 0..255. Stage 0 normalises: never do it before."

GENERATED_NOTE = (
    "Inputs are random and labels are the un-split network's own answers: accuracy says how far answers agree with these, no more. "
    "Give labelled samples with `zpipe split --data`, or `zpipe calibrate --data ... --write`."
)

_VERSIONS = ("onnx", "onnxruntime", "numpy", "torch")


def write_bundle(folder: Path, network: Network, cuts: Sequence[Cut], samples: Samples, *, name: str, tell: Tell) -> None:
    """Write a bundle with the last stage's logits as its only exit.

    Args:
        folder: exists, and is empty.
        network: what was cut.
        cuts: in topological order.
        samples: what its figures rest on.
        name: of the bundle.
        tell: progress.

    Raises:
        ConfigError: the stages differ from the original.
    """
    tell("stages", 0.0)
    paths, parameters = [], []
    for index, model in enumerate(make_stages(network, cuts)):  # one at a time: together they are as large as the network
        paths.append(folder / f"stage{index}.onnx")
        parameters.append(sum(int(np.prod(item.dims)) for item in model.graph.initializer))
        onnx.save_model(model, paths[-1])
    error = check_stages(network, paths, samples.tested.images)
    chain, last = StageChain(paths), len(paths) - 1
    temperature = 1.0
    fitted: tuple[Labelled, Any] | None = None
    if samples.fitted is not None:
        logits = _ask(chain, samples.fitted, "calibration samples", tell)
        temperature = fit_variant("per-exit", logits, samples.fitted.labels)[0]
        fitted = samples.fitted, logits
    macs = _stage_macs(network, cuts)
    heads = [index == last for index in range(len(paths))]
    tested = _answers(_ask(chain, samples.tested, "test samples", tell), temperature, samples.tested, heads)
    known = tested if fitted is None else _answers(fitted[1], temperature, fitted[0], heads)
    write_evaluation(folder / EVALUATION_FILE, samples.tested.data)
    manifest: Json = {
        "schema": SCHEMA,
        "name": name,
        "classes": list(samples.classes),
        "preprocessing": _preprocessing(network),
        "stages": _stage_rows(network, cuts, parameters, macs, temperature),
        "operating_points": [_point(known, tested, macs)],
        "default_operating_point": NO_EXIT,
        "evaluation": {"file": EVALUATION_FILE, "samples": len(samples.tested)},
        "replay": None,
        "split": _split_row(network, cuts, error),
    }
    if fitted is None:
        manifest["evaluation"] |= {"generated": True, "note": GENERATED_NOTE}
    else:
        data, logits = fitted
        arrays = calibration_arrays(logits, data.labels, data.data.severity, data.digit)
        np.savez_compressed(folder / CALIBRATION_FILE, **arrays)
        manifest["calibration"] = calibration_rows(logits, data.labels, (temperature,))
    save_manifest(folder, manifest)
    _write_replay(folder, tested, tell)


def _write_replay(folder: Path, tested: Answers, tell: Tell) -> None:
    bundle = load_bundle(folder)
    tables = codec_tables(bundle, tested, lambda done, total, codec: tell(f"test samples through codec {codec}", done / total))
    np.savez_compressed(folder / REPLAY_FILE, **replay_arrays(tables))
    rows = codec_rows(tables, bundle.default_point.thresholds, bundle.evaluation())
    extend_manifest(folder, {"replay": {"file": REPLAY_FILE}, "codecs": rows})


def _ask(chain: StageChain, samples: Labelled, what: str, tell: Tell) -> Any:
    return chain.logits(samples.images, tell=lambda done: tell(f"{len(samples)} {what} through ONNX Runtime", done))


def _answers(logits: Any, temperature: float, samples: Labelled, heads: Sequence[bool]) -> Answers:
    return by_stage(answers_of(logits, (temperature,), samples.labels), heads)


def _stage_macs(network: Network, cuts: Sequence[Cut]) -> list[int]:
    until = [0, *(cut.macs_before for cut in cuts), sum(network.macs)]
    return [after - before for before, after in pairwise(until)]


def _preprocessing(network: Network) -> Json | None:
    size = image_size(network)
    if size is None:
        return None
    return {"size": size, "channels": "RGB", "layout": "CHW", "dtype": "uint8", "note": IMAGE_NOTE}


def _stage_rows(
    network: Network, cuts: Sequence[Cut], parameters: Sequence[int], macs: Sequence[int], temperature: float
) -> list[Json]:
    crossing: list[TensorSpec | None] = [network.takes, *(crossing_spec(network, cut) for cut in cuts), None]
    rows = []
    for index, (before, after) in enumerate(pairwise(crossing)):
        assert before is not None
        head = None if after is not None else {"classes": network.answer.classes, "temperature": temperature}
        rows.append(
            {
                "file": f"stage{index}.onnx",
                "input": {"dtype": before.dtype, "shape": list(before.shape)},
                "output": None if after is None else {"dtype": after.dtype, "shape": list(after.shape)},
                "activation_bytes": 0 if after is None else after.bytes,
                "macs": macs[index],
                "parameters": parameters[index],
                "exit": head,
            }
        )
    return rows


def _point(known: Answers, tested: Answers, macs: Sequence[int]) -> Json:
    thresholds = (NEVER_EXIT,) * len(macs)
    splits = {
        split: asdict(measure_point(answers, thresholds, macs)) for split, answers in (("calibration", known), ("test", tested))
    }
    return {"name": NO_EXIT, "thresholds": list(thresholds), **splits}


def _split_row(network: Network, cuts: Sequence[Cut], error: float) -> Json:
    """How it was made, without any trace of the machine."""
    model = network.original.path
    return {
        "model": model.name,
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "input": network.original.input,
        "output": network.original.output,
        "answer": network.answer.note,
        "cuts": [list(cut.tensors) for cut in cuts],
        "parity_error": error,
        "parity_limit": parity_limit(network),
        "half": computes_in_half(network),
        "versions": {name: version for name in _VERSIONS if (version := _version(name)) is not None},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def line_topology(stages: int, bundle: Path, file: Path) -> str:
    """The text of a topology file: a line of nodes, one stage each.

    Args:
        stages: how many.
        bundle: the folder of what it runs.
        file: where the text will lie; its name is the topology's, and the bundle is named relative to it.
    """
    where = os.path.relpath(bundle.absolute(), file.absolute().parent)
    lines = [
        f"# A line of {stages} nodes, one stage of the bundle each; node 0 is the source. Made by `zpipe split`.",
        # People's names of files hold all that YAML reads as something else: numbers, words, quotes, colons.
        yaml.safe_dump({"bundle": where}, allow_unicode=True, width=math.inf).rstrip(),
        "nodes:",
        *(f"  - {{rank: {stage}, stages: [{stage}]}}" for stage in range(stages)),
        "links: line",
    ]
    return "\n".join(lines) + "\n"
