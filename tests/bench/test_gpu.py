"""bench.gpu on the stand-in for a device: all of it but the GPU's own speed. Times there mean nothing, counts and bytes do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bench import gpu
from bench.gpus import network
from bench.gpus.backends import Backend, Found, Tally, backends
from bench.gpus.crossing import crossing
from bench.gpus.line import Apart, Flow, flow
from bench.gpus.network import CLAIMED_BATCH, Network, Plan
from bench.gpus.thresholds import gate_of, median_thresholds
from bench.gpus.verdict import Verdict, verdicts
from tests.executors.cuda import pretend
from tests.executors.cuda.engines import Bench
from tests.executors.cuda.standin import need_pycuda, on_standin
from zpipe.bundle import Bundle, load_bundle
from zpipe.errors import ExecutorError
from zpipe.executors import make_executor
from zpipe.executors.cuda import presence
from zpipe.model import NEVER_EXIT

ROOT = Path(__file__).parents[2]
HALF = ROOT / "engines" / "digits-mobilenetv2-half"
SHORT = Plan(batches=(CLAIMED_BATCH,), device_rounds=1, line_rounds=1, line_seconds=0.001)


@pytest.fixture
def device() -> Iterator[Bench]:
    """A pretended device; nothing on it was misused."""
    bench = Bench()
    yield bench
    bench.check()


@pytest.fixture
def backend(device: Bench) -> Backend:
    return Backend("stand-in", device.open, device.load)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(HALF, verify=False)


@pytest.fixture(scope="module")
def inputs(bundle: Bundle) -> npt.NDArray[np.uint8]:
    return bundle.evaluation().images[:64]


def whole(bundle: Bundle) -> Bundle:
    """One stage over the same inputs; to join all of them takes onnx, which a plain check-out does not have."""
    return replace(bundle, stages=(replace(bundle.stages[0], output=None),))


# ---- a whole run -------------------------------------------------------------------------------


def test_run_measures_everything_and_its_document_is_json(
    backend: Backend, bundle: Bundle, inputs: npt.NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan(batches=(1, CLAIMED_BATCH), device_rounds=1, line_rounds=1, line_seconds=0.001)
    document = gpu.run([Network("tiny", bundle, whole(bundle), inputs)], [backend], plan, served=16)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    found = document["networks"]["tiny"]["stand-in"]
    assert set(found["stages"]) == {"0", "1", "2", "3", "4", "whole"}
    assert [row["batch"] for row in found["stages"]["3"]] == [1, CLAIMED_BATCH]
    assert [row["batch"] for row in found["line"]] == [1, CLAIMED_BATCH]
    for row in found["line"]:
        for way, exits in row["exits"].items():
            assert sum(exits) % row["batch"] == 0
            assert (sum(exits[:-1]) > 0) == way.endswith("half leave")
    assert {served["without_result"] for served in found["runtime"].values()} == {0}
    claims = {row["claim"]: row["holds"] for row in document["verdicts"]}
    assert claims["bytes to the host = survivors x activation + 16 + 16 b"]
    assert len(claims) == 6
    shown = capsys.readouterr().out
    assert "tiny on stand-in" in shown
    assert "runtime, no-exit" in shown


def test_backend_that_fails_is_said_and_the_others_go_on(
    backend: Backend, device: Bench, bundle: Bundle, inputs: npt.NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(error: Exception) -> Backend:
        def prepare(bundle: Bundle) -> None:
            raise error

        return replace(backend, name=type(error).__name__, prepare=prepare)

    refusing = [refuse(ExecutorError("stage 0: found no engine")), refuse(MemoryError("a library's own"))]
    saved: list[str] = []
    document = gpu.run(
        [Network("tiny", bundle, whole(bundle), inputs)],
        [*refusing, backend],
        SHORT,
        lambda found: saved.append(json.dumps(found)),
        served=16,
    )
    found = document["networks"]["tiny"]
    assert found["ExecutorError"] == {"failed": "stage 0: found no engine"}
    assert found["MemoryError"] == {"failed": "MemoryError: a library's own"}
    assert set(found["stand-in"]) == {"stages", "crossings", "line", "runtime"}
    assert "not measured: stage 0: found no engine" in capsys.readouterr().out
    assert [len(json.loads(each)["networks"]["tiny"]) for each in saved] == [1, 2, 3], "written after each of them"
    assert gpu.fell_short(document)


def test_without_a_gpu_it_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(presence, "LIBCUDA", "libno-such-driver.so.1")
    assert gpu.main(["--json", str(tmp_path / "gpu.json")]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("bench.gpu: found ")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_run_over_the_real_pycuda_leaves_nothing_behind() -> None:
    need_pycuda()
    done = on_standin("tests.bench.gpu_cases", STANDIN_MEMORY="2048")
    assert (done.stderr, done.returncode) == ("", 0), f"after {done.stdout}"


def test_device_that_is_not_there_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(presence, "LIBCUDA", str(pretend.driver(tmp_path)))
    assert gpu.main(["--device", "1"]) == 2
    assert capsys.readouterr().err == "bench.gpu: --device: found 1, expected 0 to 0 (CUDA 12.6: Orin (capability 8.7))\n"


def test_backends_that_do_not_load_say_why(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "LIBCUDA", "libno-such-driver.so.1")
    working, missing, broken = backends(0, bundle)
    assert (working, broken) == ([], {})
    assert set(missing) == {"trt fp32", "trt fp16", "torch-cuda fp32", "torch-cuda fp16"}
    assert all(": found " in why for why in missing.values())


def test_backend_that_breaks_on_trial_is_told_from_one_that_is_not_here(
    backend: Backend, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(device: int) -> Backend:
        raise RuntimeError("a library's own\nerror")

    makers = {"good": lambda device: backend, "bad": broken, "good too": lambda device: backend}
    monkeypatch.setattr("bench.gpus.backends._MAKERS", makers)
    assert backends(0, bundle) == ([backend, backend], {}, {"bad": "RuntimeError: a library's own error"})


@pytest.fixture
def on_pretended_gpu(backend: Backend, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`main` finds a GPU, and the stand-in on it; where it shall write."""
    monkeypatch.setattr(presence, "LIBCUDA", str(pretend.driver(tmp_path)))
    monkeypatch.setattr(gpu, "installed", lambda name: True)
    monkeypatch.setattr(gpu, "backends", lambda device, bundle: Found([backend], {}, {}))
    monkeypatch.setattr(
        gpu, "_resnet50", lambda folder, made: Network("resnet50", bundle, whole(bundle), bundle.evaluation().images[:64])
    )
    monkeypatch.setattr(gpu, "_digits", lambda made: Network("tiny", bundle, whole(bundle), bundle.evaluation().images[:64]))
    monkeypatch.setattr(gpu, "QUICK", SHORT)
    monkeypatch.setattr(gpu, "SERVED", 16)
    return tmp_path / "gpu.json"


