"""Networks that were never trained, as bundles: for measurements of speed, which need a network's shapes and not its answers.

Two things are made as training would make them: batch normalisation knows the statistics of the images below, so that activations
neither vanish nor leave what float16 can hold, and exits differ from sample to sample, so that a threshold divides them. What
such a network answers means nothing. What counts as right in its evaluation set is what the un-split network itself says in
torch: the accuracy of a chain of stages, of another precision or a codec is how far it agrees with that.

The same way leads from a checkpoint to a bundle: its weights are not random, but its evaluation set is as made up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zpipe.bundle import SCHEMA, Bundle, Evaluation, load_bundle
from zpipe.bundle.write import extend_manifest, save_manifest
from zpipe.calibrate.chain import StageChain
from zpipe.calibrate.codec_tables import codec_rows, codec_tables, replay_arrays
from zpipe.calibrate.metrics import Answers, answers_of
from zpipe.calibrate.points import measure_point
from zpipe.calibrate.rows import point_rows
from zpipe.calibrate.table import Split
from zpipe.calibrate.write import EVALUATION_FILE, REPLAY_FILE, write_evaluation
from zpipe.errors import ExecutorError
from zpipe.model import NEVER_EXIT
from zpipe.models.bottleneck import principal_code, weights_of
from zpipe.models.export import PARITY, difference, export_stages, parity_error
from zpipe.models.manifest import PREPROCESSING_NOTE, chain_rows
from zpipe.models.network import MultiExitNet
from zpipe.models.pictures import pictures
from zpipe.models.recipes import Gpt2, Recipe, ResNet
from zpipe.models.resnet import Residual

Json = dict[str, Any]
Array = npt.NDArray[Any]

#: Standard deviation of an exit's logits over samples: confidences then spread over most of 0..1 with a thousand classes, too.
LOGIT_DEVIATION = 3.0

#: Evaluation samples, samples that statistics and the bottleneck are taken from, and samples that torch and ONNX Runtime compare.
EVALUATION, STATISTICS, COMPARED = 64, 16, 4

#: Scale of what a residual block adds. At 1, rounding errors of random weights grew to 1e-4 of a logit in ResNet-50; at 0.5, 1e-5.
RESIDUAL_WEIGHT = 0.5

NOTE = "random weights, for measurements of speed: its answers mean nothing"
EVALUATION_NOTE = "made up; what counts as right is what the un-split network says in torch"
BOTTLENECK_FILE = "bottleneck.npz"

#: Called as work goes on: see `zpipe.models.Progress`.
Tell = Callable[[str, float, str], None]


@dataclass(frozen=True, slots=True)
class Made:
    """A network as it is packed.

    Attributes:
        network: in eval mode.
        recipe: its own.
        classes: names of the labels.
        name: the bundle's.
        note: for the manifest: what the weights are.
        seed: of weights and samples.
    """

    network: MultiExitNet
    recipe: Recipe
    classes: tuple[str, ...]
    name: str
    note: str
    seed: int


def samples_for(recipe: Recipe, count: int, *, seed: int) -> Array:
    """Made-up samples: coarse coloured blocks under noise, or tokens drawn at random."""
    if isinstance(recipe.network, Gpt2):
        shape = (count, recipe.network.tokens)
        return np.random.default_rng(seed).integers(0, recipe.network.vocabulary, shape, dtype=np.int64)
    return pictures(count, recipe.image_size, seed=seed)


def settle(network: MultiExitNet, samples: Tensor) -> None:
    """Statistics of the normalisations, and scales of the heads of networks for images, from these samples."""
    network.train()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # the plain mean over all it has seen: one batch
            elif isinstance(layer, Residual):
                layer.layers[-1].weight.fill_(RESIDUAL_WEIGHT)
        network(samples)
        network.eval()
        x = samples
        for stage in network.stages:
            x = stage.body(x)
            _scale(stage.head, x)


def _scale(head: nn.Module, x: Tensor) -> None:
    """Not where a head shares its weights with the embedding: a temperature does it there."""
    linear = [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1]
    if linear.bias is None:
        return
    linear.bias.zero_()
    logits = head(x)
    linear.weight *= LOGIT_DEVIATION / (logits - logits.mean(dim=0)).std()
    linear.bias.copy_(-head(x).mean(dim=0))


def write_untrained(made: Made, folder: Path, *, tell: Tell) -> Bundle:
    """Export, compare with the un-split network, write the bundle into `folder`, which exists.

    The default operating point, `half`, lets half of what arrives at each exit leave there. A ResNet gets the bottleneck of the
    MDI-Exit paper on its first cut, from the principal components of its channels.

    Raises:
        ExecutorError: the stages disagree with the un-split network.
    """
    samples = samples_for(made.recipe, STATISTICS, seed=made.seed)
    tell("export", 0.1, f"{len(made.network.stages)} stages to ONNX")
    chain = StageChain(export_stages(made.network, samples[:2], folder))
    tell("export", 0.3, "stages against the un-split network")
    compared = samples[:COMPARED]
    error = max(parity_error(made.network, chain, compared, relative=True), split_error(made.network, chain, compared))
    answers = [_asked(made, chain, seed, tell) for seed in (made.seed + 1, made.seed + 2)]
    temperatures = _temperatures(made, answers[0][1])
    (test, test_logits), (fitted, fit_logits) = answers
    splits = [
        Split(answers_of(logits, temperatures, evaluation.labels), evaluation.digit)
        for evaluation, logits in ((fitted, fit_logits), (test, test_logits))
    ]
    write_evaluation(folder / EVALUATION_FILE, test)
    save_manifest(folder, _manifest(made, samples, splits, temperatures, error))
    if isinstance(made.recipe.network, ResNet):
        _write_bottleneck(made.network, samples, folder)
    _write_replay(folder, splits[1].answers, tell)
    return load_bundle(folder)


def whole(network: MultiExitNet, samples: Array) -> npt.NDArray[np.float32]:
    """What the un-split network says: all bodies in one go, then the last head."""
    body = nn.Sequential(*(layer for stage in network.stages for layer in stage.body), network.stages[-1].head)
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = body.eval()(torch.from_numpy(samples)).numpy()
    return logits


def split_error(network: MultiExitNet, chain: StageChain, samples: Array) -> float:
    """Largest difference of the last exit's logits between the chain of stages and the un-split network, over the largest of them.

    Raises:
        ExecutorError: it is above PARITY.
    """
    worst = difference(chain.logits(samples)[:, -1], whole(network, samples), relative=True)
    if not worst <= PARITY:
        raise ExecutorError(f"chain of stages: found a difference of {worst:.2g} from the un-split network, expected {PARITY:g}")
    return worst


def _asked(made: Made, chain: StageChain, seed: int, tell: Tell) -> tuple[Evaluation, npt.NDArray[np.float32]]:
    """A made-up set with the un-split network's answers as labels, and what every exit of the chain says to it."""
    samples = samples_for(made.recipe, EVALUATION, seed=seed)
    start = 0.4 if seed == made.seed + 1 else 0.55
    logits = chain.logits(
        samples, tell=lambda done: tell("replay", start + 0.15 * done, f"{EVALUATION} samples through every exit")
    )
    labels = np.concatenate([whole(made.network, samples[row : row + 8]).argmax(1) for row in range(0, EVALUATION, 8)])
    index = np.arange(EVALUATION)
    return Evaluation(samples, labels.astype(np.int64), np.zeros(EVALUATION, np.int64), index), logits


