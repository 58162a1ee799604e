"""ResNet-50 in four stages, an exit head behind each: stages as large as what people split, with weights that were never trained.

What a benchmark of speed needs of a network is its shapes. Two things are made as training would make them: batch normalisation
knows the statistics of the images below, so that activations neither vanish nor leave what float16 can hold, and each exit head is
scaled to logits that differ from image to image, so that a threshold divides them. Its answers mean nothing.

Source: ResNet (arXiv:1512.03385), Table 1, 50 layers, with the stride in the 3x3 convolution as everybody has it since; heads of
one linear layer behind a global average, as the last one has. Needs the extra `train`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.gpus.thresholds import gate_of, median_thresholds
from bench.models.pictures import pictures
from zpipe.bundle import MANIFEST, SCHEMA, Bundle, file_digest, load_bundle
from zpipe.executors.base import StageExecutor, make_executor
from zpipe.model import NEVER_EXIT
from zpipe.models.export import export_stages, stage_tensors
from zpipe.models.network import MultiExitNet, Normalise, Stage, conv_norm, stage_costs

#: Blocks of each stage, and what a block's output has more channels than its middle.
BLOCKS = (3, 4, 6, 3)
EXPANSION = 4
#: Standard deviation of an exit's logits over images: confidences then spread over most of 0..1 with a thousand classes, too.
LOGIT_DEVIATION = 3.0
#: Evaluation samples, and how many ONNX Runtime is given at once: activations of stage 0 are 3 MB each.
EVALUATION, BATCH = 64, 16


class Bottleneck(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """1x1 down, 3x3, 1x1 up, and the input added."""

    def __init__(self, inputs: int, middle: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * middle
        self.layers = nn.Sequential(
            *conv_norm(inputs, middle),
            nn.ReLU(inplace=True),
            *conv_norm(middle, middle, 3, stride),
            nn.ReLU(inplace=True),
            *conv_norm(middle, outputs),
        )
        self.shortcut = nn.Sequential(*conv_norm(inputs, outputs, 1, stride)) if inputs != outputs or stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + self.shortcut(x))


def resnet(*, width: int, blocks: Sequence[int], classes: int) -> MultiExitNet:
    """The network with fresh weights from torch's global generator; `width` 64 is the paper's."""
    layers: list[nn.Module] = [Normalise(), *conv_norm(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    stages, channels = [], width
    for index, count in enumerate(blocks):
        middle = width << index
        for repeat in range(count):
            layers.append(Bottleneck(channels, middle, stride=2 if index and not repeat else 1))
            channels = EXPANSION * middle
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
        stages.append(Stage(nn.Sequential(*layers), head, last=index == len(blocks) - 1))
        layers = []
    return MultiExitNet(stages)


def write_resnet50(
    folder: Path,
    *,
    size: int = 224,
    width: int = 64,
    blocks: Sequence[int] = BLOCKS,
    classes: int = 1000,
    seed: int = 0,
) -> Bundle:
    """Makes the network and writes its bundle.

    The evaluation set is `pictures`, their labels are what the network itself says in float32: the accuracy of another precision is
    how far it agrees. The default operating point lets half leave at each exit.

    Args:
        folder: exists.
        size: side of an image.
        width, blocks, classes: smaller ones make a network of the same kind for a test.
        seed: of the weights and of the images they are scaled to.
    """
    torch.manual_seed(seed)
    network, images = resnet(width=width, blocks=blocks, classes=classes), pictures(16, size, seed=seed)
    settle(network, torch.from_numpy(images))
    export_stages(network, images[:2], folder)
    manifest = _manifest(network, images, size=size, classes=classes)
    bundle = _written(folder, manifest)
    evaluation = pictures(EVALUATION, size, seed=seed + 1)
    executor = make_executor("onnx", bundle, range(len(bundle.stages)), threads=os.cpu_count() or 1)
    thresholds = median_thresholds(executor, bundle, evaluation, batch=BATCH)
    labels: list[int] = []
    for start in range(0, EVALUATION, BATCH):
        labels += _labels(executor, bundle, evaluation[start : start + BATCH])
    executor.close()
    index = np.arange(EVALUATION)
    np.savez(folder / "evaluation.npz", images=evaluation, labels=np.array(labels), severity=np.zeros_like(index), digit=index)
    manifest["evaluation"] = {"file": "evaluation.npz", "samples": EVALUATION}
    manifest["operating_points"].append(_point("half", thresholds, [spec.macs for spec in bundle.stages]))
    manifest["default_operating_point"] = "half"
    return _written(folder, manifest)


def settle(network: MultiExitNet, images: Tensor) -> None:
    """Statistics of the normalisations and scales of the heads, from these images."""
    network.train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the plain mean over all it has seen: one batch
    x = images
    with torch.no_grad():
        for stage in network.stages:
            answer = stage(x)
            x = answer[0] if isinstance(answer, tuple) else x
        network.eval()
        x = images
        for stage in network.stages:
            x = stage.body(x)
            _scale(stage.head, x)


def _scale(head: nn.Module, x: Tensor) -> None:
    linear = next(layer for layer in head.modules() if isinstance(layer, nn.Linear))
    linear.bias.zero_()
    logits = head(x)
    linear.weight *= LOGIT_DEVIATION / (logits - logits.mean(dim=0)).std()
    linear.bias.copy_(-head(x).mean(dim=0))


def _labels(executor: StageExecutor, bundle: Bundle, rows: npt.NDArray[Any]) -> list[int]:
    """What the last exit says."""
    never = (NEVER_EXIT,) * len(bundle.stages)
    for spec in bundle.stages[:-1]:
        rows = np.asarray(executor.run(spec.index, rows, gate_of(bundle, spec.index, never, len(rows))).activation)
    last = bundle.stages[-1].index
    return executor.run(last, rows, gate_of(bundle, last, never, len(rows))).labels


def _manifest(network: MultiExitNet, images: npt.NDArray[np.uint8], *, size: int, classes: int) -> dict[str, Any]:
    costs = [macs for macs, _ in stage_costs(network, images)]
    stages = [
        {
            "file": f"stage{index}.onnx",
            "input": {"dtype": before.dtype, "shape": before.shape},
            "output": None if after is None else {"dtype": after.dtype, "shape": after.shape},
            "activation_bytes": 0 if after is None else after.bytes,
            "macs": macs,
            "exit": {"classes": classes, "temperature": 1.0},
        }
        for index, (macs, (before, after)) in enumerate(zip(costs, stage_tensors(network, images), strict=True))
    ]
    thresholds = (NEVER_EXIT,) * (len(stages) - 1) + (0.0,)
    return {
        "schema": SCHEMA,
        "name": "resnet50-random",
        "classes": [str(index) for index in range(classes)],
        "preprocessing": {"size": size, "channels": "RGB", "layout": "CHW", "dtype": "uint8", "note": "as it is"},
        "stages": stages,
        "operating_points": [_point("no-exit", thresholds, costs)],
        "default_operating_point": "no-exit",
        "evaluation": None,
        "replay": None,
    }


def _point(name: str, thresholds: Sequence[float], costs: Sequence[int]) -> dict[str, Any]:
    """Half leaves at each exit whose threshold can be reached."""
    left, shares = 1.0, []
    for threshold in thresholds[:-1]:
        shares.append(left / 2 if threshold < NEVER_EXIT else 0.0)
        left -= shares[-1]
    shares.append(left)
    macs = sum(share * sum(costs[: stage + 1]) for stage, share in enumerate(shares))
    metrics = {"accuracy": 0.0, "exit_shares": shares, "mean_macs": macs}
    return {"name": name, "thresholds": list(thresholds), "calibration": metrics, "test": metrics}


def _written(folder: Path, manifest: dict[str, Any]) -> Bundle:
    files = sorted((*folder.glob("*.onnx"), *folder.glob("*.npz")))
    manifest["digests"] = {path.name: file_digest(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return load_bundle(folder)
