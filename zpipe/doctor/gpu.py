"""NVIDIA's GPUs: the driver, what the executors on them need, the engines that were built, and which executor `auto` takes.

`zpipe.executors` needs numpy, which may be what is missing, so it is imported within functions.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from zpipe.doctor.finding import Finding, reason
from zpipe.doctor.python import BUNDLE
from zpipe.environment import JETSON, installed, pip
from zpipe.errors import ZpipeError

if TYPE_CHECKING:
    from zpipe.bundle import Bundle
    from zpipe.executors.cuda.presence import Gpu, Gpus, Missing
    from zpipe.executors.tensorrt.manifest import Engine, EngineKey
    from zpipe.topology import Topology

#: Importing torch from a slow SD card takes most of a minute; so may building engines, where `auto` finds none.
PROBE_SECONDS = 90.0
DRIVER_REMEDY = "install NVIDIA's driver; in a container: docker run --gpus all"


class Extra(NamedTuple):
    """A library that some need: `code` imports it and prints a line about it; `use` says what for.

    `remedy` is for where it is missing, `mend` for where it is installed and does not load.
    """

    module: str
    code: str
    use: str
    remedy: str
    mend: str


class Library(NamedTuple):
    """A TensorRT that loads: its version, and the capabilities it lists; none where it builds for the GPU it runs on."""

    version: str
    targets: tuple[str, ...] = ()


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
    "pip install --force-reinstall --no-cache-dir --no-deps pycuda, with a CUDA toolkit no newer than the driver",
)
_NVIDIA_SAYS = "TensorRT itself is not on PyPI, NVIDIA says where: docs.nvidia.com/deeplearning/tensorrt"
#: By the key of the flavour in the names of engines.
FLAVOURS = {
    "trt": Extra(
        "tensorrt",
        _FLAVOUR.format("trt"),
        "for executor trt, or tensorrt_rtx",
        f"pip install 'zpipe[rtx]' does; {_NVIDIA_SAYS}",
        "install it anew as docs.nvidia.com/deeplearning/tensorrt says, or: pip install 'zpipe[rtx]'",
    ),
    "rtx": Extra(
        "tensorrt_rtx",
        _FLAVOUR.format("rtx"),
        "for executor trt",
        "pip install 'zpipe[rtx]'",
        "pip install --force-reinstall --no-cache-dir tensorrt-rtx",
    ),
}
TORCH = Extra(
    "torch",
    "import torch; print(torch.__version__, 'with CUDA' if torch.cuda.is_available() else 'without CUDA')",
    "for `zpipe train` and executor torch-cuda",
    "pip install 'zpipe[train]'",
    "pip install --force-reinstall torch",
)
EXTRAS = (PYCUDA, *FLAVOURS.values(), TORCH)

_AUTO = f"""
from zpipe.bundle import load_bundle
from zpipe.executors.auto import make
bundle = load_bundle({BUNDLE!r}, verify=False)
make(bundle, range(len(bundle.stages)), max_batch=8, note=print).close()
"""


#: Given a topology and a rank.
_TRIAL = """
import json, sys
from zpipe.configure import prepare
from zpipe.runtime.node import executor_for
from zpipe.topology import from_dict
topology, bundle = prepare(from_dict(json.loads(sys.argv[1])))
executor_for(topology, bundle, int(sys.argv[2]), note=print).close()
"""


def findings() -> list[Finding]:
    """All of it, in the order in which one thing needs the other."""
    try:
        from zpipe.executors.cuda.presence import gpus

        there = gpus()
    except ImportError as exc:
        return [Finding("NVIDIA driver", "warning", f"not looked at: {reason(exc)}", "mend what is missing above")]
    pycuda = extra(PYCUDA)
    found, libraries = [nvidia_driver(there), pycuda], {}
    for key, wanted in FLAVOURS.items():
        finding, library = flavour(wanted, there)
        found.append(finding)
        if library is not None:
            libraries[key] = library
    return [*found, extra(TORCH), *engines(there, libraries, pycuda), auto()]


# ---- what is here ------------------------------------------------------------------------------


def nvidia_driver(there: Gpus | Missing) -> Finding:
    """What the CUDA driver shows. No GPU at all is fine."""
    from zpipe.executors.cuda.presence import NO_GPU, Gpus

    if isinstance(there, Gpus):
        return Finding("NVIDIA driver", "ok", str(there))
    if there.found == NO_GPU:
        return Finding("NVIDIA driver", "ok", f"none, and {NO_GPU}; stages run on the CPU")
    return Finding("NVIDIA driver", "broken", f"found {there.found}, expected {there.expected}", there.remedy)


def extra(wanted: Extra) -> Finding:
    """A library only some need, imported in a process of its own."""
    remedy, mend = _remedies(wanted)
    if not installed(wanted.module):
        return Finding(wanted.module, "missing", f"not installed ({wanted.use})", remedy)
    code, said = _run(wanted.code)
    if code == 0:
        return Finding(wanted.module, "ok", said)
    if code is None:
        return Finding(wanted.module, "broken", f"installed, but its import takes over {PROBE_SECONDS:.0f} s", mend)
    if "libcuda" in said and "undefined symbol" not in said:
        return Finding(wanted.module, "broken", f"installed, but there is no NVIDIA driver ({said})", DRIVER_REMEDY)
    return Finding(wanted.module, "broken", f"installed, but does not work: {said}", mend)


def _remedies(wanted: Extra) -> tuple[str, str]:
    """Where it is missing, and where it does not load."""
    if wanted.module.startswith("tensorrt") and JETSON.exists():
        brought = "JetPack brings it: python3 -m venv --system-site-packages .venv"
        return brought, brought
    if wanted.module == "tensorrt" and installed("tensorrt_rtx"):
        return f"not needed beside tensorrt_rtx; {_NVIDIA_SAYS}", wanted.mend
    return wanted.remedy.replace("pip ", f"{pip()} ", 1), wanted.mend.replace("pip ", f"{pip()} ", 1)


def flavour(wanted: Extra, there: Gpus | Missing) -> tuple[Finding, Library | None]:
    """One of the libraries that call themselves TensorRT, and whether it knows the GPU; None where it does not load."""
    from zpipe.executors.cuda.presence import Gpus

    finding = extra(wanted)
    if finding.status != "ok":
        return finding, None
    version, *targets = finding.found.split()
    library = Library(version, tuple(targets))
    if not targets:
        return Finding(wanted.module, "ok", f"{version}, builds for the GPU it runs on"), library
    known = f"{version}, builds for capability {', '.join(targets)}"
    if not isinstance(there, Gpus):
        return Finding(wanted.module, "ok", known), library
    unknown = [gpu for gpu in there.devices if _capability(gpu) not in targets]
    if not unknown:
        return Finding(wanted.module, "ok", f"{known}: this GPU's is among them"), library
    remedy = "whether it runs there only a trial can tell (executor auto, below); executor torch-cuda may instead"
    return Finding(wanted.module, "warning", f"{known}, not for {unknown[0]}", remedy), library


def _capability(gpu: Gpu) -> str:
    return "{}.{}".format(*gpu.capability)


# ---- what was built ----------------------------------------------------------------------------


def engines(there: Gpus | Missing, libraries: Mapping[str, Library], pycuda: Finding) -> list[Finding]:
    """The TensorRT engines of every bundle that a name finds, and whether they run here; nothing where there are none.

    Args:
        there: the GPUs.
        libraries: {flavour: its library}, those that load.
        pycuda: what was found of it.
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
            found.append(_engines_of(bundle, built, there, libraries, pycuda))
    return found


