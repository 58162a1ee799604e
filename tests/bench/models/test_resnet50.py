"""ResNet-50 for the GPU benchmark: really that network, and the same in stages, in one and in torch. Needs the extra `train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import torch
from torch import nn

from bench.gpus.thresholds import gate_of
from bench.models.resnet50 import BLOCKS, recipe, write_resnet50
from bench.models.unsplit import unsplit
from zpipe.executors import make_executor
from zpipe.model import NEVER_EXIT
from zpipe.models.network import stage_costs
from zpipe.models.networks import build_network
from zpipe.models.pictures import pictures
from zpipe.models.untrained import settle

if TYPE_CHECKING:
    from zpipe.bundle import Bundle

pytestmark = pytest.mark.slow

SIZE = 64


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same kind of network, an eighth as wide and with one block a stage."""
    return write_resnet50(tmp_path_factory.mktemp("resnet"), size=SIZE, width=8, blocks=(1, 1, 1, 1), classes=10)


def test_full_network_has_resnet50s_multiply_adds_and_parameters() -> None:
    """4.09 G and 25.56 M, as published for the variant with its stride in the 3x3 convolution; and three more heads."""
    network = build_network(recipe(size=224, width=64, blocks=BLOCKS, classes=1000), classes=1000)
    early_heads = sum(channels * 1000 for channels in (256, 512, 1024))
    macs = sum(macs for macs, _ in stage_costs(network, pictures(1, 224)))
    assert macs - early_heads == 4_089_184_256
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters - early_heads - 3 * 1000 == 25_557_032


def test_stages_joined_again_are_the_network(small: Bundle, tmp_path: Path) -> None:
    images = pictures(5, SIZE, seed=9)
    never = (NEVER_EXIT,) * 4
    stages, one = make_executor("onnx", small, range(4)), unsplit(small, tmp_path)
    rows: npt.NDArray[Any] = images
    for stage in range(3):
        rows = np.asarray(stages.run(stage, rows, gate_of(small, stage, never, 5)).activation)
    chained = stages.run(3, rows, gate_of(small, 3, never, 5))
    joined = make_executor("onnx", one, [0]).run(0, images, gate_of(one, 0, (0.0,), 5))
    assert joined.labels == chained.labels
    np.testing.assert_allclose(joined.confidences, chained.confidences, atol=1e-5)
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["evaluation.npz", "whole.onnx"]


def test_half_leave_at_each_exit_of_its_default_point(small: Bundle) -> None:
    assert small.default_point.name == "half"
    executor = make_executor("onnx", small, range(4))
    rows: npt.NDArray[Any] = small.evaluation().images
    left = []
    for stage in range(3):
        output = executor.run(stage, rows, gate_of(small, stage, small.default_point.thresholds, len(rows)))
        left.append(sum(output.exited))
        rows = np.asarray(output.activation)[~np.array(output.exited)]
    assert left == [32, 16, 8]


def test_activations_are_what_float16_can_hold(small: Bundle) -> None:
    executor = make_executor("onnx", small, range(4))
    rows: npt.NDArray[Any] = pictures(8, SIZE, seed=3)
    for stage in range(3):
        output = executor.run(stage, rows, gate_of(small, stage, (NEVER_EXIT,) * 4, len(rows)))
        rows = np.asarray(output.activation)
        assert 0.1 < rows.std() < 100
        assert np.abs(rows).max() < 1000


def test_its_normalisation_knows_its_pictures() -> None:
    torch.manual_seed(0)
    network = build_network(recipe(size=SIZE, width=8, blocks=(1, 1, 1, 1), classes=10), classes=10)
    settle(network, torch.from_numpy(pictures(16, SIZE)))
    assert not network.training
    with torch.no_grad():
        exits = network(torch.from_numpy(pictures(16, SIZE)))
    for logits in exits:
        assert 2.0 < float((logits - logits.mean(dim=0)).std()) < 4.0
    assert all(layer.momentum is None for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
