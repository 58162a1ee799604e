"""Executors of a user's own, named by module and class."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.executors.tiny import gate, images, tiny_bundle
from zpipe.errors import ConfigError, ExecutorError
from zpipe.executors import make_executor
from zpipe.executors.base import executor_options, is_executor_name

OWN = """
from zpipe.executors.onnx import OnnxExecutor

class Own(OnnxExecutor):
    def __init__(self, bundle, stages, device=""):
        super().__init__(bundle, stages)
        self.device = device

class Half:
    inline = True
    def __init__(self, bundle, stages): pass
    def run(self, stage, inputs, gate): pass

class Fails:
    def __init__(self, bundle, stages): raise OSError("no such\\ndevice")

number = 7
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_executors.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("import nothing_of_that_name")
    monkeypatch.syspath_prepend(tmp_path)


def test_own_executor_is_made_with_bundle_stages_and_its_options() -> None:
    executor = make_executor("own_executors:Own", tiny_bundle(), [1, 0], device="left")
    assert type(executor).__name__ == "Own"
    assert executor.stages == (0, 1)
    assert getattr(executor, "device", None) == "left"
    assert len(executor.run(0, images(2), gate(2)).labels) == 2


def test_options_are_those_of_its_class() -> None:
    assert executor_options("own_executors:Own") == ("device",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_absent:Own", "found ModuleNotFoundError: .*own_absent.* on importing own_absent, expected .*PYTHONPATH"),
        ("own_broken:Own", "found ModuleNotFoundError: .*nothing_of_that_name.* on importing own_broken"),
        ("own_executors:Absent", "found nothing as Absent in own_executors, expected a class"),
        ("own_executors:number", "found int as number in own_executors, expected a class"),
        ("own_executors:Half", "found Half without stages, warm_up, close, expected a zpipe.executors.StageExecutor"),
        ("own executors:Own", "found 'own executors:Own', expected one of auto, .*, or MODULE:CLASS"),
    ],
)
def test_what_is_no_executor_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_executor(name, tiny_bundle(), [0])


def test_what_its_class_raises_is_told_in_one_line() -> None:
    with pytest.raises(ExecutorError, match="own_executors:Fails: found OSError: no such device when it was made"):
        make_executor("own_executors:Fails", tiny_bundle(), [0])


@pytest.mark.parametrize("name", ["onnx", "emulated", "a:B", "a.b.c:D"])
def test_names_a_topology_may_have(name: str) -> None:
    assert is_executor_name(name)


@pytest.mark.parametrize("name", ["", "onyx", "a:", ":B", "a.:B", "a:B.c", "a:B:C", "../a:B", "a:B()"])
def test_names_it_may_not(name: str) -> None:
    assert not is_executor_name(name)
