"""Executor torch-cuda on a GPU: what tests/executors/torch/test_executor.py cannot show. Written without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.executors.tiny import STAGES, gate, images, tiny_bundle
from zpipe.bundle import Bundle, load_bundle
from zpipe.executors import make_executor
from zpipe.executors.smoke import smoke
from zpipe.model import NEVER_EXIT, GateSpec

# ruff: noqa: E402 (the skip stands above the imports that need it, so that the module skips instead of failing)
for _name in ("torch", "onnx"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'zpipe[train]'")

import torch

from tests.executors.torch.test_operators import CASES, Case, reference, write_case
from zpipe.executors.cuda.torch import TorchDriver
from zpipe.executors.torch_cuda import TorchCudaExecutor
from zpipe.executors.torch_onnx import OnnxModule

pytestmark = pytest.mark.gpu

ENGINES = Path(__file__).parents[3] / "engines"
BUNDLES = ("digits-mobilenetv2", "digits-mobilenetv2-half", "digits96-mobilenetv2")

#: A row this near to its threshold may be decided either way: float32 in another order.
SLACK = 1e-4


@pytest.fixture(scope="module", autouse=True)
def torch_with_cuda() -> None:
    if torch.version.cuda is None:
        pytest.skip(f"needs a torch built with CUDA: this is {torch.__version__}")


@pytest.fixture(scope="module", params=BUNDLES)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return load_bundle(ENGINES / request.param, verify=False)


@pytest.fixture
def tiny() -> Iterator[TorchCudaExecutor]:
    executor = TorchCudaExecutor(tiny_bundle(), [0, 1, 2])
    executor.warm_up(16)
    yield executor
    executor.close()


def chain(executor: Any, bundle: Bundle, batch: int) -> Iterator[tuple[int, Any, Any]]:
    """(stage, label per row, confidence per row) of the whole evaluation set, no row leaving before the last stage."""
    whole = bundle.evaluation().images
    for start in range(0, len(whole), batch):
        x: Any = whole[start : start + batch]
        for spec in bundle.stages:
            temperature = 1.0 if spec.exit_head is None else spec.exit_head.temperature
            never = GateSpec("max-probability", temperature, (NEVER_EXIT,) * len(x), last=spec.output is None)
            output = executor.run(spec.index, x, never)
            yield spec.index, np.array(output.labels), np.array(output.confidences)
            x = output.activation


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_labels_and_exits_are_those_of_onnx_runtime(bundle: Bundle, precision: str) -> None:
    executor = TorchCudaExecutor(bundle, range(len(bundle.stages)), device=precision)
    executor.warm_up(32)
    reference = make_executor("onnx", bundle, range(len(bundle.stages)))
    same = near = total = 0
    for (stage, labels, confidences), (_, wanted, sure) in zip(
        chain(executor, bundle, 32), chain(reference, bundle, 32), strict=True
    ):
        threshold = bundle.default_point.thresholds[stage]
        close = np.abs(sure - threshold) < SLACK
        agree = (labels == wanted) & ((confidences >= threshold) == (sure >= threshold))
        same, near, total = same + int((agree | close).sum()), near + int(close.sum()), total + len(labels)
        if precision == "fp32":
            assert np.abs(confidences - sure).max() < 1e-3
    executor.close()
    reference.close()
    if precision == "fp32":
        assert same == total
        assert near < 0.005 * total
    else:
        assert same >= 0.995 * total


def test_bundle_passes_the_smoke_inference(bundle: Bundle) -> None:
    for stages in ((2,), tuple(range(len(bundle.stages)))):
        executor = TorchCudaExecutor(bundle, stages)
        executor.warm_up(8)
        assert smoke(executor, bundle, tolerance=1e-3) is None
        executor.close()


def test_common_batches_are_graphs_and_answer_as_others_do(tiny: TorchCudaExecutor) -> None:
    assert all(sorted(slot.graphs) == [1, 2, 4, 8, 16] for lane in tiny._lanes.values() for slot in lane.slots)
    together = tiny.run(0, images(16), gate(16))
    for rows in (3, 4):  # by the graph of the next size, and by its own
        alone = tiny.run(0, images(16)[:rows], gate(rows))
        assert alone.labels == together.labels[:rows]
        np.testing.assert_allclose(alone.confidences, together.confidences[:rows], atol=1e-5)


def test_ten_thousand_batches_take_no_memory(tiny: TorchCudaExecutor) -> None:
    def free() -> int:
        return int(torch.cuda.mem_get_info(0)[0])

    x = images(4)
    for batch in range(100):
        tiny.run(0, x[: 1 + batch % 4], gate(1 + batch % 4))
    before = free()
    for batch in range(10_000):
        tiny.run(0, x[: 1 + batch % 4], gate(1 + batch % 4))
    assert before - free() < 2 << 20


def test_torch_of_the_process_lives_on_with_its_flags(tiny: TorchCudaExecutor) -> None:
    flags = (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision(), torch.cuda.current_stream())
    ours = torch.arange(1000, device="cuda").float()
    for _ in range(10):
        tiny.run(0, images(3), gate(3))
        ours = ours + 1
    drawn = torch.rand(3, device="cuda")  # the generator is not in capture mode
    tiny.close()
    assert ours.sum().item() == pytest.approx(1000 * 999 / 2 + 10_000)
    assert torch.isfinite(drawn).all()
    assert flags == (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision(), torch.cuda.current_stream())


def test_two_executors_share_the_device() -> None:
    first, second = TorchCudaExecutor(tiny_bundle(), [0]), TorchCudaExecutor(tiny_bundle(), [1, 2])
    reference = make_executor("onnx", tiny_bundle(), [0, 1, 2])
    for executor in (first, second):
        executor.warm_up(4)
    kept = first.run(0, images(4), gate(4, NEVER_EXIT)).activation
    first.close()
    assert kept is not None
    found: Any = second.run(1, np.asarray(kept), gate(4, stage=1)).activation
    x: Any = images(4)
    for stage, spec in enumerate(STAGES[:2]):
        x = reference.run(stage, x, gate(4, NEVER_EXIT, stage=spec.index)).activation
    np.testing.assert_allclose(np.asarray(found), x, atol=1e-4)
    second.close()
    reference.close()


# ---- operators ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver() -> Iterator[TorchDriver]:
    opened = TorchDriver()
    yield opened
    opened.close()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_agrees_as_it_is_and_in_a_graph(case: Case, driver: TorchDriver, tmp_path: Path) -> None:
    path = write_case(tmp_path / "case.onnx", case)
    module, x = OnnxModule(path, device="cuda:0"), torch.from_numpy(case.x).to("cuda:0")
    wanted = reference(path, case.x)
    stream = driver.stream()
    torch.cuda.synchronize()
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.ExternalStream(stream.handle, device="cuda:0")):
        plain = module(x)
        stream.synchronize()
        driver.begin_capture(stream)
        recorded = module(x)
        graph = driver.end_capture(stream)
        for output in recorded.values():
            if output.is_cuda and output.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
                output.zero_()  # so that what is read below is the graph's
        graph.launch(stream)
        stream.synchronize()
    for outputs in (plain, recorded):
        for found, expected in zip(outputs.values(), wanted, strict=True):
            np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-4, atol=1e-4)
    graph.free()
    stream.free()
