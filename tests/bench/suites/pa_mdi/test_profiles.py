"""What networks cost, against the papers' totals and against the networks that `zpipe.models` builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zpipe.bench.suites.pa_mdi.bundles import SAMPLES, write_bundle
from zpipe.bench.suites.pa_mdi.profiles import Profile, gpt2, resnet50, resnet56
from zpipe.bundle import load_bundle
from zpipe.executors.base import make_executor
from zpipe.model import NEVER_EXIT, GateSpec

#: What torch counted of our own networks (`python -m bench.references`), in five stages with an exit each.
REFERENCES = json.loads((Path(__file__).parents[4] / "bench" / "results" / "references.json").read_text())["rows"]


def reference(recipe: str) -> dict[str, Any]:
    (row,) = [row for row in REFERENCES if (row["recipe"], row["stages"]) == (recipe, 4)]
    assert isinstance(row, dict)
    return row


@pytest.mark.parametrize(
    ("profile", "published"),
    [(resnet50(stride_in_3x3=False), 3.8e9), (resnet56(), 0.125e9)],
    ids=["resnet50", "resnet56"],
)
def test_totals_are_the_papers(profile: Profile, published: float) -> None:
    assert profile.macs == pytest.approx(published, rel=0.02)


def test_resnet50_is_the_network_that_torch_builds() -> None:
    """The reference has three early exits more: a mean over each channel and a linear layer, a thousand classes each."""
    row = reference("resnet50-imagenet")
    assert resnet50().macs == sum(row["macs"]) - 1000 * (256 + 512 + 1024)
    assert set(row["cut_bytes"]) < {stage.output.bytes for stage in resnet50().stages}


def test_resnet56_is_the_network_that_torch_builds() -> None:
    """Its exits' linear layers read 4x4, 4x4 and 2x2 positions of 16, 32 and 64 channels."""
    row = reference("resnet56")
    assert resnet56(projected=True).macs == sum(row["macs"]) - 10 * (16 * 16 + 16 * 32 + 4 * 64)
    assert set(row["cut_bytes"]) == {stage.output.bytes for stage in resnet56().stages}


def test_gpt2_is_the_network_that_torch_builds() -> None:
    row = reference("gpt2-small")
    assert gpt2(tokens=64).macs == sum(row["macs"]) - 3 * 768 * 50257
    assert set(row["cut_bytes"]) == {stage.output.bytes for stage in gpt2(tokens=64).stages}


def test_a_profile_is_a_bundle_that_only_emulated_nodes_run(tmp_path: Path) -> None:
    profile = resnet56()
    write_bundle(profile, tmp_path / "resnet56")
    bundle = load_bundle(tmp_path / "resnet56")
    assert bundle.costs_only
    assert not list(bundle.path.glob("*.onnx"))
    assert [stage.macs for stage in bundle.stages] == [stage.macs for stage in profile.stages]
    assert len(bundle.evaluation()) == SAMPLES
    emulated = bundle.emulated()
    executor = make_executor("emulated", emulated, (0, 8), device="raspberry-pi-4/4")
    executor.warm_up(1)
    rows = emulated.evaluation().images[:2]
    output = executor.run(0, rows, GateSpec("max-probability", 1.0, (NEVER_EXIT,) * 2))
    assert output.exited == [False, False]
    activation = np.asarray(output.activation)
    assert activation.shape == (2, 4 + profile.stages[0].output.bytes)
    assert len(np.unique(activation[0])) > 200, "noise that no codec makes small"
    executor.close()