_RUNS, _MAY_RUN = "runs here", "only a trial can tell whether it runs here"


def _engines_of(
    bundle: Bundle, built: Iterable[Engine], there: Gpus | Missing, libraries: Mapping[str, Library], pycuda: Finding
) -> Finding:
    from zpipe.executors.cuda.presence import Gpus

    def alike(engine: Engine) -> tuple[str, str]:
        return str(engine.key), _verdict(bundle, engine, there, libraries, pycuda)

    said, run = [], False
    for (what, verdict), group in groupby(sorted(built, key=lambda engine: (alike(engine), engine.key.stage)), key=alike):
        stages = ", ".join(str(engine.key.stage) for engine in group)
        said.append(f"stages {stages}: {what}, {verdict}")
        run = run or verdict in (_RUNS, _MAY_RUN)
    name = f"engines of {bundle.name}"
    if run or not isinstance(there, Gpus):  # built for another machine, it may be
        return Finding(name, "ok", "; ".join(said))
    remedy = f"zpipe build --bundle {bundle.name}"
    if pycuda.status != "ok":
        remedy = pycuda.remedy
    elif not libraries:  # nothing can be built either
        remedy = _remedies(FLAVOURS["rtx"])[0]
    return Finding(name, "warning", "; ".join(said), remedy)


