"""What ONNX Runtime would tell its makers: nothing, unless who runs the program says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import zpipe
from zpipe.executors import make_executor

bundle = zpipe.load_bundle("digits-mobilenetv2-half", verify=False)
make_executor("onnx", bundle, [0]).close()
"""


@pytest.mark.parametrize("said", [None, "1"])
def test_nothing_is_left_in_the_home_of_who_runs_a_network(said: str | None, tmp_path: Path) -> None:
    # Not this environment: where tests run ONNX Runtime may keep still by itself.
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    if said is not None:
        environment["ORT_DISABLE_TELEMETRY"] = said
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_who_wants_it_may_have_it() -> None:
    shown = "import os, zpipe; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, kept in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"} | given
        done = subprocess.run(
            [sys.executable, "-c", shown], cwd=ROOT, env=environment, check=True, timeout=60, capture_output=True, text=True
        )
        assert done.stdout.strip() == kept
