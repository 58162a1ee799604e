"""What the commands say where an executor cannot run: one line and exit code 2, as people see it in processes of their own.

The machines are pretended (`tests.executors.cuda.pretend`): a driver's library compiled here, and packages that can be found.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.executors.cuda import pretend

ROOT = Path(__file__).parent.parent
HALF = ROOT / "engines" / "digits-mobilenetv2-half"
PATIENCE_SECONDS = 60.0

#: name: (packages, whether there is a driver, what is said after "found").
MACHINES = {
    "without a GPU": ({}, False, "no NVIDIA GPU"),
    "without pycuda": (pretend.TENSORRT_RTX, True, "a driver (CUDA 12.6: Orin (capability 8.7)) but no pycuda"),
    "with pycuda but no driver": (pretend.PYCUDA_WITHOUT_DRIVER, False, "pycuda but no NVIDIA driver (libcuda.so.1)"),
    "with a driver but no TensorRT": (pretend.PYCUDA, True, "a driver (CUDA 12.6: Orin (capability 8.7)) but no TensorRT"),
}
CASES = [pytest.param(*machine, id=name, marks=() if machine[1] else pretend.WITHOUT_GPU) for name, machine in MACHINES.items()]

OWN = """
from zpipe import errors

class Mismatch:
    inline, stages = True, (0,)
    def __init__(self, bundle, stages): self.stages = tuple(stages)
    def warm_up(self, max_batch):
        raise errors.EngineMismatchError(
            "stage 0: found an engine for capability 8.6, expected capability 8.7; run here: zpipe build --bundle b"
        )
    def run(self, stage, inputs, gate): ...
    def close(self): ...
"""


def zpipe(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zpipe", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=environment)


def only_line(said: subprocess.CompletedProcess[str]) -> str:
    """What a command that refuses says: a line on standard error, and exit code 2."""
    assert (said.returncode, said.stdout, said.stderr.count("\n")) == (2, "", 1), said.stderr
    return said.stderr.strip()


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    """A line of two, which ports are free for at its start."""
    return written(tmp_path, [[0], [1, 2, 3, 4]])


def written(folder: Path, stages: list[list[int]]) -> Path:
    nodes = [{"rank": rank, "stages": hosted} for rank, hosted in enumerate(stages)]
    plain = {"name": "boards", "bundle": str(HALF), "nodes": nodes, **({"links": "line"} if len(nodes) > 1 else {})}
    file = folder / "boards.yaml"
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return file


@pytest.mark.parametrize(("packages", "with_driver", "found"), CASES)
def test_executor_trt_says_what_is_missing(
    tmp_path: Path, topology: Path, packages: dict[str, str], with_driver: bool, found: str
) -> None:
    environment = pretend.environment(tmp_path, packages, with_driver=with_driver)
    node = only_line(zpipe(environment, "node", "--rank", "1", "--executor", "trt", "--topology", topology))
    assert node.startswith(f"zpipe: executor trt: found {found}, expected ")
    assert "; " in node  # what to do


def test_executor_that_is_missing_in_every_process_of_a_bench_is_one_line(tmp_path: Path, topology: Path) -> None:
    environment = pretend.environment(tmp_path, pretend.PYCUDA, with_driver=True)
    said = only_line(zpipe(environment, "bench", "--executor", "trt", "--topology", topology, "--count", "1"))
    assert "executor trt: found a driver (CUDA 12.6: Orin (capability 8.7)) but no TensorRT, expected " in said


@pytest.mark.parametrize(("packages", "with_driver", "found"), CASES)
def test_executor_auto_goes_on_without(tmp_path: Path, packages: dict[str, str], with_driver: bool, found: str) -> None:
    environment = pretend.environment(tmp_path, packages, with_driver=with_driver)
    goes_on(environment, written(tmp_path, [[0, 1, 2, 3, 4]]), found)


def test_executor_auto_goes_on_without_in_every_process_and_says_so_once(tmp_path: Path, topology: Path) -> None:
    packages, with_driver, found = MACHINES["with a driver but no TensorRT"]
    goes_on(pretend.environment(tmp_path, packages, with_driver=with_driver), topology, found)


def goes_on(environment: dict[str, str], topology: Path, found: str) -> None:
    done = zpipe({**environment, "COLUMNS": "250"}, "bench", "--topology", topology, "--count", "20", "--warm-up", "0")
    assert done.returncode == 0, done.stderr
    assert "stages ran on onnx" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("executor auto takes onnx; not trt")]
    assert f": {found}" in line


def test_engine_that_does_not_fit_is_one_line_with_the_command(tmp_path: Path, topology: Path) -> None:
    (tmp_path / "own_mismatch.py").write_text(OWN, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    found = "stage 0: found an engine for capability 8.6, expected capability 8.7; run here: zpipe build --bundle b"
    for command in (("node", "--rank", "1"), ("bench", "--count", "1")):
        said = only_line(zpipe(environment, *command, "--executor", "own_mismatch:Mismatch", "--topology", topology))
        assert said.endswith(found)
