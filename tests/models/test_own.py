"""A torch module of one's own, exported: its answers are the same, and every mistake is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

# ruff: noqa: E402 (the skip stands above the imports that need it, so that the module skips instead of failing)
torch = pytest.importorskip("torch", reason="needs torch: pip install 'zpipe[train]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'zpipe[train]'")

from zpipe.calibrate.chain import StageChain
from zpipe.errors import ConfigError
from zpipe.split import SplitOptions, split_model

MODELS = """
import torch
from torch import nn
from dataclasses import dataclass


@dataclass
class Sizes:
    hidden: int = 12


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(300, Sizes().hidden)
        layer = dict(nhead=2, dim_feedforward=24, dropout=0.1, batch_first=True)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(Sizes().hidden, **layer) for _ in range(2))
        self.out = nn.Linear(Sizes().hidden, 7)

    def forward(self, x):
        h = self.table(x)
        for layer in self.layers:
            h = layer(h)
        return self.out(h[:, -1])


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


class Two(Branch):
    def forward(self, x):
        return self.layer(x), x


def tokens():
    return Tokens()


def images():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 5),
    )


def number():
    return 3


def broken():
    raise RuntimeError("no such layer")
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_models.py").write_text(MODELS)


def made(name: str) -> Any:
    space: dict[str, Any] = {"__name__": "own_models"}
    exec(compile(MODELS, "own_models.py", "exec", dont_inherit=True), space)
    torch.manual_seed(1)
    return space[name]()


def complaint(model: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        split_model(SplitOptions(model, out=Path("bundle"), **{"example_shape": (4,), **options}))
    assert not Path("bundle").exists()
    message = str(caught.value)
    assert "\n" not in message
    assert "found" in message
    assert "expected" in message
    return message


@pytest.mark.parametrize("where", ["own_models.py", "own_models"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_module_and_weights_become_stages(where: str, wrapped: bool) -> None:
    network = made("images")
    state = network.state_dict()
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 3} if wrapped else state, "w.pt")
    bundle = split_model(
        SplitOptions(f"{where}:images", out=Path("bundle"), weights=Path("w.pt"), example_shape=(3, 8, 8), stages=2)
    )
    rows = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(rows)).numpy()
    found = StageChain([bundle.stage_path(stage) for stage in range(2)]).logits(rows, batch=5)[:, -1]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    for stage in range(2):
        assert str(Path.cwd()).encode() not in bundle.stage_path(stage).read_bytes()


def test_transformer_over_tokens() -> None:
    torch.save(made("tokens").state_dict(), "w.pt")
    options = SplitOptions(
        "own_models.py:tokens", out=Path("b"), weights=Path("w.pt"), example_shape=(6,), example_dtype="int64", stages=2
    )
    bundle = split_model(options)
    assert (bundle.stages[0].input.dtype, bundle.stages[1].input.shape) == ("int64", (6, 12))
    rows = np.random.default_rng(0).integers(0, 300, (3, 6))
    with torch.no_grad():
        expected = made("tokens").eval()(torch.from_numpy(rows)).numpy()
    found = StageChain([bundle.stage_path(stage) for stage in range(2)]).logits(rows, batch=3)[:, -1]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("own_models.py:nothing", "one of: "),
        ("own_models.py:number", "torch.nn.Module"),
        ("own_models.py:broken", "no such layer"),
        ("own_models.py:Branch", "branches on values"),
        ("own_models.py:Two", "one tensor"),
        ("own_models.py:images", "--example-shape"),
        ("nowhere.py:images", "no file nowhere.py"),
        ("no_such_package.models:images", "cannot be imported"),
    ],
)
def test_module_that_cannot_be_exported_is_refused_in_one_line(model: str, said: str) -> None:
    assert said in complaint(model)


def test_weights_that_do_not_fit_are_refused() -> None:
    torch.save(made("tokens").state_dict(), "w.pt")
    assert "not of this module" in complaint("own_models.py:images", weights=Path("w.pt"))
    torch.save(made("images"), "whole.pt")
    assert "save its state_dict()" in complaint("own_models.py:images", weights=Path("whole.pt"))
    Path("text.pt").write_text("weights")
    assert "no plain state dict" in complaint("own_models.py:images", weights=Path("text.pt"))
    assert "no file" in complaint("own_models.py:images", weights=Path("gone.pt"))
    assert "--example-shape" in complaint("own_models.py:images", example_shape=None)
