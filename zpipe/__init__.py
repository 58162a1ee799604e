"""One deep network run over several small computers, exiting early when it is sure.

    async with zpipe.Pipeline.local("line4.yaml") as pipeline:
        result = await pipeline.submit(image)

Public is what this module names, and `zpipe.executors` for those who bring their own; everything else may change.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from zpipe.errors import (
    BackendUnavailable,
    BundleError,
    ConfigError,
    EngineMismatchError,
    ExecutorError,
    ExecutorLost,
    PeerLost,
    PipelineClosed,
    SampleError,
    SampleExpired,
    SampleFailed,
    SampleRejected,
    TopologyError,
    WireError,
    ZpipeError,
)
from zpipe.model import Outcome, Result

if TYPE_CHECKING:
    from zpipe.bundle import Bundle, load_bundle
    from zpipe.metrics.server import MetricsServer
    from zpipe.runtime.node import Node
    from zpipe.runtime.pipeline import Pipeline
    from zpipe.runtime.sync import SyncPipeline
    from zpipe.sim.run import simulate
    from zpipe.topology import Topology, load_topology

__version__ = "0.1.0"

# ONNX Runtime's own builds (1.31.1) tell Microsoft about each process, session and model, with a number of the machine that they
# leave in ~/.cache, over a thread and three descriptors. Whether a robot does that its owner says: ORT_DISABLE_TELEMETRY=0 lets it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "BackendUnavailable",
    "Bundle",
    "BundleError",
    "ConfigError",
    "EngineMismatchError",
    "ExecutorError",
    "ExecutorLost",
    "MetricsServer",
    "Node",
    "Outcome",
    "PeerLost",
    "Pipeline",
    "PipelineClosed",
    "Result",
    "SampleError",
    "SampleExpired",
    "SampleFailed",
    "SampleRejected",
    "SyncPipeline",
    "Topology",
    "TopologyError",
    "WireError",
    "ZpipeError",
    "__version__",
    "load_bundle",
    "load_topology",
    "simulate",
]

#: Loaded at first use: a command answers Ctrl-C before NumPy is there, and reading a topology needs no ZeroMQ.
_LATER = {
    "Bundle": "zpipe.bundle",
    "MetricsServer": "zpipe.metrics.server",
    "Node": "zpipe.runtime.node",
    "Pipeline": "zpipe.runtime.pipeline",
    "SyncPipeline": "zpipe.runtime.sync",
    "Topology": "zpipe.topology",
    "load_bundle": "zpipe.bundle",
    "load_topology": "zpipe.topology",
    "simulate": "zpipe.sim.run",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'zpipe' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATER[name]), name)
