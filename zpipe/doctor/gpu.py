"""NVIDIA's GPUs: the driver, what the executors on them need, the engines that were built, and which executor `auto` takes.

`zpipe.executors` needs numpy, which may be what is missing, so it is imported within functions.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from zpipe.doctor.finding import Finding, reason
from zpipe.doctor.python import BUNDLE
from zpipe.environment import JETSON, installed, pip
from zpipe.errors import ZpipeError

if TYPE_CHECKING:
    from zpipe.bundle import Bundle
    from zpipe.executors.cuda.presence import Gpus, Missing
    from zpipe.executors.tensorrt.manifest import Engine

#: Importing torch from a slow SD card takes most of a minute; so may building engines, where `auto` finds none.
PROBE_SECONDS = 90.0
DRIVER_REMEDY = "install NVIDIA's driver; in a container: docker run --gpus all"


class Extra(NamedTuple):
    """A library that some need: `code` imports it and prints a line about it; `use` says what for."""

    module: str
    code: str
    use: str
    remedy: str


#: Prints the version, and the capabilities that engines can be built for without their GPU.
_FLAVOUR = """
from zpipe.executors.tensorrt.flavour import load_flavour
library = load_flavour({!r})
print(library.version, *map("%d.%d".__mod__, library.targets))
"""

# Not pycuda.autoinit: that makes a context, on whichever GPU comes first.
PYCUDA = Extra(
    "pycuda",
    "import pycuda, pycuda.driver as d; d.init(); print(pycuda.VERSION_TEXT, 'with', d.Device.count(), 'GPU')",
    "for executor trt",
    "pip install 'zpipe[cuda]' (compiles it: needs the CUDA toolkit, nvcc on PATH)",
)
#: By the key of the flavour in the names of engines.
FLAVOURS = {
    "trt": Extra("tensorrt", _FLAVOUR.format("trt"), "for executor trt", "pip install 'zpipe[trt]'"),
    "rtx": Extra("tensorrt_rtx", _FLAVOUR.format("rtx"), "for executor trt", "pip install 'zpipe[rtx]'"),
}
TORCH = Extra(
    "torch",
    "import torch; print(torch.__version__, 'with CUDA' if torch.cuda.is_available() else 'without CUDA')",
    "for `zpipe train` and executor torch-cuda",
    "pip install 'zpipe[train]'",
)
EXTRAS = (PYCUDA, *FLAVOURS.values(), TORCH)

_AUTO = f"""
from zpipe.bundle import load_bundle
from zpipe.executors.auto import make
bundle = load_bundle({BUNDLE!r}, verify=False)
make(bundle, range(len(bundle.stages)), max_batch=8, note=print).close()
"""


def findings() -> list[Finding]:
    """All of it, in the order in which one thing needs the other."""
    try:
        from zpipe.executors.cuda.presence import gpus

        there = gpus()
    except ImportError as exc:
        return [Finding("NVIDIA driver", "warning", f"not looked at: {reason(exc)}", "mend what is missing above")]
    found = [nvidia_driver(there), extra(PYCUDA)]
    versions = {}
    for key, wanted in FLAVOURS.items():
        finding = flavour(wanted, there)
        found.append(finding)
        versions[key] = finding.found.split(",")[0]
    return [*found, extra(TORCH), *engines(there, versions), auto()]


# ---- what is here ------------------------------------------------------------------------------


def nvidia_driver(there: Gpus | Missing) -> Finding:
    """What the CUDA driver shows. No GPU at all is fine."""
    from zpipe.executors.cuda.presence import NO_GPU, Gpus

    if isinstance(there, Gpus):
        return Finding("NVIDIA driver", "ok", str(there))
    if there.found == NO_GPU:
        return Finding("NVIDIA driver", "ok", f"none, and {NO_GPU}; stages run on the CPU")
    return Finding("NVIDIA driver", "warning", f"found {there.found}, expected {there.expected}", there.remedy)


def extra(wanted: Extra) -> Finding:
    """A library only some need, imported in a process of its own."""
    remedy = wanted.remedy.replace("pip", pip(), 1)
    if wanted.module.startswith("tensorrt") and JETSON.exists():
        remedy = "JetPack brings it: python3 -m venv --system-site-packages .venv"
    if not installed(wanted.module):
        return Finding(wanted.module, "missing", f"not installed ({wanted.use})", remedy)
    code, said = _run(wanted.code)
    if code == 0:
        return Finding(wanted.module, "ok", said)
    if code is None:
        return Finding(wanted.module, "warning", f"installed, but its import takes over {PROBE_SECONDS:.0f} s", remedy)
    if "libcuda" in said:
        return Finding(wanted.module, "warning", f"installed, but there is no NVIDIA driver ({said})", DRIVER_REMEDY)
    return Finding(wanted.module, "warning", f"installed, but does not work: {said}", remedy)


def flavour(wanted: Extra, there: Gpus | Missing) -> Finding:
    """One of the libraries that call themselves TensorRT, and whether it knows the GPU that is here."""
    from zpipe.executors.cuda.presence import Gpus

    finding = extra(wanted)
    if finding.status != "ok":
        return finding
    version, *targets = finding.found.split()
    if not targets:
        return Finding(wanted.module, "ok", f"{version}, builds for the GPU it runs on")
    known = f"{version}, builds for capability {', '.join(targets)}"
    if not isinstance(there, Gpus):
        return Finding(wanted.module, "ok", known)
    unknown = [gpu for gpu in there.devices if "{}.{}".format(*gpu.capability) not in targets]
    if not unknown:
        return Finding(wanted.module, "ok", f"{known}: this GPU's is among them")
    remedy = "whether it runs there only a trial can tell (executor auto, below); executor torch-cuda may instead"
    return Finding(wanted.module, "warning", f"{known}, not for {unknown[0]}", remedy)


# ---- what was built ----------------------------------------------------------------------------


def engines(there: Gpus | Missing, versions: Mapping[str, str]) -> list[Finding]:
    """The TensorRT engines of every bundle that a name finds, and whether they run here; nothing where there are none.

    Args:
        there: the GPUs.
        versions: {flavour: what its library said, its version where it is here}.
    """
    from zpipe.bundle import bundle_folders, load_bundle
    from zpipe.executors.tensorrt.manifest import engines_of

    found = []
    for folder in bundle_folders():
        try:
            bundle = load_bundle(folder, verify=False)
            built = engines_of(bundle)
        except ZpipeError:  # said by whoever uses that bundle
            continue
        if built:
            found.append(_engines_of(bundle, built, there, versions))
    return found


def _engines_of(bundle: Bundle, built: Iterable[Engine], there: Gpus | Missing, versions: Mapping[str, str]) -> Finding:
    from zpipe.executors.cuda.presence import Gpus

    def alike(engine: Engine) -> tuple[str, str]:
        return str(engine.key), _unusable(bundle, engine, there, versions)

    said, run = [], False
    for (what, why_not), group in groupby(sorted(built, key=lambda engine: (alike(engine), engine.key.stage)), key=alike):
        stages = ", ".join(str(engine.key.stage) for engine in group)
        said.append(f"stages {stages}: {what}{f', not used here: {why_not}' if why_not else ', runs here'}")
        run = run or not why_not
    name = f"engines of {bundle.name}"
    if run or not isinstance(there, Gpus):  # built for another machine, it may be
        return Finding(name, "ok", "; ".join(said))
    return Finding(name, "warning", "; ".join(said), f"zpipe build --bundle {bundle.name}")


def _unusable(bundle: Bundle, engine: Engine, there: Gpus | Missing, versions: Mapping[str, str]) -> str:
    """Why an engine is not used here; "" if it is."""
    from zpipe.executors.cuda.presence import Gpus
    from zpipe.executors.tensorrt.manifest import ANY, stage_digest

    key = engine.key
    if key.onnx != stage_digest(bundle, key.stage):
        return "the stage's ONNX is another one now"
    if not engine.whole():
        return f"{engine.plan.name} is damaged"
    if not isinstance(there, Gpus):
        return there.found
    if key.flavour not in {f"{name}{version}" for name, version in versions.items()}:
        return f"{key.flavour} is not the library here"
    if not any(key.target in (ANY, "{}.{}".format(*gpu.capability)) for gpu in there.devices):
        return f"the GPU is {there.devices[0]}"
    return ""


# ---- what is made of it ------------------------------------------------------------------------


def auto() -> Finding:
    """What `executor: auto` takes for the digits bundle, tried in a process of its own: on a GPU that may build its engines."""
    code, said = _run(_AUTO)
    if code == 0:
        return Finding("executor auto", "ok", said.removeprefix("executor auto "))
    if code is None:
        return Finding("executor auto", "warning", f"its trial takes over {PROBE_SECONDS:.0f} s", "name one: executor: onnx")
    return Finding("executor auto", "warning", said, "mend what is missing above")


def _run(code: str) -> tuple[int | None, str]:
    """(exit code, None after PROBE_SECONDS; what it printed, or the last line of its complaint) of Python code in a process."""
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return None, ""
    if done.returncode == 0:
        return 0, " ".join(done.stdout.split())
    lines = done.stderr.strip().splitlines()
    return done.returncode, lines[-1] if lines else f"it ended with exit code {done.returncode}"
