"""The stages of the bundles that lie in `engines/`, and of nets as torch exports them, against ONNX Runtime on the CPU."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from zpipe.bundle import Bundle, load_bundle

# ruff: noqa: E402 (the skip stands above the imports that need it, so that the module skips instead of failing)
for _name in ("torch", "onnx", "onnxscript"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'zpipe[train]'")

import torch
from torch import nn

from zpipe.executors.torch_onnx import OnnxModule

ENGINES = Path(__file__).parents[3] / "engines"
BUNDLES = ("digits-mobilenetv2", "digits-mobilenetv2-half", "digits96-mobilenetv2")
MOST_ROWS = 16

#: Largest absolute difference at float32; at float16 in parts of the largest value.
PARITY, HALF_PARITY = 1e-4, 5e-3

Array = npt.NDArray[Any]


def session_of(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, x: Array) -> dict[str, Array]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))


@pytest.fixture(scope="module", params=BUNDLES)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return load_bundle(ENGINES / request.param, verify=False)


def stage_inputs(bundle: Bundle) -> list[tuple[Path, onnxruntime.InferenceSession, Array]]:
    """Each stage's file and session, and what its first rows of the evaluation set come to there."""
    x: Any = bundle.evaluation().images[:MOST_ROWS]
    stages = []
    for stage in bundle.stages:
        path = bundle.stage_path(stage.index)
        session = session_of(path)
        stages.append((path, session, x))
        x = run(session, x).get("activation")
    return stages


def test_every_stage_agrees_at_every_batch(bundle: Bundle) -> None:
    for path, session, inputs in stage_inputs(bundle):
        module = OnnxModule(path, device="cpu")
        for batch in range(1, MOST_ROWS + 1):
            x = inputs[-batch:]
            found, expected = module(torch.from_numpy(x)), run(session, x)
            assert found.keys() == expected.keys()
            for name, tensor in found.items():
                assert tensor.shape == expected[name].shape
                assert tensor.dtype == torch.float32
                assert np.abs(tensor.numpy() - expected[name]).max() < PARITY, (path, name, batch)


def test_every_stage_agrees_at_half_precision(bundle: Bundle) -> None:
    for path, session, x in stage_inputs(bundle):
        found, expected = OnnxModule(path, device="cpu", half=True)(torch.from_numpy(x)), run(session, x)
        for name, tensor in found.items():
            off = np.abs(tensor.float().numpy() - expected[name]).max() / np.abs(expected[name]).max()
            assert off < HALF_PARITY, (path, name)


def test_every_stage_can_be_captured(bundle: Bundle) -> None:
    for path, _, inputs in stage_inputs(bundle):
        module = OnnxModule(path, device="meta")
        for batch in (1, MOST_ROWS):
            x = torch.from_numpy(inputs[:batch])
            assert all(len(output) == batch for output in module(x.to("meta")).values())


# ---- other nets --------------------------------------------------------------------------------


class Attention(nn.Module):  # type: ignore[misc]  # torch is Any here
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads, self.joint, self.out = heads, nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, size = x.shape
        q, k, v = self.joint(x).reshape(batch, length, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed: torch.Tensor = nn.functional.scaled_dot_product_attention(q, k, v)
        out: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, size))
        return out


class Transformer(nn.Module):  # type: ignore[misc]  # torch is Any here
    """A class token, learned positions, attention: what an image transformer exports to."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.positions = nn.Parameter(torch.randn(1, 17, 32))
        self.norms = nn.ModuleList([nn.LayerNorm(32) for _ in range(4)])
        self.attentions = nn.ModuleList([Attention(32, 4) for _ in range(2)])
        self.mlps = nn.ModuleList([nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2)])
        self.head = nn.Linear(32, 10)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        x = self.patches(input).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for block in range(2):
            x = x + self.attentions[block](self.norms[2 * block](x))
            x = x + self.mlps[block](self.norms[2 * block + 1](x))
        logits: torch.Tensor = self.head(x[:, 0])
        return logits


class Residual(nn.Module):  # type: ignore[misc]  # torch is Any here
    """What the nets of the last ten years are made of: strided stem, pooling, a shortcut, squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.Hardswish(), nn.MaxPool2d(3, 2, 1))
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.SiLU(), nn.Conv2d(16, 16, 1), nn.GroupNorm(4, 16))
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Hardsigmoid())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        x = self.stem(input)
        deep = self.deep(x)
        logits: torch.Tensor = self.head(x + deep * self.squeeze(deep))
        return logits


def export(net: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        torch.onnx.export(
            net.eval(),
            (torch.rand(2, 3, 16, 16),),
            path,
            dynamo=True,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes={"input": {0: torch.export.Dim("batch", min=1, max=64)}},
            opset_version=18,
            external_data=False,
            verbose=False,
        )
    return path


@pytest.mark.parametrize("net", [Transformer, Residual])
def test_exported_net_agrees_at_every_batch_and_can_be_captured(net: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = export(net(), tmp_path / "net.onnx")
    module, nowhere, session = OnnxModule(path, device="cpu"), OnnxModule(path, device="meta"), session_of(path)
    for batch in (1, 2, 5, 16):
        x = np.random.default_rng(batch).random((batch, 3, 16, 16)).astype(np.float32)
        found = module(torch.from_numpy(x))["logits"].numpy()
        assert np.abs(found - run(session, x)["logits"]).max() < PARITY
        assert nowhere(torch.from_numpy(x).to("meta"))["logits"].shape == (batch, 10)
