"""A network of one's own, as a new user goes about it: from the file to `zpipe bench` on line4, by the commands of the README."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs onnx: pip install 'zpipe[split]'")

from tests.split.nets import architecture
from zpipe.bundle import load_bundle

pytestmark = pytest.mark.slow

#: What a busy two-core machine may take for one command.
PATIENCE_SECONDS = 240.0

ONNX_COMMANDS = (
    "zpipe split model.onnx --list",
    "zpipe split model.onnx --stages 5 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
    "zpipe bench --topology line4.yaml --bundle engines/model",
)

TORCH_COMMANDS = (
    "zpipe split my_model.py:make --weights weights.pt --example-shape 3,32,32 --list",
    "zpipe split my_model.py:make --weights weights.pt --example-shape 3,32,32 --stages 5 --mean 0.5 --std 0.25 --data data.npz",
    "zpipe bench --topology line4.yaml --bundle engines/make",
)

MODEL = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU(), nn.Conv2d(after, after, 3, 1, 1)
        )
        self.skip = nn.Conv2d(before, after, 1, stride)

    def forward(self, x):
        return torch.relu(self.body(x) + self.skip(x))


def make():
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    return nn.Sequential(Block(3, 16, 1), Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 2), *head)
"""


def run(command: str, folder: Path, *more: str) -> str:
    program, *arguments = shlex.split(command)
    assert program == "zpipe"
    found = subprocess.run(
        [sys.executable, "-m", "zpipe", *arguments, *more],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert found.returncode == 0, f"{command}\n{found.stdout}\n{found.stderr}"
    return found.stdout


def environment() -> dict[str, str]:
    """This check-out also where the commands run in another folder."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


def bench(commands: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Runs them all; the last one's report."""
    assert len(commands) <= 6
    *before, last = commands
    for command in before:
        run(command, folder)
    run(last, folder, "--count", "48", "--warm-up", "8", "--json", "report.json")
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def test_onnx_file_made_elsewhere_runs_on_line4(tmp_path: Path) -> None:
    architecture("squeezenet", tmp_path / "model.onnx")
    report = bench(ONNX_COMMANDS, tmp_path)
    counts = report["counts"]
    assert (counts["result"], counts["lost"], counts["duplicate"]) == (48, 0, 0)
    # Labels are what the file itself answers in ONNX Runtime: four processes and three links later it is the same.
    assert (report["generated_inputs"], report["accuracy"]) == (True, 1.0)
    assert len(report["nodes"]) == 4
    assert all(node["tasks"] for node in report["nodes"])
    assert load_bundle(tmp_path / "engines" / "model").image_size == 224


def test_torch_model_from_a_file_runs_on_line4(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'zpipe[train]'")
    pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'zpipe[train]'")
    (tmp_path / "my_model.py").write_text(MODEL)
    make: dict[str, Any] = {}
    exec(MODEL, make)
    torch.manual_seed(0)
    network = make["make"]()
    with torch.no_grad():  # as if trained: statistics that are not those of a new network
        network.train()
        network(torch.rand(16, 3, 32, 32))
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    pixels = np.random.default_rng(0).integers(0, 256, (120, 3, 32, 32)).astype(np.uint8)
    pixels[:, :, :16] //= np.arange(1, 121, dtype=np.uint8)[:, None, None, None]
    floats = torch.from_numpy((pixels.astype(np.float32) / 255 - 0.5) / 0.25)
    with torch.no_grad():
        labels = network.eval()(floats).argmax(1).numpy()
    wrong = np.arange(0, 120, 12)
    labels[wrong] = (labels[wrong] + 1) % 10
    np.savez(tmp_path / "data.npz", images=pixels, labels=labels)
    report = bench(TORCH_COMMANDS, tmp_path)
    bundle = load_bundle(tmp_path / "engines" / "make")
    assert bundle.evaluation_samples + bundle.calibration_samples == 120
    evaluation = bundle.evaluation()
    by_torch = network(torch.from_numpy((evaluation.images.astype(np.float32) / 255 - 0.5) / 0.25)).argmax(1).numpy()
    assert bundle.default_point.test.accuracy == float((by_torch == evaluation.labels).mean())
    assert 0.8 < bundle.default_point.test.accuracy < 1.0
    counts = report["counts"]
    assert (counts["result"], counts["lost"], counts["duplicate"], report["generated_inputs"]) == (48, 0, 0, False)