def _temperatures(made: Made, logits: npt.NDArray[np.float32]) -> tuple[float, ...]:
    """So that confidences spread; 1 where the heads were scaled to that, or the weights are somebody's."""
    exits = int(logits.shape[1])
    if not isinstance(made.recipe.network, Gpt2) or made.note != NOTE:
        return (1.0,) * exits
    spread = logits - logits.mean(0)
    return tuple(float(spread[:, index].std()) / LOGIT_DEVIATION for index in range(exits))


def median_thresholds(answers: Answers) -> tuple[float, ...]:
    """One threshold per stage so that half of what arrives at each leaves there."""
    stays = np.ones(len(answers.labels), np.bool_)
    thresholds = []
    for confidences in answers.confidences.T[:-1]:
        # A confidence of 1 would be a threshold that nobody passes.
        thresholds.append(min(float(np.median(confidences[stays])), float(np.nextafter(np.float32(NEVER_EXIT), np.float32(0)))))
        stays &= confidences < np.float32(thresholds[-1])
    return (*thresholds, 0.0)


def _manifest(made: Made, samples: Array, splits: Sequence[Split], temperatures: Sequence[float], error: float) -> Json:
    stages = chain_rows(made.network, samples, classes=len(made.classes), temperatures=temperatures)
    macs = [row["macs"] for row in stages]
    points, _ = point_rows(*splits, heads=(True,) * len(stages), stage_macs=macs, least=made.recipe.default_threshold_least)
    half = median_thresholds(splits[1].answers)
    columns = (asdict(measure_point(split.answers, half, macs)) for split in splits)
    points.append({"name": "half", "thresholds": list(half), **dict(zip(("calibration", "test"), columns, strict=True))})
    images = {"size": made.recipe.image_size, "channels": "RGB", "layout": "CHW", "dtype": "uint8", "note": PREPROCESSING_NOTE}
    return {
        "schema": SCHEMA,
        "name": made.name,
        "note": made.note,
        "classes": list(made.classes),
        "preprocessing": None if isinstance(made.recipe.network, Gpt2) else images,
        "stages": stages,
        "operating_points": points,
        "default_operating_point": "half",
        "evaluation": {"file": EVALUATION_FILE, "samples": EVALUATION, "generated": True, "note": EVALUATION_NOTE},
        "replay": None,
        "training": {"recipe": asdict(made.recipe), "seed": made.seed, "epochs": 0, "onnx_parity_error": error},
    }


def _write_bottleneck(network: MultiExitNet, samples: Array, folder: Path) -> None:
    with torch.no_grad():
        activation, _ = network.stages[0](torch.from_numpy(samples))
        cut = principal_code(activation)
    weights: dict[str, Any] = dict(weights_of(nn.ModuleList([cut])))
    np.savez_compressed(folder / BOTTLENECK_FILE, **weights)
    extend_manifest(folder, {"bottleneck": {"file": BOTTLENECK_FILE, "epochs": 0, "note": "principal components, first cut"}})


def _write_replay(folder: Path, answers: Answers, tell: Tell) -> None:
    bundle = load_bundle(folder)

    def on_codec(done: int, total: int, codec: str) -> None:
        tell("codecs", 0.7 + 0.3 * done / total, f"all test samples through {codec}")

    tables = codec_tables(bundle, answers, on_codec)
    np.savez_compressed(folder / REPLAY_FILE, **replay_arrays(tables))
    codecs = codec_rows(tables, bundle.default_point.thresholds, bundle.evaluation())
    extend_manifest(folder, {"replay": {"file": REPLAY_FILE}, "codecs": codecs})
