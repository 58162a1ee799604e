"""What running a stage costs beyond ONNX Runtime itself: `python bench/micro_executor.py` or `pytest bench/micro_executor.py`.

Compares the ways to call a session (the plain call, its private inner call, IO binding, OrtValues), then the whole executor,
the check of what it gave, and the gate alone.
All ways of one case take turns, so that a busy machine is unfair to none; the median of the rounds counts.
The gate costs twice as much after an engine run (caches and branch predictors are the engine's then) as in a loop of its own,
so the executor's difference from the plain call is the figure to believe.
"""

from __future__ import annotations

import statistics
import sys
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from zpipe.bundle import Bundle, load_bundle
from zpipe.executors import evaluate_gate
from zpipe.executors.base import StageOutput, check_output, sample_inputs
from zpipe.executors.onnx import OnnxExecutor, _session_options
from zpipe.model import GateRule, GateSpec

BUNDLE = "digits-mobilenetv2-half"
BATCHES = (1, 8)
RULES: tuple[GateRule, ...] = ("max-probability", "entropy", "margin")
ROUNDS = 25
#: Seconds of one round of one way: short beside the scheduler's time slices.
ROUND_SECONDS = 0.01

Call = Callable[[], object]


def session_calls(bundle: Bundle, stage: int, batch: int) -> dict[str, Call]:
    """{way: one run of a stage at this batch size}; every way ends with arrays in the caller's hands."""
    session = onnxruntime.InferenceSession(str(bundle.stage_path(stage)), _session_options(onnxruntime, 1))
    inputs = sample_inputs(bundle.stages[stage], batch)
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


def executor_call(bundle: Bundle, stage: int, batch: int) -> Call:
    """One run of the executor, gate included."""
    executor = OnnxExecutor(bundle, [stage])
    inputs = sample_inputs(bundle.stages[stage], batch)
    gate = GateSpec("max-probability", 0.8, (0.9,) * batch, last=bundle.stages[stage].output is None)
    return lambda: executor.run(stage, inputs, gate)


def check_call(bundle: Bundle, stage: int, batch: int) -> Call:
    """The look that a node takes at one output before it goes on."""
    output = executor_call(bundle, stage, batch)()
    assert isinstance(output, StageOutput)
    return lambda: check_output(bundle.stages[stage], batch, output)


def gate_call(rule: GateRule, batch: int, classes: int = 10) -> Call:
    """One evaluation of the gate."""
    logits: npt.NDArray[np.float32] = np.random.default_rng(0).normal(size=(batch, classes)).astype(np.float32)
    gate = GateSpec(rule, 0.8, (0.9,) * batch)
    return lambda: evaluate_gate(logits, gate)


@pytest.mark.parametrize("batch", BATCHES)
def test_executor_run(benchmark: Any, batch: int) -> None:
    benchmark(executor_call(load_bundle(BUNDLE), 2, batch))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("way", ["session.run", "IO binding, copied out", "OrtValues"])
def test_bare_session(benchmark: Any, way: str, batch: int) -> None:
    benchmark(session_calls(load_bundle(BUNDLE), 2, batch)[way])


@pytest.mark.parametrize("batch", [*BATCHES, 64])
@pytest.mark.parametrize("rule", RULES)
def test_gate(benchmark: Any, rule: GateRule, batch: int) -> None:
    benchmark(gate_call(rule, batch))


def microseconds(calls: dict[str, Call]) -> dict[str, float]:
    """{way: median over interleaved rounds}."""
    took: dict[str, list[float]] = {way: [] for way in calls}
    once = {way: min(timeit.repeat(call, number=3, repeat=5)) / 3 for way, call in calls.items()}
    for _ in range(ROUNDS):
        for way, call in calls.items():
            number = max(1, round(ROUND_SECONDS / once[way]))
            took[way].append(timeit.timeit(call, number=number) / number * 1e6)
    return {way: statistics.median(values) for way, values in took.items()}


def main() -> None:
    """One line per way, with its difference from the plain call of the same session."""
    versions = f"Python {sys.version.split()[0]}, onnxruntime {onnxruntime.__version__}"
    print(f"{versions}, {BUNDLE} stage 2; microseconds, median of {ROUNDS}")
    bundle = load_bundle(BUNDLE)
    for batch in BATCHES:
        calls = session_calls(bundle, 2, batch) | {"executor.run with its gate": executor_call(bundle, 2, batch)}
        times = microseconds(calls)
        for way, value in times.items():
            print(f"batch {batch}  {way:28} {value:8.1f}  {value - times['session.run']:+7.1f}")
    checks = microseconds({f"{batch} rows": check_call(bundle, 2, batch) for batch in (*BATCHES, 64)})
    print("check of an output   " + "   ".join(f"{way} {value:.1f}" for way, value in checks.items()))
    for batch in (*BATCHES, 64):
        times = microseconds({rule: gate_call(rule, batch) for rule in RULES})
        print(f"gate, {batch:2} rows   " + "   ".join(f"{rule} {value:.1f}" for rule, value in times.items()))


if __name__ == "__main__":
    main()
