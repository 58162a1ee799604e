"""What works on this machine, what is missing, and the command that mends it.

Every check is a function that returns one Finding and never raises. Nothing here is needed to run: a machine without ONNX
Runtime or without a bundle still gets its list. GPU libraries are imported in a process of their own, since a broken one may
abort instead of raising, and importing torch takes seconds.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from zpipe.descriptors import MOST_DESCRIPTORS, limits
from zpipe.errors import ZpipeError

if TYPE_CHECKING:
    from rich.console import RenderableType

Status = Literal["ok", "missing", "warning"]

LEAST_PYTHON = (3, 10)
BUNDLE = "digits-mobilenetv2"
#: A node takes about 100 MB, the four of line4.yaml and the bench 450 MB.
SCARCE_MEMORY_BYTES = 500e6
#: A link takes 10 descriptors of a node, so that this is 64 neighbours and 3,000 strangers who say nothing.
FEW_DESCRIPTORS = 4096
#: Stages take 0.3 ms and more; a coarser clock would make service times up.
COARSE_CLOCK_SECONDS = 1e-4
#: Importing torch from a slow SD card takes most of a minute.
PROBE_SECONDS = 90.0
#: These let the clock follow the load too slowly for stages that last under a millisecond.
SLOW_GOVERNORS = ("powersave", "conservative")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
JETSON = Path("/etc/nv_tegra_release")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: what.
        status: `ok`; `warning`: works, but not as well as it could; `missing`: is not there or does not work.
        found: what is there, with its version or figure.
        remedy: one line with the command that mends it, "" where there is nothing to mend.
        required: zpipe does not run without it.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""
    required: bool = False


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


class Extra(NamedTuple):
    """A library that some need: `code` imports it and prints a line about it; `use` says what for."""

    module: str
    code: str
    use: str
    remedy: str


EXTRAS = (
    Extra(
        "torch",
        "import torch; print(torch.__version__, 'with CUDA' if torch.cuda.is_available() else 'without CUDA')",
        "for `zpipe train`",
        "pip install 'zpipe[train]'",
    ),
    Extra(
        "tensorrt",
        "import tensorrt as t; print(t.__version__)",
        "for the TensorRT executor",
        "pip install 'zpipe[trt]'",
    ),
    Extra(
        "tensorrt_rtx",
        "import tensorrt_rtx as t; print(t.__version__)",
        "for the TensorRT executor on RTX cards",
        "pip install 'zpipe[rtx]'",
    ),
    # Not pycuda.autoinit: that makes a context, on whichever GPU comes first.
    Extra(
        "pycuda",
        "import pycuda, pycuda.driver as d; d.init(); print(pycuda.VERSION_TEXT, 'with', d.Device.count(), 'GPU')",
        "for the TensorRT executor",
        "pip install 'zpipe[cuda]'",
    ),
)


def diagnose(*, loopback: Callable[[], str] | None) -> list[Finding]:
    """Looks at everything, in the order people read it: Python, libraries, the network, this machine, GPUs.

    Args:
        loopback: sends a message over ZeroMQ and says how that went, raising what stands in the way; None leaves it out.
    """
    findings = [python_version(), *[dependency(each) for each in DEPENDENCIES], bundle(), stages()]
    if loopback is not None:
        findings += [zeromq(loopback), curve()]
    findings += [cores(), memory(), *descriptors(), clock(), *governor(), nvidia_driver()]
    return findings + [extra(each) for each in EXTRAS]


# ---- Python and its libraries ------------------------------------------------------------------


def python_version() -> Finding:
    """The interpreter."""
    found = f"{platform.python_version()} ({platform.python_implementation()}, {platform.machine()})"
    if sys.version_info[:2] >= LEAST_PYTHON:
        return Finding("python", "ok", found, required=True)
    least = ".".join(map(str, LEAST_PYTHON))
    return Finding("python", "missing", f"{found}, expected {least} or later", f"python{least} -m venv .venv", required=True)


def dependency(wanted: Dependency) -> Finding:
    """Whether it is there, imports, and is new enough."""
    name, required = wanted.distribution, wanted.distribution not in DISPENSABLE
    remedy = f"{_pip()} install '{name}>={wanted.least}'"
    if importlib.util.find_spec(wanted.module) is None:
        lost = "" if required else "; asyncio's own event loop runs instead, slower"
        return Finding(name, "missing", f"not installed{lost}", remedy, required)
    version = _version(name)
    try:
        importlib.import_module(wanted.module)
    except Exception as exc:  # a broken native library raises anything
        return Finding(name, "missing", f"{version} does not import: {_reason(exc)}", f"{remedy} --force-reinstall", required)
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
        "missing",
        f"{found}, expected CPU among them",
        f"{_pip()} install --force-reinstall onnxruntime",
        required=True,
    )


# ---- what comes with zpipe ---------------------------------------------------------------------


def bundle() -> Finding:
    """The digits bundle: found, and every file's digest right."""
    name = "digits bundle"
    try:
        from zpipe.bundle import load_bundle

        loaded = load_bundle(BUNDLE)
    except (ZpipeError, ImportError) as exc:
        return Finding(name, "missing", _reason(exc), _bundle_remedy(), required=True)
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
        return Finding("its stages", "missing", _reason(exc), "mend what is missing above", required=True)
    each = ", ".join(f"{1e3 * value:.2f}" for value in seconds.values())
    return Finding("its stages", "ok", f"{each} ms a sample on the CPU", required=True)


