"""What a wheel carries, and that it runs where nothing of this checkout is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUNDLES = ("digits-mobilenetv2", "digits-rocoin")
DATA = "zpipe/data"

pytestmark = pytest.mark.skipif(
    not all((ROOT / "engines" / name / "manifest.json").exists() for name in BUNDLES), reason="a bundle of the wheel is not there"
)


def run(*command: str | Path, cwd: Path, seconds: float) -> str:
    """Standard output of a command that must succeed, without this checkout on its path."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT, seconds=60)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


def test_the_wheel_holds_the_package_and_nothing_beside_it(contents: set[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in contents} == {"zpipe"}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "zpipe").rglob("*.py")}
    assert modules <= contents
    assert {"zpipe/py.typed", "zpipe/devices.yaml"} <= contents
    kernels = {path.relative_to(ROOT).as_posix() for path in (ROOT / "zpipe/executors/cuda/images").glob("*.z")}
    assert kernels | {"zpipe/executors/cuda/gate.cu", "zpipe/executors/cuda/images/images.json"} <= contents
    assert kernels
    assert not any("__pycache__" in name for name in contents)


def test_the_wheel_holds_every_topology(contents: set[str]) -> None:
    shipped = {name for name in contents if name.startswith(f"{DATA}/topologies/")}
    there = ROOT / "topologies"
    assert shipped == {f"{DATA}/topologies/{path.relative_to(there).as_posix()}" for path in there.rglob("*.yaml")}


def test_the_wheel_holds_its_bundles_complete_and_no_other(contents: set[str]) -> None:
    shipped = {name for name in contents if name.startswith(f"{DATA}/engines/")}
    folders = [ROOT / "engines" / name for name in BUNDLES]
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard", *folders, cwd=ROOT, seconds=10).split()
    assert {f"{DATA}/{name}" for name in tracked} == shipped
    for folder in folders:
        stages = {stage["file"] for stage in json.loads((folder / "manifest.json").read_text())["stages"]}
        assert {f"{DATA}/engines/{folder.name}/{file}" for file in stages} <= shipped


def test_engines_built_on_this_machine_stay_here(contents: set[str]) -> None:
    assert not any("/trt/" in name for name in contents)


def test_a_plain_install_needs_no_torch(wheel: Path) -> None:
    needed = [line for line in metadata(wheel).splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert any(line.startswith("Requires-Dist: onnxruntime") for line in needed)
    assert not any(name in line for line in needed for name in ("torch", "tensorrt", "pycuda"))


def test_what_reads_a_users_data_brings_what_reads_images(wheel: Path) -> None:
    needed = metadata(wheel).splitlines()
    for extra in ("split", "train"):
        assert any(line.startswith("Requires-Dist: pillow") and f"extra == '{extra}'" in line for line in needed), extra


def test_package_data_is_not_kept_in_the_source_tree() -> None:
    assert not (ROOT / DATA).exists()


@pytest.mark.slow
def test_the_wheel_runs_the_bench_in_an_empty_environment_elsewhere(wheel: Path, tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    venv.create(home, with_pip=True)
    python, zpipe = home / "bin" / "python", home / "bin" / "zpipe"
    run(python, "-m", "pip", "install", "-qq", "-c", ROOT / "constraints.txt", wheel, cwd=elsewhere, seconds=300)
    where = run(python, "-c", "import zpipe; print(zpipe.__file__)", cwd=elsewhere, seconds=30)
    assert Path(where.strip()).is_relative_to(home)
    report = elsewhere / "report.json"
    run(zpipe, "bench", "--topology", "line4.yaml", "--json", report, cwd=elsewhere, seconds=120)
    counts = json.loads(report.read_text())["counts"]
    assert counts["submitted"] == counts["result"] > 0
    assert counts["lost"] == counts["duplicate"] == counts["hung"] == 0
    assert "torch" not in run(python, "-m", "pip", "list", cwd=elsewhere, seconds=60)
