"""A torch module of one's own, exported: its answers are the same, and every mistake is one line."""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

# ruff: noqa: E402 (the skip stands above the imports that need it, so that the module skips instead of failing)
torch = pytest.importorskip("torch", reason="needs torch: pip install 'zpipe[train]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'zpipe[train]'")

from torch import nn

from zpipe.calibrate.chain import StageChain
from zpipe.errors import ConfigError
from zpipe.models.own import export_module, load_weights
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


class Decomposed(Branch):
    def forward(self, x):
        return self.layer(torch.linalg.svd(x.view(-1, 2, 2))[1].repeat(1, 2))


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


def faster():
    return nn.DataParallel(torch.compile(Branch().layer))


def scripted():
    return torch.jit.trace(Branch().layer, torch.zeros(2, 4))


def beside():
    from own_models_helper import number
    return number()


def leaves():
    import sys
    sys.exit("bye")


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
        ("own_models.py:Branch", "branch on values at own_models.py:33 (return self.layer(x) if x.sum() > 0 else self.layer(-x))"),
        ("own_models.py:Decomposed", "found aten._linalg_svd"),
        ("own_models.py:leaves", "leaves() fails (it calls sys.exit('bye'))"),
        ("own_models.py:scripted", "scripted module"),
        ("own_models.py:Two", "one tensor"),
        ("own_models.py:images", "--example-shape"),
        ("nowhere.py:images", "no file nowhere.py"),
        ("no_such_package.models:images", "cannot be imported"),
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_module_that_cannot_be_exported_is_refused_in_one_line(model: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert said in complaint(model)
    assert capfd.readouterr() == ("", "")


def test_file_may_be_called_as_a_library_is_and_import_what_lies_beside_it() -> None:
    Path("onnx.py").write_text(MODELS)
    Path("own_models_helper.py").write_text("number = lambda: 3")
    before, path = sys.modules["onnx"], list(sys.path)
    assert "found int from beside()" in complaint("onnx.py:beside")
    assert (sys.modules["onnx"], sys.path) == (before, path)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_module_made_faster_is_exported_as_it_was(tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 3).state_dict(), "w.pt")
    file = tmp_path / "m.onnx"
    export_module("own_models.py:faster", weights=Path("w.pt"), shape=(4,), dtype="float32", out=file)
    found = onnxruntime.InferenceSession(file).run(None, {"input": np.zeros((3, 4), np.float32)})[0]
    np.testing.assert_allclose(found, np.tile(torch.load("w.pt")["bias"].numpy(), (3, 1)), atol=1e-6)


# ---- weights -----------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A part of its own is called as DataParallel calls what it wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def drawn(network: Any) -> Any:
    return {key: (10 * torch.rand(value.shape)).to(value.dtype) for key, value in network.state_dict().items()}


def prefixed(prefix: str) -> Any:
    return lambda state: {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("make", [Wrapped, lambda: Wrapped().module], ids=["module-inside", "plain"])
@pytest.mark.parametrize(
    "written",
    [
        dict,
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module."),
        lambda state: {key.replace("0.", "0._orig_mod."): value for key, value in state.items()},
        lambda state: {"model": prefixed("module.")(state), "ema": state, "epoch": 3},
        lambda state: {"net": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3},
    ],
)
def test_weights_are_found_however_they_were_saved(make: Any, written: Any) -> None:
    network = make()
    state = drawn(network)
    torch.save(written(state), "w.pt")
    load_weights(network, Path("w.pt"))
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_weights_in_safetensors_with_counters() -> None:
    network = Wrapped()
    state = {**drawn(network), "module.1.num_batches_tracked": torch.tensor(7)}
    names = {torch.float32: "F32", torch.int64: "I64"}
    header, data = {}, b""
    for key, value in state.items():
        raw = value.numpy().tobytes()
        header[key] = {"dtype": names[value.dtype], "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    Path("w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    load_weights(network, Path("w.safetensors"))
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    Path("w.safetensors").write_bytes(b"no header")
    assert "no safetensors" in complaint("own_models.py:images", weights=Path("w.safetensors"))


class Asks:
    """Would run a command if it were unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("was-run",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "found list in w.pt"),
        (torch.zeros(3), "found Tensor in w.pt"),
        ({1: torch.zeros(3)}, "found a dict with the keys 1 in w.pt"),
        ({"weight": 3}, "found a dict with the keys 'weight' in w.pt"),
        ({"a": {"x": torch.zeros(1)}, "b": {"x": torch.zeros(1)}}, "found a dict with the keys 'a', 'b' in w.pt"),
        ({}, "found an empty dict"),
        ({"a": Asks()}, "mkdir in w.pt"),
    ],
    ids=["list", "tensor", "numbered", "no-tensors", "two", "empty", "code"],
)
def test_what_is_no_state_dict_is_named(content: Any, said: str) -> None:
    torch.save(content, "w.pt")
    assert said in complaint("own_models.py:images", weights=Path("w.pt"))
    assert not Path("was-run").exists()


@pytest.mark.parametrize("content", [b"", b"weights", pickle.dumps(Asks(), protocol=4), b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01u"])
def test_what_torch_does_not_read_is_refused(content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    Path("w.pt").write_bytes(content)
    assert "expected a plain state dict" in complaint("own_models.py:images", weights=Path("w.pt"))
    assert not Path("was-run").exists()
    assert capfd.readouterr() == ("", "")


def test_weights_that_do_not_fit_are_refused() -> None:
    torch.save(made("tokens").state_dict(), "w.pt")
    assert "not of this module" in complaint("own_models.py:images", weights=Path("w.pt"))
    torch.save(made("images"), "whole.pt")
    assert "Sequential in whole.pt, expected a plain state dict" in complaint("own_models.py:images", weights=Path("whole.pt"))
    assert "no file" in complaint("own_models.py:images", weights=Path("gone.pt"))
    assert "--example-shape" in complaint("own_models.py:images", example_shape=None)