def zeromq(loopback: Callable[[], str]) -> Finding:
    """A message over ZeroMQ and back."""
    try:
        return Finding("ZeroMQ loopback", "ok", loopback(), required=True)
    except Exception as exc:  # whatever it is, ZeroMQ does not work here
        remedy = "allow TCP on 127.0.0.1 (firewall, sandbox): sudo ip link set lo up"
        return Finding("ZeroMQ loopback", "missing", _reason(exc), remedy, required=True)


def curve() -> Finding:
    """Keys need a libzmq that was built with them."""
    try:
        from zpipe.transport.curve import check_curve

        check_curve()
    except Exception as exc:
        remedy = "pip install --force-reinstall --only-binary pyzmq pyzmq"
        return Finding("CURVE keys", "warning", _reason(exc), remedy)
    return Finding("CURVE keys", "ok", "can be used; `zpipe keygen` makes them")


# ---- this machine ------------------------------------------------------------------------------


def cores() -> Finding:
    """What this process may run on."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    there = os.cpu_count() or usable
    found = f"{usable}" if usable == there else f"{usable} of {there} (the others are not ours to use)"
    if usable > 1:
        return Finding("cores", "ok", found)
    return Finding("cores", "warning", found, "give local runs two or more: taskset -c 0-3 zpipe bench, docker run --cpus 4")


def memory() -> Finding:
    """What is free now."""
    try:
        import psutil
    except ImportError as exc:
        return Finding("memory", "warning", _reason(exc), f"{_pip()} install psutil")
    there = psutil.virtual_memory()
    found = f"{there.available / 1e9:.1f} of {there.total / 1e9:.1f} GB free"
    if there.available >= SCARCE_MEMORY_BYTES:
        return Finding("memory", "ok", found)
    expected = f"expected {SCARCE_MEMORY_BYTES / 1e6:.0f} MB for line4.yaml on one machine"
    return Finding("memory", "warning", f"{found}, {expected}", "fewer ranks here: zpipe bench --topology line2.yaml")


def descriptors() -> list[Finding]:
    """How many connections a node here can have; nothing where the system does not limit that."""
    found = limits()
    if found is None:
        return []
    soft, hard = found
    if hard < FEW_DESCRIPTORS:
        said = f"{hard} for a process, expected {FEW_DESCRIPTORS}: connections of strangers can take them all"
        remedy = f"sudo prlimit --pid $$ --nofile={MOST_DESCRIPTORS} (for a service: LimitNOFILE={MOST_DESCRIPTORS})"
        return [Finding("descriptors", "warning", said, remedy)]
    most = min(hard, MOST_DESCRIPTORS)
    raised = f", which a node raises to {most}" if soft < most else ""
    return [Finding("descriptors", "ok", f"{soft} for a process{raised}")]


def clock() -> Finding:
    """The smallest step that the monotonic clock is seen to make."""
    step = min(_clock_steps(200))
    found = f"steps of {1e9 * step:.0f} ns"
    if step <= COARSE_CLOCK_SECONDS:
        return Finding("clock", "ok", found)
    remedy = "echo tsc | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource"
    return Finding("clock", "warning", f"{found}, coarser than a stage", remedy)


def _clock_steps(count: int) -> Iterator[float]:
    for _ in range(count):
        before = now = time.monotonic()
        while now == before:
            now = time.monotonic()
        yield now - before


def governor() -> list[Finding]:
    """How the CPU's clock follows the load; nothing where the kernel does not say (virtual machines)."""
    try:
        name = GOVERNOR.read_text(encoding="ascii").strip()
        driver = GOVERNOR.with_name("scaling_driver").read_text(encoding="ascii").strip()
    except OSError:
        return []
    # intel_pstate and amd-pstate-epp call their ordinary, quick governor powersave, too.
    if name not in SLOW_GOVERNORS or "pstate" in driver:
        return [Finding("CPU governor", "ok", f"{name} ({driver})")]
    remedy = "sudo jetson_clocks" if JETSON.exists() else "sudo cpupower frequency-set -g performance"
    return [Finding("CPU governor", "warning", f"{name}: short stages run at a low clock", remedy)]