def _verdict(bundle: Bundle, engine: Engine, there: Gpus | Missing, libraries: Mapping[str, Library], pycuda: Finding) -> str:
    """Whether an engine is used here, and why not; the words after its name."""
    from zpipe.executors.cuda.presence import Gpus
    from zpipe.executors.tensorrt.manifest import stage_digest

    key = engine.key
    if key.onnx != stage_digest(bundle, key.stage):
        return "not used here: the stage's ONNX is another one now"
    if not engine.whole():
        return f"not used here: {engine.plan.name} is damaged"
    if not isinstance(there, Gpus):
        return f"not used here: {there.found}"
    if pycuda.status != "ok":
        return f"not used here: pycuda is {'not installed' if pycuda.status == 'missing' else 'installed, but does not work'}"
    library = {f"{name}{each.version}": each for name, each in libraries.items()}.get(key.flavour)
    if library is None:
        return f"not used here: {f'{key.flavour} is not the library here' if libraries else 'no TensorRT is installed that loads'}"
    return _verdict_on_gpu(key, there, library)


def _verdict_on_gpu(key: EngineKey, there: Gpus, library: Library) -> str:
    from zpipe.executors.tensorrt.manifest import ANY, fits

    able = [gpu for gpu in there.devices if fits(key, replace(key, target=_capability(gpu)))]
    if not able:
        return f"not used here: the GPU is {there.devices[0]}"
    listed = key.target != ANY or any(_capability(gpu) in library.targets for gpu in able)
    return _RUNS if listed else _MAY_RUN


# ---- what is made of it ------------------------------------------------------------------------


def auto() -> Finding:
    """What `executor: auto` takes for the digits bundle, tried in a process of its own: on a GPU that may build its engines."""
    code, said = _run(_AUTO)
    if code == 0:
        return Finding("executor auto", "ok", said.removeprefix("executor auto "))
    if code is None:
        return Finding("executor auto", "broken", f"its trial takes over {PROBE_SECONDS:.0f} s", "name one: executor: onnx")
    return Finding("executor auto", "broken", said, "mend what is missing above")


def executor_of(topology: Topology, rank: int) -> Finding:
    """Whether what the topology names for a node runs its stages here, tried as `auto` is."""
    node = topology.node(rank)
    name = f"executor of rank {rank}"
    if not node.stages:
        return Finding(name, "ok", "none: it hosts no stage")
    code, said = _run(_TRIAL, json.dumps(topology.to_dict()), str(rank))
    if code == 0:
        return Finding(name, "ok", said or f"{node.executor} runs stages {', '.join(map(str, node.stages))}")
    if code is None:
        said = f"its trial takes over {PROBE_SECONDS:.0f} s"
    remedy = f"mend what is missing above, or: zpipe node --rank {rank} --executor onnx"
    return Finding(name, "broken", f"{node.executor}: {said}", remedy, required=True)


def _run(code: str, *arguments: str) -> tuple[int | None, str]:
    """(exit code, None after PROBE_SECONDS; what it printed, or the last line of its complaint) of Python code in a process."""
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return None, ""
    if done.returncode == 0:
        return 0, " ".join(done.stdout.split())
    lines = done.stderr.strip().splitlines()
    return done.returncode, lines[-1] if lines else f"it ended with exit code {done.returncode}"
