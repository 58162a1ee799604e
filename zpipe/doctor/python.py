"""The interpreter, the libraries of a plain install, and the bundle that comes with zpipe."""

from __future__ import annotations

import importlib
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from zpipe.doctor.finding import Finding, reason
from zpipe.environment import installed, pip
from zpipe.errors import ZpipeError

LEAST_PYTHON = (3, 10)
BUNDLE = "digits-mobilenetv2"


class Dependency(NamedTuple):
    """A distribution of a plain install: the module it gives and the least version (a test compares with pyproject.toml)."""

    distribution: str
    module: str
    least: str


DEPENDENCIES = (
    Dependency("pyzmq", "zmq", "26"),
    Dependency("msgpack", "msgpack", "1.0.5"),
    Dependency("uvloop", "uvloop", "0.19"),
    Dependency("click", "click", "8.1"),
    Dependency("numpy", "numpy", "1.24"),
    Dependency("onnxruntime", "onnxruntime", "1.17"),
    Dependency("PyYAML", "yaml", "6.0.1"),
    Dependency("rich", "rich", "13"),
    Dependency("xxhash", "xxhash", "3.4"),
    Dependency("psutil", "psutil", "5.9"),
    Dependency("zstandard", "zstandard", "0.22"),
)
#: Without these a plain install still works, only slower.
DISPENSABLE = ("uvloop",)


def version() -> Finding:
    """The interpreter."""
    found = f"{platform.python_version()} ({platform.python_implementation()}, {platform.machine()})"
    if sys.version_info[:2] >= LEAST_PYTHON:
        return Finding("python", "ok", found, required=True)
    least = ".".join(map(str, LEAST_PYTHON))
    return Finding("python", "broken", f"{found}, expected {least} or later", f"python{least} -m venv .venv", required=True)


def dependency(wanted: Dependency) -> Finding:
    """Whether it is there, imports, and is new enough."""
    name, required = wanted.distribution, wanted.distribution not in DISPENSABLE
    remedy = f"{pip()} install '{name}>={wanted.least}'"
    if not installed(wanted.module):
        lost = "" if required else "; asyncio's own event loop runs instead, slower"
        return Finding(name, "missing", f"not installed{lost}", remedy, required)
    version = _version(name)
    try:
        importlib.import_module(wanted.module)
    except Exception as exc:  # a broken native library raises anything
        return Finding(name, "broken", f"{version} does not import: {reason(exc)}", f"{remedy} --force-reinstall", required)
    if _numbers(version) < _numbers(wanted.least):
        return Finding(name, "warning", f"{version}, expected {wanted.least} or later", remedy, required)
    if name == "onnxruntime":
        return _onnxruntime(version)
    return Finding(name, "ok", version, required=required)


def _onnxruntime(version: str) -> Finding:
    from zpipe.executors.onnx import available_providers

    providers = available_providers()
    found = f"{version} with {', '.join(provider.removesuffix('ExecutionProvider') for provider in providers)}"
    if "CPUExecutionProvider" in providers:
        return Finding("onnxruntime", "ok", found, required=True)
    return Finding(
        "onnxruntime",
        "broken",
        f"{found}, expected CPU among them",
        f"{pip()} install --force-reinstall onnxruntime",
        required=True,
    )


class Reader(NamedTuple):
    """A library that `zpipe infer` reads with: its distribution, the module it gives, what for, and the extra that brings it."""

    distribution: str
    module: str
    use: str
    extra: str


READERS = (
    Reader("pillow", "PIL.Image", "for pictures in `zpipe infer`", "images"),
    Reader("opencv-python-headless", "cv2", "for videos and cameras in `zpipe infer`", "video"),
)


def reader(wanted: Reader) -> Finding:
    """Whether it is there and imports; no plain run needs it."""
    name = wanted.distribution.removesuffix("-python-headless")
    remedy = f"{pip()} install 'zpipe[{wanted.extra}]'"
    if not installed(wanted.module.partition(".")[0]):
        return Finding(name, "missing", f"not installed ({wanted.use})", remedy)
    try:
        module = importlib.import_module(wanted.module)
    except Exception as exc:  # as above
        remedy = f"{pip()} install --force-reinstall {wanted.distribution}"
        return Finding(name, "broken", f"does not import: {reason(exc)} ({wanted.use})", remedy)
    return Finding(name, "ok", str(getattr(module, "__version__", "unknown version")))


# ---- what comes with zpipe ---------------------------------------------------------------------


def bundle() -> Finding:
    """The digits bundle: found, and every file's digest right."""
    name = "digits bundle"
    try:
        from zpipe.bundle import load_bundle

        loaded = load_bundle(BUNDLE)
    except (ZpipeError, ImportError) as exc:
        return Finding(name, "broken" if _bundle_there() else "missing", reason(exc), _bundle_remedy(), required=True)
    size = sum(file.stat().st_size for file in loaded.path.iterdir() if file.is_file())
    return Finding(name, "ok", f"{len(loaded.stages)} stages, {size / 1e6:.1f} MB, every digest right", required=True)


def stages() -> Finding:
    """Every stage of the digits bundle run once on this CPU."""
    try:
        from zpipe.bundle import load_bundle
        from zpipe.executors import make_executor

        loaded = load_bundle(BUNDLE, verify=False)
        executor = make_executor("onnx", loaded, range(len(loaded.stages)))
        try:
            seconds = executor.warm_up(1)
        finally:
            executor.close()
    except (ZpipeError, ImportError) as exc:
        return Finding("its stages", "broken", reason(exc), "mend what is missing above", required=True)
    each = ", ".join(f"{1e3 * value:.2f}" for value in seconds.values())
    return Finding("its stages", "ok", f"{each} ms a sample on the CPU", required=True)


# ---- helpers -----------------------------------------------------------------------------------


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown version"


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers, for comparing: "1.31.1rc2" is (1, 31, 1)."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _bundle_there() -> bool:
    """Whether there is such a folder, whatever is in it."""
    try:
        from zpipe.bundle import bundle_folders
    except ImportError:
        return False
    return any(folder.name == BUNDLE for folder in bundle_folders())


def _bundle_remedy() -> str:
    checkout = Path(__file__).resolve().parents[2] / "pyproject.toml"
    return f"git checkout -- engines/{BUNDLE}" if checkout.is_file() else f"{pip()} install --force-reinstall --no-deps zpipe"
