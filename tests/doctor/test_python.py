"""The interpreter, its libraries and the bundle: what the doctor says where something is missing, old or broken."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from zpipe.doctor import python as doctor
from zpipe.doctor.python import DEPENDENCIES, READERS, Dependency, Reader

ROOT = Path(__file__).parents[2]


def test_the_dependencies_are_those_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (block,) = re.findall(r"^dependencies = \[\n(.*?)^\]", text, flags=re.DOTALL | re.MULTILINE)
    stated = re.findall(r'"([A-Za-z]+)>=([\d.]+)', block)
    assert [(each.distribution, each.least) for each in DEPENDENCIES] == stated


def test_what_infer_reads_with_is_no_dependency_but_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for each in READERS:
        assert re.search(rf'^{each.extra} = .*"{each.distribution}', text, flags=re.MULTILINE)
    finding = doctor.reader(Reader("no-such-thing", "no_such_thing", "for pictures", "images"))
    assert (finding.status, finding.found, finding.required) == ("missing", "not installed (for pictures)", False)
    assert finding.remedy.endswith("pip install 'zpipe[images]'")
    (tmp_path / "reads_nothing.py").write_text("raise OSError('libGL.so.1: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.reader(Reader("reads-nothing", "reads_nothing", "", "video")).status == "broken"


def test_absent_library_is_missing_with_the_command_that_installs_it() -> None:
    finding = doctor.dependency(Dependency("no-such-thing", "no_such_thing", "2"))
    assert (finding.status, finding.found, finding.required) == ("missing", "not installed", True)
    assert finding.remedy.endswith("pip install 'no-such-thing>=2'")


def test_old_library_is_a_warning_that_names_both_versions() -> None:
    finding = doctor.dependency(Dependency("numpy", "numpy", "999.1"))
    assert finding.status == "warning"
    assert finding.found.endswith(", expected 999.1 or later")


def test_library_that_does_not_import_gives_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_at_import.py").write_text("raise OSError('libsodium.so.23:\\ncannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    finding = doctor.dependency(Dependency("breaks-at-import", "breaks_at_import", "1"))
    assert finding.status == "broken"
    assert "libsodium.so.23: cannot open" in finding.found


def test_uvloop_is_wanted_but_not_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    finding = doctor.dependency(Dependency("uvloop", "uvloop", "0.19"))
    assert (finding.status, finding.required) == ("missing", False)


def test_onnxruntime_without_its_cpu_provider_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpipe.executors.onnx.available_providers", lambda: ["AzureExecutionProvider"])
    finding = doctor.dependency(Dependency("onnxruntime", "onnxruntime", "1.17"))
    assert (finding.status, finding.required) == ("broken", True)
    assert "with Azure, expected CPU among them" in finding.found


def test_versions_compare_by_their_numbers() -> None:
    assert doctor._numbers("1.31.1rc2") == (1, 31, 1)
    assert doctor._numbers("2.10") > doctor._numbers("2.9.1")
    assert doctor._numbers("unknown version") == ()


def test_missing_bundle_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "BUNDLE", "no-such-bundle")
    finding = doctor.bundle()
    assert (finding.status, finding.required) == ("missing", True)
    assert finding.remedy == "git checkout -- engines/no-such-bundle"


def test_changed_file_of_the_bundle_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(ROOT / "engines" / "digits-mobilenetv2-half", folder)
    with (folder / "stage1.onnx").open("ab") as file:
        file.write(b"!")
    monkeypatch.setattr(doctor, "BUNDLE", str(folder))
    finding = doctor.bundle()
    assert finding.status == "missing"
    assert "digests.stage1.onnx" in finding.found
