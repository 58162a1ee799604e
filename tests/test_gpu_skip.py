"""Tests for a GPU run where the driver shows one, whatever its device file is called, and say why where it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.executors.cuda import pretend

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("0", "1 passed"),
        ("100", "needs an NVIDIA GPU: found an NVIDIA driver that gives error 100 (CUDA_ERROR_NO_DEVICE), expected a GPU"),
    ],
)
def test_driver_itself_is_asked(answer: str, said: str, tmp_path: Path) -> None:
    pretend.driver(tmp_path)
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_it() -> None: ...\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    environment = {name: value for name, value in os.environ.items() if name != "STANDIN_KERNELS"}
    environment |= {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT), "FAKE_CUDA_INIT": answer}
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "tests.conftest", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert said in done.stdout, done.stdout + done.stderr
