"""What running a stage costs beyond ONNX Runtime itself: `python -m bench.micro micro_executor`.

Beside the executor stand the ways to call a session (the plain call, its private inner call, IO binding, OrtValues), the check of
what it gave, and the gate alone. The gate costs twice as much after an engine run (caches and branch predictors are the engine's
then) as in a loop of its own, so the executor's difference from the plain call is the figure to believe.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from zpipe.bundle import Bundle, load_bundle
from zpipe.executors import evaluate_gate
from zpipe.executors.base import check_output, sample_inputs
from zpipe.executors.onnx import OnnxExecutor, _session_options
from zpipe.model import GateRule, GateSpec

#: The shortest of the digits bundle's stages: there a call costs most of it.
STAGE = 2
BATCHES = (1, 8)
PAIRS = 500
RULES: tuple[GateRule, ...] = ("max-probability", "entropy", "margin")

Call = Callable[[], object]


@cache
def bundle() -> Bundle:
    return load_bundle("digits-mobilenetv2", verify=False)


def session_calls(batch: int) -> dict[str, Call]:
    """{way: one run of the stage at this batch size}; every way ends with arrays in the caller's hands."""
    session = onnxruntime.InferenceSession(str(bundle().stage_path(STAGE)), _session_options(onnxruntime, 1))
    inputs = sample_inputs(bundle().stages[STAGE], batch)
    names = [output.name for output in session.get_outputs()]
    binding = session.io_binding()
    outputs = session.run(names, {"input": inputs})

    def bound() -> Any:
        binding.bind_cpu_input("input", inputs)
        for name in names:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

    def bound_to_own_arrays() -> Any:  # which the caller then may not reuse while they are sent
        binding.bind_cpu_input("input", inputs)
        for name, array in zip(names, outputs, strict=True):
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        session.run_with_iobinding(binding)
        return outputs

    def ort_values() -> Any:
        feed = {"input": onnxruntime.OrtValue.ortvalue_from_numpy(inputs)}
        return [value.numpy() for value in session.run_with_ort_values(names, feed)]

    return {
        "session.run": lambda: session.run(names, {"input": inputs}),
        "its private inner call": lambda: session._sess.run(names, {"input": inputs}, None),
        "IO binding, copied out": bound,
        "IO binding, own arrays": bound_to_own_arrays,
        "OrtValues": ort_values,
    }


WAYS = ("session.run", "its private inner call", "IO binding, copied out", "IO binding, own arrays", "OrtValues")


def gate_of(batch: int) -> GateSpec:
    return GateSpec("max-probability", 0.8, (0.9,) * batch)


@pytest.fixture(scope="module")
def executor() -> Iterator[OnnxExecutor]:
    made = OnnxExecutor(bundle(), [STAGE])
    yield made
    made.close()


@pytest.mark.parametrize("batch", BATCHES)
def test_executor_run(benchmark: Any, executor: OnnxExecutor, batch: int) -> None:
    """Gate included; `overhead_us` is its difference from the plain call, which takes turns with it."""
    inputs, gate, bare = sample_inputs(bundle().stages[STAGE], batch), gate_of(batch), session_calls(batch)["session.run"]
    benchmark(lambda: executor.run(STAGE, inputs, gate))
    differences = []
    for _ in range(PAIRS):
        began = time.perf_counter()
        bare()
        between = time.perf_counter()
        executor.run(STAGE, inputs, gate)
        differences.append(time.perf_counter() - between - (between - began))
    benchmark.extra_info["overhead_us"] = 1e6 * statistics.median(differences)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("way", WAYS)
def test_bare_session(benchmark: Any, way: str, batch: int) -> None:
    benchmark(session_calls(batch)[way])


@pytest.mark.parametrize("batch", BATCHES)
def test_check_of_an_output(benchmark: Any, executor: OnnxExecutor, batch: int) -> None:
    """The look that a node takes at what an executor gave before it goes on."""
    spec = bundle().stages[STAGE]
    output = executor.run(STAGE, sample_inputs(spec, batch), gate_of(batch))
    benchmark(lambda: check_output(spec, batch, output))


@pytest.mark.parametrize("batch", [*BATCHES, 64])
@pytest.mark.parametrize("rule", RULES)
def test_gate(benchmark: Any, rule: GateRule, batch: int) -> None:
    logits: npt.NDArray[np.float32] = np.random.default_rng(0).normal(size=(batch, 10)).astype(np.float32)
    gate = GateSpec(rule, 0.8, (0.9,) * batch)
    benchmark(lambda: evaluate_gate(logits, gate))