# ---- GPUs --------------------------------------------------------------------------------------


def nvidia_driver() -> Finding:
    """The CUDA driver through ctypes: no library has to be there. None is fine."""
    try:
        cuda = _libcuda()
    except OSError:
        return Finding("NVIDIA driver", "ok", "none; stages run on the CPU")
    version, count = ctypes.c_int(), ctypes.c_int()
    code = cuda.cuInit(0) or cuda.cuDriverGetVersion(ctypes.byref(version)) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        found = f"libcuda is there and gives error {code}" if code else "libcuda is there, but no GPU"
        return Finding("NVIDIA driver", "warning", found, "see what the driver says: nvidia-smi; dmesg | grep -i nvrm")
    names = ", ".join(_gpu_name(cuda, index) for index in range(count.value))
    return Finding("NVIDIA driver", "ok", f"CUDA {version.value // 1000}.{version.value % 1000 // 10}: {names}")


def _libcuda() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _gpu_name(cuda: Any, index: int) -> str:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(100)
    if cuda.cuDeviceGet(ctypes.byref(device), index) or cuda.cuDeviceGetName(name, len(name), device):
        return f"GPU {index}"
    major, minor = ctypes.c_int(), ctypes.c_int()
    for value, attribute in ((major, 75), (minor, 76)):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return f"{name.value.decode(errors='replace')} (capability {major.value}.{minor.value})"


def extra(wanted: Extra) -> Finding:
    """A library only some need, imported in a process of its own."""
    remedy = wanted.remedy.replace("pip", _pip(), 1)
    if wanted.module.startswith("tensorrt") and JETSON.exists():
        remedy = "JetPack brings it: python3 -m venv --system-site-packages .venv"
    if importlib.util.find_spec(wanted.module) is None:
        return Finding(wanted.module, "missing", f"not installed ({wanted.use})", remedy)
    try:
        done = subprocess.run(
            [sys.executable, "-c", wanted.code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Finding(wanted.module, "warning", f"installed, but its import takes over {PROBE_SECONDS:.0f} s", remedy)
    if done.returncode == 0:
        return Finding(wanted.module, "ok", " ".join(done.stdout.split()))
    said = (done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"])[-1]
    if "libcuda" in said:
        return Finding(wanted.module, "warning", f"installed, but there is no NVIDIA driver ({said})", "install NVIDIA's driver")
    return Finding(wanted.module, "warning", f"installed, but does not work: {said}", remedy)


# ---- helpers -----------------------------------------------------------------------------------


def _pip() -> str:
    """The pip of this very Python, short where that is the one on the path."""
    return "pip" if sys.prefix != sys.base_prefix else f"{Path(sys.executable).name} -m pip"


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


def _reason(exc: BaseException) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__


def _bundle_remedy() -> str:
    checkout = Path(__file__).resolve().parent.parent / "pyproject.toml"
    return f"git checkout -- engines/{BUNDLE}" if checkout.is_file() else f"{_pip()} install --force-reinstall --no-deps zpipe"


# ---- for a terminal ----------------------------------------------------------------------------


def render_findings(findings: Sequence[Finding]) -> RenderableType:
    """The list as a person reads it: what there is, then what to do, the necessary first."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in findings:
        mark, style = _mark(finding)
        plain = style == "green"
        name, found = Text(finding.name, style="" if plain else style), Text(finding.found, style="dim" if style == "dim" else "")
        table.add_row(Text(mark, style=style), name, found)
    parts: list[RenderableType] = [Text(), table]
    broken = [finding for finding in findings if finding.status == "missing" and finding.required]
    better = [finding for finding in findings if finding.status == "warning"]
    further = [finding for finding in findings if finding.status == "missing" and not finding.required]
    for title, style, listed in (
        ("zpipe does not run until these are mended", "bold red", broken),
        ("these work, and better after", "bold yellow", better),
        ("not needed for a plain run; to have them", "dim", further),
    ):
        if listed:
            remedies = Table.grid(padding=(0, 2, 0, 0))
            for each in listed:
                remedies.add_row("", Text(each.name), Text(each.remedy))
            parts += [Text(), Text(title, style=style), remedies]
    if not broken:
        parts += [Text(), Text("zpipe runs here: zpipe bench --topology line4.yaml", style="bold green")]
    return Group(*parts)


def _mark(finding: Finding) -> tuple[str, str]:
    if finding.status == "ok":
        return "✓", "green"
    if finding.status == "warning":
        return "!", "bold yellow"
    return ("✗", "bold red") if finding.required else ("–", "dim")
