"""Executor torch-cuda with torch on the CPU, on the fake device: all but what only a GPU can show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.executors.tiny import DATA, STAGES, gate, images, tiny_bundle
from zpipe.bundle import load_bundle
from zpipe.errors import BundleError, ExecutorError
from zpipe.executors import StageOutput, make_executor
from zpipe.executors.smoke import smoke
from zpipe.model import NEVER_EXIT, ExitHead, StageSpec, TensorSpec

# ruff: noqa: E402 (the skip stands above the imports that need it, so that the module skips instead of failing)
for _name in ("torch", "onnx"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'zpipe[train]'")

import torch
from onnx import TensorProto, helper

from tests.executors.cuda.fake import FakeDriver
from tests.executors.torch.host import HostEngine, TorchOnHost
from tests.executors.torch.test_operators import write
from zpipe.executors.torch_cuda import _full_float32

ENGINES = Path(__file__).parents[3] / "engines"


@pytest.fixture
def executor() -> Iterator[TorchOnHost]:
    made = TorchOnHost(tiny_bundle(), [0, 1, 2])
    yield made
    made.close()


def rows_of(output: StageOutput) -> Any:
    return np.asarray(output.activation)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 8, 16])
def test_every_stage_answers_as_onnx_runtime_does(executor: TorchOnHost, batch: int, warm: bool) -> None:
    if warm:
        executor.warm_up(16)
    reference = make_executor("onnx", tiny_bundle(), [0, 1, 2])
    x: Any = images(batch)
    for stage, spec in enumerate(STAGES):
        spec_gate = gate(batch, 0.6, stage=stage, last=spec.output is None)
        found, expected = executor.run(stage, x, spec_gate), reference.run(stage, x, spec_gate)
        assert (found.exited, found.labels) == (expected.exited, expected.labels)
        np.testing.assert_allclose(found.confidences, expected.confidences, atol=1e-5)
        if spec.output is not None:
            staying = ~np.array(expected.exited)
            np.testing.assert_allclose(rows_of(found), rows_of(expected)[staying], atol=1e-5)
            x = reference.run(stage, x, gate(batch, NEVER_EXIT, stage=stage)).activation
    reference.close()


def test_common_batches_run_as_graphs(executor: TorchOnHost) -> None:
    executor.warm_up(16)
    assert sorted(executor._lanes[0].slots[0].graphs) == [1, 2, 4, 8, 16]
    assert executor._lanes[0].capturable
    queued = executor.bench.driver.counts["graph_launch"]
    for rows in range(1, 17):
        executor.run(0, images(rows), gate(rows))
    assert executor.bench.driver.counts["graph_launch"] == queued + 16, "every size is run by one of them"


def test_a_stage_that_takes_indices_from_its_input_runs_no_row_that_is_nobodys(tmp_path: Path) -> None:
    def sizes(indices: str) -> list[int]:
        """Of a stage that picks rows of a table of five, by the input or always the same."""
        by_input = [
            helper.make_node("Cast", ["input"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "whole"], ["activation"]),
        ]
        always = [helper.make_node("Gather", ["input", "fixed"], ["activation"], axis=1)]
        nodes = by_input if indices == "by the input" else always
        x = np.zeros((1, 3), np.float32)
        weights = {"table": np.zeros(5, np.float32), "fixed": np.array([2, 0, 1])}
        write(tmp_path / "stage0.onnx", nodes, x, weights, ["activation"], 18)
        spec = StageSpec(0, "stage0.onnx", TensorSpec("float32", (3,)), TensorSpec("float32", (3,)), None, macs=0)
        return [engine_of(spec, tmp_path).runs_as(rows) for rows in (1, 2, 3, 4)]

    assert sizes("always the same") == [1, 2, 4, 4]
    assert sizes("by the input") == [1, 2, 3, 4]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("stages", [(0, 1, 2, 3, 4), (2,)])
def test_real_bundle_passes_the_smoke_inference(stages: tuple[int, ...], precision: str) -> None:
    bundle = load_bundle(ENGINES / "digits-mobilenetv2", verify=False)
    executor = TorchOnHost(bundle, stages, precision=precision)
    executor.warm_up(8)
    assert smoke(executor, bundle, tolerance=1e-4 if precision == "fp32" else 0.03) is None
    executor.close()


def engine_of(spec: StageSpec, path: Path = DATA) -> HostEngine:
    return HostEngine(tiny_bundle(path=path, stages=(spec,)), FakeDriver(), 0, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": TensorSpec("float32", (4, 4))}, r"activation: found \[1, 4, 4, 4\] for batch 1, expected \[1, 4, 4\]"),
        ({"exit_head": ExitHead(10, 1.0)}, r"logits: found \[1, 3\] for batch 1, expected \[1, 10\]"),
        (
            {"file": "stage1.onnx", "input": TensorSpec("float32", (4, 4, 4)), "output": TensorSpec("float32", (8, 2, 2))},
            "logits: found activation, expected a tensor of that name",
        ),
    ],
)
def test_file_that_is_not_what_the_manifest_says_is_refused_when_loaded(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        engine_of(replace(STAGES[0], **changes))


def test_engine_says_what_it_is() -> None:
    engine = engine_of(STAGES[0])
    assert (engine.max_batch, engine.logits, engine.capturable) == (4, "float32", True)
    assert engine_of(replace(STAGES[1], index=0)).logits is None
    assert "batch 4, fp32" in repr(engine)


def test_closed_engine_runs_nothing() -> None:
    engine = engine_of(STAGES[0])
    engine.close()
    engine.close()
    with pytest.raises(ExecutorError, match="found a closed one"):
        engine.compute(1, {"input": 0, "activation": 0, "logits": 0})


# ---- TF32 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "before", "inside"),
    [
        ("fp32_precision", "tf32", "ieee"),
        ("fp32_precision", "none", "none"),
        ("allow_tf32", True, False),
        ("allow_tf32", False, False),
    ],
)
def test_tf32_is_off_where_it_was_on_and_back_afterwards(flag: str, before: object, inside: object) -> None:
    matmul = SimpleNamespace(**{flag: before})
    fails = pytest.raises(ZeroDivisionError)
    with fails, _full_float32(matmul):
        assert getattr(matmul, flag) == inside
        raise ZeroDivisionError
    assert getattr(matmul, flag) == before


def test_flags_of_torch_itself_are_understood() -> None:
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with _full_float32(matmul):
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_convolution_says_itself_that_tf32_is_off(executor: TorchOnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.backends.cudnn.allow_tf32  # torch's default
    calls, convolution = [], torch._convolution

    def noted(*arguments: Any) -> Any:
        calls.append(arguments)
        return convolution(*arguments)

    monkeypatch.setattr(torch, "_convolution", noted)
    executor.run(0, images(2), gate(2))
    benchmark, deterministic, cudnn, tf32 = range(9, 13)
    assert calls
    assert {(call[benchmark], call[deterministic], call[cudnn], call[tf32]) for call in calls} == {(False, False, True, False)}
    schema = str(torch.ops.aten._convolution.default._schema)
    names = [part.split()[-1] for part in schema[schema.index("(") + 1 : schema.index(")")].split(", ")]
    assert names[9:13] == ["benchmark", "deterministic", "cudnn_enabled", "allow_tf32"]