@pytest.mark.slow
@pytest.mark.parametrize("holds", [True, False])
def test_exit_code_says_whether_every_claim_holds(
    on_pretended_gpu: Path, holds: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    claim = Verdict("gate", "<= 30 us", "some", holds=holds)
    monkeypatch.setattr(gpu, "verdicts", lambda found, line_claimed: iter([claim]))
    assert gpu.main(["--quick", "--json", str(on_pretended_gpu)]) == (0 if holds else 1)
    document = json.loads(on_pretended_gpu.read_text())
    assert document["complete"]
    assert set(document["networks"]) == {"resnet50", "tiny"}
    assert [each["holds"] for each in document["verdicts"]] == [holds, holds]


def test_network_that_cannot_be_made_is_said_and_the_other_is_measured(
    on_pretended_gpu: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(folder: Path, made: Path) -> Network:
        raise ValueError("an exporter's own")

    monkeypatch.setattr(gpu, "_resnet50", broken)
    monkeypatch.setattr(gpu, "_measured", lambda network, *arguments: {"of": network.name})
    monkeypatch.setattr(gpu, "verdicts", lambda found, line_claimed: iter(()))
    assert gpu.main(["--quick", "--json", str(on_pretended_gpu)]) == 1
    document = json.loads(on_pretended_gpu.read_text())
    assert document["broken"] == {"resnet50": "ValueError: an exporter's own"}
    assert document["networks"] == {"tiny": {"stand-in": {"of": "tiny"}}}
    assert "resnet50: not measured: ValueError: an exporter's own" in capsys.readouterr().out


def test_what_breaks_off_leaves_what_was_measured(on_pretended_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def interrupted(network: Network, *arguments: object) -> dict[str, Any]:
        measured.append(network.name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(gpu, "_measured", interrupted)
    monkeypatch.setattr(gpu, "verdicts", lambda found, line_claimed: iter(()))
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--quick", "--json", str(on_pretended_gpu)])
    document = json.loads(on_pretended_gpu.read_text())
    assert (document["complete"], document["networks"]) == (False, {"resnet50": {"stand-in": {}}, "tiny": {}})


def test_file_that_cannot_be_written_is_said_before_anything_is_measured(
    on_pretended_gpu: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "backends", lambda device, bundle: pytest.fail("it began"))
    file = on_pretended_gpu.parent / "no folder" / "gpu.json"
    assert gpu.main(["--json", str(file)]) == 2
    assert capsys.readouterr().err == (
        f"bench.gpu: --json: found {file} that cannot be written (No such file or directory), "
        f"expected a file that can; name another\n"
    )
    assert gpu.cannot_write(on_pretended_gpu) is None
    assert not on_pretended_gpu.exists()
    on_pretended_gpu.write_text("older figures")
    assert gpu.cannot_write(on_pretended_gpu) is None
    assert on_pretended_gpu.read_text() == "older figures"


# ---- its parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", range(5))
def test_bytes_to_the_host_are_survivors_and_decisions(backend: Backend, bundle: Bundle, stage: int) -> None:
    found = crossing(backend, bundle, stage, 6)
    last = stage == 4
    assert found.survivors == (0 if last else 3)
    assert found.to_host == found.expected == 16 + 16 * 6 + (0 if last else 3 * bundle.stages[stage + 1].input.bytes)
    assert found.uncompacted - found.expected == (0 if last else 3 * bundle.stages[stage + 1].input.bytes)
    assert found.to_device >= 6 * bundle.stages[stage].input.bytes


def test_tally_counts_what_the_driver_copies(device: Bench) -> None:
    tally = Tally()
    driver: Any = tally.counting(device.open)
    memory, source, target, stream = driver.allocate(256), driver.pinned(256), driver.pinned(256), driver.stream()
    source.array[:] = range(256)
    driver.copy_in(memory.address, source, 200, stream)
    driver.copy_out(target, memory.address, 40, stream, offset=16)
    stream.synchronize()
    assert (tally.to_device, tally.to_host) == (200, 40)
    assert target.array[16:56].tolist() == list(range(40))
    for each in (memory, source, target):
        each.free()
    driver.close()


@pytest.mark.parametrize("apart", [False, True])
def test_every_sample_leaves_where_it_would_alone(
    backend: Backend, bundle: Bundle, inputs: npt.NDArray[np.uint8], apart: bool
) -> None:
    """However batches were joined on their way."""
    stages = range(len(bundle.stages))
    executor = Apart([backend.executor(bundle, [stage]) for stage in stages]) if apart else backend.executor(bundle, stages)
    executor.warm_up(16)
    thresholds = (0.999, 0.99, NEVER_EXIT, 0.9, 0.0)
    found = flow(executor, bundle, inputs, thresholds, batch=16, batches=4)
    executor.close()
    assert found.exits == exits_one_by_one(bundle, inputs, thresholds)
    assert found.batches[0] == 4
    assert found.rate_hz > 0


def exits_one_by_one(bundle: Bundle, inputs: npt.NDArray[np.uint8], thresholds: tuple[float, ...]) -> tuple[int, ...]:
    executor = make_executor("onnx", bundle, range(len(bundle.stages)))
    exits = [0] * len(bundle.stages)
    for sample in inputs:
        rows: Any = sample[None]
        for stage in range(len(bundle.stages)):
            output = executor.run(stage, rows, gate_of(bundle, stage, thresholds, 1))
            if output.exited[0]:
                exits[stage] += 1
                break
            rows = output.activation
    executor.close()
    return tuple(exits)


def test_flow_raises_what_the_executor_raised(backend: Backend, bundle: Bundle, inputs: npt.NDArray[np.uint8]) -> None:
    executor = backend.executor(bundle, [0, 1])  # not all of them
    executor.warm_up(4)
    with pytest.raises(Exception, match="stage 2: found"):
        flow(executor, bundle, inputs, (NEVER_EXIT,) * 5, batch=4, batches=2)
    executor.close()


def test_every_way_to_run_the_line_has_every_place_in_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    def recorded(executor: Any, *arguments: Any, **options: Any) -> Flow:
        ran.append(executor)
        return Flow(1.0, (1,), (1,))

    monkeypatch.setattr(network, "flow", recorded)
    names = ("unsplit", "together", "apart")
    ways: Any = {name: (name, None, ()) for name in names}
    network._row(ways, np.empty(0, np.uint8), Plan(line_rounds=3), batch=1)
    rounds = [ran[first : first + 3] for first in range(3, 12, 3)]  # the first three are the guess of how many batches
    assert rounds == [["unsplit", "together", "apart"], ["together", "apart", "unsplit"], ["apart", "unsplit", "together"]]


def test_median_thresholds_let_half_leave_at_each_exit(backend: Backend, bundle: Bundle, inputs: npt.NDArray[np.uint8]) -> None:
    executor = make_executor("onnx", bundle, range(len(bundle.stages)))
    thresholds = median_thresholds(executor, bundle, inputs, batch=16)
    executor.close()
    assert exits_one_by_one(bundle, inputs, thresholds) == (32, 16, 8, 4, 4)


# ---- what is promised --------------------------------------------------------------------------


def figures(*, gate_us: float = 20.0, engine_us: float = 100.0, extra: int = 0, ratios: float = 1.1) -> dict[str, Any]:
    """As `measure` gives them, with one stage."""
    row = {"batch": CLAIMED_BATCH, "engine": {"median": engine_us}, "gate": {"median": gate_us}}
    share = {"median": ratios}
    ways = dict.fromkeys(("together", "together, half leave", "apart", "apart, half leave"), share)
    return {
        "stages": {"0": [row, {**row, "batch": 1, "gate": {"median": 1e9}}], "1": [{**row, "gate": None}]},
        "crossings": [{"stage": 0, "to_host": 528 + extra, "expected": 528, "uncompacted": 1000}],
        "line": [{"batch": 1, "of_unsplit": {}}, {"batch": CLAIMED_BATCH, "of_unsplit": ways}],
    }


def holds(found: dict[str, Any], *, line_claimed: bool = True) -> list[bool]:
    return [verdict.holds for verdict in verdicts(found, line_claimed=line_claimed)]


def test_verdicts_are_the_issues_bounds() -> None:
    assert holds(figures()) == [True] * 6
    assert holds(figures(gate_us=30.1)) == [False, *[True] * 5]
    assert holds(figures(gate_us=49.0, engine_us=1000.0))[0]
    assert not holds(figures(gate_us=51.0, engine_us=1000.0))[0]
    assert holds(figures(extra=1)) == [True, False, *[True] * 4]
    assert holds(figures(ratios=0.9)) == [True, True, True, False, True, False]
    assert holds(figures(ratios=0.79)) == [True, True, *[False] * 4]
    assert holds(figures(), line_claimed=False) == [True, True]


def test_verdict_that_fails_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.show_verdict(Verdict("gate", "<= 30 us", "31.0 us", holds=False))
    assert capsys.readouterr().out == "  FAILS  gate: 31.0 us (wanted <= 30 us)\n"
